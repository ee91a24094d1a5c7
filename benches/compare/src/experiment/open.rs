//! How long a directory takes to serve: closed in order, and after a kill with the log full of what is in no table.
//! The kill is real: another process loads the directory and ends without a word.

use super::{FOR_EVER, only, turn};
use crate::{
    Fallible, Terms, device, fio,
    records::{Order, Records},
    report::{Better, Goal, Report},
    say, subject,
    subject::{Kind, Sizing},
    work::{Action, Stream},
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

#[derive(clap::Args, Clone)]
pub struct Options {
    /// MB of live data; 20000 for the project's own bar
    #[arg(long, default_value_t = 5000)]
    megabytes: u64,
    /// MB of fresh data that the replay is measured with, no more than the log keeps
    #[arg(long, default_value_t = 900)]
    replay_megabytes: u64,
}
impl Default for Options {
    fn default() -> Options {
        Options { megabytes: 5000, replay_megabytes: 900 }
    }
}

#[derive(clap::Args, Clone)]
pub struct Doomed {
    #[arg(long, value_enum)]
    kind: Kind,
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    keys: u64,
}

const FIO: &str = "fio";
/// Bytes of values for the replay of small records.
const SMALL: usize = 100;

pub fn run(terms: &Terms, options: &Options) -> Fallible<Vec<Report>> {
    let mut report = terms.report("Opening a directory", &[FIO]);
    let small = terms.sizing_of(SMALL)?;
    let large = terms.sizing()?;
    for round in 0..terms.rounds {
        let mut device = None;
        if fio::present() {
            let place = terms.fresh()?;
            let (file, bytes) = (place.path.join("fio"), options.replay_megabytes << 20);
            fio::lay_out(&file, bytes)?;
            let read = fio::sequential_read(&file, bytes)?.bytes_per_second / 1e6;
            report.add(FIO, "replay, large records: MB/s", Better::Higher, Goal::None, read);
            report.add(FIO, "replay, small records: MB/s", Better::Higher, Goal::None, read);
            device = Some(read);
        }
        for kind in terms.engines() {
            say(format_args!("open: round {}, {}", round + 1, kind.name()));
            turn(&mut report, |report| {
                let place = terms.fresh()?;
                let keys = options.megabytes * 1_000_000 / large.records.user_bytes();
                load_and_kill(terms, kind, &place.path, &large.records, keys)?;
                let killed = serve(kind, &place.path, &large, keys)?;
                let closed = serve(kind, &place.path, &large, keys)?;
                let mut add = |name: &str, better, goal, sample| report.add(kind.name(), name, better, goal, sample);
                add("serves after a kill: s", Better::Lower, Goal::AtMost(2.0), killed.seconds);
                add("serves after a close: s", Better::Lower, Goal::AtMost(2.0), closed.seconds);
                if let Some(bytes) = killed.replayed {
                    add("replayed after a kill: MB", Better::Neither, Goal::None, bytes as f64 / 1e6);
                }
                add("on the device: MB", Better::Neither, Goal::None, device::space(&place.path) as f64 / 1e6);
                drop(place);
                for (name, sizing) in [("large", &large), ("small", &small)] {
                    let place = terms.fresh()?;
                    let keys = options.replay_megabytes * 1_000_000 / sizing.records.user_bytes();
                    load_and_kill(terms, kind, &place.path, &sizing.records, keys)?;
                    let opened = serve(kind, &place.path, sizing, keys)?;
                    let row = format!("replay, {name} records: s");
                    report.add(kind.name(), &row, Better::Lower, Goal::None, opened.seconds);
                    // Only Dynarc tells how much it read.
                    let Some(bytes) = opened.replayed else { continue };
                    let speed = bytes as f64 / 1e6 / opened.seconds;
                    let row = format!("replay, {name} records: MB/s");
                    report.add(kind.name(), &row, Better::Higher, Goal::None, speed);
                    if let Some(device) = device {
                        let row = format!("replay, {name} records: share of fio");
                        report.add(kind.name(), &row, Better::Neither, Goal::AtLeast(0.5), speed / device);
                    }
                }
                Ok(())
            })?;
        }
    }
    report.note(format!(
        "{} MB of values of {} bytes; until the first get was answered. Kill: the process that loaded it ended without a close. The page cache was warm for those who use it.",
        options.megabytes, terms.value_bytes
    ));
    report.note(format!(
        "Replay: {} MB of fresh records of {} and {SMALL} bytes, loaded and killed; fio reads a file as large in order.",
        options.replay_megabytes, terms.value_bytes
    ));
    Ok(vec![report])
}

struct Served {
    seconds: f64,
    replayed: Option<u64>,
}

/// Opens the directory, gets one record, closes.
fn serve(kind: Kind, directory: &Path, sizing: &Sizing, keys: u64) -> Fallible<Served> {
    let begun = Instant::now();
    let mut store = subject::open(kind, directory, sizing)?;
    let get = |order, operations| Stream { action: Action::Get, workers: 1, order, operations, rate: None };
    only(&mut *store, get(Order::Random { keys, seed: 1 }, 1), FOR_EVER)?;
    let seconds = begun.elapsed().as_secs_f64();
    let replayed = store.gauges()?.replayed_bytes;
    // What was acknowledged is there: a thousand others.
    only(&mut *store, get(Order::Random { keys, seed: 2 }, 1000), FOR_EVER)?;
    device::settle(Duration::from_secs(60));
    store.close()?;
    Ok(Served { seconds, replayed })
}

fn load_and_kill(terms: &Terms, kind: Kind, directory: &Path, records: &Records, keys: u64) -> Fallible<()> {
    let name = clap::ValueEnum::to_possible_value(&kind).ok_or("an engine without a name")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["load-and-die", "--kind", name.get_name(), "--directory"]).arg(directory);
    command.args(["--keys", &keys.to_string(), "--value-bytes", &records.value_bytes.to_string()]);
    if let Some(cpu) = &terms.cpu {
        command.args(["--cpu", cpu]);
    }
    let status = command.status()?;
    if status.code() != Some(DEAD) {
        return Err(format!("loading a directory ended with {status}").into());
    }
    Ok(())
}

/// How a loader ends that has loaded everything.
const DEAD: i32 = 77;

/// Loads a directory, every put durable, and ends the process without a close.
pub fn load_and_die(terms: &Terms, doomed: &Doomed) -> Fallible<()> {
    let sizing = terms.sizing()?;
    let mut store = subject::open(doomed.kind, &doomed.directory, &sizing)?;
    let action = Action::Put { version: 0, durable: true };
    let stream = Stream { action, workers: 128, order: Order::Ascending, operations: doomed.keys, rate: None };
    only(&mut *store, stream, FOR_EVER)?;
    // Safety: ends the process; nothing of it runs again.
    unsafe { libc::_exit(DEAD) }
}
