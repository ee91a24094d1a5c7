//! A file system of 64 MiB: full by the node's own doing, or by others'. Gets and deletes go on, puts come back by
//! themselves when there is space.

use crate::{
    drive::Drive,
    http::Http,
    ledger::{Ledger, MIXED, TEN_KB, Told, figure, under_load, wait_for_more},
    node::{Node, Place, address, run},
    volume::Volume,
    wait,
};
use std::{fs, sync::atomic::Ordering, time::Duration};

const VOLUME_BYTES: usize = 64 << 20;
const WRITERS: usize = 6;
/// Files of a shard's reserve.
const PIECES: usize = dynarc::limits::RESERVE_PIECES;

fn node_on(place: &Place, volume: &Volume, shards: &str) -> Node {
    let mut node = Node::new(place, "n1", address(), None);
    node.data = volume.path.join("node-1");
    node.extra = ["--shards", shards].map(String::from).to_vec();
    node
}

/// All writers at once put what has no value, until they are refused for want of space.
fn fill(ledger: &Ledger, node: &Node) {
    let refused: Vec<_> = std::thread::scope(|scope| {
        let fill = |writer| scope.spawn(move || ledger.fill(writer, &mut node.http()));
        let filling: Vec<_> = (0..ledger.writers()).map(fill).collect();
        filling.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    for told in refused {
        let expected = Some(Told::Refused("disk_full".into()));
        assert_eq!(told, expected, "{}\n{}", node.figures(), node.log_tail());
    }
}
/// All writers at once delete the keys that `which` says.
fn delete(ledger: &Ledger, node: &Node, which: fn(usize) -> bool) -> usize {
    std::thread::scope(|scope| {
        let delete = |writer| scope.spawn(move || ledger.delete_some(writer, &mut node.http(), which));
        let deleting: Vec<_> = (0..ledger.writers()).map(delete).collect();
        deleting.into_iter().map(|thread| thread.join().expect("an answer")).sum()
    })
}
/// Fills the disk until it stays full (what was deleted before may still be on its way out), and asks everyone.
fn fill_for_good(ledger: &Ledger, node: &Node) {
    wait::until(Duration::from_secs(60), "the disk is full for good", || {
        fill(ledger, node);
        look_read_only(node)
    });
}
fn look_read_only(node: &Node) -> Result<(), String> {
    let metrics = node.http().get("/metrics").map_err(|e| e.to_string())?.text();
    if !metrics.lines().any(|l| l.starts_with("dynarc_read_only ") && l.ends_with(" 1")) {
        return Err("no shard is read-only in the metrics".into());
    }
    let (code, out, err) = run(&["status", "--node", &node.ip.to_string()]);
    if code != 0 || !out.contains("up, read-only") {
        return Err(format!("status: {code}: {out} {err}"));
    }
    let figures = node.figures();
    if figure(&figures, "read_only") == 1 { Ok(()) } else { Err(format!("{figures}")) }
}
/// Nobody writes: it notices by itself.
fn wait_writable(node: &mut Node, what: &str) {
    wait::until(Duration::from_secs(30), what, || {
        node.assert_runs();
        let figures = node.figures();
        if figure(&figures, "read_only") == 0 {
            return Ok(());
        }
        let taken = |tool: &str| crate::volume::tool(tool, &["-a", node.data.to_str().expect("text")]);
        let reserve = crate::volume::tool("ls", &["-l", &format!("{}/reserve", node.data.display())]);
        Err(format!("{figures}\n{}\n{reserve}", taken("df")))
    });
}

/// Nobody writes: what deletes need on the next full disk is put by again.
fn wait_reserve(node: &Node, what: &str) {
    wait::until(Duration::from_secs(30), what, || {
        let pieces = fs::read_dir(node.data.join("reserve")).expect("the reserve").count();
        if pieces == 2 * PIECES { Ok(()) } else { Err(format!("{pieces} pieces, {}", node.figures())) }
    });
}

/// What was deleted takes no space for long.
fn wait_collected(node: &Node, what: &str) {
    wait::until(Duration::from_secs(60), what, || {
        let figures = node.figures();
        let (bytes, live) = (figure(&figures, "segment_bytes"), figure(&figures, "segment_live_bytes"));
        if bytes < 2 * live + (8 << 20) { Ok(()) } else { Err(format!("{figures}")) }
    });
}

pub fn a_small_disk_fills_and_empties() {
    // Three shards on so little may end with all space held by what each needs to collect: not promised yet.
    for shards in ["1"] {
        let place = Place::new("small-disk");
        let drive = Drive::new(&place.path.join("fuse"), VOLUME_BYTES);
        let mut volume = Volume::new(&drive.file(), &place.path.join("volume"), None);
        let mut node = node_on(&place, &volume, shards);
        let ledger = Ledger::new(WRITERS, 2_500, TEN_KB, 4);
        node.start();
        node.wait_ready();
        for cycle in 0..3 {
            let when = |what: &str| format!("{shards} shards, cycle {cycle}, {what}");
            fill_for_good(&ledger, &node);
            let stored = ledger.count() as u64 * 10_240;
            println!("{shards} shards, cycle {cycle}: full with {} KiB in values of 10 KiB", stored >> 10);
            // Later some of it is still held by what deletes have left in segments: how much is a matter of time.
            let share = if cycle == 0 { 3 } else { 16 };
            assert!(stored > VOLUME_BYTES as u64 / share, "{}: {stored} bytes fit", when("full"));
            ledger.verify(node.ip, &when("full"));
            if cycle > 0 {
                node.kill();
                node.start();
                node.wait_ready();
                ledger.verify(node.ip, &when("full, started again"));
                // What the last life had put by is free for the moment.
                fill_for_good(&ledger, &node);
            }
            let deleted = delete(&ledger, &node, |key| !key.is_multiple_of(4));
            assert!(deleted > 0);
            wait_writable(&mut node, &when("after deletes"));
            wait_collected(&node, &when("after deletes"));
            ledger.verify(node.ip, &when("after deletes"));
        }
        assert!(node.stop().success(), "{}", node.log_tail());
        node.start();
        node.wait_ready();
        ledger.verify(node.ip, "in the end");
        node.kill();
        volume.unmount();
        volume.check();
    }
}

/// Another program takes all space at any moment of a node under load, and gives it back.
pub fn other_files_come_and_go() {
    let place = Place::new("other-files");
    let drive = Drive::new(&place.path.join("fuse"), VOLUME_BYTES);
    let mut volume = Volume::new(&drive.file(), &place.path.join("volume"), None);
    let mut node = node_on(&place, &volume, "2");
    let ledger = Ledger::new(WRITERS, 60, MIXED, 5);
    let mut random = fastrand::Rng::with_seed(5);
    node.start();
    node.wait_ready();
    for round in 0..24 {
        let when = format!("round {round}");
        let refused = ledger.refused.load(Ordering::Relaxed);
        let other = under_load(&ledger, node.ip, || {
            wait_for_more(&ledger, random.u64(1..800));
            let other = volume.take_all("other");
            wait::until(Duration::from_secs(60), "puts are refused", || {
                node.assert_runs();
                let more = ledger.refused.load(Ordering::Relaxed) - refused;
                if more >= 20 { Ok(()) } else { Err(format!("{more} refused, {}", node.figures())) }
            });
            other
        });
        node.assert_runs();
        ledger.verify(node.ip, &format!("{when}, full"));
        if round % 3 == 1 {
            node.kill();
            node.start();
            node.wait_ready();
            ledger.verify(node.ip, &format!("{when}, started while full"));
        }
        if round % 3 == 2 {
            delete(&ledger, &node, |key| key.is_multiple_of(5));
        }
        fs::remove_file(other).expect("the other file");
        wait_writable(&mut node, &format!("{when}, space is back"));
        wait_reserve(&node, &format!("{when}, the reserve is whole"));
        assert_eq!(ledger.put_one(0, 0, &mut Http::new(node.ip)), Told::Done, "{when}: {}", node.log_tail());
        assert_eq!(figure(&node.figures(), "damaged_reads"), 0, "{when}");
    }
    assert!(node.stop().success(), "{}", node.log_tail());
    volume.unmount();
    volume.check();
}
