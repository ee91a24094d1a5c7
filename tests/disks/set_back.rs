//! A volume is set back to a snapshot of its blocks: inodes, times and all are those of then, and nothing on it says
//! that it is old. What was acknowledged before is there, and what is acknowledged after is there as well.

use crate::{
    http::Http,
    node::{Cluster, Node, Place, address},
    volume::Volume,
};
use serde_json::Value;
use std::{fs, path::Path};

const KEYS: usize = 40;
const ROUNDS: usize = 5;

pub fn a_stopped_node_on_a_snapshot() {
    set_back("set-back-stopped", |node| assert!(node.stop().success(), "{}", node.log_tail()));
}
pub fn a_killed_node_on_a_snapshot() {
    set_back("set-back-killed", Node::kill);
}

/// Blind puts, with acknowledgements of all three; at the second try, if a write of unknown outcome says so.
fn put_all(http: &mut Http, word: &str) -> usize {
    let put = |key: &usize| {
        let put = http.put(&format!("set:{key}?w=3&sloppy=false"), &format!("\"{word}{key}\""), None).expect("it runs");
        assert!(put.status == 200 || put.status == 503, "{} {}", put.status, put.text());
        put.status == 200
    };
    (0..KEYS).filter(put).count()
}

fn set_back(test: &str, end: impl Fn(&mut Node)) {
    for _ in 0..crate::power::rounds(1) {
        set_back_once(test, &end);
    }
}
fn set_back_once(test: &str, end: &impl Fn(&mut Node)) {
    let place = Place::new(test);
    let (image, snapshot) = (place.path.join("image"), place.path.join("snapshot"));
    let mut volume = Volume::new(&image, &place.path.join("volume"), Some(512 << 20));
    let mut nodes: Vec<Node> = Vec::new();
    for name in ["n1", "n2", "n3"] {
        let mut node = Node::new(&place, name, address(), nodes.first().map(|n: &Node| n.ip));
        if name == "n2" {
            node.data = volume.path.join("n2");
        }
        node.start();
        nodes.push(node);
    }
    let mut cluster = Cluster { nodes, place };
    cluster.wait_whole();
    let copy = |from: &Path, to: &Path| assert!(fs::copy(from, to).expect("an image is copied") > 0);

    end(&mut cluster.nodes[1]);
    volume.unmount();
    copy(&image, &snapshot);
    volume.mount();
    cluster.nodes[1].start();
    cluster.wait_whole();
    let mut http = cluster.http(1);
    for round in 0..ROUNDS {
        assert_eq!(put_all(&mut http, &format!("between{round}-")), KEYS);
    }
    end(&mut cluster.nodes[1]);
    volume.unmount();
    copy(&snapshot, &image);
    volume.mount();
    cluster.nodes[1].start();
    cluster.wait_whole();
    // The first writes are the ones that would use dots again.
    let acknowledged = put_all(&mut cluster.http(1), "after");
    assert!(acknowledged > 0, "nothing was acknowledged");
    let alarms = cluster.nodes[1].figures()["identity_alarms"].as_u64();
    assert!(alarms.is_some_and(|alarms| alarms > 0), "nobody noticed: {}", cluster.nodes[1].log_tail());
    let mut lost = Vec::new();
    for node in 0..3 {
        let mut http = cluster.http(node);
        for key in 0..KEYS {
            let body = http.get(&format!("/v1/keys/set:{key}?r=3")).expect("it runs").json();
            let values = body["siblings"].as_array().cloned().unwrap_or_else(|| vec![body["value"].clone()]);
            let values: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
            let wanted = (0..ROUNDS).map(|round| format!("between{round}-{key}")).chain([format!("after{key}")]);
            lost.extend(wanted.filter(|value| !values.contains(&value.as_str())).map(|value| (node, value)));
        }
    }
    let expected = KEYS - acknowledged;
    lost.retain(|(_, value)| !value.starts_with("after") || expected == 0);
    assert!(lost.is_empty(), "{} lost: {lost:?}", lost.len());
    cluster.nodes.iter_mut().for_each(Node::kill);
    volume.unmount();
}
