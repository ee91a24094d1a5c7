//! Durable puts of fresh keys: how many a second, how late, how many share a sync, and what a lone writer waits for.

use super::{only, turn};
use crate::{
    Fallible, Terms, device,
    device::Account,
    records::Order,
    report::{Better, Goal, Report},
    say, subject,
    subject::Kind,
    work::{Action, Outcome, Stream},
};
use std::time::Duration;

#[derive(clap::Args, Clone)]
pub struct Options {
    /// Seconds of each measurement with several writers
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Writers
    #[arg(long, default_value_t = 32)]
    writers: usize,
    /// Writers of the measurement of syncs
    #[arg(long, default_value_t = 64)]
    sync_writers: usize,
    /// Puts of the lone writer, and bare writes beside them
    #[arg(long, default_value_t = 3000)]
    lone: u64,
}
impl Default for Options {
    fn default() -> Options {
        Options { seconds: 6, writers: 32, sync_writers: 64, lone: 3000 }
    }
}

const DEVICE: &str = "bare write + sync";

pub fn run(terms: &Terms, options: &Options) -> Fallible<Vec<Report>> {
    let sizing = terms.sizing()?;
    let title = format!("Durable puts of fresh keys, values of {} bytes", terms.value_bytes);
    let mut report = terms.report(title, &[DEVICE]);
    for round in 0..terms.rounds {
        for kind in terms.engines() {
            say(format_args!("puts: round {}, {}", round + 1, kind.name()));
            turn(&mut report, |report| {
                let place = terms.fresh()?;
                let mut store = subject::open(kind, &place.path, &sizing)?;
                let mut first = 0;
                let mut puts = |workers: usize, operations: u64, limit: Duration| -> Fallible<(Outcome, Account)> {
                    let order = Order::Random { keys: u64::MAX, seed: first };
                    first += 1;
                    let stream = Stream {
                        action: Action::Put { version: 0, durable: true },
                        workers,
                        order,
                        operations,
                        rate: None,
                    };
                    let before = Account::now();
                    let outcome = only(&mut *store, stream, limit)?;
                    Ok((outcome, Account::now().since(before)))
                };
                let seconds = Duration::from_secs(options.seconds);
                let (lone, _) = puts(1, options.lone, seconds)?;
                let (many, account) = puts(options.writers, u64::MAX, seconds)?;
                add_many(report, options, kind, &many, account, sizing.records.user_bytes());
                report.add(kind.name(), "1 writer: p50 us", Better::Lower, Goal::None, lone.quantile(0.5));
                report.add(kind.name(), "1 writer: p99 us", Better::Lower, Goal::None, lone.quantile(0.99));
                let bare =
                    device::bare_writes(&place.path, sizing.records.user_bytes() as usize, options.lone as usize)?;
                if kind == Kind::Dynarc {
                    add_syncs(report, &mut *store, options, seconds / 2)?;
                    report.add(DEVICE, "1 writer: p50 us", Better::Lower, Goal::None, bare.reserved);
                    report.add(DEVICE, "the same into written space", Better::Neither, Goal::None, bare.written);
                    let name = "p50 of 1 writer over bare";
                    let (better, asked) = (Better::Neither, Goal::AtMost(1.2));
                    report.add(kind.name(), name, better, asked, lone.quantile(0.5) / bare.reserved);
                    let name = "p50 of 1 writer over bare into written space";
                    report.add(kind.name(), name, better, Goal::None, lone.quantile(0.5) / bare.written);
                }
                store.close()
            })?;
        }
    }
    report.note(format!(
        "Each put is acknowledged after a sync that covers it. {} writers for {} s a round: threads for the peers, tasks of one core for Dynarc.",
        options.writers, options.seconds
    ));
    report.note("bare: O_DIRECT writes of the same bytes, one after the other, each with RWF_DSYNC, measured in the same round.");
    Ok(vec![report])
}

fn add_many(report: &mut Report, options: &Options, kind: Kind, many: &Outcome, account: Account, user_bytes: u64) {
    let writers = options.writers;
    let mut add = |name: &str, better, goal, sample| {
        report.add(kind.name(), &format!("{writers} writers: {name}"), better, goal, sample);
    };
    add("put/s", Better::Higher, Goal::TimesBest(4.0), many.rate());
    add("MB/s", Better::Higher, Goal::None, many.rate() * user_bytes as f64 / 1e6);
    add("p50 us", Better::Lower, Goal::None, many.quantile(0.5));
    add("p99 us", Better::Lower, Goal::ShareOfBest(0.1), many.quantile(0.99));
    add("p99.9 us", Better::Lower, Goal::None, many.quantile(0.999));
    add("longest ms", Better::Lower, Goal::None, many.longest() / 1e3);
    let each = |total: f64| total / many.count().max(1) as f64;
    add("CPU us a put", Better::Lower, Goal::None, each(account.cpu.as_secs_f64() * 1e6));
    add("bytes written / user bytes", Better::Lower, Goal::None, each(account.written as f64) / user_bytes as f64);
}

fn add_syncs(
    report: &mut Report,
    store: &mut dyn subject::Store,
    options: &Options,
    seconds: Duration,
) -> Fallible<()> {
    let workers = options.sync_writers;
    let order = Order::Random { keys: u64::MAX, seed: 99 };
    let action = Action::Put { version: 0, durable: true };
    let before = store.gauges()?;
    let outcome = only(store, Stream { action, workers, order, operations: u64::MAX, rate: None }, seconds)?;
    let after = store.gauges()?;
    let grown = |of: fn(&subject::Gauges) -> Option<u64>| of(&after).zip(of(&before)).map(|(a, b)| (a - b) as f64);
    let name = Kind::Dynarc.name();
    if let (Some(syncs), Some(acknowledged)) = (grown(|g| g.syncs), grown(|g| g.acknowledged)) {
        let row = format!("{workers} writers: puts a sync");
        report.add(name, &row, Better::Neither, Goal::AtLeast(16.0), acknowledged / syncs.max(1.0));
    }
    let mut add = |what: &str, sample| {
        report.add(name, &format!("{workers} writers: {what}"), Better::Neither, Goal::None, sample);
    };
    add("put/s", outcome.rate());
    add("p99 us", outcome.quantile(0.99));
    Ok(())
}
