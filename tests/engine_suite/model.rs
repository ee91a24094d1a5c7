//! Random writes, reads, scans, flushes, compactions, collections, crashes, restarts with any number of shards: always
//! what a map says.

use crate::rig::{KEYS, Model, Rig, SLICES, Workload, key, share, slow, tiny};
use dynarc::engine::types::EngineOptions;
use dynarc::sim::{
    disk::VirtualDisk,
    executor::{Executor, Life},
};

/// Sequences of the row in testing.md, over the parts that run beside each other.
const SEQUENCES: u64 = 20_000;
const PARTS: u64 = 4;

/// What happened in some sequences.
#[derive(Default, Debug)]
struct Totals {
    sequences: u64,
    calls: u64,
    /// Flushes, compactions, collections, files of segments used again.
    work: [u64; 4],
    closes: u64,
    kills: u64,
    crashes: u64,
    /// Starts with another number of shards than before.
    dealt_anew: u64,
}

/// One sequence of so many steps, mostly calls, some of them together, with restarts in between.
fn run(seed: u64, steps: u64, totals: &mut Totals) {
    let mut work = Workload::new(seed);
    let mut model = Model::default();
    let executor = Executor::new();
    let shards = 1 + work.prng.below(3) as u16;
    // Every fourth has no memory for filters.
    let table_memory_bytes = if seed % 4 == 3 { 0 } else { tiny().table_memory_bytes };
    let options = EngineOptions { table_memory_bytes, ..tiny() };
    let mut rig = Rig::try_open_shards(VirtualDisk::new(), executor.clone(), options, shards)
        .expect("opening ends")
        .expect("an empty directory opens");
    for step in 0..steps {
        let note = format!("seed {seed} step {step}");
        match work.prng.below(100) {
            0..20 => {
                let calls: Vec<_> = (0..=work.prng.below(6)).map(|_| work.call()).collect();
                let places: Vec<_> =
                    (0..8).map(|_| (work.prng.below(u64::from(SLICES)) as u16, key(work.prng.below(KEYS)))).collect();
                rig.write_and_read(&calls, &places, &model, &note);
                totals.calls += calls.len() as u64;
                calls.iter().flatten().for_each(|w| model.acknowledge(w));
            }
            20..75 => {
                let calls: Vec<_> = (0..=work.prng.below(6)).map(|_| work.call()).collect();
                let results = rig.write_together(&calls);
                totals.calls += calls.len() as u64;
                for (call, result) in calls.iter().zip(results) {
                    assert_eq!(result, Some(Ok(())), "{note}");
                    call.iter().for_each(|w| model.acknowledge(w));
                }
            }
            75..80 => rig.verify(&mut model, &note),
            choice => {
                // Mostly background work has come to rest, now and then it is struck in the middle.
                if work.prng.chance(0.8) {
                    rig.rest();
                }
                totals.work.iter_mut().zip(rig.work_done()).for_each(|(total, count)| *total += count);
                let disk = match choice {
                    80..87 => {
                        totals.closes += 1;
                        rig.close()
                    }
                    87..93 => {
                        totals.kills += 1;
                        rig.kill()
                    }
                    _ => {
                        totals.crashes += 1;
                        rig.crash(&mut work.prng)
                    }
                };
                if seed % 2 == 1 {
                    slow(&disk, &executor, seed ^ step);
                }
                let shards = 1 + work.prng.below(4).min(2) as u16;
                totals.dealt_anew += u64::from(usize::from(shards) != rig.engines.len());
                rig = rig.reopen_with(disk, shards);
                assert_eq!(rig.damage(), [], "{note}");
                rig.recount(&note);
                rig.verify(&mut model, &note);
            }
        }
    }
    rig.rest();
    totals.work.iter_mut().zip(rig.work_done()).for_each(|(total, count)| *total += count);
    rig.verify(&mut model, &format!("seed {seed} at the end"));
    rig.recount(&format!("seed {seed} at the end"));
    totals.sequences += 1;
    executor.kill(Life(1));
    executor.clear();
}

/// A part of the row, and that enough happened in it.
fn part(number: u64) {
    let (mut totals, wanted) = (Totals::default(), share(SEQUENCES / PARTS));
    for index in 0..wanted {
        let seed = number * SEQUENCES + index;
        // A few long ones: levels fill, segments come back.
        run(seed, if index.is_multiple_of(50) { 150 } else { 16 }, &mut totals);
    }
    println!("part {number}: {totals:?}");
    let Totals { sequences, calls, work, closes, kills, crashes, dealt_anew } = totals;
    assert_eq!(sequences, wanted);
    assert!(calls > 40 * wanted, "{calls} calls");
    for count in [closes, kills, crashes, dealt_anew] {
        assert!(count > wanted / 2, "{closes} closes, {kills} kills, {crashes} crashes, {dealt_anew} dealt anew");
    }
    assert!(work.iter().all(|count| *count > wanted), "flushes, compactions, collections, reuses: {work:?}");
}

#[test]
fn it_is_a_map_over_restarts_1() {
    part(0);
}
#[test]
fn it_is_a_map_over_restarts_2() {
    part(1);
}
#[test]
fn it_is_a_map_over_restarts_3() {
    part(2);
}
#[test]
fn it_is_a_map_over_restarts_4() {
    part(3);
}
