//! The machine alone: what it asks for, what it is told.

use super::*;
use crate::{
    protocol::versions::{Actor, Entry, VersionVector},
    types::{Media, Member, MemberState, Ports, Token, WriteId},
};
use std::net::{IpAddr, Ipv4Addr};

const ME: NodeId = NodeId(1);
const OWNER: NodeId = NodeId(2);
const SLICE: SliceId = SliceId(0);

fn member(id: NodeId) -> Member {
    Member {
        id,
        ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        ports: Ports::default(),
        shards: 1,
        slices: 1,
        tokens: [Token(id.0 << 60)].into(),
        state: MemberState::Up,
        generation: 1,
        revision: 0,
        heartbeat: 0,
    }
}
fn key(name: &str) -> Key {
    Key::new(name.as_bytes().to_vec()).expect("a short key")
}
/// A state of one value after so many writes.
fn state(counter: u64) -> Siblings {
    let dot = Dot { actor: Actor::new(ME, 1), counter };
    let entry = Entry { dot, write_id: WriteId(counter), media: Media::Json, bytes: 1, checksum: 0 };
    let head = Head {
        life: 0,
        clock: VersionVector::from_dots([dot]),
        entries: [entry].into_iter().collect(),
        recent: Default::default(),
    };
    Siblings { head, values: [Bytes::from_static(b"1")].into_iter().collect() }
}
fn stored(siblings: &Siblings) -> Stored {
    Stored { head: siblings.head.encode(), values: siblings.values.clone() }
}
fn hint(stamp: u64) -> Stored {
    let parked = state(1);
    let head = HintHead { stamp, kind: HintKind::Parked(parked.head) }.encode();
    Stored { head, values: parked.values }
}

struct Rig {
    hints: Hints,
    ring: Ring,
    now: Instant,
}
impl Rig {
    fn new(found: Found) -> Rig {
        let now = Instant(1_000_000_000);
        let ring = Ring::new(&[member(ME), member(OWNER)]);
        Rig { hints: Hints::new(vec![SLICE], found, 100, 7, now), ring, now }
    }
    fn tell(&mut self, step: impl FnOnce(&mut Hints, Instant, View<'_>, &mut Vec<Act>)) -> Vec<Act> {
        let mut acts = Vec::new();
        let homes = |_: &Key| [ME, OWNER].into_iter().collect();
        step(&mut self.hints, self.now, View { ring: &self.ring, homes: &homes, usable: &|_| true }, &mut acts);
        acts
    }
    /// Time passes until the machine wants something.
    fn wait(&mut self) -> Vec<Act> {
        for _ in 0..100 {
            let Some(at) = self.hints.next_deadline() else { return Vec::new() };
            self.now = self.now.max(at);
            let acts = self.tell(|hints, now, view, out| hints.tick(now, view, |_| true, out));
            if !acts.is_empty() {
                return acts;
            }
        }
        Vec::new()
    }
    fn wait_for_deadline(&mut self) {
        self.now = self.now.max(self.hints.next_deadline().expect("something is owed"));
    }
    fn scanned(&mut self, acts: &[Act], found: Result<Vec<(Bytes, Bytes)>, Refusal>) -> Vec<Act> {
        let [Act::Scan { io, .. }] = acts else { panic!("{acts:?}") };
        self.tell(|hints, now, view, out| hints.scanned(now, *io, found, view, out))
    }
    fn loaded(&mut self, acts: &[Act], result: Result<Option<Stored>, Refusal>) -> Vec<Act> {
        let Some(Act::Load { io, .. }) = acts.first() else { panic!("{acts:?}") };
        self.tell(|hints, now, view, out| hints.loaded(now, *io, result, view, out))
    }
    fn fetched(&mut self, acts: &[Act], result: Fetched) -> Vec<Act> {
        let Some(Act::Send { delivery, message: Message::Fetch { .. }, .. }) = acts.first() else { panic!("{acts:?}") };
        self.tell(|hints, now, view, out| hints.fetched(now, *delivery, Ok(result), view, out))
    }
    fn replicated(&mut self, acts: &[Act]) -> Vec<Act> {
        let Some(Act::Send { delivery, message: Message::Replicate { .. }, .. }) = acts.first() else {
            panic!("{acts:?}")
        };
        self.tell(|hints, now, view, out| hints.replicated(now, *delivery, Ok(()), view, out))
    }
}
fn records(names: &[&str]) -> Vec<(Bytes, Bytes)> {
    names.iter().map(|name| (data_key(&key(name)), state(5).head.encode())).collect()
}
fn marked() -> Found {
    Found { marks: vec![(OWNER, SLICE)], ..Found::default() }
}
const UNMARK: Act = Act::Unmark { slice: SLICE, owner: OWNER };

#[test]
fn the_bound_is_in_bytes_and_counts_what_was_found() {
    let mut rig = Rig::new(Found { hints: vec![(OWNER, 2, 100)], ..Found::default() });
    assert!(!rig.hints.is_full());
    rig.hints.kept(rig.now, NodeId(3), 1);
    assert!(rig.hints.is_full());
    assert_eq!((rig.hints.count(), rig.hints.bytes()), (3, 101));
}

#[test]
fn a_marked_slice_is_swept_and_only_what_is_lacking_is_sent() {
    let mut rig = Rig::new(marked());
    assert_eq!(rig.hints.ranges_marked(), 1);
    let acts = rig.wait();
    let asks = rig.scanned(&acts, Ok(records(&["knows", "lacks"])));
    assert_eq!(asks.len(), 2, "{asks:?}");
    // It knows this state, or a later one.
    assert_eq!(rig.fetched(&asks[..1], Fetched::Head(state(6).head)), []);
    let load = rig.fetched(&asks[1..], Fetched::Head(state(4).head));
    assert!(matches!(&load[..], [Act::Load { key: read, .. }] if *read == data_key(&key("lacks"))), "{load:?}");
    let sent = rig.loaded(&load, Ok(Some(stored(&state(5)))));
    assert_eq!(rig.replicated(&sent), [UNMARK]);
    assert_eq!((rig.hints.ranges_marked(), rig.hints.swept), (0, 1));
    assert_eq!(rig.hints.next_deadline(), None);
}

#[test]
fn a_delete_is_lacking_although_it_is_no_event_of_its_own() {
    let mut rig = Rig::new(marked());
    let acts = rig.wait();
    let deleted = Head { entries: Default::default(), ..state(5).head };
    let asks = rig.scanned(&acts, Ok(vec![(data_key(&key("a")), deleted.encode())]));
    let load = rig.fetched(&asks, Fetched::Head(state(5).head));
    assert!(matches!(&load[..], [Act::Load { .. }]), "{load:?}");
}

#[test]
fn a_mark_stays_when_anything_was_left_out() {
    // A new mark while the sweep is under way: what it is about may lie behind the walk.
    let mut rig = Rig::new(marked());
    let scan = rig.wait();
    rig.hints.mark(rig.now, OWNER, SLICE);
    rig.hints.written(OWNER);
    assert_eq!(rig.scanned(&scan, Ok(vec![])), []);
    assert_eq!(rig.hints.ranges_marked(), 1);
    // The next sweep is whole.
    let before = rig.now;
    let scan = rig.wait();
    assert!(rig.now.since(before) <= SWEEP_PAUSE + HINT_INTERVAL);
    assert_eq!(rig.scanned(&scan, Ok(vec![])), [UNMARK]);

    // Records that cannot be walked, or one that cannot be read.
    let mut rig = Rig::new(marked());
    let scan = rig.wait();
    assert_eq!(rig.scanned(&scan, Err(Refusal::Damaged)), []);
    let scan = rig.wait();
    let asks = rig.scanned(&scan, Ok(records(&["a"])));
    let load = rig.fetched(&asks, Fetched::Nothing);
    let again = rig.loaded(&load, Err(Refusal::Damaged));
    assert_eq!(rig.loaded(&again, Err(Refusal::Damaged)), []);
    assert_eq!((rig.hints.ranges_marked(), rig.hints.swept), (1, 0));
}

#[test]
fn hints_go_before_marks() {
    let mut rig = Rig::new(Found { hints: vec![(OWNER, 1, 10)], ..marked() });
    let scan = rig.wait();
    assert!(matches!(&scan[..], [Act::Scan { from, .. }] if *from == hints_of(OWNER).0), "{scan:?}");
    assert_eq!(rig.scanned(&scan, Ok(vec![])), []);
    let scan = rig.wait();
    assert!(matches!(&scan[..], [Act::Scan { from, .. }] if *from == all_records().0), "{scan:?}");
}

#[test]
fn hints_that_are_being_written_are_looked_for_at_intervals() {
    let mut rig = Rig::new(Found { marks: vec![(OWNER, SLICE), (OWNER, SliceId(1))], ..Found::default() });
    let scan = rig.wait();
    // In the middle of a round of sweeps; its writing takes long.
    rig.hints.kept(rig.now, OWNER, 10);
    rig.scanned(&scan, Ok(vec![]));
    for _ in 0..3 {
        let scan = rig.wait();
        let before = rig.now;
        assert_eq!(rig.scanned(&scan, Ok(vec![])), []);
        rig.wait_for_deadline();
        assert!(rig.now.since(before) >= HINT_INTERVAL / 2, "no time passes");
    }
}

#[test]
fn a_damaged_hint_is_read_twice_and_given_up() {
    let mut rig = Rig::new(Found { hints: vec![(OWNER, 1, 10)], ..Found::default() });
    let scan = rig.wait();
    let parked = (hint_key(OWNER, HintForm::Parked, &key("a")), hint(3).head);
    let load = rig.scanned(&scan, Ok(vec![parked]));
    let again = rig.loaded(&load, Err(Refusal::Damaged));
    let gone = rig.loaded(&again, Err(Refusal::Damaged));
    let [Act::GiveUp { delivery, stamp: 3, form: HintForm::Parked, .. }] = gone[..] else { panic!("{gone:?}") };
    assert_eq!(rig.tell(|hints, now, view, out| hints.dropped(now, delivery, true, view, out)), []);
    assert_eq!((rig.hints.dropped, rig.hints.delivered), (1, 0));
    let scan = rig.wait();
    rig.scanned(&scan, Ok(vec![]));
    assert_eq!(rig.hints.count(), 0);
}

#[test]
fn a_slice_whose_hints_cannot_be_walked_is_marked_once() {
    let mut rig = Rig::new(Found { hints: vec![(OWNER, 1, 10)], ..Found::default() });
    let scan = rig.wait();
    let mark = rig.scanned(&scan, Err(Refusal::Damaged));
    assert_eq!(mark, [Act::Mark { slice: SLICE, owner: OWNER }]);
    rig.hints.mark(rig.now, OWNER, SLICE);
    rig.hints.written(OWNER);
    assert_eq!(rig.hints.ranges_marked(), 1);
}
