//! Each checker against a small history that breaks its promise.

use super::*;
use crate::{
    driver::core::CoreStats,
    protocol::{
        ring::Ring,
        versions::{Actor, Entry, Head, VersionVector},
    },
    sim::plan::Plan,
    types::{Address, Conflict, Member, MemberState, NodeId, Ports, Token},
};
use bounds::Bounds;
use lives::Settled;
use rings::Rings;
use std::net::{IpAddr, Ipv4Addr};

fn dot(actor: u64, counter: u64) -> Dot {
    Dot { actor: Actor::from_narrow(actor), counter }
}
fn state(clock: &[Dot], entries: &[(Dot, EventId)]) -> Siblings {
    let head = Head { clock: VersionVector::from_dots(clock.iter().copied()), ..Head::default() };
    let mut siblings = Siblings { head, ..Siblings::default() };
    for (dot, id) in entries {
        let value = make_value(0, *id, 50);
        let (bytes, checksum) = (value.bytes.len() as u32, value.checksum);
        let entry = Entry { dot: *dot, write_id: id.write_id(), media: value.media, bytes, checksum };
        siblings.head.entries.push(entry);
        siblings.values.push(value.bytes);
    }
    siblings
}
fn history() -> History {
    History::new(vec![Key::new(&b"k"[..]).unwrap()], 3, true)
}
fn put(history: &mut History, seen: &[EventId], clock: &[Dot], end: End) -> EventId {
    let context = VersionVector::from_dots(clock.iter().copied()).into();
    let seen = seen.iter().map(|id| (*id, dot(1, 1))).collect();
    let id = history.begin(Instant(1), Kind::Put, 0, seen, context);
    history.attempt(id);
    history.finish(Instant(2), id, end, None);
    id
}
fn broken(verdict: Verdict) -> Option<Invariant> {
    verdict.err().map(|(i, _)| i)
}

#[test]
fn a_lost_write_is_noticed_and_a_superseded_one_is_not() {
    let mut h = history();
    let one = put(&mut h, &[], &[], End::Acknowledged);
    let two = put(&mut h, &[one], &[dot(1, 1)], End::Acknowledged);
    let three = put(&mut h, &[], &[], End::Acknowledged);
    let good = state(&[dot(1, 2), dot(2, 1)], &[(dot(1, 2), two), (dot(2, 1), three)]);
    assert_eq!(h.check_final(0, &good), Ok(()));
    let lost = state(&[dot(1, 2), dot(2, 1)], &[(dot(1, 2), two)]);
    assert_eq!(broken(h.check_final(0, &lost)), Some(Invariant::I1));
}

#[test]
fn false_siblings_and_returns_are_noticed() {
    let mut h = history();
    let one = put(&mut h, &[], &[], End::Acknowledged);
    let two = put(&mut h, &[one], &[dot(1, 1)], End::Acknowledged);
    let both = state(&[dot(1, 2)], &[(dot(1, 1), one), (dot(1, 2), two)]);
    assert_eq!(broken(h.observe(0, &both).map(drop)), Some(Invariant::I2));
    let back = state(&[dot(1, 2)], &[(dot(1, 1), one)]);
    assert_eq!(broken(h.check_final(0, &back)), Some(Invariant::I2));
}

#[test]
fn reused_dots_foreign_values_and_undead_failures_are_noticed() {
    let mut h = history();
    let one = put(&mut h, &[], &[], End::Acknowledged);
    let two = put(&mut h, &[], &[], End::Unknown);
    let never = put(&mut h, &[], &[], End::NotApplied);
    h.observe(0, &state(&[dot(1, 1)], &[(dot(1, 1), one)])).unwrap();
    assert_eq!(broken(h.observe(0, &state(&[dot(1, 1)], &[(dot(1, 1), two)])).map(drop)), Some(Invariant::I2));
    assert_eq!(broken(h.observe(0, &state(&[dot(3, 1)], &[(dot(3, 1), never)])).map(drop)), Some(Invariant::I9));
    let mut foreign = state(&[dot(1, 1)], &[(dot(1, 1), one)]);
    foreign.values[0] = make_value(0, two, 50).bytes;
    assert_eq!(broken(h.observe(0, &foreign).map(drop)), Some(Invariant::I3));
    foreign.values[0] = foreign.values[0].slice(..40);
    assert_eq!(broken(h.observe(0, &foreign).map(drop)), Some(Invariant::I3));
}

fn delete(history: &mut History, seen: &[EventId], clock: &[Dot]) -> EventId {
    let context = VersionVector::from_dots(clock.iter().copied()).into();
    let seen = seen.iter().map(|id| (*id, dot(1, 1))).collect();
    let id = history.begin(Instant(1), Kind::Delete, 0, seen, context);
    history.finish(Instant(2), id, End::Acknowledged, None);
    id
}
fn context(clock: &[Dot]) -> Context {
    VersionVector::from_dots(clock.iter().copied()).into()
}
const STRICT: Quorum = Quorum { needed: 2, strict: true };

#[test]
fn an_acknowledged_dot_that_nobody_knows_is_noticed() {
    let mut h = history();
    let one = put(&mut h, &[], &[], End::Acknowledged);
    h.acknowledge(one, STRICT, &Context::default(), &context(&[dot(1, 1)])).unwrap();
    let gone = delete(&mut h, &[one], &[dot(1, 1)]);
    h.acknowledge(gone, STRICT, &context(&[dot(1, 1)]), &context(&[dot(1, 1)])).unwrap();
    assert_eq!(h.check_final(0, &state(&[dot(1, 1)], &[])), Ok(()));
    assert_eq!(broken(h.check_final(0, &state(&[], &[]))), Some(Invariant::I1));
}

#[test]
fn a_deleted_value_that_returns_is_noticed() {
    let mut h = history();
    let one = put(&mut h, &[], &[], End::Acknowledged);
    let gone = delete(&mut h, &[one], &[dot(1, 1)]);
    let back = state(&[dot(1, 1)], &[(dot(1, 1), one)]);
    assert_eq!(broken(h.check_final(0, &back)), Some(Invariant::I4), "in the end");
    h.acknowledge(gone, STRICT, &context(&[dot(1, 1)]), &context(&[dot(1, 1)])).unwrap();
    let floor = h.floor(0, 2);
    assert_eq!(broken(h.check_floor(0, &floor, &back)), Some(Invariant::I4), "at a quorum");
    assert_eq!(h.check_floor(0, &h.floor(0, 1), &back), Ok(()), "one replica may be behind");
}

#[test]
fn a_quorum_that_misses_an_acknowledged_write_is_noticed() {
    let mut h = history();
    let one = put(&mut h, &[], &[], End::Acknowledged);
    let before = h.floor(0, 2);
    h.acknowledge(one, STRICT, &Context::default(), &context(&[dot(1, 1)])).unwrap();
    let nothing = state(&[], &[]);
    assert_eq!(h.check_floor(0, &before, &nothing), Ok(()), "the read began before the acknowledgement");
    assert_eq!(broken(h.check_floor(0, &h.floor(0, 2), &nothing)), Some(Invariant::I6));
    assert_eq!(h.check_floor(0, &h.floor(0, 1), &nothing), Ok(()), "R + W = N");
    let two = put(&mut h, &[one], &[dot(1, 1)], End::Acknowledged);
    h.acknowledge(two, STRICT, &context(&[dot(1, 1)]), &context(&[dot(1, 2)])).unwrap();
    let stale = state(&[dot(1, 2)], &[(dot(1, 1), one)]);
    assert_eq!(broken(h.check_floor(0, &h.floor(0, 3), &stale)), Some(Invariant::I6));
    let mut sloppy = history();
    let one = put(&mut sloppy, &[], &[], End::Acknowledged);
    let quorum = Quorum { strict: false, ..STRICT };
    sloppy.acknowledge(one, quorum, &Context::default(), &context(&[dot(1, 1)])).unwrap();
    assert_eq!(sloppy.floor(0, 3), Floor::default(), "stand-ins promise nothing to a reader");
}

#[test]
fn a_context_that_forgets_is_noticed() {
    let mut h = history();
    let one = put(&mut h, &[], &[], End::Acknowledged);
    let two = put(&mut h, &[one], &[dot(1, 1)], End::Acknowledged);
    let forgetful = context(&[dot(2, 1)]);
    let verdict = h.acknowledge(two, STRICT, &context(&[dot(1, 1)]), &forgetful);
    assert_eq!(broken(verdict), Some(Invariant::I7), "an answer without what the request had seen");
    let shown = state(&[dot(2, 1)], &[(dot(2, 1), two)]);
    assert_eq!(broken(h.observe(0, &shown).map(drop)), Some(Invariant::I7), "a state without its cause");
}

fn member(id: u64, token: u64) -> Member {
    Member {
        id: NodeId(id),
        ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        ports: Ports::default(),
        shards: 1,
        slices: 1,
        tokens: [Token(token)].into(),
        state: MemberState::Up,
        generation: 1,
        revision: 0,
        heartbeat: 0,
    }
}

#[test]
fn another_ring_of_the_same_members_is_noticed() {
    let (members, shard) = ([member(1, 10), member(2, 20)], |n| Address::new(NodeId(n), 0));
    let mut rings = Rings::default();
    rings.look(shard(1), &members, &Ring::new(&members)).unwrap();
    assert_eq!(broken(rings.look(shard(2), &members, &Ring::new(&members[..1]))), Some(Invariant::I10));
    let forged = [member(1, 10), member(2, 21)];
    assert_eq!(broken(rings.look(shard(3), &forged, &Ring::new(&forged))), Some(Invariant::I10), "two entries");
}

#[test]
fn a_member_that_returns_is_noticed() {
    let shard = Address::new(NodeId(1), 0);
    let mut members = [member(1, 10), member(2, 20)];
    members[1].state = MemberState::Removed;
    let mut rings = Rings::default();
    let serving = Ring::new(&[member(1, 10), member(2, 20)]);
    assert_eq!(broken(rings.look(shard, &members, &serving)), Some(Invariant::I10), "it still serves");
    let mut rings = Rings::default();
    rings.look(shard, &members, &Ring::new(&members)).unwrap();
    members[1] = Member { generation: 2, ..member(2, 20) };
    assert_eq!(broken(rings.look(shard, &members, &Ring::new(&members))), Some(Invariant::I10), "it is back");
}

#[test]
fn whatever_outgrows_its_bound_is_noticed() {
    let bounds = Bounds::of(&Plan::draw(1, Duration::from_secs(1)));
    assert_eq!(bounds.check(0, &CoreStats::default()), Ok(()));
    assert_eq!(broken(bounds.check(usize::MAX, &CoreStats::default())), Some(Invariant::I12));
    let spoil: [fn(&mut CoreStats); 5] = [
        |s| s.engine.memory_bytes = u64::MAX,
        |s| s.engine.memtable_bytes = u64::MAX,
        |s| s.engine.segment_bytes = 1 << 50,
        |s| s.shard.in_flight = u64::MAX,
        |s| s.shard.hints_pending_bytes = u64::MAX,
    ];
    for spoil in spoil {
        let mut stats = CoreStats::default();
        spoil(&mut stats);
        assert_eq!(broken(bounds.check(0, &stats)), Some(Invariant::I12), "{stats:?}");
    }
}

fn stamped() -> History {
    History { stamped: true, ..history() }
}
fn stamp(time: u64, node: u64) -> Dot {
    Dot::stamp(time, NodeId(node))
}

#[test]
fn two_values_where_one_wins_are_noticed() {
    let mut h = stamped();
    let (one, two) = (put(&mut h, &[], &[], End::Acknowledged), put(&mut h, &[], &[], End::Acknowledged));
    let (first, second) = (stamp(5, 1), stamp(6, 2));
    assert!(h.observe(0, &state(&[second], &[(second, two)])).is_ok());
    let both = state(&[first, second], &[(first, one), (second, two)]);
    assert_eq!(broken(h.observe(0, &both).map(drop)), Some(Invariant::I8));
}

#[test]
fn a_lesser_stamp_that_wins_is_noticed() {
    let mut h = stamped();
    let (one, two) = (put(&mut h, &[], &[], End::Acknowledged), put(&mut h, &[], &[], End::Acknowledged));
    let (first, second) = (stamp(5, 1), stamp(5, 2));
    h.acknowledge(one, STRICT, &Context::default(), &context(&[first])).unwrap();
    h.acknowledge(two, STRICT, &Context::default(), &context(&[second])).unwrap();
    let (good, stale) = (state(&[second], &[(second, two)]), state(&[first], &[(first, one)]));
    assert_eq!(h.check_final(0, &good), Ok(()));
    assert_eq!(broken(h.check_final(0, &stale)), Some(Invariant::I8), "in the end");
    assert_eq!(broken(h.check_floor(0, &h.floor(0, 2), &stale)), Some(Invariant::I8), "at a quorum");
    assert_eq!(h.check_floor(0, &h.floor(0, 1), &stale), Ok(()));
    assert_eq!(broken(h.acknowledge(one, STRICT, &Context::default(), &Context::default())), Some(Invariant::I8));
}

#[test]
fn an_old_write_that_wins_over_one_made_much_later_is_noticed() {
    let mut h = stamped();
    let one = put(&mut h, &[], &[], End::Acknowledged);
    let late = h.begin(Instant(10_000_000_000), Kind::Put, 0, Seen::new(), Context::default());
    h.finish(Instant(11_000_000_000), late, End::Acknowledged, None);
    let first = stamp(5, 1);
    assert_eq!(broken(h.check_final(0, &state(&[first], &[(first, one)]))), Some(Invariant::I8));
}

#[test]
fn a_read_that_hides_a_value_is_noticed() {
    let mut h = history();
    let one = put(&mut h, &[], &[], End::Acknowledged);
    h.acknowledge(one, STRICT, &Context::default(), &context(&[dot(1, 1)])).unwrap();
    let (hidden, floor) = (state(&[dot(1, 1)], &[]), h.floor(0, 2));
    assert_eq!(broken(h.check_floor(0, &floor, &hidden)), Some(Invariant::I6));
    assert_eq!(h.check_floor(0, &h.floor(0, 1), &hidden), Ok(()), "R + W = N");
    put(&mut h, &[one], &[dot(1, 1)], End::Unknown);
    assert_eq!(h.check_floor(0, &floor, &hidden), Ok(()), "somebody may have overwritten it meanwhile");
}

#[test]
fn what_nobody_can_have_forgotten_does_not_come_back() {
    let mut h = history();
    let one = put(&mut h, &[], &[], End::Unknown);
    let two = put(&mut h, &[one], &[dot(1, 1)], End::Acknowledged);
    let both = state(&[dot(1, 2), dot(2, 1)], &[(dot(1, 2), two), (dot(2, 1), one)]);
    assert!(h.observe(0, &both).is_ok(), "whoever holds the first dot may not have met the second");
    assert_eq!(h.excuses.second_names, 1);
    assert_eq!(broken(h.check_final(0, &both)), Some(Invariant::I2), "in the end all have met");
    // After more writes than a head remembers it may.
    for _ in 0..4 {
        put(&mut h, &[], &[], End::Unknown);
    }
    assert!(h.observe(0, &both).is_ok());
    assert_eq!(h.excuses.revived_retries, 1);
}

#[test]
fn a_stamp_with_another_value_is_noticed() {
    let mut h = stamped();
    let (one, first) = (put(&mut h, &[], &[], End::Acknowledged), stamp(5, 1));
    h.acknowledge(one, STRICT, &Context::default(), &context(&[first])).unwrap();
    assert!(h.observe(0, &state(&[first], &[(first, one)])).is_ok());
    assert_eq!(broken(h.observe(0, &state(&[first], &[])).map(drop)), Some(Invariant::I8), "a tombstone");
    let second = stamp(6, 1);
    assert_eq!(broken(h.observe(0, &state(&[second], &[])).map(drop)), Some(Invariant::I8), "nobody has deleted");
    delete(&mut h, &[], &[]);
    assert!(h.observe(0, &state(&[second], &[])).is_ok());
}

#[test]
fn a_delete_that_wins_late_is_noticed() {
    let mut h = stamped();
    delete(&mut h, &[], &[]);
    let late = h.begin(Instant(10_000_000_000), Kind::Put, 0, Seen::new(), Context::default());
    h.finish(Instant(11_000_000_000), late, End::Acknowledged, None);
    assert_eq!(broken(h.check_final(0, &state(&[stamp(5, 1)], &[]))), Some(Invariant::I8));
}

#[test]
fn a_stamp_is_later_than_what_was_seen_only_where_the_last_write_wins() {
    let mut h = history();
    h.set_tables(vec![Some(0)], 1);
    let stamp = |time| Dot::stamp(time, NodeId(2));
    let context = |dot| Context::from(VersionVector::from_dots([dot]));
    let (before, earlier, later) = (context(dot(1, 1)), context(stamp(40)), context(stamp(60)));
    let shown = state(&[stamp(50)], &[]);
    let kinds = [(Some(Conflict::Siblings), Some(Invariant::I7)), (Some(Conflict::LastWriteWins), None)];
    for (conflict, expected) in kinds {
        h.table_changes(0);
        // While the change is on its way, nobody can say by which rule an answer is.
        assert_eq!(broken(h.check_seen(0, &before, &h.floor(0, 2), &shown)), None);
        h.table_settled(0, Settled { dropped: 0, conflict });
        let floor = h.floor(0, 2);
        assert_eq!(broken(h.check_seen(0, &before, &floor, &shown)), expected, "{conflict:?}");
        assert_eq!(broken(h.check_seen(0, &earlier, &floor, &shown)), None);
        assert_eq!(broken(h.check_seen(0, &later, &floor, &shown)), Some(Invariant::I7));
    }
}
