//! Which nodes make a cluster: formed once, told from others, and known by their ids wherever they are.

use crate::{
    node::{Cluster, Node, Place, address, addresses},
    wait,
};
use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

fn next(ip: IpAddr, step: u8) -> IpAddr {
    let IpAddr::V4(ip) = ip else { panic!("{ip}") };
    Ipv4Addr::from(u32::from(ip) + u32::from(step)).into()
}
/// The cluster that a node says it belongs to.
fn cluster_of(node: &Node) -> String {
    let view = node.http().get("/v1/cluster").expect("a running node").json();
    view["cluster"].as_str().unwrap_or_else(|| panic!("{view}")).to_string()
}
/// Nodes that are started with `--join` of each other, all new.
fn mutual(test: &str, count: u8) -> Cluster {
    let place = Place::new(test);
    let first = addresses(count);
    let ips: Vec<IpAddr> = (0..count).map(|step| next(first, step)).collect();
    let node = |(index, ip): (usize, &IpAddr)| {
        let mut node = Node::new(&place, &format!("n{index}"), *ip, None);
        let others: Vec<String> = ips.iter().filter(|other| *other != ip).map(IpAddr::to_string).collect();
        node.first.extend(["--join".to_string(), others.join(",")]);
        node.start();
        node
    };
    let nodes = ips.iter().enumerate().map(node).collect();
    Cluster { nodes, place }
}

/// Nobody is told to form it; whoever starts first, there is one cluster in the end, and not two.
#[test]
fn nodes_that_join_each_other_form_one_cluster() {
    let mut cluster = mutual("mutual", 3);
    cluster.wait_whole();
    let ids: BTreeSet<String> = cluster.nodes.iter().map(cluster_of).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    // It is kept.
    cluster.nodes.iter_mut().for_each(|node| assert!(node.stop().success()));
    cluster.start_all();
    assert_eq!(cluster.nodes.iter().map(cluster_of).collect::<BTreeSet<_>>(), ids);
}

/// Joining is for empty nodes: one that has been a cluster of its own is refused before anything of it changes.
#[test]
fn a_node_with_a_cluster_does_not_join_another_one() {
    let cluster = Cluster::start("host", 1);
    let mut other = Node::new(&cluster.place, "other", address(), None);
    other.start();
    other.wait_ready();
    assert_eq!(other.http().put("k", "\"its own\"", None).expect("it runs").status, 200);
    assert!(other.stop().success());
    let identity = other.data.join("node/identity");
    let before = fs::read(&identity).expect("it has one");
    let (host, own) = (cluster.nodes[0].ip.to_string(), cluster_of(&cluster.nodes[0]));
    other.extra.extend(["--join".to_string(), host]);
    other.start();
    assert_eq!(other.wait_end().code(), Some(78), "{}", other.log_tail());
    let said = other.log_tail();
    assert!(said.contains(&own) && said.contains("never merged") && said.contains("without --join"), "{said}");
    assert_eq!(fs::read(&identity).expect("it has one"), before, "nothing was written");
    // Both know of it, and go on as they were.
    other.extra.truncate(2);
    other.start();
    other.wait_ready();
    assert_eq!(other.http().get("/v1/keys/k").expect("it runs").json()["value"], "its own");
    let members = |node: &Node| {
        let view = node.http().get("/v1/cluster").expect("it runs").json();
        view["members"].as_array().map_or(0, Vec::len)
    };
    assert_eq!((members(&other), members(&cluster.nodes[0])), (1, 1));
}

/// Its old command line names nobody to join: it must not become a second cluster that answers.
#[test]
fn a_first_node_without_its_directory_does_not_serve() {
    let mut cluster = Cluster::start("lost", 2);
    cluster.nodes[0].kill();
    let data = cluster.nodes[0].data.clone();
    fs::remove_dir_all(&data).expect("its data can be removed");
    cluster.nodes[0].first.retain(|argument| argument != "--bootstrap");
    cluster.nodes[0].start();
    // Whatever it answers until it ends, it takes no write.
    let mut http = cluster.nodes[0].http();
    let mut taken = Vec::new();
    wait::until(Duration::from_secs(30), "it ends", || {
        let put = http.put("lost", "\"by one\"", None);
        taken.extend(put.iter().filter(|reply| reply.status == 200).map(|reply| reply.text()));
        if put.is_err() && cluster.nodes[0].log_tail().contains("dynarc: ") {
            Ok(())
        } else {
            Err("it runs".to_string())
        }
    });
    assert!(!cluster.nodes[0].wait_end().success());
    let (said, other) = (cluster.nodes[0].log_tail(), cluster.nodes[1].ip);
    assert!(said.contains(&format!("--join {other}:9000")) && said.contains("a data directory was lost"), "{said}");
    assert_eq!(taken, [] as [String; 0]);
}

/// An address is not a node: one that comes back elsewhere is found, and two that have swapped theirs are told apart.
#[test]
fn a_member_is_found_at_another_address_and_port() {
    let mut cluster = Cluster::start("moved", 3);
    let put = |cluster: &Cluster, node: usize, word: &str| {
        let put = cluster.http(node).put(&format!("moved:{word}"), &format!("\"{word}\""), None).expect("it runs");
        assert_eq!(put.status, 200, "{}", put.text());
    };
    let stop = |cluster: &mut Cluster, node: usize| assert!(cluster.nodes[node].stop().success());
    let go_to = |node: &mut Node, ip: IpAddr, peer: &str| {
        node.ip = ip;
        node.extra.truncate(2);
        node.extra.extend(["--listen".to_string(), ip.to_string(), "--peer-port".to_string(), peer.to_string()]);
        node.start();
    };
    stop(&mut cluster, 2);
    put(&cluster, 0, "missed");
    go_to(&mut cluster.nodes[2], address(), "9100");
    cluster.wait_whole();
    cluster.wait_no_hints();
    assert!(cluster.http(2).get("/v1/keys/moved:missed?r=1").expect("it runs").text().contains("missed"));
    let ports = |node: &Node| node.http().get("/v1/cluster").expect("it runs").json();
    assert!(ports(&cluster.nodes[0]).to_string().contains("9100"), "{}", ports(&cluster.nodes[0]));

    let (one, other) = (cluster.nodes[1].ip, cluster.nodes[2].ip);
    stop(&mut cluster, 1);
    stop(&mut cluster, 2);
    go_to(&mut cluster.nodes[1], other, "9000");
    go_to(&mut cluster.nodes[2], one, "9000");
    cluster.wait_whole();
    let all = cluster.http(0).put("moved:all?w=3&sloppy=false", "\"all\"", None).expect("it runs");
    assert_eq!(all.status, 200, "{}", all.text());
}
