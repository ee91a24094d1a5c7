//! An engine on a virtual disk, beside the map that it must agree with.

use bytes::Bytes;
use dynarc::{
    engine::{
        Engine, Opened,
        disk::Lane,
        error::EngineError,
        types::{Change, Durability, EngineOptions, Record, Values, Want, Write},
    },
    sim::{
        disk::{Access, VirtualDisk},
        executor::{Executor, Life},
        prng::Prng,
    },
    types::{ShardId, SliceId},
};
use futures_util::future::join_all;
use std::{collections::BTreeMap, rc::Rc, time::Duration};

pub const SLICES: u16 = 3;
pub const KEYS: u64 = 24;

/// Everything small, so that a few dozen writes flush, compact and collect.
pub fn tiny() -> EngineOptions {
    EngineOptions {
        segment_bytes: 64 << 10,
        memtable_bytes: 6 << 10,
        log_replay_bytes: 128 << 10,
        block_bytes: 1 << 10,
        table_bytes: 4 << 10,
        level0_tables: 2,
        level_factor: 3,
        block_cache_bytes: 8 << 10,
        value_cache_bytes: 8 << 10,
        inline_value_bytes: 64,
        ..EngineOptions::default()
    }
}

pub type Place = (u16, Vec<u8>);
type Versions = BTreeMap<Place, Vec<Option<Record>>>;

/// What may be read: for each key the last acknowledged record, and those whose write had not ended.
#[derive(Clone, Default)]
pub struct Model {
    pub sure: BTreeMap<Place, Record>,
    /// Writes that may have happened, in order.
    pub perhaps: Versions,
}
impl Model {
    pub fn acknowledge(&mut self, write: &Write) {
        let place = place(write);
        match &write.change {
            Change::Put { head, values } => {
                self.sure.insert(place.clone(), Record { head: head.clone(), values: values.clone() });
            }
            Change::Delete => drop(self.sure.remove(&place)),
        }
        self.perhaps.remove(&place);
    }
    pub fn perhaps(&mut self, write: &Write) {
        let record = match &write.change {
            Change::Put { head, values } => Some(Record { head: head.clone(), values: values.clone() }),
            Change::Delete => None,
        };
        self.perhaps.entry(place(write)).or_default().push(record);
    }
    pub fn allows(&self, place: &Place, found: &Option<Record>) -> bool {
        self.sure.get(place) == found.as_ref() || self.perhaps.get(place).is_some_and(|all| all.contains(found))
    }
    /// What was read is what is there from now on.
    pub fn settle(&mut self, place: &Place, found: Option<Record>) {
        self.perhaps.remove(place);
        match found {
            Some(record) => drop(self.sure.insert(place.clone(), record)),
            None => drop(self.sure.remove(place)),
        }
    }
}
fn place(write: &Write) -> Place {
    (write.slice.0, write.key.to_vec())
}
pub fn key(number: u64) -> Vec<u8> {
    format!("key-{number:04}").into_bytes()
}

pub struct Rig {
    pub disk: VirtualDisk,
    pub executor: Executor,
    pub engine: Engine<VirtualDisk>,
    options: EngineOptions,
}

pub fn slices() -> Vec<SliceId> {
    (0..SLICES).map(SliceId).collect()
}

impl Rig {
    /// `None` when the disk stops meanwhile.
    pub fn try_open(disk: VirtualDisk, executor: Executor, options: EngineOptions) -> Option<Result<Rig, EngineError>> {
        let slices = slices();
        let open = Engine::open(Rc::new(disk.clone()), ShardId(0), &slices, options.clone());
        let opened = executor.try_block_on(open)?;
        Some(opened.map(|opened| Rig { options, ..Rig::adopt(disk, executor, opened) }))
    }
    /// Drives what was opened.
    pub fn adopt(disk: VirtualDisk, executor: Executor, opened: Opened<VirtualDisk>) -> Rig {
        for (_, future) in opened.background {
            executor.spawn(Life(1), future);
        }
        Rig { disk, executor, engine: opened.engine, options: tiny() }
    }
    pub fn open(disk: VirtualDisk, options: EngineOptions) -> Rig {
        Rig::open_on(disk, Executor::new(), options)
    }
    pub fn open_on(disk: VirtualDisk, executor: Executor, options: EngineOptions) -> Rig {
        match Rig::try_open(disk, executor, options) {
            Some(Ok(rig)) => rig,
            Some(Err(error)) => panic!("the engine does not open: {error}"),
            None => panic!("opening never ends"),
        }
    }
    pub fn write(&self, writes: Vec<Write>) -> Option<Result<(), EngineError>> {
        self.executor.try_block_on(self.engine.write(writes, Durability::Sync))
    }
    /// All at once; a write that never ended is `None`.
    pub fn write_together(&self, calls: &[Vec<Write>]) -> Vec<Option<Result<(), EngineError>>> {
        let results: Vec<_> = calls.iter().map(|_| Rc::new(std::cell::RefCell::new(None))).collect();
        let all = calls.iter().zip(&results).map(|(call, result)| {
            let (engine, call, result) = (self.engine.clone(), call.clone(), result.clone());
            async move {
                let written = engine.write(call, Durability::Sync).await;
                *result.borrow_mut() = Some(written);
            }
        });
        self.executor.try_block_on(join_all(all));
        results.iter().map(|r| r.borrow_mut().take()).collect()
    }
    /// Writes and reads, all at once. What was read must be what was there before or what one of the calls writes.
    pub fn write_and_read(&self, calls: &[Vec<Write>], places: &[Place], model: &Model, note: &str) {
        let mut allowed = model.clone();
        calls.iter().flatten().for_each(|write| allowed.perhaps(write));
        let reads = places.iter().map(|place| {
            let engine = self.engine.clone();
            async move {
                let mut seen = Vec::new();
                for _ in 0..4 {
                    seen.push(engine.get(SliceId(place.0), &place.1, Want::Full).await);
                }
                seen
            }
        });
        let writes = calls.iter().map(|call| self.engine.write(call.clone(), Durability::Sync));
        let both = futures_util::future::join(join_all(writes), join_all(reads));
        let (written, read) = self.executor.block_on(both);
        assert!(written.iter().all(|w| w.is_ok()), "{note}: {written:?}");
        for (place, seen) in places.iter().zip(read) {
            for found in seen {
                let found = found.unwrap_or_else(|error| panic!("{note}: {place:?}: {error}"));
                assert!(allowed.allows(place, &found), "{note}: {place:?} was {:?}", found.map(|r| r.head));
            }
        }
    }
    pub fn get(&self, place: &Place) -> Option<Result<Option<Record>, EngineError>> {
        self.executor.try_block_on(self.engine.get(SliceId(place.0), &place.1, Want::Full))
    }
    /// Lets background work run until it rests.
    pub fn rest(&self) {
        self.executor.run_for(Duration::from_secs(100));
    }
    /// Everything is as the model allows; what was open is settled by what is found.
    pub fn verify(&self, model: &mut Model, note: &str) {
        let mut live: BTreeMap<u16, Vec<(Bytes, Bytes)>> = BTreeMap::new();
        for slice in 0..SLICES {
            for number in 0..KEYS {
                let place = (slice, key(number));
                let found = match self.get(&place) {
                    Some(Ok(found)) => found,
                    other => panic!("{note}: slice {slice} key {number}: {other:?}"),
                };
                let sure = model.sure.get(&place).map(|r| r.head.clone());
                let head = found.as_ref().map(|r| r.head.clone());
                assert!(
                    model.allows(&place, &found),
                    "{note}: slice {slice} key {number} is {head:?}, should be {sure:?} or one of {:?}",
                    model
                        .perhaps
                        .get(&place)
                        .map(|all| all.iter().map(|r| r.as_ref().map(|r| r.head.clone())).collect::<Vec<_>>())
                );
                if let Some(record) = &found {
                    live.entry(slice).or_default().push((Bytes::from(place.1.clone()), record.head.clone()));
                }
                model.settle(&place, found);
            }
            let live = live.remove(&slice).unwrap_or_default();
            for limit in [10_000, 3] {
                let scanned = self.executor.block_on(self.engine.scan(SliceId(slice), b"", b"\xff", limit));
                let wanted = live.iter().take(limit).cloned().collect::<Vec<_>>();
                assert_eq!(scanned, Ok(wanted), "{note}: scan of slice {slice}");
            }
        }
    }
    /// What is counted as live is what a scan of all heads finds.
    pub fn recount(&self, note: &str) {
        self.rest();
        let (counted, found) = self.executor.block_on(self.engine.recount()).expect("a scan");
        assert_eq!(counted, found, "{note}: live bytes by segment");
    }
    pub fn close(&self) -> VirtualDisk {
        assert_eq!(self.executor.try_block_on(self.engine.close()), Some(Ok(())));
        self.executor.kill(Life(1));
        self.disk.clone()
    }
    /// The process dies, the machine does not.
    pub fn kill(&self) -> VirtualDisk {
        self.executor.kill(Life(1));
        self.disk.kill()
    }
    /// Power is lost.
    pub fn crash(&self, prng: &mut Prng) -> VirtualDisk {
        self.executor.kill(Life(1));
        self.disk.crash(prng)
    }
    /// The same directory again.
    pub fn reopen(&self, disk: VirtualDisk) -> Rig {
        Rig::open_on(disk, self.executor.clone(), self.options.clone())
    }
}

/// Random writes whose content says what they are.
pub struct Workload {
    pub prng: Prng,
    pub number: u64,
}
impl Workload {
    pub fn new(seed: u64) -> Workload {
        Workload { prng: Prng::new(seed), number: 0 }
    }
    pub fn one(&mut self) -> Write {
        self.number += 1;
        let slice = SliceId(self.prng.below(u64::from(SLICES)) as u16);
        let number = self.prng.below(KEYS);
        let key = Bytes::from(key(number));
        if self.prng.chance(0.2) {
            return Write { slice, key, change: Change::Delete };
        }
        let head = Bytes::from(format!("write {} of {}/{number}", self.number, slice.0));
        let count = if self.prng.chance(0.2) { self.prng.below(4) } else { 1 };
        let values: Values = (0..count).map(|at| self.value(at)).collect();
        Write { slice, key, change: Change::Put { head, values } }
    }
    fn value(&mut self, at: u64) -> Bytes {
        let bytes = match self.prng.below(4) {
            0 => self.prng.below(70),
            1 => 64 + self.prng.below(500),
            2 => 4096,
            _ => 1000 + self.prng.below(9000),
        };
        let seed = self.number * 16 + at;
        Bytes::from((0..bytes).map(|i| (seed.wrapping_mul(31).wrapping_add(i * 7) % 251) as u8 + 1).collect::<Vec<_>>())
    }
    /// One call of write: mostly one record, now and then several.
    pub fn call(&mut self) -> Vec<Write> {
        let count = if self.prng.chance(0.15) { 2 + self.prng.below(4) } else { 1 };
        let mut writes: Vec<Write> = Vec::new();
        for _ in 0..count {
            let write = self.one();
            if !writes.iter().any(|w| w.slice == write.slice && w.key == write.key) {
                writes.push(write);
            }
        }
        writes
    }
}

/// Makes I/Os take time, so that they overlap; for some seeds those of one lane much more than others, so that batches
/// of the log's two heads land in another order than they were sealed in.
pub fn slow(disk: &VirtualDisk, executor: &Executor, seed: u64) {
    let mut prng = Prng::new(seed);
    let late = prng.pick(&[None, Some(Lane::Background), Some(Lane::Log)]).copied().flatten();
    disk.set_clock(executor, move |access, bytes| {
        let lane = match access {
            Access::Write(lane) | Access::WriteDurable(lane) => Some(lane),
            _ => None,
        };
        let times = if lane.is_some() && lane == late { 20 } else { 1 };
        Duration::from_micros(times * (20 + prng.below(200)) + bytes as u64 / 1000)
    });
}
