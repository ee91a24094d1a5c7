//! An engine on a virtual disk, beside the map that it must agree with.

use bytes::Bytes;
use dynarc::{
    engine::{
        Engine, Opened,
        damage::Damage,
        disk::Lane,
        error::EngineError,
        types::{Change, Durability, EngineOptions, Record, Values, Want, Write},
        wal::roll,
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

/// All of a row of testing.md with LONG_TESTS=1, as CI runs it; a third of it otherwise.
pub fn share(whole: u64) -> u64 {
    whole.div_ceil(one_of())
}
/// 1 with LONG_TESTS=1, otherwise 3: one of so many cases is tried.
pub fn one_of() -> u64 {
    if std::env::var_os("LONG_TESTS").is_some() { 1 } else { 3 }
}

/// The slices of a shard, dealt in turn.
pub fn dealt(shard: u16, shards: u16) -> Vec<SliceId> {
    (0..SLICES).filter(|slice| slice % shards == shard).map(SliceId).collect()
}

/// What the host does before shards open: the rolls of another number of shards are made into one.
pub async fn deal(disk: &VirtualDisk, shards: u16) -> Result<(), EngineError> {
    let rolls = disk.files().into_iter().filter_map(|(path, _)| {
        let shard = path.strip_prefix("log/roll-").filter(|name| name.len() == 4)?;
        u16::from_str_radix(shard, 16).ok()
    });
    let before = rolls.max().map_or(shards, |last| last + 1);
    roll::adapt(disk, before, shards).await
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
    /// Those of all shards; the first is `engine`.
    pub engines: Vec<Engine<VirtualDisk>>,
    options: EngineOptions,
}

impl Rig {
    /// `None` when the disk stops meanwhile.
    pub fn try_open(disk: VirtualDisk, executor: Executor, options: EngineOptions) -> Option<Result<Rig, EngineError>> {
        Rig::try_open_shards(disk, executor, options, 1)
    }
    /// So many shards open the directory at the same time; one error is as good as another.
    pub fn try_open_shards(
        disk: VirtualDisk,
        executor: Executor,
        options: EngineOptions,
        shards: u16,
    ) -> Option<Result<Rig, EngineError>> {
        if let Err(error) = executor.try_block_on(deal(&disk, shards))? {
            return Some(Err(error));
        }
        let owned: Vec<_> = (0..shards).map(|shard| dealt(shard, shards)).collect();
        let opening = owned
            .iter()
            .enumerate()
            .map(|(shard, slices)| Engine::open(Rc::new(disk.clone()), ShardId(shard as u16), slices, options.clone()));
        let opened: Result<Vec<_>, _> = executor.try_block_on(join_all(opening))?.into_iter().collect();
        Some(opened.map(|opened| {
            let rigs: Vec<_> =
                opened.into_iter().map(|opened| Rig::adopt(disk.clone(), executor.clone(), opened).engine).collect();
            Rig { disk, executor, engine: rigs[0].clone(), engines: rigs, options }
        }))
    }
    /// The engine that has this slice.
    pub fn of(&self, slice: u16) -> &Engine<VirtualDisk> {
        &self.engines[usize::from(slice) % self.engines.len()]
    }
    /// Counters of all shards together: flushes, compactions, collections, segments used again.
    pub fn work_done(&self) -> [u64; 4] {
        let mut sum = [0; 4];
        for stats in self.engines.iter().map(Engine::stats) {
            let counts = [stats.flushes, stats.compactions, stats.collections, stats.reuses];
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        sum
    }
    pub fn damage(&self) -> Vec<Damage> {
        self.engines.iter().flat_map(|engine| engine.damage()).collect()
    }
    /// The process is gone, with all that it held.
    pub fn end(self) {
        self.executor.clear();
    }
    /// One call, on each shard the part that is its own.
    pub async fn write_parts(&self, call: Vec<Write>) -> Result<(), EngineError> {
        let shards = self.engines.len();
        let part =
            |shard| call.iter().filter(|w| usize::from(w.slice.0) % shards == shard).cloned().collect::<Vec<_>>();
        let parts = (0..shards).map(part).zip(&self.engines).filter(|(part, _)| !part.is_empty());
        let writes = parts.map(|(part, engine)| engine.write(part, Durability::Sync));
        join_all(writes).await.into_iter().collect()
    }
    /// Drives what was opened.
    pub fn adopt(disk: VirtualDisk, executor: Executor, opened: Opened<VirtualDisk>) -> Rig {
        for (_, future) in opened.background {
            executor.spawn(Life(1), future);
        }
        let engines = vec![opened.engine.clone()];
        Rig { disk, executor, engine: opened.engine, engines, options: tiny() }
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
        self.executor.try_block_on(self.write_parts(writes))
    }
    /// All at once; a write that never ended is `None`.
    pub fn write_together(&self, calls: &[Vec<Write>]) -> Vec<Option<Result<(), EngineError>>> {
        let results: Vec<_> = calls.iter().map(|_| Rc::new(std::cell::RefCell::new(None))).collect();
        let all = calls.iter().zip(&results).map(|(call, result)| {
            let (call, result) = (call.clone(), result.clone());
            async move {
                let written = self.write_parts(call).await;
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
            let engine = self.of(place.0).clone();
            async move {
                let mut seen = Vec::new();
                for _ in 0..4 {
                    seen.push(engine.get(SliceId(place.0), &place.1, Want::Full).await);
                }
                seen
            }
        });
        let writes = calls.iter().map(|call| self.write_parts(call.clone()));
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
        self.executor.try_block_on(self.of(place.0).get(SliceId(place.0), &place.1, Want::Full))
    }
    /// Lets background work run until it rests, or for a while: where a batch of copies is as large as a segment, each
    /// leaves so much of one unused that collection never ends.
    pub fn rest(&self) {
        self.executor.run_for(Duration::from_millis(300));
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
                let scanned = self.executor.block_on(self.of(slice).scan(SliceId(slice), b"", b"\xff", limit));
                let wanted = live.iter().take(limit).cloned().collect::<Vec<_>>();
                assert_eq!(scanned, Ok(wanted), "{note}: scan of slice {slice}");
            }
        }
    }
    /// What is counted as live is what a scan of all heads finds.
    pub fn recount(&self, note: &str) {
        self.rest();
        for engine in &self.engines {
            let (counted, found) = self.executor.block_on(engine.recount()).expect("a scan");
            assert_eq!(counted, found, "{note}: live bytes by segment");
        }
    }
    pub fn close(&self) -> VirtualDisk {
        for engine in &self.engines {
            assert_eq!(self.executor.try_block_on(engine.close()), Some(Ok(())));
        }
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
    /// The same directory with another number of shards.
    pub fn reopen_with(&self, disk: VirtualDisk, shards: u16) -> Rig {
        match Rig::try_open_shards(disk, self.executor.clone(), self.options.clone(), shards) {
            Some(Ok(rig)) => rig,
            other => panic!("{shards} shards do not open: {:?}", other.map(|opened| opened.err())),
        }
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
