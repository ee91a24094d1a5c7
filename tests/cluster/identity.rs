//! A node whose disk is not its own: an earlier state, a copy, one without a name. No dot is used twice: what was
//! acknowledged stands beside what is written later, and is not covered by it.

use crate::{
    node::{Cluster, Node, READY_WITHIN, address},
    wait,
};
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path, process::Command, time::Duration};

const KEYS: usize = 20;

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-a", "--"]).arg(from).arg(to).status();
    assert!(copied.expect("cp runs").success(), "cp {} {}", from.display(), to.display());
}

/// Writes each key once without a context; every write must be acknowledged, if need be at the second try.
fn write_all(cluster: &Cluster, node: usize, word: &str) {
    let mut http = cluster.http(node);
    for key in 0..KEYS {
        wait::until(Duration::from_secs(20), "a write is acknowledged", || {
            match http.put(&format!("dots:{key}"), &format!("\"{word}{key}\""), None) {
                Ok(reply) if reply.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}

/// Each of these keys holds a value of each word, at every node.
fn assert_all(cluster: &Cluster, keys: impl IntoIterator<Item = usize> + Clone, words: &[&str]) {
    for node in 0..cluster.nodes.len() {
        let mut http = cluster.http(node);
        for key in keys.clone() {
            let wanted: BTreeSet<String> = words.iter().map(|word| format!("{word}{key}")).collect();
            let read = http.get(&format!("/v1/keys/dots:{key}?r=3")).expect("a running node");
            let body = read.json();
            let values = body["siblings"].as_array().cloned().unwrap_or_else(|| vec![body["value"].clone()]);
            let values: BTreeSet<String> = values.iter().filter_map(Value::as_str).map(str::to_string).collect();
            assert!(values.is_superset(&wanted), "node {node}, key {key}: {wanted:?} were written, {body} is there");
        }
    }
}

fn alarms(node: &Node) -> u64 {
    node.figures()["identity_alarms"].as_u64().expect("a count")
}

#[test]
fn a_restored_backup_does_not_use_a_dot_again() {
    let mut cluster = Cluster::start("restored", 3);
    let backup = cluster.place.path.join("backup");
    write_all(&cluster, 0, "before");
    assert!(cluster.nodes[0].stop().success());
    copy(&cluster.nodes[0].data, &backup);
    cluster.nodes[0].start();
    cluster.wait_whole();
    assert_eq!(alarms(&cluster.nodes[0]), 0, "an orderly restart is no alarm");
    write_all(&cluster, 0, "between");
    assert!(cluster.nodes[0].stop().success());

    let data = cluster.nodes[0].data.clone();
    fs::remove_dir_all(&data).expect("its data can be removed");
    copy(&backup, &data);
    cluster.nodes[0].start();
    cluster.nodes[0].wait_ready();
    // At once, before anything is read: the counters of the backup stand where "between" began.
    write_all(&cluster, 0, "after");
    assert!(alarms(&cluster.nodes[0]) > 0, "{}", cluster.nodes[0].figures());
    wait::until(Duration::from_secs(10), "the log says so", || {
        let log = cluster.nodes[0].log_tail();
        if log.contains("an older state or a copy") { Ok(()) } else { Err(log) }
    });
    cluster.wait_whole();
    assert_all(&cluster, 0..KEYS, &["before", "between", "after"]);
    // It is at home now: its next start is an ordinary one.
    assert!(cluster.nodes[0].stop().success());
    cluster.nodes[0].start();
    cluster.wait_whole();
    assert_eq!(alarms(&cluster.nodes[0]), 0);
}

#[test]
fn a_copied_directory_that_runs_beside_its_original_is_noticed_and_covers_nothing() {
    let mut cluster = Cluster::start("twin", 3);
    write_all(&cluster, 0, "before");
    assert!(cluster.nodes[0].stop().success());
    let mut twin = Node::new(&cluster.place, "twin", address(), None);
    copy(&cluster.nodes[0].data, &twin.data);
    twin.extra.extend(["--listen".to_string(), twin.ip.to_string()]);
    cluster.nodes[0].start();
    cluster.wait_whole();
    twin.start();
    // It is told by the others that it runs elsewhere, and does not serve.
    wait::until(READY_WITHIN, "the twin is noticed", || {
        let node = twin.http().get("/v1/node").map_err(|e| e.to_string())?.json();
        if node["identity_alarms"].as_u64() > Some(0) { Ok(()) } else { Err(node.to_string()) }
    });
    // Both would write as the same node to the same keys. The others answer the original, so the twin gets no quorum;
    // what it alone acknowledges is lost with its disk, so that is not asked for.
    write_all(&cluster, 0, "original");
    let mut http = twin.http();
    let mut acknowledged = Vec::new();
    for key in 0..KEYS {
        let put = http.put(&format!("dots:{key}?timeout_ms=1000"), &format!("\"twin{key}\""), None).expect("it runs");
        assert!(matches!(put.status, 200 | 503 | 504), "{put:?}");
        acknowledged.extend((put.status == 200).then_some(key));
    }
    twin.kill();
    write_all(&cluster, 0, "later");
    cluster.wait_whole();
    cluster.wait_no_hints();
    assert_all(&cluster, 0..KEYS, &["before", "original", "later"]);
    assert_all(&cluster, acknowledged, &["twin"]);
}

#[test]
fn data_without_a_name_is_refused() {
    let mut cluster = Cluster::start("nameless", 1);
    write_all_at_one(&cluster);
    assert!(cluster.nodes[0].stop().success());
    let identity = cluster.nodes[0].data.join("node/identity");
    let kept = fs::read(&identity).expect("it has a name");
    fs::remove_file(&identity).expect("it can be removed");
    cluster.nodes[0].start();
    assert!(!cluster.nodes[0].wait_end().success());
    let log = cluster.nodes[0].log_tail();
    assert!(log.contains("node/identity is missing"), "{log}");
    assert!(!identity.exists(), "no other name is made up");
    fs::write(&identity, kept).expect("room");
    cluster.start_all();
    assert_eq!(cluster.http(0).get("/v1/keys/dots:0").expect("a running node").json()["value"], "there");
}
fn write_all_at_one(cluster: &Cluster) {
    assert_eq!(cluster.http(0).put("dots:0", "\"there\"", None).expect("a running node").status, 200);
}
