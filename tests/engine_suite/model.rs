//! Random writes, reads, scans, restarts: always what a map says.

use crate::rig::{KEYS, Model, Rig, SLICES, Workload, key, slow, tiny};
use dynarc::sim::disk::VirtualDisk;

/// One run: `steps` calls, some of them together, with restarts in between.
fn run(seed: u64, steps: u64) -> [u64; 4] {
    let mut work = Workload::new(seed);
    let mut model = Model::default();
    let mut rig = Rig::open(VirtualDisk::new(), tiny());
    let mut totals = [0; 4];
    for step in 0..steps {
        let note = format!("seed {seed} step {step}");
        match work.prng.below(100) {
            0..30 => {
                let calls: Vec<_> = (0..=work.prng.below(6)).map(|_| work.call()).collect();
                let places: Vec<_> =
                    (0..8).map(|_| (work.prng.below(u64::from(SLICES)) as u16, key(work.prng.below(KEYS)))).collect();
                rig.write_and_read(&calls, &places, &model, &note);
                calls.iter().flatten().for_each(|w| model.acknowledge(w));
            }
            30..80 => {
                let calls: Vec<_> = (0..=work.prng.below(6)).map(|_| work.call()).collect();
                let results = rig.write_together(&calls);
                for (call, result) in calls.iter().zip(results) {
                    assert_eq!(result, Some(Ok(())), "{note}");
                    call.iter().for_each(|w| model.acknowledge(w));
                }
            }
            80..92 => rig.verify(&mut model, &note),
            choice => {
                rig.rest();
                let stats = rig.engine.stats();
                let counts = [stats.flushes, stats.compactions, stats.collections, stats.reuses];
                totals.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
                let disk = match choice {
                    92..95 => rig.close(),
                    95..98 => rig.kill(),
                    _ => rig.crash(&mut work.prng),
                };
                if seed % 2 == 1 {
                    slow(&disk, &rig.executor, seed ^ step);
                }
                rig = rig.reopen(disk);
                assert_eq!(rig.engine.stats().damaged_reads, 0, "{note}");
                rig.recount(&note);
                rig.verify(&mut model, &note);
            }
        }
    }
    rig.verify(&mut model, &format!("seed {seed} at the end"));
    rig.recount(&format!("seed {seed} at the end"));
    totals
}

#[test]
fn it_is_a_map_over_restarts() {
    let mut totals = [0; 4];
    for seed in 0..60 {
        totals.iter_mut().zip(run(seed, 120)).for_each(|(total, count)| *total += count);
    }
    let [flushes, compactions, collections, reuses] = totals;
    assert!(flushes > 100 && compactions > 50 && collections > 50 && reuses > 50, "too little happened: {totals:?}");
}
