//! The rounds: a fault or two, time for it to matter, healing, and now and then a full stop in which all is judged.

use crate::{
    clients::{Clients, NODES},
    firewall::{Firewall, Manner},
    node::{Cluster, Node, Place},
    verdict, wait,
};
use std::{
    env,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// Rounds between two judgements.
const JUDGED_EVERY: u64 = 10;
const CLIENTS: u64 = 10;

#[derive(Clone, PartialEq, Eq, Debug)]
enum Fault {
    /// The nodes of the first list hear nothing of the others, and the others nothing of them.
    Split(Vec<usize>, Manner),
    /// What this node sends to the others is cut; what they send to it is not.
    Mute(usize, Manner),
    /// What the others send to this node is cut.
    Deaf(usize, Manner),
    Kill(Vec<usize>),
    Pause(usize),
    /// An orderly stop.
    Stop(usize),
}

/// A whole number from the environment, if it is there.
pub fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// The whole test. Panics at the first broken promise.
pub fn rounds() {
    let (rounds, seed) = (number("PARTITION_ROUNDS", 30), number("PARTITION_SEED", 1));
    println!("partitions: {rounds} rounds, PARTITION_SEED={seed}");
    let firewall = Firewall::new();
    let mut cluster = start("partitions");
    let mut random = fastrand::Rng::with_seed(seed);
    let clients = Clients::new(cluster.nodes.iter().map(|n| n.ip).collect());
    let mut round = 0;
    while round < rounds {
        let until = (round + JUDGED_EVERY).min(rounds);
        clients.stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let clients = &clients;
                scope.spawn(move || clients.run(client, seed + round));
            }
            // A panic here must let the clients end, or the scope waits for ever.
            let all = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                (round..until).for_each(|number| run_round(number, &firewall, &mut cluster, &clients, &mut random));
            }));
            clients.stop.store(true, Ordering::Relaxed);
            all.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        verdict::judge(&mut cluster, &clients);
        round = until;
    }
    let (operations, history) = (clients.operations.load(Ordering::Relaxed), clients.history());
    let [acknowledged, refused, unknown] = history.outcomes();
    println!(
        "partitions: {operations} operations; {} writes: {acknowledged} acknowledged, {refused} not applied, {unknown} unknown; \
         {} values read",
        history.len(),
        history.values_read
    );
    assert!(acknowledged as u64 > rounds * 100, "too little load to judge by");
}

pub fn start(test: &str) -> Cluster {
    let place = Place::new(test);
    let address = |index: usize| IpAddr::from(Ipv4Addr::new(127, 0, 0, index as u8 + 1));
    let mut nodes = Vec::new();
    for index in 0..NODES {
        let seed = (index > 0).then(|| address(0));
        let mut node = Node::new(&place, &format!("n{}", index + 1), address(index), seed);
        // Suspicion comes within a round: some partitions end before it, some after.
        let shards = if index < 3 { "1" } else { "2" };
        let settings = ["--gossip-interval-ms", "250", "--suspect-after-ms", "1250"];
        node.extra = ["--shards", shards].iter().chain(&settings).map(|word| word.to_string()).collect();
        node.start();
        nodes.push(node);
    }
    let mut cluster = Cluster { nodes, place };
    cluster.wait_whole();
    cluster
}

fn run_round(number: u64, firewall: &Firewall, cluster: &mut Cluster, clients: &Clients, random: &mut fastrand::Rng) {
    if clients.broken() {
        return;
    }
    let count = if random.f64() < 0.35 { 2 } else { 1 };
    let faults: Vec<Fault> = (0..count).map(|_| draw(random)).collect();
    let (lasting, pause) = (random.u64(300..3_500), random.u64(0..1_200));
    let (start, before) = (Instant::now(), acknowledged(clients));
    faults.iter().for_each(|fault| strike(fault, firewall, cluster));
    wait::pause(Duration::from_millis(lasting));
    firewall.heal();
    for fault in &faults {
        mend(fault, cluster);
    }
    let lasted = start.elapsed().as_millis();
    wait::pause(Duration::from_millis(pause));
    let gained: Vec<u64> = acknowledged(clients).iter().zip(&before).map(|(after, before)| after - before).collect();
    println!("  round {number}: {faults:?} for {lasted} ms; writes acknowledged by node: {gained:?}");
}

fn acknowledged(clients: &Clients) -> Vec<u64> {
    clients.acknowledged.iter().map(|a| a.load(Ordering::Relaxed)).collect()
}

fn draw(random: &mut fastrand::Rng) -> Fault {
    let mut nodes: Vec<usize> = (0..NODES).collect();
    random.shuffle(&mut nodes);
    let manner = if random.u8(..3) == 0 { Manner::Reset } else { Manner::Drop };
    match random.u32(..100) {
        0..25 => Fault::Split(nodes[..2].to_vec(), manner),
        25..38 => Fault::Split(nodes[..1].to_vec(), manner),
        38..44 => Fault::Mute(nodes[0], manner),
        44..50 => Fault::Deaf(nodes[0], manner),
        50..70 => Fault::Kill(nodes[..random.usize(1..=2)].to_vec()),
        70..74 => Fault::Kill(nodes),
        74..90 => Fault::Pause(nodes[0]),
        _ => Fault::Stop(nodes[0]),
    }
}

fn strike(fault: &Fault, firewall: &Firewall, cluster: &mut Cluster) {
    let ips: Vec<IpAddr> = cluster.nodes.iter().map(|n| n.ip).collect();
    let between = |from: &dyn Fn(usize) -> bool, to: &dyn Fn(usize) -> bool| -> Vec<(IpAddr, IpAddr)> {
        let pairs = (0..NODES).flat_map(|a| (0..NODES).map(move |b| (a, b)));
        pairs.filter(|(a, b)| a != b && from(*a) && to(*b)).map(|(a, b)| (ips[a], ips[b])).collect()
    };
    match fault {
        Fault::Split(side, manner) => {
            let (inside, outside) = (|n: usize| side.contains(&n), |n: usize| !side.contains(&n));
            firewall.cut(&between(&inside, &outside), *manner);
            firewall.cut(&between(&outside, &inside), *manner);
        }
        Fault::Mute(node, manner) => firewall.cut(&between(&|n| n == *node, &|_| true), *manner),
        Fault::Deaf(node, manner) => firewall.cut(&between(&|_| true, &|n| n == *node), *manner),
        Fault::Kill(nodes) => {
            nodes.iter().for_each(|n| {
                if cluster.nodes[*n].started() {
                    cluster.nodes[*n].cut()
                }
            });
            nodes.iter().for_each(|n| cluster.nodes[*n].kill());
        }
        Fault::Pause(node) => {
            if cluster.nodes[*node].started() {
                cluster.nodes[*node].signal("STOP");
            }
        }
        Fault::Stop(node) => {
            // A node that is paused as well cannot end by itself.
            if cluster.nodes[*node].started() {
                cluster.nodes[*node].signal("CONT");
                let status = cluster.nodes[*node].stop();
                assert!(status.success(), "an orderly stop ends with {status}");
            }
        }
    }
}

fn mend(fault: &Fault, cluster: &mut Cluster) {
    let nodes = match fault {
        Fault::Split(..) | Fault::Mute(..) | Fault::Deaf(..) => return,
        Fault::Kill(nodes) => nodes.clone(),
        Fault::Pause(node) | Fault::Stop(node) => vec![*node],
    };
    for node in nodes {
        if !cluster.nodes[node].started() {
            cluster.nodes[node].start();
        } else {
            cluster.nodes[node].signal("CONT");
        }
    }
}
