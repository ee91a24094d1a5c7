//! Power is cut under load, again and again, on one directory that grows older: nothing acknowledged is lost, nothing
//! refused appears, nothing is reported damaged that is only torn.

use crate::{
    drive::Drive,
    ledger::{Ledger, MIXED, figure, under_load, wait_for_more},
    node::{Node, Place, address},
    volume::{Shutdown, Volume},
    wait,
};
use std::{collections::BTreeMap, time::Duration};

const WRITERS: usize = 20;
const KEYS: usize = 40;
const VOLUME_BYTES: usize = 8 << 30;

/// How often to do it.
pub fn rounds(usual: usize) -> usize {
    std::env::var("DISK_ROUNDS").ok().map_or(usual, |n| n.parse().expect("DISK_ROUNDS is a number"))
}

/// A node on a volume, and what its clients were told over all rounds.
struct Course {
    node: Node,
    ledger: Ledger,
    random: fastrand::Rng,
    /// What happened over all lives of the node: flushes and so on must not be missing.
    seen: BTreeMap<&'static str, u64>,
}

impl Course {
    fn new(place: &Place, volume: &Volume, seed: u64) -> Course {
        let mut node = Node::new(place, "n1", address(), None);
        node.data = volume.path.join("node-1");
        Course {
            node,
            ledger: Ledger::new(WRITERS, KEYS, MIXED, seed),
            random: fastrand::Rng::with_seed(seed),
            seen: BTreeMap::new(),
        }
    }
    fn choose_shards(&mut self) {
        let shards = self.random.u32(1..=4).to_string();
        // Small memtables: flushes and compactions within a few rounds.
        self.node.extra = ["--shards", &shards, "--memtable-bytes", "1MiB"].map(String::from).to_vec();
    }
    /// Starts the node, sometimes killed in the middle of it, and reads everything.
    fn begin(&mut self, round: usize) {
        if round.is_multiple_of(7) {
            self.choose_shards();
        }
        if self.random.u32(0..8) == 0 {
            self.node.start();
            wait::pause(Duration::from_millis(self.random.u64(0..150)));
            self.node.kill();
            if self.random.bool() {
                self.choose_shards();
            }
        }
        self.node.start();
        self.node.wait_ready();
        let when = format!("round {round}, {:?}", self.node.extra);
        self.ledger.verify(self.node.ip, &when);
        let figures = self.node.figures();
        assert_eq!(figure(&figures, "damaged_reads"), 0, "{when}: damage is reported\n{}", self.node.log_tail());
    }
    /// Load for a while; what ends it gives its own account.
    fn load<T>(&mut self, end: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        let Course { node, ledger, random, seen } = self;
        under_load(ledger, node.ip, || {
            wait_for_more(ledger, random.u64(1..500));
            wait::pause(Duration::from_micros(random.u64(0..5_000)));
            let figures = node.figures();
            for name in ["flushes", "compactions", "collections"] {
                *seen.entry(name).or_default() += figure(&figures, name);
            }
            end(random)
        })
    }
    fn report(&self, what: &str, rounds: usize) {
        let acknowledged = self.ledger.acknowledged.load(std::sync::atomic::Ordering::Relaxed);
        println!("{what}: {rounds} cuts, {acknowledged} writes acknowledged, none lost; {:?}", self.seen);
        if rounds >= 100 {
            for (what, count) in &self.seen {
                assert!(*count > 0, "no {what} in any life: the course is too easy");
            }
        }
    }
}

/// The file system is shut down as in a loss of power: what its journal has not committed is gone.
pub fn ext4_shutdowns() {
    let place = Place::new("ext4-shutdowns");
    let mut volume = Volume::new(&place.path.join("image"), &place.path.join("volume"), Some(VOLUME_BYTES as u64));
    let mut course = Course::new(&place, &volume, 1);
    let rounds = rounds(200);
    for round in 0..rounds {
        course.begin(round);
        course.load(|random| match random.u32(0..10) {
            0 => volume.shut_down(Shutdown::Whole),
            1 => volume.shut_down(Shutdown::Journal),
            _ => volume.shut_down(Shutdown::Nothing),
        });
        course.node.kill();
        volume.unmount();
        volume.mount();
    }
    course.begin(rounds);
    assert!(course.node.stop().success(), "{}", course.node.log_tail());
    volume.unmount();
    volume.check();
    course.report("ext4 shut down", rounds);
}

/// The drive loses power with its write cache: of all writes since its last flush any part may be gone.
pub fn lost_write_caches() {
    let place = Place::new("lost-caches");
    let drive = Drive::new(&place.path.join("fuse"), VOLUME_BYTES);
    let mut volume = Volume::new(&drive.file(), &place.path.join("volume"), None);
    let mut course = Course::new(&place, &volume, 2);
    let rounds = rounds(200);
    let (mut at_stake, mut kept) = (0, 0);
    for round in 0..rounds {
        course.begin(round);
        let (stake, keep) = course.load(|random| {
            let piece = [0, 512, 4096][random.usize(0..3)];
            let keep = [0.0, 0.5, 0.9, 1.0][random.usize(0..4)];
            drive.cut(random, piece, keep)
        });
        (at_stake, kept) = (at_stake + stake, kept + keep);
        course.node.kill();
        volume.unmount();
        drive.power_on();
        volume.mount();
    }
    course.begin(rounds);
    assert!(course.node.stop().success(), "{}", course.node.log_tail());
    volume.unmount();
    volume.check();
    course.report("write caches lost", rounds);
    let (writes, flushes) = drive.counts();
    println!(
        "the drive took {writes} writes and {flushes} flushes; {at_stake} bytes were in its cache at the cuts, {kept} of them stayed"
    );
    assert!(rounds < 20 || at_stake > 0, "nothing was ever in the cache: the cuts prove nothing");
}
