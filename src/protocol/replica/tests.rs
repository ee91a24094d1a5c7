//! What a task does that no script of a whole cluster reaches: late reads, damaged records.

use super::{works::entry_of, *};
use crate::{
    limits::{CLOCK_BYTES_MAX, CLOCK_ENTRIES_MAX, CONTEXT_DOTS_MAX, INCARNATION_MAX},
    protocol::versions::{Actor, VersionVector},
    types::Media,
};

const NODE: NodeId = NodeId(1);
const SLICE: SliceId = SliceId(0);
const NOW: Instant = Instant(1_000);
const DEADLINE: Instant = Instant(2_000);

fn replica() -> Replica<u8> {
    let mut leases = Leases::new(NODE, 1);
    leases.begin(SLICE, None).expect("incarnations are left");
    Replica::new(leases, Stamps::new(NODE, Vec::new()), 1)
}
fn subject() -> Subject {
    Subject { slice: SLICE, key: Key::new("k").expect("a key"), conflict: Conflict::Siblings, life: 0 }
}
/// Begins the work and gives the number of its read.
fn begin(replica: &mut Replica<u8>, work: Work) -> u64 {
    let mut out = Vec::new();
    replica.begin(NOW, 7, subject(), work, DEADLINE, &mut out);
    match &out[..] {
        [Step::Load { io, .. }] => *io,
        other => panic!("{other:?}"),
    }
}
fn put() -> Work {
    let value = Value::new(Media::Json, "1");
    Work::Put { context: None, value, write_id: WriteId(5), stamp: None, owed: Owed::default() }
}
fn written(node: u64) -> Siblings {
    let value = Value::new(Media::Json, node.to_string());
    let entry = entry_of(&value, Dot { actor: Actor::new(NodeId(node), 1), counter: 1 }, WriteId(node));
    let head = Head::default().put(&Context::default(), entry).head;
    Siblings { head, values: [value.bytes].into_iter().collect() }
}
fn rebuild(siblings: &Siblings) -> Work {
    Work::Rebuild { siblings: siblings.clone(), head_read: false }
}
fn stored(steps: &[Step<u8>]) -> Option<&Change> {
    steps.iter().find_map(|step| match step {
        Step::Store { io, changes } if io & LEASE_IO == 0 => changes.first(),
        _ => None,
    })
}

#[test]
fn a_put_whose_read_comes_late_is_not_begun() {
    let (mut replica, mut out) = (replica(), Vec::new());
    let io = begin(&mut replica, put());
    replica.loaded(DEADLINE, io, Ok(None), &mut out);
    assert_eq!(out, [Step::Done { origin: 7, result: Err(Rejection::Refused(Refusal::Expired)) }]);
    // In time it is.
    let io = begin(&mut replica, put());
    out.clear();
    replica.loaded(NOW, io, Ok(None), &mut out);
    assert!(matches!(&out[..], [Step::Prepared { origin: 7, .. }, Step::Store { .. }, ..]), "{out:?}");
}

#[test]
fn a_damaged_record_is_told_and_replaced_under_another_actor() {
    let (mut replica, mut out) = (replica(), Vec::new());
    let io = begin(&mut replica, put());
    replica.loaded(NOW, io, Err(Refusal::Damaged), &mut out);
    assert_eq!(out[0], Step::Damaged { key: subject().key });
    assert!(replica.leases.mint(SLICE).is_some(), "nothing is in doubt yet");

    let others = written(2);
    let io = begin(&mut replica, rebuild(&others));
    out.clear();
    replica.loaded(NOW, io, Err(Refusal::Damaged), &mut out);
    assert!(matches!(&out[..], [Step::Load { depth: Depth::Head, .. }]), "{out:?}");
    out.clear();
    replica.loaded(NOW, io, Err(Refusal::Damaged), &mut out);
    let record = stored(&out).and_then(|change| change.record.clone()).expect("it is replaced");
    assert_eq!(record, (others.head.encode(), others.values));
    assert_eq!((replica.leases.mint(SLICE), replica.rebuilt), (None, 1), "its own dots in it are forgotten");
}

#[test]
fn a_sound_head_is_kept_and_a_value_that_nobody_has_is_not_called_absent() {
    let (mut replica, mut out) = (replica(), Vec::new());
    let own = |siblings: &Siblings| Ok(Some(Stored { head: siblings.head.encode(), values: Values::new() }));
    let both = written(1).join(&written(2), Conflict::Siblings);
    for (held, others, replaced) in
        [(written(2), both.clone(), true), (both.clone(), both.clone(), true), (both, written(2), false)]
    {
        let io = begin(&mut replica, rebuild(&others));
        out.clear();
        replica.loaded(NOW, io, Err(Refusal::Damaged), &mut out);
        out.clear();
        replica.loaded(NOW, io, own(&held), &mut out);
        assert_eq!(stored(&out).is_some(), replaced, "{out:?}");
        if replaced {
            replica.stored(NOW, io, Ok(()), &mut out);
        }
        assert!(replica.leases.mint(SLICE).is_some(), "no dot was forgotten");
    }
    // One that can be read whole has been replaced already.
    let io = begin(&mut replica, rebuild(&written(2)));
    out.clear();
    replica.loaded(NOW, io, own(&written(1)), &mut out);
    assert_eq!(out, [Step::Done { origin: 7, result: Ok(()) }]);
}

fn put_upon(context: Context) -> Work {
    let value = Value::new(Media::Json, "1");
    Work::Put { context: Some(context), value, write_id: WriteId(5), stamp: None, owed: Owed::default() }
}
fn delete_upon(context: Context) -> Work {
    Work::Delete { context: Some(context), write_id: WriteId(6), stamp: None, owed: Owed::default() }
}
/// What becomes of a client's write upon this stored head (a tombstone).
fn outcome(replica: &mut Replica<u8>, work: Work, stored: &Head) -> Result<Head, Rejection> {
    let io = begin(replica, work);
    let mut out = Vec::new();
    replica.loaded(NOW, io, Ok(Some(Stored { head: stored.encode(), values: Values::new() })), &mut out);
    if let [Step::Done { result, .. }] = &out[..] {
        return Err(result.expect_err("a write that is not stored"));
    }
    let (head, _) = stored_head(&out);
    replica.stored(NOW, io, Ok(()), &mut out);
    Ok(head)
}
fn stored_head(steps: &[Step<u8>]) -> (Head, Values) {
    let (head, values) = stored(steps).and_then(|change| change.record.clone()).expect("it is stored");
    (Head::decode(&head).expect("what is stored can be read"), values)
}
fn dot(node: u64, incarnation: u64, counter: u64) -> Dot {
    Dot { actor: Actor::new(NodeId(node), incarnation), counter }
}
fn clock(dots: impl IntoIterator<Item = Dot>) -> VersionVector {
    VersionVector::from_dots(dots)
}

/// B3 of the list of executions: one forged context stopped all writes of a slice.
#[test]
fn a_context_that_cannot_be_is_refused_by_name_and_stops_nothing() {
    let mut replica = replica();
    replica.members_are([(NodeId(2), 1), (NODE, 1)].into_iter());
    let nothing = Head::default();
    let known = Head { clock: clock([dot(77, 3, 9), dot(1, 9, 9)]), ..Head::default() };
    let (foreign, unknown) = (Err(Rejection::ForeignContext), Err(Rejection::UnknownNode(NodeId(77))));
    let forged = [
        (dot(1, 65_535, 1), &foreign),
        (dot(1, INCARNATION_MAX, 1), &foreign),
        (dot(1, 2, 1), &foreign),
        (dot(1, 1, 1_000), &foreign),
        (dot(2, 1, u64::MAX), &foreign),
        (dot(2, INCARNATION_MAX, 1), &foreign),
        (dot(77, 1, 1), &unknown),
        (dot(77, INCARNATION_MAX, u64::MAX), &unknown),
    ];
    for (dot, refusal) in forged {
        for context in
            [Context::from(clock([dot])), Context { dots: [dot].into_iter().collect(), ..Context::default() }]
        {
            for work in [put_upon(context.clone()), delete_upon(context)] {
                assert_eq!(&outcome(&mut replica, work, &nothing), refusal, "{dot:?}");
            }
        }
    }
    let many = clock((100..440).map(|node| dot(node, 1, 1)));
    let refused = outcome(&mut replica, put_upon(many.into()), &nothing);
    assert_eq!(refused, Err(Rejection::UnknownNode(NodeId(100))));
    // What the own copy knows is taken back whatever it is, and so is what members may have written.
    for context in [known.clock.clone(), clock([dot(77, 3, 8)]), clock([dot(77, 3, 9), dot(2, 1 << 40, 5)])] {
        assert!(outcome(&mut replica, put_upon(context.into()), &known).is_ok());
    }
    // A stamp is of a table that the key was in once: it takes no part.
    let stamped = clock([Dot::stamp(u64::MAX >> 2, NodeId(2)), dot(2, 1, 5)]);
    let head = outcome(&mut replica, put_upon(stamped.into()), &nothing).expect("it is taken");
    assert_eq!((head.stamp(), head.clock.get(Actor::new(NodeId(2), 1))), (None, 5));
    // Nothing of all this was a sign of lost memory.
    assert_eq!(replica.identity_alarms, 0);
}

/// B4: a key written across so many lives that its clock is at the bound.
#[test]
fn a_clock_at_its_bound_takes_who_is_in_it_and_says_so_to_others() {
    let mut replica = replica();
    replica.members_are([(NodeId(2), 1), (NODE, 1)].into_iter());
    let lives = |count: u64| clock((1..=count).map(|life| dot(2, life, life * life * 7_919)));
    let most = (1..5_000).take_while(|n| lives(*n).within(CLOCK_ENTRIES_MAX, CLOCK_BYTES_MAX)).last().expect("some");
    assert!(most > 700, "{most}");
    let own = |mut clock: VersionVector| {
        clock.record(dot(1, 0, 3));
        clock
    };
    let full = Head { clock: lives(most), ..Head::default() };
    assert_eq!(outcome(&mut replica, put_upon(full.clock.clone().into()), &full), Err(Rejection::ClockLimit));
    let seen = Head { clock: lives(most - 1), ..Head::default() };
    assert_eq!(outcome(&mut replica, delete_upon(lives(most + 1).into()), &seen), Err(Rejection::ClockLimit));
    // Half of it was an alarm long ago.
    let half = Head { clock: lives(most / 2), ..Head::default() };
    let before = replica.clocks_long;
    assert!(outcome(&mut replica, put_upon(own(lives(most / 4)).into()), &half).is_ok());
    assert_eq!(replica.clocks_long, before);
    let more = Head { clock: lives(most * 3 / 4), ..Head::default() };
    let head = outcome(&mut replica, put_upon(more.clock.clone().into()), &more).expect("there is room");
    assert_eq!(replica.clocks_long, before + 1);
    // Who is in the clock writes on, with the context that was given out.
    let mut crowded = lives(most);
    head.clock.entries().iter().filter(|d| d.actor.node() == NODE).for_each(|d| crowded.record(*d));
    assert!(!crowded.within(CLOCK_ENTRIES_MAX, CLOCK_BYTES_MAX) && crowded.can_be_read());
    let crowded = Head { clock: crowded, ..Head::default() };
    assert!(outcome(&mut replica, put_upon(crowded.clock.clone().into()), &crowded).is_ok());
}

/// A11: of more dots than a context holds, the one that the writer had built on was left out.
#[test]
fn a_writer_among_siblings_keeps_the_write_before() {
    let mut replica = replica();
    replica.members_are((1..40).map(|node| (NodeId(node), 1)));
    // A sibling that the writer never sees keeps its dots apart from the clock.
    let mut held = written(39);
    let mut context = Context::default();
    for turn in 0..30 {
        // Each write by another coordinator, in an order that is not that of their names.
        let dot = dot(2 + turn * 7 % 31, 1, 1 + turn);
        let value = Value::new(Media::Json, turn.to_string());
        let before = context.clone();
        let merged = held.head.put(&context, entry_of(&value, dot, WriteId(100 + turn)));
        let head = held.head.clone();
        context = context.with_dot(dot, |dot| head.supersedes(dot));
        held.values = merged.picks.iter().map(|_| value.bytes.clone()).collect();
        held.head = merged.head;
        assert_eq!(held.head.entries.len(), 2, "turn {turn}: the writer has superseded its own write");
        assert!(context.covers(dot) && context.dots.len() <= CONTEXT_DOTS_MAX);
        let last = head.entries.iter().map(|e| e.dot).find(|d| before.covers(*d));
        assert!(last.is_none_or(|last| context.covers(last)), "turn {turn}: the write before is left out");
    }
}

/// Two replicas hold the same, and one of them remembers that what was superseded was a certain write: sent to the
/// other, that is news, for the write may come there once more under another dot.
#[test]
fn what_is_remembered_of_a_superseded_write_is_taken_over() {
    let (mut replica, mut out) = (replica(), Vec::new());
    let first = written(2);
    let context = Context::from(first.head.clock.clone());
    let value = Value::new(Media::Json, "3");
    let later = entry_of(&value, Dot { actor: Actor::new(NodeId(3), 1), counter: 1 }, WriteId(3));
    let (traced, blind) = (first.head.put(&context, later.clone()).head, Head::default().put(&context, later).head);
    assert!(traced.same_state(&blind) && traced.knows_write(WriteId(2)) && !blind.knows_write(WriteId(2)));
    let values: Values = [value.bytes].into_iter().collect();
    let siblings = Siblings { head: traced.clone(), values };
    let merge = || Work::Merge { siblings: siblings.clone(), behind: None, fresh: None, awaited: false };
    let io = begin(&mut replica, merge());
    replica.loaded(NOW, io, Ok(Some(Stored { head: blind.encode(), values: Values::new() })), &mut out);
    let change = stored(&out).expect("it is stored");
    let head = Head::decode(&change.record.as_ref().expect("a record").0).expect("a head");
    assert!(head.knows_write(WriteId(2)));
    // Under another dot it is no sibling of its own successor.
    let mut again = written(2).head;
    again.entries[0].dot = Dot { actor: Actor::new(NodeId(4), 1), counter: 1 };
    again.clock = VersionVector::from_dots([again.entries[0].dot]);
    assert_eq!(head.sync(&again).head.entries.len(), 1);
    // The second time it is none.
    let (mut replica, mut out) = (self::replica(), Vec::new());
    let io = begin(&mut replica, merge());
    replica.loaded(NOW, io, Ok(Some(Stored { head: traced.encode(), values: Values::new() })), &mut out);
    assert_eq!(out, [Step::Done { origin: 7, result: Ok(()) }]);
}

/// In a table that was made later: the others, who store nothing either, would never be told apart from it.
#[test]
fn a_delete_of_nothing_leaves_no_record_in_any_life_of_a_table() {
    let (mut replica, mut out) = (replica(), Vec::new());
    let work = Work::Delete { context: None, write_id: WriteId(5), stamp: None, owed: Owed::default() };
    replica.begin(NOW, 7, Subject { life: 1, ..subject() }, work, DEADLINE, &mut out);
    let Some(Step::Load { io, .. }) = out.pop() else { panic!("{out:?}") };
    replica.loaded(NOW, io, Ok(None), &mut out);
    assert!(stored(&out).is_none(), "{out:?}");
    assert!(out.contains(&Step::Done { origin: 7, result: Ok(()) }));
    let nothing = Siblings { head: Head { life: 1, ..Head::default() }, values: Values::new() };
    let merge = Work::Merge { siblings: nothing, behind: None, fresh: None, awaited: true };
    let (mut replica, mut out) = (self::replica(), Vec::new());
    let io = begin(&mut replica, merge);
    replica.loaded(NOW, io, Ok(None), &mut out);
    assert_eq!(out, [Step::Done { origin: 7, result: Ok(()) }]);
}
