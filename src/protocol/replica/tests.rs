//! What a task does that no script of a whole cluster reaches: late reads, damaged records.

use super::{works::entry_of, *};
use crate::{protocol::versions::Actor, types::Media};

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
    Subject { slice: SLICE, key: Key::new("k").expect("a key"), conflict: Conflict::Siblings }
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
    Work::Put { context: None, value, write_id: WriteId(5), owed: Owed::default() }
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
