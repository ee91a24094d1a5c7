//! A file system that is frozen: no write on it ends, and none fails. Its node serves on with the disks of the others,
//! and every request ends by its deadline.

use crate::{
    ledger::figure,
    node::{Cluster, Node, Place, address},
    volume::{Volume, tool},
    wait,
};
use std::time::Duration;

const VOLUME_BYTES: u64 = 192 << 20;
const KEYS: usize = 40;

/// Puts every key through this node; gives the statuses that are no success.
fn put_all(node: &Node, query: &str) -> Vec<(usize, u16, String)> {
    let mut http = node.http();
    let put = |key: usize| {
        let target = format!("/v1/keys/k{key}{query}");
        let reply = http.send("PUT", &target, &[("Content-Type", "a/b")], &[7; 3_000]).expect("an answer");
        (key, reply.status, reply.text())
    };
    (0..KEYS).map(put).filter(|(_, status, _)| *status != 200).collect()
}

pub fn a_frozen_disk_is_no_outage() {
    let place = Place::new("frozen");
    let mut volume = Volume::new(&place.path.join("image"), &place.path.join("volume"), Some(VOLUME_BYTES));
    let mut nodes: Vec<Node> = Vec::new();
    for index in 0..3 {
        let seed = nodes.first().map(|node| node.ip);
        let mut node = Node::new(&place, &format!("n{index}"), address(), seed);
        if index == 0 {
            node.data = volume.path.join("node");
        }
        node.extra = ["--shards", "2"].map(String::from).to_vec();
        node.start();
        nodes.push(node);
    }
    let mut cluster = Cluster { nodes, place };
    cluster.wait_whole();
    assert_eq!(put_all(&cluster.nodes[1], ""), []);
    let mounted = volume.path.to_str().expect("text").to_string();
    tool("fsfreeze", &["-f", &mounted]);
    // Whatever fails from here on, the volume must be thawed, or it can never be unmounted.
    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // A put that waited for this disk would be answered 504.
        for node in &cluster.nodes {
            assert_eq!(put_all(node, "?timeout_ms=3000"), [], "through {}", node.ip);
        }
        let frozen = &cluster.nodes[0];
        for key in 0..KEYS {
            let reply = frozen.http().get(&format!("/v1/keys/k{key}?timeout_ms=300")).expect("an answer");
            assert!(matches!(reply.status, 200 | 300), "{}", reply.text());
        }
        // What cannot be done without it ends all the same, and is not said to have been done.
        let all = frozen.http().send("PUT", "/v1/keys/k0?w=3&sloppy=false&timeout_ms=300", &[], b"{\"value\": 1}");
        let reply = all.expect("an answer");
        assert_eq!(reply.status, 504, "{}", reply.text());
        wait::until(Duration::from_secs(20), "the node says that its disk hangs", || {
            let figures = frozen.figures();
            if figure(&figures, "disk_stalled") == 1 { Ok(()) } else { Err(figures.to_string()) }
        });
    }));
    tool("fsfreeze", &["-u", &mounted]);
    if let Err(panic) = checked {
        std::panic::resume_unwind(panic);
    }
    wait::until(Duration::from_secs(20), "the disk answers again", || {
        let figures = cluster.nodes[0].figures();
        if figure(&figures, "disk_stalled") == 0 { Ok(()) } else { Err(figures.to_string()) }
    });
    cluster.wait_no_hints();
    assert_eq!(put_all(&cluster.nodes[0], "?w=3&sloppy=false"), []);
    cluster.nodes.iter_mut().for_each(|node| assert!(node.stop().success(), "{}", node.log_tail()));
    volume.unmount();
    volume.check();
}
