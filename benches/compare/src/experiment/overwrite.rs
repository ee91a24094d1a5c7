//! All keys written, then overwritten three times in another order each time: how fast, how many bytes reach the
//! device for each byte of the user's, how much space is taken beyond what is live, how long acknowledgements pause.

use super::{FOR_EVER, only, turn};
use crate::{
    Fallible, Terms, device,
    device::Account,
    records::Order,
    report::{Better, Goal, Report},
    say, subject,
    subject::Kind,
    work::{Action, Stream},
};
use std::time::{Duration, Instant};

#[derive(clap::Args, Clone)]
pub struct Options {
    /// MB of live data
    #[arg(long, default_value_t = 1500)]
    megabytes: u64,
    /// Every put is acknowledged after a sync. Otherwise after a write to the log: Dynarc then syncs every 10 ms, the
    /// peers when they like
    #[arg(long)]
    synced: bool,
    /// Writers
    #[arg(long, default_value_t = 32)]
    writers: usize,
    /// Times that all keys are overwritten
    #[arg(long, default_value_t = 3)]
    times: u32,
}
impl Default for Options {
    fn default() -> Options {
        Options { megabytes: 1500, synced: false, writers: 32, times: 3 }
    }
}

/// How long background work may take to catch up after a phase.
const CATCHING_UP: Duration = Duration::from_secs(120);

pub fn run(terms: &Terms, options: &Options) -> Fallible<Vec<Report>> {
    let sizing = terms.sizing()?;
    let user_bytes = sizing.records.user_bytes();
    let keys = (options.megabytes * 1_000_000 / user_bytes).max(1);
    let live = (keys * user_bytes) as f64;
    let how = if options.synced { "synced" } else { "not synced" };
    let title = format!("All keys overwritten {} times, {how}, values of {} bytes", options.times, terms.value_bytes);
    let mut report = terms.report(title, &[]);
    for round in 0..terms.rounds {
        for kind in terms.engines() {
            say(format_args!("overwrite: round {}, {}", round + 1, kind.name()));
            turn(&mut report, |report| {
                let place = terms.fresh()?;
                let mut store = subject::open(kind, &place.path, &sizing)?;
                let mut put = |version: u32, order: Order, operations: u64| {
                    let action = Action::Put { version, durable: options.synced };
                    only(
                        &mut *store,
                        Stream { action, workers: options.writers, order, operations, rate: None },
                        FOR_EVER,
                    )
                };
                let phase = |account: Account, puts: u64| account.written as f64 / (puts * user_bytes) as f64;
                let mut add = |name: &str, better, goal, sample| report.add(kind.name(), name, better, goal, sample);

                let before = Account::now();
                let inserted = put(0, Order::Shuffled { keys, seed: 1 }, keys)?;
                device::settle(CATCHING_UP);
                let inserting = Account::now().since(before);

                let (before, begun) = (Account::now(), Instant::now());
                let overwrites = keys * u64::from(options.times);
                let (overwritten, most) =
                    device::most_space(&place.path, || put(1, Order::Shuffled { keys, seed: 2 }, overwrites));
                let overwritten = overwritten?;
                let end = device::space(&place.path);
                let loud = begun.elapsed();
                device::settle(CATCHING_UP);
                let (overwriting, quiet) = (Account::now().since(before), begun.elapsed());
                let settled = device::space(&place.path);

                let megabytes = |rate: f64| rate * user_bytes as f64 / 1e6;
                add("inserts: MB/s", Better::Higher, Goal::None, megabytes(inserted.rate()));
                add("overwrites: MB/s", Better::Higher, Goal::TimesBest(1.5), megabytes(overwritten.rate()));
                let caught_up = overwrites as f64 / (quiet - Duration::from_secs(1)).max(loud).as_secs_f64();
                add("overwrites: MB/s, caught up", Better::Higher, Goal::None, megabytes(caught_up));
                add("inserts: bytes to device / user bytes", Better::Lower, Goal::AtMost(1.3), phase(inserting, keys));
                let name = "overwrites: bytes to device / user bytes";
                add(name, Better::Lower, Goal::AtMost(1.7), phase(overwriting, overwrites));
                add("space / live, at most", Better::Lower, Goal::AtMost(1.5), most as f64 / live);
                add("space / live, at the last put", Better::Lower, Goal::None, end as f64 / live);
                add("space / live, caught up", Better::Lower, Goal::AtMost(1.5), settled as f64 / live);
                let gap = overwritten.longest_gap.as_secs_f64() * 1e3;
                add("longest gap between acknowledgements ms", Better::Lower, Goal::AtMost(50.0), gap);
                add("longest put ms", Better::Lower, Goal::None, overwritten.longest() / 1e3);
                add("p99 us", Better::Lower, Goal::None, overwritten.quantile(0.99));
                let cpu = (inserting.cpu + overwriting.cpu).as_secs_f64() * 1e6;
                add("CPU us a put", Better::Lower, Goal::None, cpu / (keys + overwrites) as f64);
                let gauges = store.gauges()?;
                let counts = [
                    ("flushes", gauges.flushes),
                    ("compactions", gauges.compactions),
                    ("collections", gauges.collections),
                ];
                for (name, count) in counts {
                    if let Some(count) = count {
                        add(name, Better::Neither, Goal::None, count as f64);
                    }
                }
                store.close()
            })?;
        }
    }
    report.note(format!(
        "{keys} keys, {:.0} MB live, {} writers; each time in another random order. {}",
        live / 1e6,
        options.writers,
        if options.synced {
            "Every put is acknowledged after a sync that covers it."
        } else {
            "Puts are acknowledged before their sync; Dynarc syncs within 10 ms, the peers when they like."
        }
    ));
    report.note(
        "Bytes to device: what the process wrote (/proc/self/io) until background work had caught up, over keys, heads and values. Space: blocks of the files, reserved ones included.",
    );
    if terms.engines().contains(&Kind::RocksDb) {
        report.note("Caught up: when nothing had been written for a second after the last put.");
    }
    Ok(vec![report])
}
