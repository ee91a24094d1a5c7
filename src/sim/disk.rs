//! A disk in memory that forgets what was not synced, breaks on demand, and can be stopped at any I/O.
//!
//! A write is visible at once and *pending* until a sync makes it durable; the same holds for names.
//! [`VirtualDisk::crash`] keeps an arbitrary part of what is pending: whole writes, single pages, single sectors, none,
//! all. What was synced stays as it was.
//!
//! A handle belongs to one life of the machine. After a crash, calls through older handles never complete: whoever
//! made them is dead. Every asynchronous call but [`Disk::breathe`] counts as one I/O, so that a test can say
//! "stop at the k-th". Without a clock every call completes when it is first polled; with one it takes the time that
//! the latency function says.
//!
//! No production code knows of any of this.

use super::{
    executor::{self, Executor},
    prng::Prng,
};
use crate::{
    engine::disk::{Disk, DiskFile, Lane, OpenMode, PageBuffer, Space, Sync},
    limits::PAGE,
    types::Instant,
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    future, io,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

mod content;
mod rot;
mod seam;
#[cfg(test)]
mod tests;

use content::{Change, Content, Inode, Page, flip, flip_page};
pub use rot::Spoiled;
pub use seam::VirtualFile;

const SECTOR: usize = 512;
const PAGE_BYTES: u64 = PAGE as u64;

/// What an I/O is, for latency functions and traces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Access {
    Open,
    List,
    Names,
    SyncDir,
    Read(Lane),
    Write(Lane),
    WriteDurable(Lane),
    Sync,
    Allocate,
}

/// What befalls one I/O.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// It fails with an I/O error; of a write, some pages may have been written.
    Error,
    /// It fails for want of space; nothing was written.
    NoSpace,
    /// A write stops half-way and says so. Other calls: an I/O error.
    ShortWrite,
    /// The machine stops in the middle of it: neither this call nor any later one completes.
    Stop,
    /// A read returns one flipped bit (the medium keeps it). Other calls: nothing happens.
    BitFlip,
}

/// Random faults, as probabilities of one I/O.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct FaultRates {
    pub read_error: f64,
    pub write_error: f64,
    pub sync_error: f64,
    pub bit_flip: f64,
}

/// Disks that lie, to show that the checkers notice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lie {
    /// Syncs and durable writes say that they are done, and are not.
    SkippedSync,
    /// A write that stops half-way now and then says that all went well.
    UnreportedShortWrite,
    /// Want of space is told as an error of the device.
    FullAsError,
}

/// What a disk that hangs does not answer: it says nothing, neither well nor badly, until it goes on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Hang {
    Writes,
    All,
}
impl Hang {
    fn holds(self, access: Access) -> bool {
        self == Hang::All || !matches!(access, Access::Read(_) | Access::Open | Access::List)
    }
}

/// What remains of one pending change after a crash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Keep {
    Nothing,
    All,
    /// Each page of a write by a coin. Names: by a coin.
    Pages,
    /// Each sector of 512 bytes by a coin. Names: by a coin.
    Sectors,
}

/// What has happened to a disk so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskCounts {
    /// I/Os begun, of all kinds.
    pub ios: u64,
    pub reads: u64,
    pub writes: u64,
    pub syncs: u64,
    pub bytes_written: u64,
    pub errors: u64,
    pub short_writes: u64,
    pub bit_flips: u64,
    pub misdirected_writes: u64,
    /// Writes that were said to be done and reached nothing.
    pub vanished_writes: u64,
    pub crashes: u64,
    /// Pending writes that a crash dropped whole, and in part.
    pub lost_writes: u64,
    pub torn_writes: u64,
    pub lost_names: u64,
}

// ---- names -----------------------------------------------------------------------------------------------------

type File = Rc<RefCell<Inode>>;
#[derive(Clone)]
enum Node {
    Directory,
    File(File),
}
type Names = BTreeMap<String, Node>;

#[derive(Clone)]
enum NameChange {
    Add { path: String, node: Node },
    Rename { from: String, to: String, node: Node },
    Remove { path: String },
}
impl NameChange {
    fn apply(&self, names: &mut Names) {
        match self {
            NameChange::Add { path, node } => drop(names.insert(path.clone(), node.clone())),
            NameChange::Remove { path } => drop(names.remove(path)),
            NameChange::Rename { from, to, node } => {
                names.remove(from);
                names.insert(to.clone(), node.clone());
            }
        }
    }
    /// The directory whose sync makes it durable.
    fn directory(&self) -> &str {
        match self {
            NameChange::Add { path, .. } | NameChange::Remove { path } => parent(path),
            NameChange::Rename { to, .. } => parent(to),
        }
    }
}
#[derive(Clone)]
struct PendingName {
    number: u64,
    change: NameChange,
    completed: bool,
}

fn clean(path: &str) -> String {
    let path = path.trim_matches('/').trim_start_matches("./");
    if path == "." { String::new() } else { path.to_string() }
}
fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

// ---- the disk --------------------------------------------------------------------------------------------------

type Latency = Rc<RefCell<dyn FnMut(Access, usize) -> Duration>>;

#[derive(Default)]
struct State {
    generation: u64,
    visible: Names,
    durable: Names,
    pending: Vec<PendingName>,
    last_number: u64,
    stopped: bool,
    planned: BTreeMap<u64, Fault>,
    rates: FaultRates,
    lie: Option<Lie>,
    capacity: Option<u64>,
    hang: Option<Hang>,
    /// Whoever waits for it to end.
    held: Vec<Waker>,
    clock: Option<(Executor, Latency)>,
    prng: Option<Prng>,
    counts: DiskCounts,
    /// Called for every I/O once what it changes is pending.
    watch: Option<Rc<dyn Fn(u64, Access)>>,
    /// Called once, when the machine stops in the middle of a write or sync.
    stop_in_write: Option<Box<dyn FnOnce()>>,
    /// What the medium should hold and does not.
    rotten: Vec<rot::Rotten>,
    /// Names under which another file lies than should, or none.
    misnamed: Vec<rot::Misnamed>,
    /// The next write goes astray, by this draw.
    astray: Option<u64>,
}
impl State {
    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
    fn change_name(&mut self, change: NameChange) -> u64 {
        let number = self.number();
        change.apply(&mut self.visible);
        self.pending.push(PendingName { number, change, completed: false });
        number
    }
    fn used(&self) -> u64 {
        let bytes = |node: &Node| match node {
            Node::Directory => 0,
            Node::File(file) => file.borrow().visible.length,
        };
        self.visible.values().map(bytes).sum()
    }
    /// Whether a file may grow by so many bytes.
    fn fits(&self, growth: u64) -> bool {
        growth == 0 || self.capacity.is_none_or(|total| self.used() + growth <= total)
    }
    fn draw(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.prng.as_mut().is_some_and(|p| p.chance(probability))
    }
}

/// The disk of one node. Clones are handles of the same life: one for each of the node's shards.
#[derive(Clone)]
pub struct VirtualDisk {
    state: Rc<RefCell<State>>,
    generation: u64,
}
impl Default for VirtualDisk {
    fn default() -> VirtualDisk {
        VirtualDisk::new()
    }
}

/// How an I/O goes on after its submission.
struct Begun {
    io: u64,
    access: Access,
    fault: Option<Fault>,
    until: Option<(Executor, Instant)>,
}
impl Begun {
    async fn wait(&self) {
        if self.fault == Some(Fault::Stop) {
            return future::pending().await;
        }
        if let Some((executor, until)) = &self.until {
            executor.sleep_until(*until).await;
        }
    }
    fn error(&self) -> io::Result<()> {
        match self.fault {
            None | Some(Fault::BitFlip) | Some(Fault::Stop) => Ok(()),
            Some(Fault::NoSpace) => Err(no_space(None, self.io)),
            Some(Fault::Error) => Err(io::Error::other("input/output error")),
            Some(Fault::ShortWrite) => Err(io::Error::new(io::ErrorKind::WriteZero, "short write")),
        }
    }
}
/// The file system has no room for this access, in one of the ways in which it may have none.
fn no_space(lie: Option<Lie>, io: u64) -> io::Error {
    if lie == Some(Lie::FullAsError) {
        return io::Error::other("input/output error");
    }
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull, TooManyLinks};
    [StorageFull, QuotaExceeded, FileTooLarge, TooManyLinks][(io % 4) as usize].into()
}
fn not_found(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.to_string())
}

impl VirtualDisk {
    /// Empty, without faults, without a clock.
    pub fn new() -> VirtualDisk {
        VirtualDisk { state: Rc::default(), generation: 0 }
    }
    /// The same disk for the machine's next life, after [`VirtualDisk::crash`].
    pub fn reopen(&self) -> VirtualDisk {
        VirtualDisk { generation: self.state.borrow().generation, state: self.state.clone() }
    }
    /// An independent copy with the same content, pending changes included; without faults, counts or a clock. Calls
    /// on their way are not part of it.
    pub fn fork(&self) -> VirtualDisk {
        let state = self.state.borrow();
        let mut copies: BTreeMap<*const RefCell<Inode>, File> = BTreeMap::new();
        let mut copy = |node: &Node| match node {
            Node::Directory => Node::Directory,
            Node::File(file) => Node::File(
                copies.entry(Rc::as_ptr(file)).or_insert_with(|| Rc::new(RefCell::new(file.borrow().clone()))).clone(),
            ),
        };
        let mut forked = State { last_number: state.last_number, capacity: state.capacity, ..State::default() };
        forked.visible = state.visible.iter().map(|(p, n)| (p.clone(), copy(n))).collect();
        forked.durable = state.durable.iter().map(|(p, n)| (p.clone(), copy(n))).collect();
        for pending in &state.pending {
            let change = match &pending.change {
                NameChange::Add { path, node } => NameChange::Add { path: path.clone(), node: copy(node) },
                NameChange::Remove { path } => NameChange::Remove { path: path.clone() },
                NameChange::Rename { from, to, node } => {
                    NameChange::Rename { from: from.clone(), to: to.clone(), node: copy(node) }
                }
            };
            forked.pending.push(PendingName { change, ..pending.clone() });
        }
        VirtualDisk { state: Rc::new(RefCell::new(forked)), generation: 0 }
    }

    // ---- faults ----

    /// The I/O with this number (the first is 0, see [`DiskCounts::ios`]) meets this fault.
    pub fn plan(&self, io: u64, fault: Fault) {
        self.state.borrow_mut().planned.insert(io, fault);
    }
    /// From now on no call completes, as if the machine had stopped.
    pub fn stop(&self) {
        self.state.borrow_mut().stopped = true;
    }
    /// Stops the machine in the middle of its next write or sync, and then calls this.
    pub fn stop_in_write(&self, stopped: impl FnOnce() + 'static) {
        self.state.borrow_mut().stop_in_write = Some(Box::new(stopped));
    }
    /// Takes back what [`VirtualDisk::stop_in_write`] asked for.
    pub fn cancel_stop(&self) {
        self.state.borrow_mut().stop_in_write = None;
    }
    /// Whether a planned [`Fault::Stop`] or [`VirtualDisk::stop`] has stopped the machine.
    pub fn stopped(&self) -> bool {
        self.state.borrow().stopped
    }
    /// Random faults from now on, drawn from this stream.
    pub fn set_rates(&self, rates: FaultRates, prng: Prng) {
        let mut state = self.state.borrow_mut();
        state.rates = rates;
        state.prng = Some(prng);
    }
    pub fn set_lie(&self, lie: Option<Lie>, prng: Prng) {
        let mut state = self.state.borrow_mut();
        state.lie = lie;
        state.prng = Some(prng);
    }
    /// From now on these accesses are not answered; `None`: all are, those that wait among them.
    pub fn hang(&self, hang: Option<Hang>) {
        let mut state = self.state.borrow_mut();
        state.hang = hang;
        state.held.drain(..).for_each(Waker::wake);
    }
    /// Whether calls fail now and then.
    pub fn fails(&self) -> bool {
        self.state.borrow().rates != FaultRates::default()
    }
    pub fn hangs(&self) -> bool {
        self.state.borrow().hang.is_some()
    }
    /// Bytes that all files together may have; `None` is without limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.borrow_mut().capacity = bytes;
    }
    /// Whether there is such a limit.
    pub fn is_limited(&self) -> bool {
        self.state.borrow().capacity.is_some()
    }
    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.state.borrow().used()
    }
    /// I/Os take virtual time from now on: so long for an access of so many bytes.
    pub fn set_clock(&self, executor: &Executor, latency: impl FnMut(Access, usize) -> Duration + 'static) {
        self.state.borrow_mut().clock = Some((executor.clone(), Rc::new(RefCell::new(latency))));
    }
    /// From now on `watch` is called for every I/O, with its number, when what it changes is pending and before
    /// anything of it is durable: a [`VirtualDisk::fork`] taken then is the disk of a machine that stops in the middle
    /// of it.
    pub fn watch(&self, watch: impl Fn(u64, Access) + 'static) {
        self.state.borrow_mut().watch = Some(Rc::new(watch));
    }
    /// Ends [`VirtualDisk::watch`].
    pub fn unwatch(&self) {
        self.state.borrow_mut().watch = None;
    }
    pub fn counts(&self) -> DiskCounts {
        self.state.borrow().counts
    }
    /// I/Os begun so far.
    pub fn ios(&self) -> u64 {
        self.state.borrow().counts.ios
    }

    // ---- crash, backup ----

    /// Pending changes: name changes first, then those of each file that has a name, by path.
    pub fn pending(&self) -> usize {
        let state = self.state.borrow();
        let writes = |node: &Node| match node {
            Node::Directory => 0,
            Node::File(file) => file.borrow().pending.len(),
        };
        state.pending.len() + state.visible.values().map(writes).sum::<usize>()
    }
    /// Power is lost: of what is pending, an arbitrary part remains. Handles of before are dead; go on with
    /// [`VirtualDisk::reopen`].
    pub fn crash(&self, prng: &mut Prng) -> VirtualDisk {
        let style = prng.below(8);
        let mut draws = prng.fork();
        self.crash_with(prng, |_| match style {
            0 => Keep::Nothing,
            1 => Keep::All,
            2 => Keep::Pages,
            3 => Keep::Sectors,
            _ => match draws.below(8) {
                0..3 => Keep::Nothing,
                3..6 => Keep::All,
                6 => Keep::Pages,
                _ => Keep::Sectors,
            },
        })
    }
    /// Power is lost; `decide` says what remains of each pending change, numbered as in [`VirtualDisk::pending`]
    /// (files that lose their name are left out). Gives a handle of the next life.
    pub fn crash_with(&self, prng: &mut Prng, mut decide: impl FnMut(usize) -> Keep) -> VirtualDisk {
        let mut index = 0;
        let mut next = || {
            index += 1;
            decide(index - 1)
        };
        {
            let state = &mut *self.state.borrow_mut();
            let mut names = std::mem::take(&mut state.durable);
            for pending in std::mem::take(&mut state.pending) {
                let kept = match next() {
                    Keep::Nothing => false,
                    Keep::All => true,
                    Keep::Pages | Keep::Sectors => prng.coin(),
                };
                if kept {
                    pending.change.apply(&mut names);
                } else {
                    state.counts.lost_names += 1;
                }
            }
            drop_orphans(&mut names);
            let mut done = BTreeSet::new();
            for node in names.values() {
                if let Node::File(file) = node
                    && done.insert(Rc::as_ptr(file))
                {
                    file.borrow_mut().crash(prng, &mut state.counts, &mut next);
                }
            }
            state.restart(names);
        }
        self.reopen()
    }
    /// The process dies, the machine does not: all that was written stays. Handles of before are dead.
    pub fn kill(&self) -> VirtualDisk {
        {
            let state = &mut *self.state.borrow_mut();
            let names = state.visible.clone();
            // What was pending stays pending: a power cut may still take it.
            let pending = std::mem::take(&mut state.pending);
            let durable = std::mem::take(&mut state.durable);
            state.restart(names);
            state.counts.crashes -= 1;
            (state.pending, state.durable) = (pending, durable);
            state.pending.iter_mut().for_each(|p| p.completed = true);
            for node in state.visible.values() {
                if let Node::File(file) = node {
                    file.borrow_mut().pending.iter_mut().for_each(|p| p.completed = true);
                }
            }
        }
        self.reopen()
    }
    /// All that is visible now.
    pub fn snapshot(&self) -> DiskImage {
        let state = self.state.borrow();
        let content = |node: &Node| match node {
            Node::Directory => None,
            Node::File(file) => Some(file.borrow().visible.clone()),
        };
        DiskImage(state.visible.iter().map(|(path, node)| (path.clone(), content(node))).collect())
    }
    /// Replaces everything by an older image, durably. Handles of before are dead.
    pub fn restore(&self, image: &DiskImage) -> VirtualDisk {
        let node = |content: &Option<Content>| match content {
            None => Node::Directory,
            Some(content) => {
                let inode = Inode { visible: content.clone(), durable: content.clone(), pending: Vec::new() };
                Node::File(Rc::new(RefCell::new(inode)))
            }
        };
        let names = image.0.iter().map(|(path, content)| (path.clone(), node(content))).collect();
        self.state.borrow_mut().restart(names);
        self.reopen()
    }

    /// Everything is lost but what lies in this directory (an empty name: nothing stays). Handles of before are dead.
    pub fn wipe(&self, spared: &str) -> VirtualDisk {
        let mut names = self.state.borrow().visible.clone();
        let below = format!("{spared}/");
        names.retain(|path, _| !spared.is_empty() && (path == spared || path.starts_with(&below)));
        self.state.borrow_mut().restart(names);
        self.reopen()
    }

    // ---- looking at and spoiling content ----

    /// Paths and lengths of all files, in order.
    pub fn files(&self) -> Vec<(String, u64)> {
        let length = |(path, node): (&String, &Node)| match node {
            Node::Directory => None,
            Node::File(file) => Some((path.clone(), file.borrow().visible.length)),
        };
        self.state.borrow().visible.iter().filter_map(length).collect()
    }
    /// The bytes of a file, or `None` when there is none of this name.
    pub fn contents(&self, path: &str) -> Option<Vec<u8>> {
        match self.state.borrow().visible.get(&clean(path)) {
            Some(Node::File(file)) => Some(file.borrow().visible.to_vec()),
            _ => None,
        }
    }
    /// Puts these bytes, padded to whole pages, durably in place of a file's content. The file is made if need be.
    pub fn replace(&self, path: &str, bytes: &[u8]) {
        let path = clean(path);
        let content = Content::from_slice(bytes);
        let mut state = self.state.borrow_mut();
        let inode = Inode { visible: content.clone(), durable: content, pending: Vec::new() };
        if let Some(Node::File(file)) = state.visible.get(&path) {
            *file.borrow_mut() = inode;
            return;
        }
        let node = Node::File(Rc::new(RefCell::new(inode)));
        state.visible.insert(path.clone(), node.clone());
        state.durable.insert(path, node);
    }
    /// The same for a file in a directory that may not be there.
    pub fn make(&self, path: &str, bytes: &[u8]) {
        for (end, _) in path.match_indices('/') {
            let mut state = self.state.borrow_mut();
            state.visible.insert(path[..end].into(), Node::Directory);
            state.durable.insert(path[..end].into(), Node::Directory);
        }
        self.replace(path, bytes);
    }
    /// Flips one bit, on the medium and in what is pending. Nothing happens beyond the end of the file.
    pub fn flip_bit(&self, path: &str, offset: u64, bit: u8) {
        let mut state = self.state.borrow_mut();
        state.counts.bit_flips += 1;
        if let Some(Node::File(file)) = state.visible.get(&clean(path)) {
            flip(&mut file.borrow_mut(), offset, bit);
        }
    }

    // ---- one I/O ----

    fn dead(&self) -> bool {
        let state = self.state.borrow();
        state.stopped || state.generation != self.generation
    }
    /// Submits an I/O: counts it and draws its fate. Never returns on a stopped or dead machine.
    async fn begin(&self, access: Access, bytes: usize) -> Begun {
        if self.dead() {
            return future::pending().await;
        }
        let mut state = self.state.borrow_mut();
        let io = state.counts.ios;
        state.counts.ios += 1;
        let rate = match access {
            Access::Read(_) => {
                state.counts.reads += 1;
                state.rates.read_error
            }
            Access::Write(_) | Access::WriteDurable(_) | Access::Allocate => {
                state.counts.writes += 1;
                state.counts.bytes_written += bytes as u64;
                state.rates.write_error
            }
            Access::Sync | Access::SyncDir => {
                state.counts.syncs += 1;
                state.rates.sync_error
            }
            Access::Open | Access::List | Access::Names => 0.0,
        };
        let mut fault = state.planned.remove(&io);
        if fault.is_none() && state.draw(rate) {
            fault = Some(Fault::Error);
        }
        let flip_rate = state.rates.bit_flip;
        if fault.is_none() && matches!(access, Access::Read(_)) && state.draw(flip_rate) {
            fault = Some(Fault::BitFlip);
        }
        let changes = !matches!(access, Access::Read(_) | Access::Open | Access::List);
        if changes && let Some(stopped) = state.stop_in_write.take() {
            fault = Some(Fault::Stop);
            stopped();
        }
        match fault {
            Some(Fault::Stop) => state.stopped = true,
            Some(Fault::Error | Fault::NoSpace) => state.counts.errors += 1,
            Some(Fault::ShortWrite) => state.counts.short_writes += 1,
            Some(Fault::BitFlip) | None => {}
        }
        let until = state.clock.as_ref().map(|(executor, latency)| {
            let latency = (latency.borrow_mut())(access, bytes);
            (executor.clone(), executor.now() + latency)
        });
        Begun { io, access, fault, until }
    }
    /// Whether the caller's life is over since it submitted: then it never hears of the end.
    async fn end(&self, begun: &Begun) {
        let watch = self.state.borrow().watch.clone();
        if let Some(watch) = watch {
            watch(begun.io, begun.access);
        }
        begun.wait().await;
        self.unheld(begun.access).await;
        if self.dead() {
            future::pending().await
        }
    }
    /// Waits as long as the disk hangs.
    async fn unheld(&self, access: Access) {
        future::poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if !state.hang.is_some_and(|hang| hang.holds(access)) {
                return Poll::Ready(());
            }
            state.held.push(context.waker().clone());
            Poll::Pending
        })
        .await
    }
    fn lies(&self, lie: Lie, probability: f64) -> bool {
        let mut state = self.state.borrow_mut();
        state.lie == Some(lie) && state.draw(probability)
    }
    async fn change_name(&self, plan: impl FnOnce(&State) -> io::Result<NameChange>) -> io::Result<()> {
        let begun = self.begin(Access::Names, 0).await;
        let number = if begun.error().is_ok() {
            let mut state = self.state.borrow_mut();
            let change = plan(&state);
            change.map(|c| state.change_name(c))
        } else {
            Ok(0)
        };
        self.end(&begun).await;
        begun.error()?;
        self.state.borrow_mut().complete_name(number?);
        Ok(())
    }
}
impl State {
    fn complete_name(&mut self, number: u64) {
        if let Some(pending) = self.pending.iter_mut().find(|p| p.number == number) {
            pending.completed = true;
        }
    }
    /// A new life with these names, all durable.
    fn restart(&mut self, names: Names) {
        self.generation += 1;
        self.stopped = false;
        self.planned.clear();
        self.stop_in_write = None;
        self.counts.crashes += 1;
        self.visible = names.clone();
        self.durable = names;
        self.pending.clear();
    }
}
fn drop_orphans(names: &mut Names) {
    loop {
        let is_orphan = |path: &&String| {
            let parent = parent(path);
            !parent.is_empty() && !matches!(names.get(parent), Some(Node::Directory))
        };
        let orphans: Vec<String> = names.keys().filter(is_orphan).cloned().collect();
        if orphans.is_empty() {
            return;
        }
        orphans.iter().for_each(|path| drop(names.remove(path)));
    }
}
/// What a disk held at some time.
#[derive(Clone)]
pub struct DiskImage(BTreeMap<String, Option<Content>>);
