//! Random gets when the data is many times the cache, beside fio on the same file system; and gets from the cache.

use super::{FOR_EVER, load, only, turn};
use crate::{
    Fallible, Terms,
    device::{self, Account, PAGE},
    fio,
    records::Order,
    report::{Better, Goal, Report},
    say, subject,
    subject::{Kind, Store},
    work::{Action, Outcome, Stream},
};
use std::time::Duration;

#[derive(clap::Args, Clone)]
pub struct Options {
    /// Times that the data is larger than the cache
    #[arg(long, default_value_t = 16)]
    times_cache: u64,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Gets in flight, and depth of fio's queue
    #[arg(long, default_value_t = 32)]
    depth: usize,
}
impl Default for Options {
    fn default() -> Options {
        Options { times_cache: 16, seconds: 5, depth: 32 }
    }
}

const FIO: &str = "fio";

pub fn run(terms: &Terms, options: &Options) -> Fallible<Vec<Report>> {
    let sizing = terms.sizing()?;
    let user_bytes = sizing.records.user_bytes();
    let keys = sizing.cache_bytes * options.times_cache / user_bytes;
    let hot = (sizing.cache_bytes / 4 / user_bytes).min(10_000);
    let seconds = Duration::from_secs(options.seconds);
    let title = format!("Gets, values of {} bytes", terms.value_bytes);
    let mut report = terms.report(title, &[FIO]);
    let block = (sizing.records.value_bytes).next_multiple_of(PAGE);
    let with_fio = fio::present();
    if !with_fio {
        report.note("fio is not installed: no column for the device.");
    }
    for round in 0..terms.rounds {
        let mut device = None;
        if with_fio {
            say(format_args!("gets: round {}, fio", round + 1));
            let (place, bytes) = (terms.fresh()?, (keys * user_bytes).next_multiple_of(1 << 20));
            let file = place.path.join("fio");
            fio::lay_out(&file, bytes)?;
            let many = fio::random_reads(&file, bytes, block, options.depth, options.seconds)?;
            let lone = fio::random_reads(&file, bytes, block, 1, options.seconds)?;
            let depth = options.depth;
            report.add(FIO, &format!("{depth} at once: get/s"), Better::Higher, Goal::None, many.per_second);
            report.add(FIO, &format!("{depth} at once: p99 us"), Better::Lower, Goal::None, many.p99);
            report.add(FIO, "1 at once: get/s", Better::Higher, Goal::None, lone.per_second);
            device = Some(many);
        }
        for kind in terms.engines() {
            say(format_args!("gets: round {}, {}", round + 1, kind.name()));
            turn(&mut report, |report| {
                let place = terms.fresh()?;
                let mut store = subject::open(kind, &place.path, &sizing)?;
                load(&mut *store, keys)?;
                device::settle(Duration::from_secs(60));
                // Opened anew, nothing is in memory tables.
                store.close()?;
                let mut store = subject::open(kind, &place.path, &sizing)?;
                device::settle(Duration::from_secs(60));
                let mut gets = |workers: usize, keys: u64, limit| measure(&mut *store, workers, keys, limit);
                // The caches fill with what they will.
                gets(options.depth, keys, seconds / 2)?;
                let (many, account, reads) = gets(options.depth, keys, seconds)?;
                let (lone, _, _) = gets(1, keys, seconds / 2)?;
                let mut add = |name: &str, better, goal, sample| report.add(kind.name(), name, better, goal, sample);
                let depth = options.depth;
                // Whoever hardly reads the device has found its files in the page cache: another measurement.
                let each = |total: f64| total / many.count().max(1) as f64;
                let past_page_cache = each(account.read as f64) > sizing.records.record_bytes() as f64 / 2.0;
                if past_page_cache {
                    add(&format!("{depth} at once: get/s"), Better::Higher, Goal::None, many.rate());
                    add(&format!("{depth} at once: p99 us"), Better::Lower, Goal::None, many.quantile(0.99));
                    add("1 at once: get/s", Better::Higher, Goal::None, lone.rate());
                }
                add("bytes read a get", Better::Lower, Goal::None, each(account.read as f64));
                add("CPU us a get", Better::Lower, Goal::None, each(account.cpu.as_secs_f64() * 1e6));
                if let Some(reads) = reads {
                    add("device reads a get", Better::Neither, Goal::AtMost(1.1), each(reads as f64));
                }
                if kind == Kind::Dynarc
                    && let Some(device) = device
                {
                    let share = many.rate() / device.per_second;
                    add(&format!("{depth} at once: share of fio"), Better::Neither, Goal::AtLeast(0.85), share);
                }
                // A few keys again and again, all of them in the cache.
                gets_of_all(&mut *store, hot)?;
                let (cached, _, reads) = measure(&mut *store, 1, hot, seconds / 2)?;
                add_cached(report, kind, &cached, reads);
                store.close()
            })?;
        }
    }
    let rocksdb = [Kind::RocksDb, Kind::RocksDbBlob].iter().any(|k| terms.engines().contains(k));
    if rocksdb {
        report.note(
            "RocksDB reads past the page cache (use_direct_reads); fjall cannot: no figures of an engine that found its files there.",
        );
    }
    report.note(format!(
        "{keys} keys, {} times the {} MiB of cache; fio: random reads of {block} bytes of a file as large. Cached: {hot} keys, one at once.",
        options.times_cache, terms.cache_mib
    ));
    Ok(vec![report])
}

fn measure(
    store: &mut dyn Store,
    workers: usize,
    keys: u64,
    limit: Duration,
) -> Fallible<(Outcome, Account, Option<u64>)> {
    let order = Order::Random { keys, seed: workers as u64 };
    let stream = Stream { action: Action::Get, workers, order, operations: u64::MAX, rate: None };
    let (reads, before) = (store.gauges()?.reads, Account::now());
    let outcome = only(store, stream, limit)?;
    let account = Account::now().since(before);
    let reads = store.gauges()?.reads.zip(reads).map(|(after, before)| after - before);
    Ok((outcome, account, reads))
}

fn gets_of_all(store: &mut dyn Store, keys: u64) -> Fallible<()> {
    // Several times: caches that resist scans keep what comes back.
    let (action, order) = (Action::Get, Order::Shuffled { keys, seed: 3 });
    only(store, Stream { action, workers: 1, order, operations: 4 * keys, rate: None }, FOR_EVER).map(drop)
}

fn add_cached(report: &mut Report, kind: Kind, cached: &Outcome, reads: Option<u64>) {
    report.add(kind.name(), "cached: get/s", Better::Higher, Goal::TimesBest(0.9), cached.rate());
    report.add(kind.name(), "cached: p99 us", Better::Lower, Goal::None, cached.quantile(0.99));
    if let Some(reads) = reads {
        let each = reads as f64 / cached.count().max(1) as f64;
        report.add(kind.name(), "cached: device reads a get", Better::Neither, Goal::None, each);
    }
}
