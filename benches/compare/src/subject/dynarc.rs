//! Dynarc's engine as a server's core hosts it: one pinned thread, its io_uring, tasks instead of threads.

use super::{Gauges, Sizing, Store};
use crate::{
    Fallible,
    records::{self, HEAD_BYTES, Records},
    work::{Action, Looks, Outcome, Progress, Work, histogram},
};
use bytes::Bytes;
use dynarc::{
    engine::{
        Engine,
        types::{Change, Durability, EngineOptions, Want, Write},
    },
    limits::{INLINE_VALUE_BYTES, SLICES_MIN},
    server::{
        boot::embedded::{self, EmbeddedCore},
        disk::RingDisk,
    },
    types::SliceId,
};
use hdrhistogram::Histogram;
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        mpsc::{self, TryRecvError},
    },
    task::{Poll, Waker},
    thread,
    time::{Duration, Instant},
};

/// Slices of the node: what a data directory is made with on a machine of up to 8 CPUs.
const SLICES: u64 = SLICES_MIN as u64;
/// Pause between two looks for a command while there is none.
const LOOK: Duration = Duration::from_millis(1);

enum Command {
    Run(Work, mpsc::Sender<Result<Vec<Outcome>, String>>),
    Gauges(mpsc::Sender<Gauges>),
    Close,
}

pub struct Dynarc {
    commands: mpsc::Sender<Command>,
    core: Option<thread::JoinHandle<Result<(), String>>>,
}

impl Dynarc {
    pub fn open(directory: &Path, sizing: &Sizing) -> Fallible<Dynarc> {
        huge_pages(false);
        let (commands, receiver) = mpsc::channel();
        let (opened, opening) = mpsc::channel();
        let (directory, sizing) = (directory.to_path_buf(), sizing.clone());
        let core = thread::Builder::new()
            .name("dynarc".into())
            .spawn(move || embedded::run(sizing.cpu, move |core| serve(core, directory, sizing, opened, receiver))?)?;
        let mut dynarc = Dynarc { commands, core: Some(core) };
        match opening.recv() {
            Ok(()) => Ok(dynarc),
            Err(_) => Err(dynarc.ended().err().unwrap_or_else(|| "the core has ended".into())),
        }
    }
    fn ended(&mut self) -> Fallible<()> {
        let Some(core) = self.core.take() else { return Ok(()) };
        Ok(core.join().map_err(|_| "the core has panicked")??)
    }
    fn ask<T>(&mut self, command: impl FnOnce(mpsc::Sender<T>) -> Command) -> Fallible<T> {
        let (sender, answer) = mpsc::channel();
        drop(self.commands.send(command(sender)));
        match answer.recv() {
            Ok(answer) => Ok(answer),
            Err(_) => Err(self.ended().err().unwrap_or_else(|| "the core has ended".into())),
        }
    }
}

impl Store for Dynarc {
    fn run(&mut self, work: &Work) -> Fallible<Vec<Outcome>> {
        Ok(self.ask(|sender| Command::Run(work.clone(), sender))??)
    }
    fn gauges(&mut self) -> Fallible<Gauges> {
        self.ask(Command::Gauges)
    }
    fn loaders(&self) -> usize {
        256
    }
    fn close(mut self: Box<Self>) -> Fallible<()> {
        drop(self.commands.send(Command::Close));
        let ended = self.ended();
        huge_pages(true);
        ended
    }
}

/// A server keeps its memory in small pages; the peers get what the kernel gives.
fn huge_pages(allowed: bool) {
    // Safety: numbers only.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, u64::from(!allowed), 0u64, 0u64, 0u64) };
}

fn options(sizing: &Sizing) -> EngineOptions {
    let mut options = EngineOptions { seed: fastrand::u64(..), ..EngineOptions::default() };
    // Small values lie in table blocks, large ones in the log.
    let blocks = if sizing.records.value_bytes < INLINE_VALUE_BYTES { 1.0 } else { 0.25 };
    options.block_cache_bytes = (sizing.cache_bytes as f64 * blocks) as usize;
    options.value_cache_bytes = sizing.cache_bytes as usize - options.block_cache_bytes;
    if !sizing.background {
        options.level0_tables = usize::MAX / 16;
        options.segment_dead_percent = 101;
    }
    options
}

async fn serve(
    core: EmbeddedCore,
    directory: PathBuf,
    sizing: Sizing,
    opened: mpsc::Sender<()>,
    commands: mpsc::Receiver<Command>,
) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let disk = Rc::new(core.disk(&directory).map_err(|e| text(&e))?);
    let slices: Vec<SliceId> = (0..SLICES as u16).map(SliceId).collect();
    let engine = core.open(disk, &slices, options(&sizing)).await.map_err(|e| text(&e))?;
    // Whoever opened waits for this.
    opened.send(()).map_err(|e| text(&e))?;
    loop {
        match commands.try_recv() {
            Ok(Command::Run(work, answer)) => drop(answer.send(run(&core, &engine, &sizing.records, &work).await)),
            Ok(Command::Gauges(answer)) => drop(answer.send(gauges(&engine))),
            Ok(Command::Close) | Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => core.pause(LOOK).await,
        }
    }
    engine.close().await.map_err(|e| text(&e))
}

fn gauges(engine: &Engine<RingDisk>) -> Gauges {
    let stats = engine.stats();
    Gauges {
        syncs: Some(stats.syncs),
        acknowledged: Some(stats.durable_writes),
        reads: Some(stats.device_reads),
        index_bytes: Some(stats.table_memory_bytes),
        replayed_bytes: Some(stats.replayed_bytes),
        flushes: Some(stats.flushes),
        compactions: Some(stats.compactions),
        collections: Some(stats.collections),
    }
}

/// What the workers of one stream share on their core.
struct Crew {
    progress: Progress,
    latency: RefCell<Histogram<u64>>,
    failure: RefCell<Option<String>>,
}

async fn run(
    core: &EmbeddedCore,
    engine: &Engine<RingDisk>,
    records: &Records,
    work: &Work,
) -> Result<Vec<Outcome>, String> {
    let start = Instant::now();
    let crew = |stream| Crew {
        progress: Progress::new(stream, work.limit, start),
        latency: RefCell::new(histogram()),
        failure: RefCell::default(),
    };
    let crews: Vec<Rc<Crew>> = work.streams.iter().map(|stream| Rc::new(crew(stream))).collect();
    let all = Rc::new(Countdown::default());
    for crew in &crews {
        for _ in 0..crew.progress.stream.workers {
            let (core_, engine, records, crew, left) =
                (core.clone(), engine.clone(), records.clone(), crew.clone(), all.enter());
            core.spawn(async move {
                if let Err(error) = labour(&core_, &engine, &records, &crew).await {
                    crew.progress.stop();
                    crew.failure.borrow_mut().get_or_insert(error);
                }
                drop(left);
            });
        }
    }
    let looks = Arc::new(Looks::default());
    let (watch, watched, looking) = (core.clone(), engine.clone(), looks.clone());
    let over = Rc::new(Cell::new(false));
    let told = over.clone();
    core.spawn(async move {
        let mut before = watched.stats();
        while !told.get() {
            watch.pause(Looks::PAUSE).await;
            let now = watched.stats();
            let worked = (now.collections, now.compactions) != (before.collections, before.compactions);
            looking.note(worked || now.compaction_backlog_bytes > 0);
            before = now;
        }
    });
    all.done().await;
    over.set(true);
    if let Some(error) = crews.iter().find_map(|c| c.failure.borrow_mut().take()) {
        return Err(error);
    }
    Ok(crews.iter().map(|c| c.progress.outcome(c.latency.borrow().clone(), looks.share())).collect())
}

/// One worker: request after request until its stream ends.
async fn labour(core: &EmbeddedCore, engine: &Engine<RingDisk>, records: &Records, crew: &Crew) -> Result<(), String> {
    while let Some(step) = crew.progress.next() {
        let mut begun = Instant::now();
        if let Some(due) = step.due {
            if due > begun {
                core.pause(due - begun).await;
            }
            begun = due;
        }
        let slice = SliceId((records::token(step.key) % SLICES) as u16);
        let key = records::key(step.key);
        match crew.progress.stream.action {
            Action::Put { version, durable } => {
                let record = records.record(step.key, version);
                let (head, value) = (record.slice(..HEAD_BYTES), record.slice(HEAD_BYTES..));
                let change = Change::Put { head, values: [value].into_iter().collect() };
                let durability = if durable { Durability::Sync } else { Durability::Interval };
                let write = Write { slice, key: Bytes::copy_from_slice(&key), change };
                engine.write(vec![write], durability).await.map_err(|e| e.to_string())?;
            }
            Action::Get => {
                let record = engine.get(slice, &key, Want::Full).await.map_err(|e| e.to_string())?;
                let bytes = record.map_or(0, |r| r.head.len() + r.values.iter().map(Bytes::len).sum::<usize>());
                if bytes != records.record_bytes() {
                    return Err(format!("key {} has {bytes} bytes", step.key));
                }
            }
        }
        let now = Instant::now();
        crew.progress.acknowledged(now);
        let nanos = now.saturating_duration_since(begun).as_nanos() as u64;
        crew.latency.borrow_mut().saturating_record(nanos.max(1));
    }
    Ok(())
}

/// Waits until all who entered have gone.
#[derive(Default)]
struct Countdown {
    inside: Cell<usize>,
    waiting: RefCell<Option<Waker>>,
}
struct Entered(Rc<Countdown>);

impl Countdown {
    fn enter(self: &Rc<Countdown>) -> Entered {
        self.inside.set(self.inside.get() + 1);
        Entered(self.clone())
    }
    async fn done(&self) {
        poll_fn(|cx| {
            if self.inside.get() == 0 {
                return Poll::Ready(());
            }
            *self.waiting.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
impl Drop for Entered {
    fn drop(&mut self) {
        self.0.inside.set(self.0.inside.get() - 1);
        if self.0.inside.get() == 0
            && let Some(waker) = self.0.waiting.borrow_mut().take()
        {
            waker.wake();
        }
    }
}
