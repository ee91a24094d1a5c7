//! `demo`: what the design promises, shown on a running cluster to people who look at it for the first time.
//!
//! `conflict` lets two writers build on the same read and merges what they wrote. `kill` ends a node of a `dev` cluster
//! with SIGKILL, goes on reading and writing, and has it started again. Each step says what happens and checks it: a
//! promise that is not kept ends the demo with exit code 1.

use super::{
    Exit, Stop,
    fetch::{self, Fetched, Host, Reach},
    output,
    settings::FILE,
};
use crate::{
    client::{Client, Options},
    http::views::{ClusterView, NodeView, encode_key},
    types::{Ports, Value},
};
use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub const EXAMPLE: &str = "Exit code 1 when a promise is not kept.\n\n\
    Example:\n  dynarc dev        (in another terminal)\n  dynarc demo conflict\n  dynarc demo kill";

/// The file in a node's directory that asks `dynarc dev` to start the node again.
pub const START_AGAIN: &str = "start-again";
/// Writes and reads of `kill` while the node is down.
const KEYS: usize = 500;
/// How long a node may take to be up again, and hints to be delivered.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

#[derive(Args)]
pub struct DemoArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Two writers at once: both values are kept, and merged
    #[command(after_help = "Example:\n  dynarc demo conflict")]
    Conflict(ConflictArgs),
    /// A node dies and comes back: nothing fails, nothing is lost
    #[command(after_help = "Example:\n  dynarc demo kill\n  dynarc demo kill --data /tmp/five --victim n5")]
    Kill(KillArgs),
}

#[derive(Args)]
struct ConflictArgs {
    #[command(flatten)]
    reach: Reach,
}

#[derive(Args)]
struct KillArgs {
    /// Directory of the cluster, as given to `dynarc dev`
    #[arg(long, default_value = "dynarc-dev", value_name = "DIR")]
    data: PathBuf,
    /// The node to kill, by the name of its directory; default: the last one
    #[arg(long, value_name = "NAME")]
    victim: Option<String>,
}

pub fn run(args: DemoArgs) -> Result<(), Stop> {
    match args.what {
        What::Conflict(args) => conflict(&args.reach),
        What::Kill(args) => kill(&args),
    }
}

fn say(text: impl AsRef<str>) -> Result<(), Stop> {
    output::print(text.as_ref().to_owned() + "\n")
}
fn broken(what: impl std::fmt::Display) -> Stop {
    Stop::failed(format!("this should not have happened: {what}"))
}

// ---- conflict --------------------------------------------------------------------------------------------------

fn conflict(reach: &Reach) -> Result<(), Stop> {
    let hosts = healthy(&reach.nodes)?;
    let host = |index: usize| &hosts[index % hosts.len()];
    let key = format!("demo:cart:{:04x}", fastrand::u16(..));
    let path = format!("/v1/keys/{}", encode_key(key.as_bytes()));
    let cart = |items: &[&str]| json!({ "items": items });

    say("Two people change one shopping cart at the same time, through different nodes.\n")?;
    say("1. The cart is made.")?;
    put(host(0), &path, None, &cart(&["tea"]))?;

    say("\n2. Anna and Ben read it. With the value comes a context: an opaque note of what they have seen.")?;
    let context = context_of(&get(host(1), &path, 200)?)?;

    say("\n3. Anna adds jam. Her put carries the context of her read.")?;
    put(host(1), &path, Some(&context), &cart(&["tea", "jam"]))?;
    say("   Ben adds milk, through another node. He has not seen Anna's cart: his put carries the same context.")?;
    put(host(2), &path, Some(&context), &cart(&["tea", "milk"]))?;

    say(
        "\n4. Both were accepted. Where the last write wins, Anna's jam would be gone now. Here the next reader, whoever\n   it is, gets both, with status 300:",
    )?;
    let both = get(host(0), &path, 300)?;
    let siblings = both["siblings"].as_array().map_or(0, Vec::len);
    if siblings != 2 {
        return Err(broken(format!("{siblings} siblings")));
    }

    say("\n5. The reader knows what a cart is and merges. The context of that read covers both:")?;
    put(host(1), &path, Some(&context_of(&both)?), &cart(&["tea", "jam", "milk"]))?;

    say("\n6. One value again, at every node:")?;
    for host in &hosts {
        let read = get(host, &path, 200)?;
        if read["value"] != cart(&["tea", "jam", "milk"]) {
            return Err(broken(read));
        }
    }
    say(format!("\nLook yourself: dynarc get {key} --node {}", host(0)))
}

/// The HTTP addresses of the cluster's members, all of which must be up.
fn healthy(nodes: &[Host]) -> Result<Vec<Host>, Stop> {
    let (_, cluster): (Host, ClusterView) = fetch::view(nodes, "/v1/cluster")?;
    let gone = |state: &str| matches!(state, "left" | "removed");
    let members: Vec<_> = cluster.members.iter().filter(|m| !gone(&m.state)).collect();
    if let Some(member) = members.iter().find(|m| m.state != "up") {
        return Err(Stop::new(
            Exit::Degraded,
            format!("{} is {}: the demo wants a whole cluster", member.address, member.state),
        ));
    }
    Ok(members.iter().map(|m| Host::new(m.address, m.ports.http)).collect())
}

fn put(host: &Host, path: &str, context: Option<&str>, value: &Json) -> Result<(), Stop> {
    let body = json!({ "value": value }).to_string();
    let with = context.map_or(String::new(), |c| format!("  (X-Version-Context: {})", short(c)));
    say(format!("   PUT http://{host}{path} {body}{with}"))?;
    show(&fetch::put(host, path, context, &body)?, 200).map(drop)
}
fn get(host: &Host, path: &str, wanted: u16) -> Result<Json, Stop> {
    say(format!("   GET http://{host}{path}"))?;
    show(&fetch::get(host, path)?, wanted)
}
/// Prints an answer and checks its status.
fn show(answer: &Fetched, wanted: u16) -> Result<Json, Stop> {
    let body: Json = serde_json::from_slice(&answer.body).map_err(broken)?;
    let mut shown = body.clone();
    if let Some(context) = shown.get_mut("context") {
        *context = Json::from(short(context.as_str().unwrap_or_default()));
    }
    say(format!("     {} {shown}", answer.status))?;
    if answer.status == wanted {
        Ok(body)
    } else {
        Err(broken(format!("status {} instead of {wanted}", answer.status)))
    }
}
fn context_of(body: &Json) -> Result<String, Stop> {
    body["context"].as_str().map(str::to_owned).ok_or_else(|| broken("an answer without a context"))
}
/// The first letters of a context.
fn short(context: &str) -> String {
    let cut: String = context.chars().take(14).collect();
    if cut.len() < context.len() { cut + ".." } else { cut }
}

// ---- kill ------------------------------------------------------------------------------------------------------

/// A node of a `dev` cluster, as its directory describes it.
struct DevNode {
    name: String,
    directory: PathBuf,
    http: Host,
    client: SocketAddr,
}

impl DevNode {
    fn read(directory: &Path) -> Option<DevNode> {
        let settings: toml::Table = fs::read_to_string(directory.join(FILE)).ok()?.parse().ok()?;
        let ip: IpAddr = settings.get("listen")?.as_str()?.parse().ok()?;
        let usual = Ports::default();
        let port = |name: &str, usual: u16| match settings.get(name) {
            Some(port) => port.as_integer().and_then(|p| u16::try_from(p).ok()),
            None => Some(usual),
        };
        Some(DevNode {
            name: directory.file_name()?.to_str()?.to_owned(),
            directory: directory.to_owned(),
            http: Host::new(ip, port("http_port", usual.http)?),
            client: SocketAddr::new(ip, port("client_port", usual.client)?),
        })
    }
    /// The process that serves the directory now.
    fn pid(&self) -> Result<i32, Stop> {
        let noted = fs::read_to_string(self.directory.join("pid")).unwrap_or_default();
        let pid = noted.trim().parse().ok().filter(|pid| *pid > 1);
        let serves = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|b| *b == 0).any(|word| word == b"serve")
        };
        pid.filter(serves).ok_or_else(|| Stop::new(Exit::Unreachable, format!("{} does not run", self.name)))
    }
    fn figures(&self) -> Result<NodeView, Stop> {
        let fetched = fetch::get_within(&self.http, "/v1/node", Duration::from_millis(500), Duration::from_secs(2))?;
        fetch::read(&self.http, fetched)
    }
}

/// The nodes of a `dev` cluster, in order.
fn dev_nodes(data: &Path) -> Result<Vec<DevNode>, Stop> {
    let nodes: Vec<DevNode> = (1..=64).map_while(|index| DevNode::read(&data.join(format!("n{index}")))).collect();
    if nodes.len() < 3 {
        let words = format!(
            "{} holds {} nodes of `dynarc dev`, 3 are needed; start it in another terminal, or name its directory with --data",
            data.display(),
            nodes.len()
        );
        return Err(Stop::new(Exit::Unreachable, words));
    }
    Ok(nodes)
}

fn kill(args: &KillArgs) -> Result<(), Stop> {
    let mut nodes = dev_nodes(&args.data)?;
    let index = match &args.victim {
        None => nodes.len() - 1,
        Some(name) => nodes
            .iter()
            .position(|n| n.name == *name)
            .ok_or_else(|| Stop::new(Exit::Usage, format!("there is no node {name} in {}", args.data.display())))?,
    };
    let victim = nodes.remove(index);
    let hosts: Vec<Host> = nodes.iter().map(|n| n.http.clone()).collect();
    let count = healthy(&hosts)?.len();
    let pid = victim.pid()?;
    let seeds: Vec<SocketAddr> = nodes.iter().map(|n| n.client).collect();
    let mut client = Client::connect(&seeds).map_err(broken)?;
    let run = format!("{:04x}", fastrand::u16(..));

    say(format!(
        "{count} nodes. Each key lives on three of them; a write counts when two have it on disk, a read when two have\nanswered.\n"
    ))?;
    say(format!("1. {KEYS} keys are written and read back."))?;
    work(&mut client, &run, "before")?;

    say(format!(
        "\n2. {} ({}) is killed: SIGKILL, process {pid}. Nobody is told; reads and writes go on at once.",
        victim.name, victim.http
    ))?;
    let pid = rustix::process::Pid::from_raw(pid).ok_or_else(|| broken("a process id"))?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)
        .map_err(|e| Stop::failed(format!("{} cannot be killed: {e}", victim.name)))?;
    work(&mut client, &run, "while it was down")?;

    let owed = pending(&nodes)?;
    say(format!("\n3. The others keep what {} has missed, each with its name on it: {owed} hints.", victim.name))?;
    if owed == 0 {
        return Err(broken("nothing is kept for the node that is down"));
    }

    say(format!("\n4. {} is started again by `dynarc dev`.", victim.name))?;
    let start = Instant::now();
    fs::write(victim.directory.join(START_AGAIN), "")
        .map_err(|e| Stop::failed(format!("{}: {e}", victim.directory.display())))?;
    wait("it is up again", || {
        let ready = fetch::get_within(&victim.http, "/readyz", Duration::from_millis(500), Duration::from_secs(2));
        Ok(ready.is_ok_and(|fetched| fetched.status == 200))
    })?;
    say(format!("   It serves after {:.1} s. What it is owed arrives:", start.elapsed().as_secs_f64()))?;
    let mut last = None;
    wait("all hints are delivered", || {
        let left = pending(&nodes)?;
        if last != Some(left) {
            say(format!("     {left} hints to go"))?;
        }
        last = Some(left);
        Ok(left == 0)
    })?;

    say(format!("\n5. Asked alone, {} knows all that was written while it was down.", victim.name))?;
    check_alone(&victim, &run)?;
    say("   Every key has the value that was written last. Nothing failed, nothing was lost.")
}

fn key(run: &str, index: usize) -> String {
    format!("demo:kill:{run}:{index}")
}

/// Writes every key, and reads it back. Every request must succeed.
fn work(client: &mut Client, run: &str, word: &str) -> Result<(), Stop> {
    let mut longest = Duration::ZERO;
    let start = Instant::now();
    for index in 0..KEYS {
        let sent = Instant::now();
        let failed = |e: crate::client::ClientError| broken(format!("a request failed: {e}"));
        let seen = client.get(key(run, index)).map_err(failed)?;
        let value = json!({ "number": index, "written": word }).to_string();
        client
            .put(key(run, index), Value::json(value.clone()), &Options::default().context(seen.context))
            .map_err(failed)?;
        let read = client.get(key(run, index)).map_err(failed)?;
        longest = longest.max(sent.elapsed());
        if read.siblings.len() != 1 || read.siblings[0].bytes != value.as_bytes() {
            return Err(broken(format!("{} holds {} values", key(run, index), read.siblings.len())));
        }
    }
    say(format!(
        "   {KEYS} puts and {} gets in {:.1} s, none failed; the slowest round of get, put, get took {:.0} ms.",
        2 * KEYS,
        start.elapsed().as_secs_f64(),
        longest.as_secs_f64() * 1e3
    ))
}

/// Reads every key at one node, from its own copy where it has one.
fn check_alone(node: &DevNode, run: &str) -> Result<(), Stop> {
    for index in 0..KEYS {
        let path = format!("/v1/keys/{}?r=1", encode_key(key(run, index).as_bytes()));
        let answer = fetch::get(&node.http, &path)?;
        let body: Json = serde_json::from_slice(&answer.body).map_err(broken)?;
        if answer.status != 200 || body["value"]["written"] != "while it was down" {
            return Err(broken(format!("{} answers {} {body}", node.name, answer.status)));
        }
    }
    Ok(())
}

fn pending(nodes: &[DevNode]) -> Result<u64, Stop> {
    nodes.iter().map(|node| node.figures().map(|view| view.figures.hints_pending)).sum()
}

fn wait(what: &str, mut look: impl FnMut() -> Result<bool, Stop>) -> Result<(), Stop> {
    let start = Instant::now();
    while !look()? {
        if start.elapsed() > PATIENCE {
            return Err(broken(format!("it takes more than {} s until {what}", PATIENCE.as_secs())));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
