//! What the coordinator does with its operations as a whole; those of one kind are tested beside it.

use super::*;
use crate::{
    limits::MIB,
    protocol::versions::{Actor, Values},
    types::{Conflict, Consistency, NodeId, ShardId, WriteId},
};

/// Reads that wait for another replica hold what they have got: they count, and what is beyond the bound is told
/// so.
#[test]
fn values_that_reads_hold_are_bounded_in_bytes() {
    let at = |node| Address { node: NodeId(node), shard: ShardId(0) };
    let homes = [at(1), at(2)].map(|address| Home { address, healthy: true });
    let plan = || Plan {
        n: 2,
        homes: homes.into_iter().collect(),
        spares: Default::default(),
        sloppy: false,
        needed: 2,
        stands_in: false,
        conflict: Conflict::Siblings,
        word: TableWord::default(),
    };
    let (mut coordinator, mut out) = (Coordinator::new(at(1), 0), Vec::new());
    let mut refused = None;
    for read in 0..1 + REQUEST_BYTES_IN_FLIGHT_MAX / (4 * MIB) {
        let key = Key::new(read.to_string()).expect("a key");
        let deadline = Instant::ZERO + crate::limits::REQUEST_TIMEOUT;
        let request =
            Request { key, operation: Operation::Get { context: None }, consistency: Consistency::default(), deadline };
        out.clear();
        let asker = Asker::Client(ClientToken(read as u64));
        coordinator.begin(Instant::ZERO, asker, (request, None, 0), plan(), &mut out);
        let loads = out.iter().find_map(|act| match act {
            Act::Load { operation, .. } => Some(*operation),
            _ => None,
        });
        let Some(operation) = loads else {
            refused = Some(read);
            break;
        };
        let values: Values = [bytes::Bytes::from(vec![0; 4 * MIB])].into_iter().collect();
        let read = Ok(Siblings { values, ..Siblings::default() });
        coordinator.loaded(Instant::ZERO, operation, (read, false), &mut out);
    }
    assert_eq!(refused, Some(REQUEST_BYTES_IN_FLIGHT_MAX / (4 * MIB)));
    assert_eq!(coordinator.counters.overloads, 1);
    for later in 1..8 {
        coordinator.expire(Instant::ZERO + crate::limits::REQUEST_TIMEOUT * later, false, &mut out);
    }
    let left = (coordinator.len(), coordinator.open, coordinator.bytes);
    assert_eq!(left, (0, 0, 0), "what has ended holds nothing");
}

/// Others may hold it by the older word of its table: with another stamp it would be another write, later than all
/// that has come between.
#[test]
fn a_write_that_is_begun_again_keeps_its_stamp() {
    let at = |node| Address { node: NodeId(node), shard: ShardId(0) };
    let stamp = Some(Dot { actor: Actor::from_narrow(9), counter: 3 });
    let operation = Operation::Delete { context: None, write_id: WriteId(1) };
    let (key, deadline) = (Key::new("k").expect("a key"), Instant::ZERO + crate::limits::REQUEST_TIMEOUT);
    let request = Request { key, operation, consistency: Consistency::default(), deadline };
    let (mut coordinator, mut out) = (Coordinator::new(at(1), 0), Vec::new());
    let route = Route {
        targets: [at(2)].into_iter().collect(),
        hops: 2,
        word: TableWord::default(),
        asks: false,
        stamp,
        conflict: Conflict::LastWriteWins,
    };
    let asker = Asker::Client(ClientToken(1));
    coordinator.forward(Instant::ZERO, asker, request.clone(), route, &mut out);
    let Some(Act::Send { exchange, .. }) = out.pop() else { panic!("it is passed on") };
    let word = TableWord { version: 7, ..TableWord::default() };
    coordinator.outdated(Instant::ZERO, exchange, word, &mut out);
    assert_eq!(out, [Act::Again { asker, request, stamp, hops: 1 }]);
}

/// Whoever has passed it on may have an answer from another by now: begun again here it would be of a table that
/// was made since.
#[test]
fn what_was_passed_on_is_begun_again_by_who_has_it_from_its_client() {
    let at = |node| Address { node: NodeId(node), shard: ShardId(0) };
    let (me, to, homes) = (at(1), at(7), [at(1), at(2), at(3)]);
    let homes = homes.map(|address| Home { address, healthy: true }).into_iter().collect();
    let plan = Plan {
        n: 3,
        homes,
        spares: SmallVec::new(),
        sloppy: false,
        needed: 2,
        stands_in: false,
        conflict: Conflict::Siblings,
        word: TableWord::default(),
    };
    let key = Key::new("k").expect("a key");
    let operation = Operation::Get { context: None };
    let deadline = Instant::ZERO + crate::limits::REQUEST_TIMEOUT;
    let request = Request { key: key.clone(), operation, consistency: Consistency::default(), deadline };
    for takes_news in [true, false] {
        let (mut coordinator, mut out) = (Coordinator::new(me, 0), Vec::new());
        let asker = Asker::Shard { address: to, exchange: 9, takes_news };
        coordinator.begin(Instant::ZERO, asker, (request.clone(), None, 1), plan.clone(), &mut out);
        let Some(Act::Send { exchange, .. }) = out.pop() else { panic!("another is asked") };
        out.clear();
        let word = TableWord { version: 7, ..TableWord::default() };
        coordinator.outdated(Instant::ZERO, exchange, word, &mut out);
        let expected = match takes_news {
            true => Act::TellNews { to, exchange: 9, key: key.clone() },
            false => Act::Again { asker, request: request.clone(), stamp: None, hops: 1 },
        };
        assert_eq!((out, coordinator.len()), (vec![expected], 0));
    }
}

#[test]
fn a_silent_target_is_asked_for_a_sign_of_life_and_then_one_other_is_asked() {
    let at = |node| Address { node: NodeId(node), shard: ShardId(0) };
    let (mut coordinator, mut out) = (Coordinator::new(at(9), 0), Vec::new());
    let asker = Asker::Client(ClientToken(1));
    let deadline = Instant::ZERO + crate::limits::REQUEST_TIMEOUT;
    let (key, consistency) = (Key::new("k").expect("a key"), Consistency::default());
    let operation = Operation::Delete { context: Some(Default::default()), write_id: WriteId(1) };
    let request = Request { key, operation, consistency, deadline };
    let route = Route {
        targets: (1..=3).map(at).collect(),
        hops: 1,
        word: TableWord::default(),
        asks: false,
        stamp: None,
        conflict: Conflict::Siblings,
    };
    let passed_on = |act: &Act| match act {
        Act::Send { to, message: Message::Forward { .. }, .. } => Some(to.node.0),
        _ => None,
    };
    coordinator.forward(Instant::ZERO, asker, request, route, &mut out);
    assert_eq!(out.drain(..).filter_map(|act| passed_on(&act)).collect::<Vec<_>>(), [1]);
    coordinator.expire(Instant::ZERO + FORWARD_PROBED, false, &mut out);
    assert_eq!(std::mem::take(&mut out), [Act::Probe { core: at(1) }]);
    let late = Instant::ZERO + FORWARD_LATE;
    coordinator.expire(late, false, &mut out);
    assert!(out.contains(&Act::Late { core: at(1) }));
    // It has said nothing to anybody: what waits for it alone goes elsewhere, and this waits for another.
    coordinator.doubted(late, at(1), &mut out);
    assert_eq!(out.drain(..).filter_map(|act| passed_on(&act)).collect::<Vec<_>>(), [2]);
    coordinator.doubted(late, at(2), &mut out);
    assert_eq!(out.drain(..).filter_map(|act| passed_on(&act)).collect::<Vec<_>>(), [3]);
}
