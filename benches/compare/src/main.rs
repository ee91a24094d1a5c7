//! Dynarc's engine beside RocksDB (leveled, and with blob files) and fjall (values apart) on one disk: the same keys,
//! the same values, the same promise at the acknowledgement, in turn, for several rounds. Prints tables of medians and
//! their ratios to the best of the peers. How to run it and what each experiment does: README.md.

mod device;
mod experiment;
mod fio;
mod records;
mod report;
mod subject;
mod work;

use clap::{Parser, Subcommand};
use report::Report;
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};
use subject::Kind;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What every fallible call of this program gives.
pub type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
#[command(version, about = "Dynarc's engine beside others, on one disk", long_about = None)]
struct Arguments {
    #[command(subcommand)]
    experiment: Experiment,
    #[command(flatten)]
    terms: Terms,
}

/// What all experiments share.
#[derive(clap::Args, Clone)]
pub struct Terms {
    /// Directory for the engines' files, on the disk to be measured; made, and emptied again. Default: beside the
    /// program
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    /// Engines, in the order of their turns
    #[arg(long, global = true, value_delimiter = ',', value_enum)]
    engines: Vec<Kind>,
    /// Rounds; figures are medians over them
    #[arg(long, global = true, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Bytes of a value
    #[arg(long, global = true, default_value_t = 10_240, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    value_bytes: u32,
    /// MiB of each engine's caches for reads, all together
    #[arg(long, global = true, default_value_t = 96, value_parser = clap::value_parser!(u32).range(8..=65536))]
    cache_mib: u32,
    /// The CPU of Dynarc's core, or "any". Default: the last that the process may use
    #[arg(long, global = true)]
    cpu: Option<String>,
    /// Tables in Markdown
    #[arg(long, global = true)]
    markdown: bool,
    /// Writes every sample there, as JSON
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand, Clone)]
enum Experiment {
    /// Durable puts of fresh keys: 32 writers, 1 writer, 64 writers
    Puts(experiment::puts::Options),
    /// All keys written, then overwritten three times: bytes a second, to the device, on the device
    Overwrite(experiment::overwrite::Options),
    /// Random gets of ten times more data than cache beside fio, and gets from the cache
    Gets(experiment::gets::Options),
    /// Gets at half load while compaction and collection are saturated
    Tails(experiment::tails::Options),
    /// Opening after a close and after a kill
    Open(experiment::open::Options),
    /// Filters and indexes in memory
    Memory(experiment::memory::Options),
    /// All of them, with their defaults
    All,
    /// Loads a directory and dies in the middle of it (part of `open`)
    #[command(hide = true)]
    LoadAndDie(experiment::open::Doomed),
}

impl Terms {
    pub fn engines(&self) -> Vec<Kind> {
        if !self.engines.is_empty() {
            return self.engines.clone();
        }
        let all = [Kind::Dynarc, Kind::RocksDb, Kind::RocksDbBlob, Kind::Fjall];
        all.into_iter().filter(|kind| kind.is_built()).collect()
    }
    pub fn sizing(&self) -> Fallible<subject::Sizing> {
        self.sizing_of(self.value_bytes as usize)
    }
    pub fn sizing_of(&self, value_bytes: usize) -> Fallible<subject::Sizing> {
        Ok(subject::Sizing {
            records: records::Records::new(value_bytes),
            cache_bytes: u64::from(self.cache_mib) << 20,
            background: true,
            cpu: self.cpu()?,
        })
    }
    fn cpu(&self) -> Fallible<Option<usize>> {
        match self.cpu.as_deref() {
            Some("any") => Ok(None),
            Some(number) => Ok(Some(number.parse().map_err(|_| "--cpu takes a number or \"any\"")?)),
            None => Ok(dynarc::server::kernel::allowed_cpus()?.last().copied()),
        }
    }
    /// An empty directory for one engine.
    pub fn fresh(&self) -> Fallible<Place> {
        let parent = match &self.dir {
            Some(dir) => dir.clone(),
            None => {
                let program = std::env::current_exe()?;
                program.parent().unwrap_or(Path::new(".")).join("compare-files")
            }
        };
        fs::create_dir_all(&parent)?;
        for n in 0u32.. {
            let path = parent.join(format!("run-{}-{n}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Place { path, parent }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err("no name is free".into())
    }
    /// An empty table with a column for each engine and some for the bare device.
    pub fn report(&self, title: impl Into<String>, device: &[&str]) -> Report {
        let mut columns = vec![Kind::Dynarc.name()];
        columns.extend(self.engines().iter().filter(|k| **k != Kind::Dynarc).map(|k| k.name()));
        let peers = columns.len() - 1;
        columns.extend(device);
        Report::new(title, &columns, peers)
    }
}

/// A directory that goes with its holder.
pub struct Place {
    pub path: PathBuf,
    parent: PathBuf,
}
impl Drop for Place {
    fn drop(&mut self) {
        // Left over is what the operator then sees and removes; the second succeeds only for the last.
        drop(fs::remove_dir_all(&self.path));
        drop(fs::remove_dir(&self.parent));
    }
}

/// One line on the standard error output, so that a long run shows where it is.
pub fn say(what: impl std::fmt::Display) {
    eprintln!("{what}");
}

#[derive(Serialize)]
struct Everything<'a> {
    machine: String,
    reports: &'a [Report],
}

fn run(arguments: &Arguments) -> Fallible<()> {
    let terms = &arguments.terms;
    let reports = match &arguments.experiment {
        Experiment::Puts(options) => experiment::puts::run(terms, options)?,
        Experiment::Overwrite(options) => experiment::overwrite::run(terms, options)?,
        Experiment::Gets(options) => experiment::gets::run(terms, options)?,
        Experiment::Tails(options) => experiment::tails::run(terms, options)?,
        Experiment::Open(options) => experiment::open::run(terms, options)?,
        Experiment::Memory(options) => experiment::memory::run(terms, options)?,
        Experiment::LoadAndDie(doomed) => return experiment::open::load_and_die(terms, doomed),
        Experiment::All => {
            let mut reports = experiment::puts::run(terms, &Default::default())?;
            reports.extend(experiment::overwrite::run(terms, &Default::default())?);
            reports.extend(experiment::gets::run(terms, &Default::default())?);
            reports.extend(experiment::tails::run(terms, &Default::default())?);
            reports.extend(experiment::open::run(terms, &Default::default())?);
            reports.extend(experiment::memory::run(terms, &Default::default())?);
            reports
        }
    };
    for report in &reports {
        println!("{}", if terms.markdown { report.markdown() } else { report.text() });
    }
    if let Some(path) = &terms.json {
        let everything = Everything { machine: machine(), reports: &reports };
        fs::write(path, serde_json::to_string_pretty(&everything)?)?;
    }
    Ok(())
}

fn machine() -> String {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let described = text("/proc/cpuinfo");
    let model = described.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1));
    let cpus = std::thread::available_parallelism().map_or(0, |n| n.get());
    format!("{}, {cpus} CPUs, Linux {}", model.unwrap_or("unknown CPU"), text("/proc/sys/kernel/osrelease").trim())
}

fn main() -> ExitCode {
    // Requests that arrive by the clock are due to the microsecond; the kernel would let sleepers be 50 us late.
    // Safety: numbers only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1u64, 0u64, 0u64, 0u64) };
    device::watch_stops();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("dynarc-compare: {error}"));
            ExitCode::FAILURE
        }
    }
}
