//! Bytes of memory that filters and indexes take for each key, once all keys are in tables.

use super::{load, turn};
use crate::{
    Fallible, Terms, device,
    report::{Better, Goal, Report},
    say, subject,
};
use std::time::Duration;

#[derive(clap::Args, Clone)]
pub struct Options {
    /// Keys
    #[arg(long, default_value_t = 10_000_000)]
    keys: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 16)]
    small: usize,
}
impl Default for Options {
    fn default() -> Options {
        Options { keys: 10_000_000, small: 16 }
    }
}

pub fn run(terms: &Terms, options: &Options) -> Fallible<Vec<Report>> {
    let sizing = terms.sizing_of(options.small)?;
    let title = format!("Filters and indexes in memory, {} keys", options.keys);
    let mut report = terms.report(title, &[]);
    for kind in terms.engines() {
        say(format_args!("memory: {}", kind.name()));
        turn(&mut report, |report| {
            let place = terms.fresh()?;
            let mut store = subject::open(kind, &place.path, &sizing)?;
            let loaded = load(&mut *store, options.keys)?;
            device::settle(Duration::from_secs(120));
            let mut add = |name: &str, better, goal, sample| report.add(kind.name(), name, better, goal, sample);
            if let Some(bytes) = store.gauges()?.index_bytes {
                add("bytes a key", Better::Lower, Goal::AtMost(16.0), bytes as f64 / options.keys as f64);
            }
            add("put/s while loading, not synced", Better::Higher, Goal::None, loaded.rate());
            store.close()
        })?;
    }
    report.note(format!("Values of {} bytes beside heads of 80; one round.", options.small));
    Ok(vec![report])
}
