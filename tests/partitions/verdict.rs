//! All is healed, the clients are silent: the cluster becomes whole, hints drain, replicas become equal, and the
//! history is judged.

use crate::{
    clients::{Clients, NODES, Wires, get},
    node::Cluster,
    wait,
};
use dynarc::{
    client::Connection,
    protocol::{ring::Ring, versions::Siblings},
    types::{Key, Level, Member},
};
use std::{net::SocketAddr, time::Duration};

/// Replicas of a key.
const HOMES: usize = 3;
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// Panics with every promise that was broken.
pub fn judge(cluster: &mut Cluster, clients: &Clients) {
    refuse_violations(clients);
    cluster.wait_whole();
    cluster.wait_no_hints();
    let first = SocketAddr::new(cluster.nodes[0].ip, 8000);
    let mut wire = Connection::connect(first, Duration::from_secs(5)).expect("a running node");
    let (members, _) = wire.ring(Duration::from_secs(5)).expect("its ring");
    let (ring, mut wires) = (Ring::new(&members), Wires::default());
    let keys: Vec<(u32, Key)> = clients.history().keys().map(|(index, key)| (index, key.clone())).collect();
    let unequal = keys.iter().filter(|(_, key)| equal(&mut wires, &ring, &members, key).is_err()).count();
    for (index, key) in &keys {
        // One read of all replicas makes them equal, the second one is what a client gets then.
        let node = *index as usize % NODES;
        let everywhere = SocketAddr::new(cluster.nodes[node].ip, 8000);
        let read = |wires: &mut Wires| {
            wait::until(SETTLED_WITHIN, "a read of all replicas", || get(wires, everywhere, key, Level::All))
        };
        observe(clients, *index, &read(&mut wires));
        wait::until(SETTLED_WITHIN, "the replicas become equal", || equal(&mut wires, &ring, &members, key));
        let last = read(&mut wires);
        if let Err(violation) = clients.history().check_final(*index, &last) {
            clients.violate(violation);
        }
    }
    println!("  judged: {} keys, {unequal} of them with replicas that only a read made equal", keys.len());
    refuse_violations(clients);
}

fn observe(clients: &Clients, index: u32, siblings: &Siblings) {
    if let Err(violation) = clients.history().observe(index, siblings) {
        clients.violate(violation);
    }
}

/// Whether the copies of all home replicas are the same, each asked for its own.
fn equal(wires: &mut Wires, ring: &Ring, members: &[Member], key: &Key) -> Result<(), String> {
    let token = key.token();
    let mut first: Option<Siblings> = None;
    for id in ring.walk(token, HOMES) {
        let member = members.iter().find(|m| m.id == id).ok_or("a stranger in the ring")?;
        let shard = ring.address(id, token).ok_or("no such node")?.shard.0;
        let own = get(wires, SocketAddr::new(member.ip, member.ports.client + shard), key, Level::One)?;
        own.verify().map_err(|e| format!("{key:?} at {}: {e}", member.ip))?;
        match &first {
            None => first = Some(own),
            Some(other) if !other.head.same_state(&own.head) => {
                return Err(format!("{key:?}: {:?} differs from {:?} at {}", other.head, own.head, member.ip));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn refuse_violations(clients: &Clients) {
    let violations = clients.violations.lock().expect("no client panicked").clone();
    assert!(violations.is_empty(), "{} promises broken:\n{}", violations.len(), violations.join("\n"));
}
