//! What the operations are: the mixes.

use super::keys::{Distribution, KeyChooser};
use std::str::FromStr;

/// The kinds that are timed apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(usize)]
pub enum Kind {
    Get = 0,
    Put = 1,
    /// A put of a key that did not exist.
    Insert = 2,
    /// A get and then a put that builds on it, timed from the schedule to the put's answer.
    Update = 3,
}
impl Kind {
    pub const COUNT: usize = 4;
    pub const ALL: [Kind; Kind::COUNT] = [Kind::Get, Kind::Put, Kind::Insert, Kind::Update];
    pub fn name(self) -> &'static str {
        match self {
            Kind::Get => "get",
            Kind::Put => "put",
            Kind::Insert => "insert",
            Kind::Update => "update",
        }
    }
}

/// The workloads by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkloadName {
    Put,
    Get,
    Mixed,
    YcsbA,
    YcsbB,
    YcsbC,
    YcsbD,
    YcsbF,
}
impl FromStr for WorkloadName {
    type Err = String;
    fn from_str(text: &str) -> Result<WorkloadName, String> {
        Ok(match text {
            "put" => WorkloadName::Put,
            "get" => WorkloadName::Get,
            "mixed" => WorkloadName::Mixed,
            "ycsb-a" => WorkloadName::YcsbA,
            "ycsb-b" => WorkloadName::YcsbB,
            "ycsb-c" => WorkloadName::YcsbC,
            "ycsb-d" => WorkloadName::YcsbD,
            "ycsb-f" => WorkloadName::YcsbF,
            "ycsb-e" => return Err("ycsb-e scans ranges of keys, which this store does not have".into()),
            other => return Err(format!("{other:?} is none of put, get, mixed, ycsb-a, -b, -c, -d, -f")),
        })
    }
}

/// Shares of the kinds, together 1, and how keys are chosen.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct Mix {
    pub get: f64,
    pub put: f64,
    pub insert: f64,
    pub update: f64,
    pub distribution: Distribution,
}
impl Mix {
    /// The mix of a workload; `reads` is the share of gets of `mixed`, `distribution` replaces the workload's own.
    pub fn of(name: WorkloadName, reads: f64, distribution: Option<Distribution>) -> Mix {
        use WorkloadName::*;
        let (get, put, insert, update, own) = match name {
            Put => (0.0, 1.0, 0.0, 0.0, Distribution::Uniform),
            Get => (1.0, 0.0, 0.0, 0.0, Distribution::Uniform),
            Mixed => (reads, 1.0 - reads, 0.0, 0.0, Distribution::Uniform),
            YcsbA => (0.5, 0.5, 0.0, 0.0, Distribution::Zipf),
            YcsbB => (0.95, 0.05, 0.0, 0.0, Distribution::Zipf),
            YcsbC => (1.0, 0.0, 0.0, 0.0, Distribution::Zipf),
            YcsbD => (0.95, 0.0, 0.05, 0.0, Distribution::Latest),
            YcsbF => (0.5, 0.0, 0.0, 0.5, Distribution::Zipf),
        };
        Mix { get, put, insert, update, distribution: distribution.unwrap_or(own) }
    }
    pub fn writes(&self) -> bool {
        self.get < 1.0
    }
}

/// The operations of one thread, in order.
pub enum Source {
    /// Every key of a range once: the load phase.
    Each {
        next: u64,
        end: u64,
        step: u64,
    },
    Mixed {
        mix: Mix,
        keys: KeyChooser,
        existing: u64,
        insert_step: u64,
        next_insert: u64,
    },
}
impl Source {
    /// Thread `thread` of `threads` loads every `threads`-th of `keys`.
    pub fn load(keys: u64, thread: usize, threads: usize) -> Source {
        Source::Each { next: thread as u64, end: keys, step: threads.max(1) as u64 }
    }
    pub fn mixed(mix: Mix, keys: u64, thread: usize, threads: usize) -> Source {
        Source::Mixed {
            mix,
            keys: KeyChooser::new(mix.distribution, keys),
            existing: keys,
            insert_step: threads.max(1) as u64,
            next_insert: keys + thread as u64,
        }
    }
    /// The next operation, `None` when a load is through.
    pub fn next(&mut self, random: &mut fastrand::Rng) -> Option<(Kind, u64)> {
        match self {
            Source::Each { next, end, step } => {
                let key = *next;
                *next = key.saturating_add(*step);
                (key < *end).then_some((Kind::Insert, key))
            }
            Source::Mixed { mix, keys, next_insert, insert_step, .. } => {
                let draw = random.f64();
                if draw < mix.get {
                    return Some((Kind::Get, keys.choose(random)));
                }
                if draw < mix.get + mix.put {
                    return Some((Kind::Put, keys.choose(random)));
                }
                if draw < mix.get + mix.put + mix.update {
                    return Some((Kind::Update, keys.choose(random)));
                }
                let key = *next_insert;
                *next_insert += *insert_step;
                Some((Kind::Insert, key))
            }
        }
    }
    /// An insert has been answered: its key may be chosen from now on.
    pub fn inserted(&mut self, key: u64) {
        if let Source::Mixed { keys, existing, insert_step, .. } = self
            && key >= *existing
            && *insert_step == 1
        {
            *existing = key + 1;
            keys.grow_to(*existing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_add_up_and_are_drawn_by_share() {
        use WorkloadName::*;
        for name in [Put, Get, Mixed, YcsbA, YcsbB, YcsbC, YcsbD, YcsbF] {
            let mix = Mix::of(name, 0.8, None);
            assert!((mix.get + mix.put + mix.insert + mix.update - 1.0).abs() < 1e-9);
            let (mut source, mut random) = (Source::mixed(mix, 1_000, 0, 1), fastrand::Rng::with_seed(1));
            let mut counts = [0u32; Kind::COUNT];
            (0..20_000).for_each(|_| counts[source.next(&mut random).unwrap().0 as usize] += 1);
            let share = f64::from(counts[Kind::Get as usize]) / 20_000.0;
            assert!((share - mix.get).abs() < 0.02, "{name:?}: {share}");
        }
    }
    #[test]
    fn threads_load_every_key_once() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut keys: Vec<u64> = (0..3)
            .flat_map(|t| {
                let mut source = Source::load(100, t, 3);
                std::iter::from_fn(|| source.next(&mut random)).map(|(_, k)| k).collect::<Vec<_>>()
            })
            .collect();
        keys.sort_unstable();
        assert_eq!(keys, (0..100).collect::<Vec<_>>());
    }
    #[test]
    fn an_inserted_key_can_be_chosen_once_it_is_answered() {
        let mix = Mix { get: 1.0, put: 0.0, insert: 0.0, update: 0.0, distribution: Distribution::Latest };
        let (mut source, mut random) = (Source::mixed(mix, 10, 0, 1), fastrand::Rng::with_seed(1));
        let mut drawn = |source: &mut Source| (0..2_000).filter_map(|_| source.next(&mut random)).map(|o| o.1).max();
        assert_eq!(drawn(&mut source), Some(9));
        source.inserted(10);
        assert_eq!(drawn(&mut source), Some(10));
    }
}
