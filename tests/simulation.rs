//! Whole clusters under faults, from seeds. A failure prints its seed and the command that repeats it.
//!
//! The build for tests is slow: there only some of the seeds run, and the totals are asked for in a release build.
#![allow(clippy::disallowed_methods)] // threads of the harness, not of the product

use dynarc::sim::{
    command::{MINUTES, Summary},
    gossip::{self, Trial},
    plan::Plan,
    planted::Planted,
    run::{Report, run},
};
use std::{
    collections::BTreeSet,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

/// Seeds of the long test, and of that for equal runs.
const SEEDS: u64 = if cfg!(debug_assertions) { 150 } else { 1_000 };
const TWICE: u64 = if cfg!(debug_assertions) { 10 } else { 50 };

fn plan(seed: u64) -> Plan {
    Plan::draw(seed, Duration::from_secs_f64(MINUTES * 60.0))
}

/// Runs the plans on two threads and hands over each report as it comes: a run is single-threaded and shares nothing
/// with another.
fn run_each(plans: &[Plan], mut take: impl FnMut(usize, Report)) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let (send, reports) = mpsc::channel();
        for _ in 0..2 {
            let (send, next) = (send.clone(), &next);
            scope.spawn(move || {
                while let Some((index, plan)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, plans.get(i)?)))
                {
                    send.send((index, run(plan.clone(), None))).expect("somebody listens");
                }
            });
        }
        drop(send);
        reports.into_iter().for_each(|(index, report)| take(index, report));
    });
}
fn run_all(plans: Vec<Plan>) -> Vec<Report> {
    let mut reports: Vec<Option<Report>> = plans.iter().map(|_| None).collect();
    run_each(&plans, |index, report| reports[index] = Some(report));
    reports.into_iter().flatten().collect()
}

#[test]
fn a_thousand_seeds_keep_every_promise() {
    let plans: Vec<Plan> = (1..=SEEDS).map(plan).collect();
    let mut summary = Summary::default();
    run_each(&plans, |_, report| {
        for violation in &report.violations {
            println!("seed {}: {violation}", report.seed);
            println!("repeat it with: dynarc simulate {} --trace", report.seed);
        }
        summary.add(&report);
    });
    println!("{} operations, {} faults", summary.operations, summary.faults.total());
    assert_eq!(summary.broken, [] as [u64; 0], "seeds that broke a promise");
    // That the runs were worth something: work was done, and every kind of fault struck, in every state.
    let share = SEEDS as f64 / 1_000.0;
    assert!(summary.operations as f64 > 4_000_000.0 * share, "{} operations", summary.operations);
    assert!(summary.acknowledged as f64 > 1_000_000.0 * share, "{} acknowledged writes", summary.acknowledged);
    assert!(summary.faults.total() as f64 > 50_000.0 * share, "{} faults", summary.faults.total());
    for (name, count) in summary.faults.named() {
        assert!(count > 0 || name == "planted", "no {name} in {SEEDS} seeds");
    }
    let gaps = if cfg!(debug_assertions) { Vec::new() } else { summary.coverage.gaps() };
    assert_eq!(gaps, [] as [String; 0], "faults that never struck in some state");
}

/// Runs of twelve seconds: what happens soon after a start, and at the end of the faults, has a greater share in them.
#[test]
fn a_thousand_short_runs_keep_every_promise() {
    let seconds = Duration::from_secs_f64(SHORT_MINUTES * 60.0);
    // These once broke one.
    let known = [
        100_105, 100_470, 100_565, 101_460, 102_077, 102_404, 103_687, 105_838, 109_352, 113_520, 200_152, 200_549,
        1_000_999, 1_009_579, 1_012_468, 1_046_046, 1_061_510, 4_000_421, 4_003_268, 9_010_803,
    ];
    let seeds = known.into_iter().chain(100_000..100_000 + SEEDS - known.len() as u64);
    let plans: Vec<Plan> = seeds.map(|seed| Plan::draw(seed, seconds)).collect();
    let mut broken = Vec::new();
    run_each(&plans, |_, report| {
        for violation in &report.violations {
            println!("seed {}: {violation}", report.seed);
            println!("repeat it with: dynarc simulate {} --minutes {SHORT_MINUTES} --trace", report.seed);
            broken.push(report.seed);
        }
    });
    assert_eq!(broken, [] as [u64; 0], "seeds that broke a promise");
}
const SHORT_MINUTES: f64 = 0.2;

#[test]
fn the_same_seed_gives_the_same_run() {
    let plans: Vec<Plan> = (5_000..5_000 + TWICE).flat_map(|seed| [plan(seed), plan(seed)]).collect();
    let reports = run_all(plans);
    for pair in reports.chunks(2) {
        assert!(pair[0].events > 500, "seed {}: hardly anything happened", pair[0].seed);
        let sums =
            |r: &Report| (r.hash, r.events, r.clients, r.writes, r.outcomes, r.faults, r.disk, r.violations.clone());
        assert_eq!(sums(&pair[0]), sums(&pair[1]), "seed {}", pair[0].seed);
    }
    let hashes: BTreeSet<u64> = reports.iter().map(|r| r.hash).collect();
    assert_eq!(hashes.len(), reports.len() / 2, "different seeds give different runs");
}

/// Seeds until a planted defect is noticed. Small steps: most are noticed within a few.
fn seeds_until_noticed(planted: Planted) -> Option<(u64, Report)> {
    (0..200).step_by(4).find_map(|from| {
        let reports = run_all((from..from + 4).map(|seed| plan(2_000 + seed).plant(planted)).collect());
        reports.into_iter().enumerate().find(|(_, r)| !r.ok()).map(|(index, r)| (from + index as u64 + 1, r))
    })
}

#[test]
fn planted_defects_are_noticed() {
    for &planted in Planted::ALL {
        let Some((seeds, report)) = seeds_until_noticed(planted) else {
            panic!("{} was not noticed in 200 seeds", planted.name());
        };
        println!("{} after {seeds} seeds: {}", planted.name(), report.violations[0]);
        assert!(report.faults.planted > 0 || SETTINGS.contains(&planted), "{} did nothing", planted.name());
    }
}
/// Defects that strike through settings and disks, uncounted.
const SETTINGS: [Planted; 7] = [
    Planted::BoundlessHints,
    Planted::WritesCountedWrong,
    Planted::ReadsCountedWrong,
    Planted::OversizedMemory,
    Planted::FullDiskEnds,
    Planted::SkippedSync,
    Planted::ShortWrite,
];

#[test]
fn news_travels_in_rounds_that_grow_with_the_logarithm_of_the_members() {
    let sizes: &[usize] = if cfg!(debug_assertions) { &[18, 100] } else { &[18, 100, 1_000] };
    for &nodes in sizes {
        let trial = Trial { seed: 1, nodes, vnodes: 256, loss: 0.01 };
        let news = gossip::run(trial).expect("all that is said can be sent");
        println!("{news:?}");
        let doublings = (nodes as f64).log2();
        assert!(news.join_rounds <= 3.0 + 1.5 * doublings, "{news:?}");
        // Silence means something after five rounds, one more for each doubling beyond sixteen members.
        assert!(news.failure_rounds <= 8.0 + 2.0 * doublings, "{news:?}");
        assert_eq!(news.false_suspicions, 0, "{news:?}");
        // A heartbeat a member in three messages, and no frame beyond a piece of news.
        assert!(news.bytes_per_second <= 128.0 * nodes as f64, "{news:?}");
        assert!(news.frame_bytes_max <= 300 << 10, "{news:?}");
    }
}
