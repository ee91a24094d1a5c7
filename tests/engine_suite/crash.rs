//! The machine stops at every I/O of many workloads; every part of what was not synced may remain.

use crate::rig::{Model, Place, Rig, Workload, slow, tiny};
use dynarc::{
    engine::{error::EngineError, types::Write},
    sim::{
        disk::{Fault, Keep, VirtualDisk},
        executor::{Executor, Life},
        prng::Prng,
    },
};

/// How a script ended: with calls that never returned when the disk stopped.
pub struct Ended {
    pub model: Model,
    pub open_calls: Vec<Vec<Write>>,
}

/// Writes, a restart of some kind, writes, a close. Ends early when the disk stops. Errors of calls are taken as
/// "perhaps stored" (`Full`: as not stored); after one that is final, the rest of the script is left out.
pub fn script(disk: VirtualDisk, executor: Executor, seed: u64, rounds: u64) -> Ended {
    let mut work = Workload::new(seed);
    let mut model = Model::default();
    let mut disk = disk;
    for life in 0..2 {
        let Some(Ok(rig)) = Rig::try_open(disk.clone(), executor.clone(), tiny()) else {
            return Ended { model, open_calls: Vec::new() };
        };
        for _ in 0..rounds {
            let calls: Vec<_> = (0..=work.prng.below(4)).map(|_| work.call()).collect();
            let results = rig.write_together(&calls);
            let mut open_calls = Vec::new();
            let mut failed = false;
            for (call, result) in calls.iter().zip(results) {
                match result {
                    Some(Ok(())) => call.iter().for_each(|w| model.acknowledge(w)),
                    Some(Err(EngineError::Full)) => {}
                    Some(Err(_)) | None => {
                        failed = true;
                        call.iter().for_each(|w| model.perhaps(w));
                        open_calls.push(call.clone());
                    }
                }
            }
            if failed || rig.disk.stopped() {
                return Ended { model, open_calls };
            }
        }
        if life == 0 && !seed.is_multiple_of(3) {
            rig.executor.kill(Life(1));
            disk = rig.disk.kill();
        } else if rig.executor.try_block_on(rig.engine.close()).is_none_or(|r| r.is_err()) {
            return Ended { model, open_calls: Vec::new() };
        } else {
            rig.executor.kill(Life(1));
        }
    }
    Ended { model, open_calls: Vec::new() }
}

/// After a crash: all that was acknowledged is there, calls that were open happened whole or not at all, and the
/// engine goes on working.
pub fn check(disk: VirtualDisk, ended: &Ended, seed: u64, note: &str) {
    let mut model = ended.model.clone();
    let rig = Rig::open(disk, tiny());
    for call in &ended.open_calls {
        let mut outcomes = Vec::new();
        for write in call {
            let place: Place = (write.slice.0, write.key.to_vec());
            let others = ended.open_calls.iter().flatten().filter(|w| w.slice == write.slice && w.key == write.key);
            let candidates = &model.perhaps[&place];
            if others.count() > 1 || candidates.contains(&model.sure.get(&place).cloned()) {
                continue;
            }
            let found = rig.get(&place).expect("a read ends").expect("a read");
            outcomes.push(candidates.contains(&found));
        }
        assert!(outcomes.windows(2).all(|pair| pair[0] == pair[1]), "{note}: a call happened in part");
    }
    assert_eq!(rig.engine.damage(), vec![], "{note}");
    rig.verify(&mut model, note);
    let mut work = Workload::new(seed ^ 0xABCD);
    for _ in 0..6 {
        let call = work.call();
        assert_eq!(rig.write(call.clone()), Some(Ok(())), "{note}: goes on");
        call.iter().for_each(|w| model.acknowledge(w));
    }
    let rig = rig.reopen(rig.kill());
    rig.verify(&mut model, &format!("{note}, a life later"));
}

fn fresh(seed: u64) -> (VirtualDisk, Executor) {
    let (disk, executor) = (VirtualDisk::new(), Executor::new());
    if seed % 2 == 1 {
        slow(&disk, &executor, seed);
    }
    (disk, executor)
}

#[test]
fn nothing_acknowledged_is_lost_wherever_it_stops() {
    let mut stops = 0;
    for seed in 0..10 {
        let (disk, executor) = fresh(seed);
        script(disk.clone(), executor.clone(), seed, 12);
        executor.clear();
        let ios = disk.ios();
        for io in 0..ios {
            let (disk, executor) = fresh(seed);
            disk.plan(io, Fault::Stop);
            let ended = script(disk.clone(), executor.clone(), seed, 12);
            executor.kill(Life(1));
            let pending = disk.pending();
            let mut prng = Prng::new(seed << 32 | io);
            let subsets: u64 = if pending <= 2 { 1 << pending } else { 3 };
            for subset in 0..subsets {
                let copy = disk.fork();
                let crashed = copy.crash_with(&mut prng.fork(), |index| match (pending <= 2, subset >> index & 1) {
                    (true, 0) => Keep::Nothing,
                    (true, _) => Keep::All,
                    (false, _) => *prng.pick(&[Keep::Nothing, Keep::All, Keep::Pages, Keep::Sectors]).expect("four"),
                });
                check(crashed, &ended, seed, &format!("seed {seed} io {io} subset {subset}"));
                stops += 1;
            }
            executor.clear();
        }
    }
    assert!(stops > 2_000, "too few stops: {stops}");
}
