//! `repair`: how far the replicas have been compared with each other, and a comparison at once.

use super::{
    Exit, Stop,
    fetch::{self, Host, Reach},
    output,
};
use crate::http::views::{ClusterView, RepairView, encode_key};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    ffi::OsString,
    io::{IsTerminal, stderr},
    os::unix::ffi::OsStrExt,
    thread,
    time::{Duration, Instant},
};

pub const EXAMPLE: &str = "Replicas are compared all the time, each pair of them once an hour at least; `now` does not wait for that.\n\nExample:\n  dynarc repair status\n  dynarc repair now\n  dynarc repair now --key cart:8731";

#[derive(Args)]
pub struct RepairArgs {
    #[command(subcommand)]
    what: What,
}
#[derive(Subcommand)]
enum What {
    /// How far each node has compared what it holds with the other replicas
    Status(StatusArgs),
    /// Compare now, and wait until that is done; Ctrl-C ends the waiting only
    Now(NowArgs),
}
#[derive(Args)]
struct StatusArgs {
    #[command(flatten)]
    reach: Reach,
    /// Print JSON
    #[arg(long)]
    json: bool,
}
#[derive(Args)]
struct NowArgs {
    #[command(flatten)]
    reach: Reach,
    /// Only what lies in this key's arc of the ring
    #[arg(long)]
    key: Option<OsString>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub fn run(args: RepairArgs) -> Result<(), Stop> {
    match args.what {
        What::Status(args) => {
            let hosts = members(&args.reach)?;
            let (views, silent): (Vec<_>, Vec<_>) = hosts.iter().map(view).partition(Result::is_ok);
            print(&views.into_iter().flatten().collect::<Vec<_>>(), args.json)?;
            // What the others have compared with it is no older for that; what it has itself is not known.
            let silent: Vec<String> = silent.into_iter().filter_map(Result::err).map(|stop| stop.to_string()).collect();
            if silent.is_empty() { Ok(()) } else { Err(Stop::new(Exit::Degraded, silent.join("\n"))) }
        }
        What::Now(args) => now(args),
    }
}

/// All members that have not left.
fn members(reach: &Reach) -> Result<Vec<Host>, Stop> {
    let (_, cluster): (Host, ClusterView) = fetch::view(&reach.nodes, "/v1/cluster")?;
    let there = cluster.members.iter().filter(|member| !matches!(member.state.as_str(), "left" | "removed"));
    Ok(there.map(|member| Host::new(member.address, member.ports.http)).collect())
}
fn view(host: &Host) -> Result<RepairView, Stop> {
    fetch::get(host, "/v1/repair").and_then(|fetched| fetch::read(host, fetched))
}
/// All members, and what each says.
fn views_of(reach: &Reach) -> Result<(Vec<Host>, Vec<RepairView>), Stop> {
    let hosts = members(reach)?;
    let views = hosts.iter().map(view).collect::<Result<_, _>>()?;
    Ok((hosts, views))
}

fn now(args: NowArgs) -> Result<(), Stop> {
    let (hosts, before) = views_of(&args.reach)?;
    let path = match &args.key {
        Some(key) => format!("/v1/repair?key={}", encode_key(key.as_bytes())),
        None => "/v1/repair".to_owned(),
    };
    let asked = Instant::now();
    for host in &hosts {
        let _: RepairView = fetch::change(host, "POST", &path, "").and_then(|fetched| fetch::read(host, fetched))?;
    }
    let bar = if stderr().is_terminal() && !args.json { ProgressBar::new(100) } else { ProgressBar::hidden() };
    bar.set_draw_target(if bar.is_hidden() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
    if let Ok(style) = ProgressStyle::with_template("{msg} {elapsed}") {
        bar.set_style(style);
    }
    loop {
        thread::sleep(LOOK_EVERY);
        let (_, views) = views_of(&args.reach)?;
        // A core may not have heard of the wish yet: then something there is older than the wish.
        let since = asked.elapsed().as_secs();
        let compared = |view: &&RepairView| args.key.is_some() || view.oldest_arc_seconds <= since;
        let done = views.iter().filter(|view| view.arcs_waiting == 0).filter(compared).count();
        let sum = |of: fn(&RepairView) -> u64, views: &[RepairView]| views.iter().map(of).sum::<u64>();
        let sent = sum(|view| view.values_sent, &views).saturating_sub(sum(|view| view.values_sent, &before));
        bar.set_message(format!("{done} of {} nodes have compared all; {sent} values sent;", views.len()));
        bar.tick();
        if done == views.len() {
            bar.finish_and_clear();
            print(&views, args.json)?;
            let doubted = sum(|view| view.slices_doubted, &views);
            return match doubted {
                0 => Ok(()),
                _ => Err(Stop::new(Exit::Degraded, format!("{doubted} slices may still lack records"))),
            };
        }
    }
}

fn print(views: &[RepairView], json: bool) -> Result<(), Stop> {
    if json {
        return output::print_json(&views);
    }
    let rows = views.iter().map(|view| {
        [
            view.address.to_string(),
            view.id.clone(),
            output::grouped(view.arcs),
            output::grouped(view.arcs_late),
            format!("{} s", output::grouped(view.oldest_arc_seconds)),
            output::grouped(view.leaves_differed),
            output::grouped(view.values_sent),
            output::bytes(view.bytes),
            view.slices_doubted.to_string(),
        ]
    });
    let titles = ["address", "id", "arcs", "late", "oldest", "leaves differed", "values sent", "bytes", "in doubt"];
    output::print(output::table(titles, rows))
}
