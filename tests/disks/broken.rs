//! A device that fails under a running node: the node says so and ends; what it had acknowledged is there.

use crate::{
    drive::{Drive, Health},
    ledger::{Ledger, MIXED, under_load, wait_for_more},
    node::{Node, Place, address},
    volume::Volume,
};

pub fn a_failed_write_stops_the_node() {
    fails("failed-writes", Health::BadWrites);
}
pub fn a_failed_flush_stops_the_node() {
    fails("failed-flushes", Health::BadFlushes);
}

fn fails(test: &str, health: Health) {
    let place = Place::new(test);
    let drive = Drive::new(&place.path.join("fuse"), 4 << 30);
    let mut volume = Volume::new(&drive.file(), &place.path.join("volume"), None);
    let mut node = Node::new(&place, "n1", address(), None);
    node.data = volume.path.join("node-1");
    node.extra = ["--shards", "2", "--memtable-bytes", "1MiB"].map(String::from).to_vec();
    let ledger = Ledger::new(16, 40, MIXED, 3);
    for round in 0..8 {
        node.start();
        node.wait_ready();
        ledger.verify(node.ip, &format!("{test}, round {round}"));
        let status = under_load(&ledger, node.ip, || {
            wait_for_more(&ledger, 100 + round * 50);
            drive.set(health);
            // Clients that are not answered for want of a disk are told so, and the node does not go on without one.
            node.wait_end()
        });
        assert_eq!(status.code(), Some(1), "{}", node.log_tail());
        let said = node.log_tail();
        let last = said.lines().rev().find(|line| line.starts_with("dynarc: ")).unwrap_or_else(|| panic!("{said}"));
        assert!(last.contains("storage failed") && last.contains("os error"), "the cause is not named: {last}");
        // A file system above a drive that cannot flush is in no defined state if the drive forgets as well.
        let keep = if health == Health::BadFlushes { 1.0 } else { 0.5 };
        drive.cut(&mut fastrand::Rng::with_seed(round), 512, keep);
        volume.unmount();
        drive.power_on();
        volume.mount();
    }
    node.start();
    node.wait_ready();
    ledger.verify(node.ip, "in the end");
    assert!(node.stop().success(), "{}", node.log_tail());
    volume.unmount();
}
