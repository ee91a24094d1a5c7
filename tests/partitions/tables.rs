//! Tables made apart: while a partition lasts both sides make one of the same name, of two kinds, and write to it.
//! Afterwards there is one table, which says so, and nothing that either side acknowledged is lost.

use crate::{
    faults::{number, start},
    firewall::{Firewall, Manner},
    node::Cluster,
    wait,
};
use serde_json::{Value, json};
use std::time::Duration;

const KEYS: usize = 10;

fn make(cluster: &Cluster, node: usize, name: &str, conflict: &str) {
    let body = json!({ "conflict": conflict }).to_string();
    let reply = cluster.http(node).send("PUT", &format!("/v1/tables/{name}?create=true"), &[], body.as_bytes());
    let reply = reply.expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text());
}
/// A key at each side, acknowledged by one replica at least.
fn put(cluster: &Cluster, node: usize, key: &str, value: &str) {
    wait::until(Duration::from_secs(20), &format!("{key} is written by way of node {node}"), || {
        let body = json!({ "value": value }).to_string();
        let path = format!("/v1/keys/{key}?w=1");
        let reply = cluster.http(node).send("PUT", &path, &[("content-type", "application/json")], body.as_bytes());
        let reply = reply.map_err(|e| e.to_string())?;
        if reply.status == 200 { Ok(()) } else { Err(reply.text()) }
    });
}
fn values(reply: &Value) -> Vec<String> {
    let several = reply["siblings"].as_array().cloned();
    let all = several.unwrap_or_else(|| vec![reply["value"].clone()]);
    let mut all: Vec<String> = all.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect();
    all.sort();
    all
}

/// Panics at the first broken promise.
pub fn made_apart() {
    let firewall = Firewall::new();
    let mut cluster = start("made-apart");
    let last = cluster.nodes.len() - 1;
    for round in 0..number("EACH_ROUNDS", 3) as usize {
        let manner = if round % 2 == 0 { Manner::Reset } else { Manner::Drop };
        let alone = cluster.nodes[last].ip;
        let others = cluster.nodes[..last].iter().map(|node| node.ip);
        let pairs: Vec<_> = others.flat_map(|other| [(alone, other), (other, alone)]).collect();
        firewall.cut(&pairs, manner);
        let name = format!("t{round}");
        // Which side keeps siblings, and whose word is the newer one.
        let kinds = ["siblings", "last_write_wins"];
        make(&cluster, last, &name, kinds[round % 2]);
        make(&cluster, 0, &name, kinds[1 - round % 2]);
        for key in 0..KEYS {
            put(&cluster, 0, &format!("{name}:{key}"), "many");
            put(&cluster, last, &format!("{name}:{key}"), "few");
        }
        firewall.heal();
        cluster.wait_whole();
        for node in 0..=last {
            wait::until(Duration::from_secs(30), &format!("node {node} knows both makers of {name}"), || {
                let table = cluster.http(node).get(&format!("/v1/tables/{name}")).map_err(|e| e.to_string())?.json();
                let known = table["conflict"] == "siblings" && table["made_apart"].is_string();
                if known { Ok(()) } else { Err(table.to_string()) }
            });
        }
        cluster.wait_no_hints();
        for key in 0..KEYS {
            let path = format!("/v1/keys/{name}:{key}?r=3");
            let reply = cluster.http(key % (last + 1)).get(&path).expect("an answer");
            assert_eq!(values(&reply.json()), ["few", "many"], "round {round}, key {key}: {}", reply.text());
        }
    }
}
