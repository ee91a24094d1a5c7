//! One core of a node is lost to the others, and the rest is not: by a port that is closed, and by a restart with fewer
//! cores.

use crate::{
    firewall::Firewall,
    node::{Cluster, Node, Place},
    wait,
};
use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

const CORES: u16 = 4;
const KEYS: usize = 200;

/// Puts every key at all three replicas, stand-ins among them where they count.
fn put_all(node: &Node, query: &str) {
    let mut http = node.http();
    for key in 0..KEYS {
        let target = format!("/v1/keys/k{key}{query}");
        let reply = http.send("PUT", &target, &[("Content-Type", "a/b")], b"v").expect("an answer");
        assert_eq!(reply.status, 200, "k{key}: {}", reply.text());
    }
}
/// Each core of `node` sees the other one up, however often it is asked.
fn wait_up(node: &Node, other: IpAddr, what: &str) {
    wait::until(Duration::from_secs(20), what, || {
        for _ in 0..20 {
            // A connection of its own each time: the cores share the port.
            let view = node.http().once().get("/v1/cluster").map_err(|e| e.to_string())?.json();
            let members = view["members"].as_array().cloned().unwrap_or_default();
            let seen = members.iter().find(|m| m["address"] == other.to_string());
            if seen.is_none_or(|member| member["state"] != "up") {
                return Err(format!("{seen:?}"));
            }
        }
        Ok(())
    });
}

pub fn one_port_of_four_is_not_the_node() {
    let firewall = Firewall::new();
    let place = Place::new("cores");
    let mut nodes: Vec<Node> = Vec::new();
    for index in 1..=4 {
        let seed = nodes.first().map(|node| node.ip);
        let mut node = Node::new(&place, &format!("n{index}"), Ipv4Addr::new(127, 0, 0, index).into(), seed);
        node.extra = ["--shards", &CORES.to_string()].map(String::from).to_vec();
        node.start();
        nodes.push(node);
    }
    let mut cluster = Cluster { nodes, place };
    cluster.wait_whole();
    put_all(&cluster.nodes[0], "");
    let struck = cluster.nodes[1].ip;
    for core in [CORES - 2, 0] {
        firewall.close(struck, 9000 + core);
        // What is there breaks only when it is used again.
        put_all(&cluster.nodes[0], "?w=3");
        put_all(&cluster.nodes[2], "?w=3");
        wait_up(&cluster.nodes[0], struck, &format!("port {core} of it is closed, and the node is up"));
        firewall.heal();
        cluster.wait_no_hints();
    }
    // Fewer cores: those that are gone speak against nobody.
    assert!(cluster.nodes[1].stop().success(), "{}", cluster.nodes[1].log_tail());
    cluster.nodes[1].extra = ["--shards", "1"].map(String::from).to_vec();
    cluster.nodes[1].start();
    cluster.wait_whole();
    wait_up(&cluster.nodes[0], struck, "it has fewer cores, and is up");
    wait_up(&cluster.nodes[2], struck, "it has fewer cores, and is up");
    cluster.wait_no_hints();
    for node in &cluster.nodes {
        put_all(node, "?w=3&sloppy=false");
    }
}
