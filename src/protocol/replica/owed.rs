//! What is kept for absent owners: hints, and marks where there is none.

use super::{
    Change, Rejection, Replica, Stored,
    keys::{self, HintForm, HintHead, HintKind, hint_key},
    works::{Next, can_be_read},
};
use crate::{
    protocol::{
        ring::Nodes,
        versions::{Siblings, Values},
    },
    types::{Key, NodeId, SliceId},
};
use bytes::Bytes;

/// Absent home replicas without a stand-in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Owed {
    /// A marker hint is kept for these.
    pub markers: Nodes,
    /// There is no room for one: what they hold of the slice must be compared one day.
    pub behind: Nodes,
}

impl<O: Clone> Replica<O> {
    /// Merges a parked state with the one that the hint holds already. One that is damaged (`lost`, or as its head
    /// says) makes place for it; what it held and the owner lacks is only known by its range then.
    pub(super) fn park(
        &mut self,
        id: u64,
        owner: NodeId,
        new: Siblings,
        stored: Option<Stored>,
        lost: bool,
    ) -> Result<Next, Rejection> {
        let Some(task) = self.tasks.get(&id) else { return Ok(Next::Nothing) };
        let (slice, key) = (task.slice, hint_key(owner, HintForm::Parked, &task.key));
        let before = stored.map(|stored| (HintHead::decode(&stored.head), stored.values));
        let lost = lost || matches!(before, Some((Err(_), _)));
        let merged = match before {
            Some((Ok(HintHead { kind: HintKind::Parked(head), .. }), values)) => {
                Siblings { head, values }.join(&new, task.conflict)
            }
            _ => new,
        };
        if !can_be_read(&merged.head) {
            return Err(Rejection::SiblingLimit);
        }
        let stamp = self.stamp();
        let bytes = merged.head.value_bytes() as u64;
        self.hints_kept.push((owner, bytes + key.len() as u64));
        self.noted.push(owner);
        let head = HintHead { stamp, kind: HintKind::Parked(merged.head) }.encode();
        let mut changes = vec![Change { slice, key, record: Some((head, merged.values)) }];
        if lost {
            self.hints_lost += 1;
            changes.push(self.mark(slice, owner));
        }
        Ok(Next::Changes(changes))
    }
    /// Drops a hint that cannot be delivered and marks its range, unless another hint has taken its place.
    pub(super) fn give_up(&mut self, owner: NodeId, removal: Change, stamp: u64, stored: Option<Stored>) -> Next {
        if stored.is_some_and(|stored| HintHead::decode(&stored.head).is_ok_and(|head| head.stamp != stamp)) {
            return Next::Nothing;
        }
        let mark = self.mark(removal.slice, owner);
        Next::Changes(vec![removal, mark])
    }

    pub(super) fn marker(&mut self, slice: SliceId, owner: NodeId, key: &Key) -> Change {
        let head = HintHead { stamp: self.stamp(), kind: HintKind::Marker }.encode();
        let key = hint_key(owner, HintForm::Marker, key);
        self.hints_kept.push((owner, key.len() as u64));
        self.noted.push(owner);
        Change { slice, key, record: Some((head, Values::new())) }
    }
    pub(super) fn mark(&mut self, slice: SliceId, owner: NodeId) -> Change {
        self.marked.push((owner, slice));
        self.noted.push(owner);
        Change { slice, key: keys::behind_key(owner), record: Some((Bytes::new(), Values::new())) }
    }
    fn stamp(&mut self) -> u64 {
        self.next_stamp += 1;
        self.next_stamp
    }
}

/// Drops a hint that has been delivered, unless another one has taken its place.
pub(super) fn drop_hint(slice: SliceId, key: Bytes, stamp: u64, stored: Option<Stored>) -> Next {
    let same = stored.and_then(|s| HintHead::decode(&s.head).ok()).is_some_and(|h| h.stamp == stamp);
    if same { Next::Changes(vec![Change { slice, key, record: None }]) } else { Next::Nothing }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use crate::protocol::versions::{Actor, VersionVector};

    const OWNER: NodeId = NodeId(9);
    const SLICE: SliceId = SliceId(0);

    fn replica() -> Replica<u8> {
        Replica::new(Leases::new(NodeId(1), 1), Stamps::new(NodeId(1), vec![]), 1)
    }
    fn state(counter: u64) -> Siblings {
        let dot = Dot { actor: Actor::new(NodeId(2), 1), counter };
        let head = Head { clock: VersionVector::from_dots([dot]), ..Head::default() };
        Siblings { head, values: Values::new() }
    }
    fn subject() -> Subject {
        let key = Key::new(&b"cart"[..]).expect("a short key");
        Subject { slice: SLICE, key, conflict: Conflict::Siblings, life: 0 }
    }
    /// Begins the work, answers its read with `stored`, and gives what is stored then.
    fn run(replica: &mut Replica<u8>, work: Work, stored: Result<Option<Stored>, Refusal>) -> Vec<(Bytes, bool)> {
        let mut steps = Vec::new();
        replica.begin(Instant(1), 0, subject(), work, Instant::NEVER, &mut steps);
        let Some(Step::Load { io, .. }) = steps.pop() else { panic!("{steps:?}") };
        replica.loaded(Instant(1), io, stored, &mut steps);
        match steps.pop() {
            Some(Step::Store { io, changes }) => {
                replica.stored(Instant(1), io, Ok(()), &mut steps);
                assert_eq!(steps, [Step::Done { origin: 0, result: Ok(()) }]);
                changes.into_iter().map(|change| (change.key, change.record.is_some())).collect()
            }
            Some(Step::Done { result: Ok(()), .. }) => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_acknowledged_at_the_bound_is_stored_with_its_mark() {
        let mut replica = replica();
        let work = || Work::Merge { siblings: state(5), behind: Some(OWNER), fresh: None, awaited: true };
        let (record, mark) = ((data_key(&subject().key), true), (keys::behind_key(OWNER), true));
        assert_eq!(run(&mut replica, work(), Ok(None)), [record, mark.clone()]);
        // Known already: the owner may lack it all the same.
        let known = Stored { head: state(6).head.encode(), values: Values::new() };
        assert_eq!(run(&mut replica, work(), Ok(Some(known))), [mark]);
        assert_eq!(replica.marked, [(OWNER, SLICE); 2]);
        assert_eq!(replica.hints_ended, [OWNER; 2]);
        assert_eq!((replica.hints_kept.len(), replica.len()), (0, 0));
    }

    #[test]
    fn a_damaged_hint_makes_place_for_the_next_and_is_marked() {
        let mut replica = replica();
        let (hint, mark) = (hint_key(OWNER, HintForm::Parked, &subject().key), keys::behind_key(OWNER));
        let park = || Work::KeepHint { owner: OWNER, parked: Some(state(5)) };
        let both = [(hint.clone(), true), (mark.clone(), true)];
        assert_eq!(run(&mut replica, park(), Err(Refusal::Damaged)), both);
        let unreadable = Stored { head: Bytes::from_static(b"?"), values: Values::new() };
        assert_eq!(run(&mut replica, park(), Ok(Some(unreadable.clone()))), both);
        assert_eq!((replica.hints_lost, replica.hints_kept.len(), replica.hints_ended.len()), (2, 2, 4));

        let give_up = || Work::GiveUpHint { owner: OWNER, form: HintForm::Parked, stamp: 7 };
        let gone = [(hint, false), (mark, true)];
        assert_eq!(run(&mut replica, give_up(), Err(Refusal::Damaged)), gone);
        assert_eq!(run(&mut replica, give_up(), Ok(Some(unreadable))), gone);
        // Another one has taken its place, or it has gone.
        let newer = keys::HintHead { stamp: 8, kind: keys::HintKind::Marker }.encode();
        assert_eq!(run(&mut replica, give_up(), Ok(Some(Stored { head: newer, values: Values::new() }))), []);
        assert_eq!(run(&mut replica, give_up(), Ok(None)), []);
        assert_eq!(replica.marked.len(), replica.hints_ended.len() - replica.hints_kept.len());
    }
}
