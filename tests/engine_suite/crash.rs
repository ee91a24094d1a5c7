//! The machine stops at every I/O of many workloads; every part of what was not synced may remain.
//!
//! One run of a workload gives all of its stops: at each I/O, when what it changes is pending and nothing of it is
//! durable, the disk is copied, with what had been acknowledged by then.

use crate::rig::{Model, Place, Rig, Workload, slow, tiny};
use dynarc::{
    engine::{error::EngineError, types::Write},
    sim::{
        disk::{Access, Keep, VirtualDisk},
        executor::{Executor, Life},
        prng::Prng,
    },
};
use futures_util::future::join_all;
use std::{cell::RefCell, rc::Rc};

/// Workloads of the row in testing.md, over the parts that run beside each other.
const WORKLOADS: u64 = 200;
const PARTS: u64 = 2;
/// Pending changes of which every subset is tried.
const ALL_SUBSETS_OF: usize = 4;
/// Subsets drawn of more.
const DRAWN_SUBSETS: u64 = 8;

/// What the clients of a script know: what was acknowledged, and the calls that have not ended.
#[derive(Clone, Default)]
pub struct Known {
    pub model: Model,
    pub open_calls: Vec<Vec<Write>>,
    /// Changes at every step of a client.
    pub steps: u64,
}

/// The same, shared with the futures of the clients.
pub type Shared = Rc<RefCell<Known>>;

impl Known {
    fn begin(&mut self, call: &[Write]) {
        self.steps += 1;
        self.open_calls.push(call.to_vec());
    }
    /// `Full`: not stored. Another error: perhaps stored, and the call stays open.
    fn end(&mut self, call: &[Write], result: &Result<(), EngineError>) {
        self.steps += 1;
        if matches!(result, Ok(()) | Err(EngineError::Full)) {
            let at = self.open_calls.iter().position(|open| open == call).expect("it was begun");
            self.open_calls.remove(at);
        }
        if result.is_ok() {
            call.iter().for_each(|write| self.model.acknowledge(write));
        }
    }
}

/// How a script ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// All of it was done.
    Whole,
    /// An engine failed, or did not open.
    Failed,
    /// The disk stopped.
    Stopped,
}

/// Writes, a restart of some kind, writes, a close. After an error that is final the rest is left out.
pub fn script(disk: VirtualDisk, executor: &Executor, seed: u64, rounds: u64, known: &Shared) -> End {
    let mut work = Workload::new(seed);
    let mut disk = disk;
    for life in 0..2 {
        let rig = match Rig::try_open(disk.clone(), executor.clone(), tiny()) {
            Some(Ok(rig)) => rig,
            Some(Err(_)) => return End::Failed,
            None => return End::Stopped,
        };
        for _ in 0..rounds {
            let calls: Vec<_> = (0..=work.prng.below(4)).map(|_| work.call()).collect();
            let writes = calls.iter().map(|call| {
                known.borrow_mut().begin(call);
                let rig = &rig;
                async move {
                    let result = rig.write_parts(call.clone()).await;
                    known.borrow_mut().end(call, &result);
                    result
                }
            });
            let Some(results) = executor.try_block_on(join_all(writes)) else { return End::Stopped };
            if results.iter().any(|result| matches!(result, Err(EngineError::Failed(_)))) {
                return End::Failed;
            }
        }
        if life == 0 && !seed.is_multiple_of(3) {
            executor.kill(Life(1));
            disk = rig.disk.kill();
            continue;
        }
        match executor.try_block_on(rig.engine.close()) {
            Some(Ok(())) => executor.kill(Life(1)),
            Some(Err(_)) => return End::Failed,
            None => return End::Stopped,
        }
    }
    End::Whole
}

/// After a crash: all that was acknowledged is there, calls that were open happened whole or not at all. `deep`: and
/// the engine goes on working, another restart long.
pub fn check(disk: VirtualDisk, known: &Known, seed: u64, shards: u16, deep: bool, note: &str) {
    let mut model = known.model.clone();
    known.open_calls.iter().flatten().for_each(|write| model.perhaps(write));
    let executor = Executor::new();
    let rig = match Rig::try_open_shards(disk, executor.clone(), tiny(), shards) {
        Some(Ok(rig)) => rig,
        other => panic!("{note}: {:?}", other.map(|opened| opened.err())),
    };
    for call in &known.open_calls {
        let mut outcomes = Vec::new();
        for write in call {
            let place: Place = (write.slice.0, write.key.to_vec());
            let others = known.open_calls.iter().flatten().filter(|w| w.slice == write.slice && w.key == write.key);
            let candidates = &model.perhaps[&place];
            if others.count() > 1 || candidates.contains(&model.sure.get(&place).cloned()) {
                continue;
            }
            let found = rig.get(&place).expect("a read ends").expect("a read");
            outcomes.push(candidates.contains(&found));
        }
        assert!(outcomes.windows(2).all(|pair| pair[0] == pair[1]), "{note}: a call happened in part");
    }
    assert_eq!(rig.damage(), vec![], "{note}");
    rig.verify(&mut model, note);
    if deep {
        let mut work = Workload::new(seed ^ 0xABCD);
        for _ in 0..6 {
            let call = work.call();
            assert_eq!(rig.write(call.clone()), Some(Ok(())), "{note}: goes on");
            call.iter().for_each(|w| model.acknowledge(w));
        }
        let rig = rig.reopen(rig.kill());
        rig.verify(&mut model, &format!("{note}, a life later"));
    }
    executor.kill(Life(1));
    executor.clear();
}

/// The disk and what was known, in the middle of an I/O.
struct Stop {
    io: u64,
    disk: VirtualDisk,
    known: Known,
}

/// Runs a workload once. Gives the stops that differ from the one before, and the number of all I/Os.
fn stops_of(seed: u64) -> (Vec<Stop>, u64) {
    let (disk, executor) = (VirtualDisk::new(), Executor::new());
    if seed % 2 == 1 {
        slow(&disk, &executor, seed);
    }
    let (known, stops) = (Shared::default(), Rc::new(RefCell::new(Vec::<Stop>::new())));
    let last = Rc::new(RefCell::new(None));
    {
        let (known, stops, from) = (known.clone(), stops.clone(), disk.clone());
        disk.watch(move |io, access| {
            let changes = !matches!(access, Access::Read(_) | Access::List);
            let steps = known.borrow().steps;
            // A read changes nothing: a stop in it is the one before, unless a client has heard something since.
            if last.replace(Some(steps)) != Some(steps) || changes {
                stops.borrow_mut().push(Stop { io, disk: from.fork(), known: known.borrow().clone() });
            }
        });
    }
    assert_eq!(script(disk.clone(), &executor, seed, 5 + seed % 4, &known), End::Whole);
    disk.unwatch();
    executor.clear();
    (stops.take(), disk.ios())
}

#[derive(Clone, Copy, Default, Debug)]
struct Totals {
    workloads: u64,
    ios: u64,
    stops: u64,
    crashes: u64,
    /// Stops of which every subset of the pending changes was kept.
    complete: u64,
    most_pending: usize,
}

fn part(number: u64) {
    let (mut totals, wanted) = (Totals::default(), WORKLOADS / PARTS);
    for seed in number * WORKLOADS..number * WORKLOADS + wanted {
        let (stops, ios) = stops_of(seed);
        totals.workloads += 1;
        totals.ios += ios;
        for stop in stops {
            let pending = stop.disk.pending();
            let complete = pending <= ALL_SUBSETS_OF;
            let mut prng = Prng::new(seed << 32 | stop.io);
            // Beside the whole subsets, one that tears.
            let subsets = if complete { (1 << pending) + u64::from(pending > 0) } else { 2 + DRAWN_SUBSETS };
            for subset in 0..subsets {
                let mut draws = prng.fork();
                let keep = |index: usize| match (complete, subset) {
                    (true, _) if subset < 1 << pending => [Keep::Nothing, Keep::All][(subset >> index & 1) as usize],
                    (false, 0) => Keep::Nothing,
                    (false, 1) => Keep::All,
                    _ => *draws.pick(&[Keep::Nothing, Keep::All, Keep::Pages, Keep::Sectors]).expect("four"),
                };
                let crashed = stop.disk.fork().crash_with(&mut prng, keep);
                let shards = 1 + (stop.io + subset) as u16 % 3;
                let deep = (stop.io + subset).is_multiple_of(5);
                check(crashed, &stop.known, seed, shards, deep, &format!("seed {seed} io {} subset {subset}", stop.io));
                totals.crashes += 1;
            }
            totals.stops += 1;
            totals.complete += u64::from(complete);
            totals.most_pending = totals.most_pending.max(pending);
        }
    }
    println!("part {number}: {totals:?}");
    let Totals { workloads, ios, stops, crashes, complete, most_pending } = totals;
    assert_eq!(workloads, wanted);
    assert!(ios > 80 * wanted && stops > 60 * wanted && crashes > 4 * stops, "too few stops: {totals:?}");
    assert!(complete > stops / 5 && most_pending > ALL_SUBSETS_OF, "too few subsets: {totals:?}");
}

#[test]
fn nothing_acknowledged_is_lost_wherever_it_stops_1() {
    part(0);
}
#[test]
fn nothing_acknowledged_is_lost_wherever_it_stops_2() {
    part(1);
}
