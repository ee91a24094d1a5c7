//! `simulate`: the arguments of the deterministic simulator; what it does is in [`crate::sim`].

use super::{Exit, Stop};
use crate::sim::{
    command::{self, CommandOptions, MINUTES},
    gossip,
    planted::Planted,
    run::run as simulate,
};
use clap::Args;
use std::{
    io::{self, Write},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

pub const EXAMPLE: &str = "Exit code 1 when a promise was broken.\n\n\
    Example:\n  dynarc simulate 42\n  dynarc simulate --seeds 200\n  dynarc simulate 42 --minutes 5 --trace\n  \
    dynarc simulate --gossip";

#[derive(Args)]
pub struct SimulateArgs {
    /// Everything about a run follows from it
    #[arg(default_value_t = 1)]
    seed: u64,
    /// Simulated minutes with faults
    #[arg(long, default_value_t = MINUTES, value_name = "M")]
    minutes: f64,
    /// Seeds to run, from SEED on
    #[arg(long = "seeds", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Print every event of a run
    #[arg(long, conflicts_with = "count")]
    trace: bool,
    /// Print how news travels among 18, 100 and 1,000 nodes, as a Markdown table
    #[arg(long, conflicts_with_all = ["count", "trace", "json", "plant"])]
    gossip: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Plant a defect, to see that the checkers notice
    #[arg(long, value_name = "DEFECT", value_parser = parse_planted)]
    plant: Option<Planted>,
}

fn parse_planted(text: &str) -> Result<Planted, String> {
    let names = || Planted::ALL.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ");
    Planted::from_name(text).ok_or_else(|| format!("one of {}", names()))
}

pub fn run(args: SimulateArgs) -> Result<(), Stop> {
    if args.gossip {
        let table = gossip::table(args.seed, &mut io::stdout().lock());
        return table.map_err(|e| Stop::failed(e.to_string()));
    }
    let start = Instant::now();
    let options = CommandOptions {
        seed: args.seed,
        count: args.count,
        minutes: args.minutes,
        json: args.json,
        trace: args.trace,
        planted: args.plant,
        elapsed: Box::new(move || start.elapsed()),
    };
    let mut out = io::stdout().lock();
    let kept = if options.count > 1 { spread(options, &mut out) } else { command::command(&options, &mut out) };
    match kept {
        Ok(true) => Ok(()),
        Ok(false) => Err(Stop::new(Exit::Failed, "a promise was broken")),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Stop::failed(format!("standard output: {e}"))),
    }
}

/// Many seeds over all cores: a run is single-threaded and shares nothing with another.
fn spread(options: CommandOptions, out: &mut dyn Write) -> io::Result<bool> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let (next, end) = (AtomicU64::new(options.seed), options.seed.saturating_add(options.count));
    let plan = options.planner();
    thread::scope(|scope| {
        let (send, reports) = mpsc::sync_channel(threads * 4);
        for _ in 0..threads {
            let (send, next, plan) = (send.clone(), &next, &plan);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    // Nobody listens any more: the output is closed.
                    if seed >= end || send.send(simulate(plan(seed), None)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        command::many(&options, &mut reports.into_iter(), out, &mut io::stderr().lock())
    })
}
