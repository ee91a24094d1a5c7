//! What compaction and collection do to gets: gets arrive at half of what the engine can serve, first alone, then
//! beside overwrites with all background work held back, then beside the same overwrites with background work
//! saturated.

use super::{FOR_EVER, load, only, turn};
use crate::{
    Fallible, Terms, device,
    records::Order,
    report::{Better, Goal, Report},
    say, subject,
    subject::{Kind, Sizing, Store},
    work::{Action, Outcome, Stream, Work},
};
use std::{path::Path, time::Duration};

#[derive(clap::Args, Clone)]
pub struct Options {
    /// MB of live data
    #[arg(long, default_value_t = 1000)]
    megabytes: u64,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Overwrites, in MB/s: what keeps compaction and collection busy
    #[arg(long, default_value_t = 60)]
    overwrites: u64,
}
impl Default for Options {
    fn default() -> Options {
        Options { megabytes: 1000, seconds: 6, overwrites: 60 }
    }
}

/// Gets in flight while the engine's most is found.
const DEPTH: usize = 32;
/// Workers that gets which arrive by the clock are dealt to.
const ARRIVALS: usize = 128;

pub fn run(terms: &Terms, options: &Options) -> Fallible<Vec<Report>> {
    let sizing = terms.sizing()?;
    let keys = (options.megabytes * 1_000_000 / sizing.records.user_bytes()).max(1);
    let title = format!("Gets at half load beside background work, values of {} bytes", terms.value_bytes);
    let mut report = terms.report(title, &[]);
    for round in 0..terms.rounds {
        for kind in terms.engines() {
            say(format_args!("tails: round {}, {}", round + 1, kind.name()));
            turn(&mut report, |report| measure(terms, options, report, kind, &sizing, keys))?;
        }
    }
    report.note(format!(
        "{keys} keys; gets arrive evenly at half of the rate that {DEPTH} at once reached, and their latency counts from when they were due; overwrites at {} MB/s, durable.",
        options.overwrites
    ));
    report.note("Held back: compaction and collection switched off (fjall knows no such switch). Saturated: all keys were overwritten just before, so that both have work.");
    Ok(vec![report])
}

fn measure(
    terms: &Terms,
    options: &Options,
    report: &mut Report,
    kind: Kind,
    sizing: &Sizing,
    keys: u64,
) -> Fallible<()> {
    let place = terms.fresh()?;
    let seconds = Duration::from_secs(options.seconds);
    let mut store = subject::open(kind, &place.path, sizing)?;
    load(&mut *store, keys)?;
    device::settle(Duration::from_secs(60));
    let random = Order::Random { keys, seed: 5 };
    let gets = |workers, rate| Stream { action: Action::Get, workers, order: random, operations: u64::MAX, rate };
    let most = only(&mut *store, gets(DEPTH, None), seconds / 2)?;
    let half = most.rate() / 2.0;
    let alone = only(&mut *store, gets(ARRIVALS, Some(half)), seconds)?;
    store.close()?;

    let puts = options.overwrites as f64 * 1e6 / sizing.records.user_bytes() as f64;
    let both = |store: &mut dyn Store, seed: u64| -> Fallible<Vec<Outcome>> {
        let action = Action::Put { version: 2, durable: true };
        let order = Order::Random { keys, seed };
        let overwrites = Stream { action, workers: 32, order, operations: u64::MAX, rate: Some(puts) };
        store.run(&Work { streams: vec![gets(ARRIVALS, Some(half)), overwrites], limit: seconds })
    };
    let held = Sizing { background: false, ..sizing.clone() };
    let held_back = match kind {
        Kind::Fjall => None,
        _ => Some(on(kind, &place.path, &held, |store| both(store, 6))?),
    };
    let saturated = on(kind, &place.path, sizing, |store| {
        let action = Action::Put { version: 1, durable: false };
        let order = Order::Shuffled { keys, seed: 7 };
        only(store, Stream { action, workers: DEPTH, order, operations: keys, rate: None }, FOR_EVER)?;
        both(store, 8)
    })?;

    let mut add = |name: &str, better, goal, sample| report.add(kind.name(), name, better, goal, sample);
    add("gets offered a second", Better::Neither, Goal::None, half);
    add("alone: p99 us", Better::Lower, Goal::None, alone.quantile(0.99));
    if let Some(held_back) = &held_back {
        add("held back: p99 us", Better::Lower, Goal::None, held_back[0].quantile(0.99));
    }
    let busy = &saturated[0];
    add("saturated: p99 us", Better::Lower, Goal::None, busy.quantile(0.99));
    add("saturated: p99.9 us", Better::Lower, Goal::None, busy.quantile(0.999));
    add("saturated: gets a second", Better::Neither, Goal::None, busy.rate());
    add("saturated: share of time with a backlog", Better::Neither, Goal::None, busy.backlogged);
    let over = |of: &Outcome| busy.quantile(0.99) / of.quantile(0.99).max(1e-9);
    if let Some(held_back) = &held_back {
        add("p99, saturated over held back", Better::Lower, Goal::AtMost(2.0), over(&held_back[0]));
    }
    add("p99, saturated over alone", Better::Lower, Goal::None, over(&alone));
    Ok(())
}

/// Opens, does, closes.
fn on<T>(
    kind: Kind,
    directory: &Path,
    sizing: &Sizing,
    body: impl FnOnce(&mut dyn Store) -> Fallible<T>,
) -> Fallible<T> {
    let mut store = subject::open(kind, directory, sizing)?;
    let result = body(&mut *store)?;
    store.close()?;
    Ok(result)
}
