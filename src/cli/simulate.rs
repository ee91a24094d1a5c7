//! `simulate`: the arguments of the deterministic simulator; what it does is in [`crate::sim`].

use super::{Exit, Stop};
use crate::sim::{
    command::{self, CommandOptions, MINUTES},
    planted::Planted,
};
use clap::Args;
use std::{io, time::Instant};

pub const EXAMPLE: &str = "Exit code 1 when a promise was broken.\n\n\
    Example:\n  dynarc simulate 42\n  dynarc simulate --seeds 200\n  dynarc simulate 42 --minutes 5 --trace";

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
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Plant a defect, to see that the checkers notice
    #[arg(long, value_name = "DEFECT", value_parser = parse_planted)]
    plant: Option<Planted>,
}

fn parse_planted(text: &str) -> Result<Planted, String> {
    let names = || Planted::ALL.map(|p| p.name()).join(", ");
    Planted::ALL.into_iter().find(|p| p.name() == text).ok_or_else(|| format!("one of {}", names()))
}

pub fn run(args: SimulateArgs) -> Result<(), Stop> {
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
    match command::command(&options, &mut io::stdout().lock()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Stop::new(Exit::Failed, "a promise was broken")),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Stop::failed(format!("standard output: {e}"))),
    }
}
