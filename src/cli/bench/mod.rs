//! `dynarc bench`: the load generator.
//!
//! - Open loop unless told otherwise: operations start by a schedule, whatever the answers do, and a latency counts
//!   from the scheduled start. `--closed` measures service time and says so. A run that achieves under 99 % of its
//!   rate is invalid: it measured a queue that grows, not a store.
//! - One generator for every protocol: `dialect` turns operations into bytes, all the rest is shared.
//! - A thread drives many connections over one epoll; each connection carries many requests.
//! - Histograms have three digits, are kept by kind and second, and are merged, never averaged.
//! - It measures itself: `--null` against an echo in this process, `--stall-test` shows that a pause of the server is
//!   seen, and every report says how late the generator was and how much of the time it was idle.
//!
//! Order of reading: `workload`, `schedule`, `dialect`, `drive`, `report`.

mod compare;
mod dialect;
mod drive;
mod echo;
mod environment;
mod hearing;
mod interrupt;
mod keys;
mod latency;
mod link;
mod plan;
mod poll;
mod report;
mod schedule;
mod session;
mod target;
#[cfg(test)]
mod tests;
mod values;
mod workload;

pub use plan::{BenchArgs, EXAMPLES};

use super::{Exit, Stop};

/// Why a benchmark could not be run or is not valid.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Exit code 3.
    #[error("{0} is not reachable: {1}")]
    Unreachable(String, std::io::Error),
    #[error("{0}")]
    Failed(String),
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
}

/// Runs what the arguments ask for. An error for a run that is not valid, which its report has explained.
pub fn run(args: BenchArgs) -> Result<(), Stop> {
    match session::run(&args) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Stop::new(Exit::Failed, "")),
        Err(error) => {
            let exit = match error {
                BenchError::Usage(_) => Exit::Usage,
                BenchError::Unreachable(..) => Exit::Unreachable,
                BenchError::Failed(_) | BenchError::Io(..) => Exit::Failed,
            };
            Err(Stop::new(exit, format!("bench: {error}")))
        }
    }
}
