//! Replicas become equal without a read: a node comes back with an older copy of its files, and nobody owes it
//! anything.

use crate::{
    node::{Cluster, run},
    wait,
};
use serde_json::Value;
use std::{fs, path::Path, time::Duration};

const KEYS: usize = 100;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry")) {
        let to = to.join(entry.file_name());
        match entry.file_type().expect("its kind").is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).expect("a file is copied")),
        }
    }
}
fn put_all(cluster: &Cluster, word: &str) {
    let mut http = cluster.http(0);
    for key in 0..KEYS {
        let body = format!("{{\"value\": \"{word} {key}\"}}");
        let reply = http.send("PUT", &format!("/v1/keys/{word}:{key}?w=3"), &[], body.as_bytes()).expect("an answer");
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
}
/// The cluster's id in an identity file: the last field but one of its body (see `schema/node.md`).
fn cluster_of(identity: &Path) -> Option<u64> {
    let bytes = fs::read(identity).ok()?;
    let length = u32::from_le_bytes(bytes.get(12..16)?.try_into().ok()?) as usize;
    let end = (20 + length).checked_sub(1)?;
    Some(u64::from_le_bytes(bytes.get(end.checked_sub(8)?..end)?.try_into().ok()?))
}
/// What the node says of a figure of repair.
fn figure(cluster: &Cluster, node: usize, name: &str) -> u64 {
    let view: Value = cluster.http(node).get("/v1/repair").expect("an answer").json();
    view[name].as_u64().unwrap_or_else(|| panic!("{name} of {view}"))
}

#[test]
fn an_older_copy_of_its_files_becomes_equal_before_anybody_reads() {
    let mut cluster = Cluster::start_with_shards("repair", 3, 2);
    put_all(&cluster, "first");
    // A copy from before it was a member would not be let in: the others know a later start of it.
    let identity = cluster.nodes[2].data.join("node/identity");
    wait::until(Duration::from_secs(30), "the node's cluster is in its identity", || match cluster_of(&identity) {
        Some(cluster) if cluster != 0 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert!(cluster.nodes[2].stop().success());
    let (data, older) = (cluster.nodes[2].data.clone(), cluster.place.path.join("older"));
    copy(&data, &older);
    cluster.nodes[2].start();
    cluster.wait_whole();
    put_all(&cluster, "second");
    cluster.wait_no_hints();
    assert!(cluster.nodes[2].stop().success());
    fs::remove_dir_all(&data).expect("its files are removed");
    copy(&older, &data);
    cluster.nodes[2].start();
    cluster.wait_whole();

    let node = cluster.nodes[0].ip.to_string();
    let (code, out, complaint) = run(&["repair", "now", "--node", &node, "--json"]);
    assert_eq!(code, 0, "{out}{complaint}");
    let views: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(views.as_array().map(Vec::len), Some(3), "{views}");
    let sent: u64 = (0..3).map(|node| figure(&cluster, node, "values_sent")).sum();
    assert!(sent >= KEYS as u64, "{sent} values sent");
    for key in 0..KEYS {
        // The node is a home of every key: its own copy is the one answer that is wanted.
        let reply = cluster.http(2).get(&format!("/v1/keys/second:{key}?r=1")).expect("an answer");
        assert_eq!((reply.status, reply.json()["value"].clone()), (200, Value::from(format!("second {key}"))));
    }
    // Nothing is left to do: the next comparison sends nothing.
    wait::until(Duration::from_secs(30), "replicas are equal", || {
        let before: u64 = (0..3).map(|node| figure(&cluster, node, "values_sent")).sum();
        let (code, _, complaint) = run(&["repair", "now", "--node", &node, "--json"]);
        assert_eq!(code, 0, "{complaint}");
        let after: u64 = (0..3).map(|node| figure(&cluster, node, "values_sent")).sum();
        if before == after { Ok(()) } else { Err(format!("{} values sent", after - before)) }
    });
    let (code, out, complaint) = run(&["repair", "status", "--node", &node]);
    assert!(code == 0 && out.contains("oldest"), "{out}{complaint}");
    let (code, _, complaint) = run(&["repair", "now", "--key", "second:1", "--node", &node]);
    assert_eq!(code, 0, "{complaint}");
}
