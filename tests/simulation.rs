//! Whole clusters under faults, from seeds. A failure prints its seed and the command that repeats it.
#![allow(clippy::disallowed_methods)] // threads of the harness, not of the product

use dynarc::sim::{
    command::{MINUTES, Summary},
    plan::Plan,
    planted::Planted,
    run::{Report, run},
};
use std::{collections::BTreeSet, thread, time::Duration};

fn plan(seed: u64) -> Plan {
    Plan::draw(seed, Duration::from_secs_f64(MINUTES * 60.0))
}

/// Runs each plan on one of two threads: a run is single-threaded and shares nothing with another.
fn run_all(plans: Vec<Plan>) -> Vec<Report> {
    let (even, odd): (Vec<_>, Vec<_>) = plans.into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
    let work = |plans: Vec<(usize, Plan)>| {
        thread::spawn(move || plans.into_iter().map(|(index, plan)| (index, run(plan, None))).collect::<Vec<_>>())
    };
    let threads = [work(even), work(odd)];
    let mut reports: Vec<_> = threads.into_iter().flat_map(|t| t.join().expect("a run does not panic")).collect();
    reports.sort_by_key(|(index, _)| *index);
    reports.into_iter().map(|(_, report)| report).collect()
}

#[test]
fn two_hundred_seeds_keep_every_promise() {
    let mut summary = Summary::default();
    for report in run_all((1..=200).map(plan).collect()) {
        for violation in &report.violations {
            println!("seed {}: {violation}", report.seed);
            println!("repeat it with: dynarc simulate {} --trace", report.seed);
        }
        summary.add(&report);
    }
    assert_eq!(summary.broken, [] as [u64; 0], "seeds that broke a promise");
    // That the runs were worth something: work was done, and every kind of fault struck.
    assert!(summary.operations > 200_000 && summary.acknowledged > 40_000, "{summary:?}");
    for (name, count) in summary.faults.named() {
        assert!(count > 0 || name == "planted", "no {name} in 200 seeds");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let plans: Vec<Plan> = (1_000..1_020).flat_map(|seed| [plan(seed), plan(seed)]).collect();
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
    for planted in Planted::ALL {
        let Some((seeds, report)) = seeds_until_noticed(planted) else {
            panic!("{} was not noticed in 200 seeds", planted.name());
        };
        println!("{} after {seeds} seeds: {}", planted.name(), report.violations[0]);
    }
}
