//! What the works of a replica make of what is stored: a client's write, a state from another replica, a rebuild.

use super::{Change, Rejection, Replica, Stored, Work, keys::data_key};
use crate::{
    limits::{
        CLOCK_ALERT_PERCENT, CLOCK_BYTES_MAX, CLOCK_ENTRIES_MAX, COUNTER_MAX, INCARNATION_MAX,
        MERGED_SIBLINGS_BYTES_MAX, MERGED_SIBLINGS_MAX, SIBLINGS_BYTES_MAX,
    },
    protocol::{
        message::{DOT_OF_ANOTHER_WRITE, Refusal},
        versions::{Context, Dot, Entry, Head, Merged, Pick, Siblings, Side, Values, VersionVector},
    },
    types::{Conflict, SliceId, Value, WriteId},
};

/// What a task does after a read.
pub(super) enum Next {
    Nothing,
    ReadHead,
    ReadValues,
    /// Already durable here; still to be replicated.
    Known {
        siblings: Siblings,
        context: Context,
    },
    /// Store, and (with a context: a client's write) replicate.
    Write {
        siblings: Siblings,
        context: Option<Context>,
    },
    Changes(Vec<Change>),
}

impl<O: Clone> Replica<O> {
    /// A client's put or delete upon what is stored. Called with the head alone first, and again with the values when
    /// some sibling survives (it is rewritten and replicated with the rest).
    pub(super) fn write(&mut self, id: u64, stored: Option<Stored>) -> Result<Next, Rejection> {
        let Some(task) = self.tasks.get(&id) else { return Ok(Next::Nothing) };
        if !self.leases.holds(task.slice) {
            return Err(self.leases.refusal(task.slice));
        }
        let (head, values) = parse(stored)?;
        let values_read = !values.is_empty() || head.entries.is_empty();
        match &task.work {
            Work::Put { context, value, write_id, .. }
                if head.is_other_write(*write_id, Some(value), context.as_ref()) =>
            {
                Err(Rejection::WriteIdReused)
            }
            Work::Delete { context, write_id, .. } if head.is_other_write(*write_id, None, context.as_ref()) => {
                Err(Rejection::WriteIdReused)
            }
            Work::Put { context, write_id, .. } if head.knows_write(*write_id) => {
                if !values_read {
                    return Ok(Next::ReadValues);
                }
                let context = written_before(&head, context.as_ref(), *write_id);
                // It may have been begun before this shard heard of the table that it belongs to.
                let (known, life) = (head.life >= task.life, head.life.max(task.life));
                let siblings = Siblings { head: Head { life, ..head }, values };
                Ok(match known {
                    true => Next::Known { siblings, context },
                    false => Next::Write { siblings, context: Some(context) },
                })
            }
            Work::Put { .. } if self.short_of_space => Err(Rejection::Refused(Refusal::DiskFull)),
            Work::Put { context, value, write_id, .. } => {
                let seen = self.admit(task.slice, &head, context.as_ref())?.unwrap_or_default();
                if head.has_survivors(&seen) && !values_read {
                    return Ok(Next::ReadValues);
                }
                check_limits(&head, &seen, value.bytes.len(), self.bounds.siblings_max)?;
                if self.leases.is_foreign(task.slice, |actor| head.clock.get(actor)) {
                    // The record knows a later dot of this actor than its lease: the disk has forgotten something.
                    self.leases.doubt(task.slice);
                    self.identity_alarms += 1;
                    self.signs += 1;
                }
                let (slice, life) = (task.slice, task.life);
                let dot = self.leases.mint(slice).ok_or_else(|| self.leases.refusal(slice))?;
                let entry = entry_of(value, dot, *write_id);
                let mut merged = head.put(&seen, entry);
                merged.head.life = head.life.max(life);
                check_clock(&head, &merged.head)?;
                let alone = merged.head.entries.len() == 1;
                // What the writer knew and this copy does not stays apart.
                let context = if alone {
                    Context::from(merged.head.clock.clone()).join(&seen)
                } else {
                    seen.with_dot(dot, |dot| head.supersedes(dot))
                };
                let fresh: Values = [value.bytes.clone()].into_iter().collect();
                Ok(Next::Write { siblings: pick(merged, &values, &fresh), context: Some(context) })
            }
            Work::Delete { context, .. } => {
                let seen = self.admit(task.slice, &head, context.as_ref())?;
                let seen = seen.unwrap_or_else(|| Context::from(head.clock.clone()));
                if head.has_survivors(&seen) && !values_read {
                    return Ok(Next::ReadValues);
                }
                let mut merged = head.delete(&seen);
                merged.head.life = head.life.max(task.life);
                check_clock(&head, &merged.head)?;
                let unchanged = merged.head.same_state(&head);
                let siblings = pick(merged, &values, &Values::new());
                // What the delete superseded; the clock when nothing stands beside it.
                let context = if siblings.head.entries.is_empty() {
                    Context::from(siblings.head.clock.clone()).join(&seen)
                } else {
                    seen
                };
                if unchanged {
                    return Ok(Next::Known { siblings, context });
                }
                Ok(Next::Write { siblings, context: Some(context) })
            }
            Work::Merge { .. }
            | Work::Rebuild { .. }
            | Work::KeepHint { .. }
            | Work::DropHint { .. }
            | Work::GiveUpHint { .. }
            | Work::MarkBehind { .. } => Ok(Next::Nothing),
        }
    }

    /// A client's context, checked against what can be: what the own copy does not know may only be events of members,
    /// former ones included, and of this node only those that it has minted. Whoever claims more would stop the owner
    /// of a dot, which must not mint what others have seen, or fill the key's clock. Stamps are left out: they are of a
    /// table that the key belonged to once, and mean nothing beside siblings.
    fn admit(&self, slice: SliceId, head: &Head, context: Option<&Context>) -> Result<Option<Context>, Rejection> {
        let Some(context) = context else { return Ok(None) };
        let claims = context.clock.entries().iter().chain(&context.dots);
        let mut stamped = false;
        for dot in claims.filter(|dot| !head.clock.covers(**dot)) {
            let node = dot.actor.node();
            stamped |= dot.is_stamp();
            let own = self.leases.is_own(node);
            let greatest = match self.nodes.binary_search_by_key(&node, |(known, _)| *known) {
                Ok(at) => self.nodes[at].1,
                Err(_) if own || head.clock.names(node) => INCARNATION_MAX,
                Err(_) => return Err(Rejection::UnknownNode(node)),
            };
            let possible = dot.actor.incarnation() <= greatest && dot.counter <= COUNTER_MAX;
            if !possible || (own && !self.leases.may_have_minted(slice, *dot)) {
                return Err(Rejection::ForeignContext);
            }
        }
        if !stamped {
            return Ok(Some(context.clone()));
        }
        let kept = |dot: &Dot| !dot.is_stamp() || head.clock.covers(*dot);
        let clock = VersionVector::from_dots(context.clock.entries().iter().copied().filter(kept));
        let dots = context.dots.iter().copied().filter(kept).collect();
        Ok(Some(Context { clock, dots }))
    }

    /// What all other home replicas hold, in the place of a damaged record. Called with what a whole read of the record
    /// gave, and again with its head alone when that failed.
    pub(super) fn rebuild(&mut self, id: u64, read: Result<Option<Stored>, Refusal>) -> Result<Next, Rejection> {
        let Some(task) = self.tasks.get_mut(&id) else { return Ok(Next::Nothing) };
        let (slice, conflict, key) = (task.slice, task.conflict, data_key(&task.key));
        let Work::Rebuild { siblings, head_read } = &mut task.work else { return Ok(Next::Nothing) };
        match read {
            Err(Refusal::Damaged) if !std::mem::replace(head_read, true) => Ok(Next::ReadHead),
            Err(Refusal::Damaged) => {
                let siblings = siblings.clone();
                // Dots of this actor that only the lost record held are known to nobody here.
                self.leases.doubt(slice);
                self.rebuilt += 1;
                let nothing = siblings.head.is_empty();
                let removed = Change { slice, key, record: None };
                Ok(if nothing { Next::Changes(vec![removed]) } else { Next::Write { siblings, context: None } })
            }
            Err(refusal) => Err(Rejection::Refused(refusal)),
            // The record is whole: something has taken its place.
            Ok(_) if !*head_read => Ok(Next::Nothing),
            Ok(stored) => {
                // Its head is sound, its values are not. One that nobody else has is lost, and is not called absent.
                let (head, _) = parse(stored)?;
                let merged = head.join(&siblings.head, conflict).head;
                let value = |e: &Entry| {
                    let index = siblings.head.entries.iter().position(|other| other.dot == e.dot)?;
                    siblings.values.get(index).cloned()
                };
                let values = merged.entries.iter().map(value).collect::<Option<Values>>();
                (self.rebuilt, self.rebuilds_refused) =
                    (self.rebuilt + u64::from(values.is_some()), self.rebuilds_refused + u64::from(values.is_none()));
                let values = values.ok_or(DAMAGED)?;
                Ok(Next::Write { siblings: Siblings { head: merged, values }, context: None })
            }
        }
    }
}

pub(super) const DAMAGED: Rejection = Rejection::Refused(Refusal::Damaged);

pub(super) fn parse(stored: Option<Stored>) -> Result<(Head, Values), Rejection> {
    match stored {
        None => Ok((Head::default(), Values::new())),
        Some(stored) => Ok((Head::decode(&stored.head).map_err(|_| DAMAGED)?, stored.values)),
    }
}

/// The context of a write that is already known here: what its writer had seen, and its dot. When only the trace of a
/// superseded write is left, the dot of that trace.
fn written_before(head: &Head, seen: Option<&Context>, id: WriteId) -> Context {
    let context = seen.cloned().unwrap_or_default();
    let live = head.entries.iter().find(|e| e.write_id == id).map(|e| e.dot);
    let past = head.recent.iter().find(|s| s.write_id == id).map(|s| s.dot);
    if live.is_some() && head.entries.len() == 1 {
        return Context::from(head.clock.clone()).join(&context);
    }
    match live.or(past) {
        Some(dot) => context.with_dot(dot, |dot| head.supersedes(dot)),
        None => context,
    }
}

pub(super) fn entry_of(value: &Value, dot: Dot, write_id: WriteId) -> Entry {
    Entry { dot, write_id, media: value.media.clone(), bytes: value.bytes.len() as u32, checksum: value.checksum }
}

fn check_limits(head: &Head, seen: &Context, new_bytes: usize, siblings_max: usize) -> Result<(), Rejection> {
    let survivors = head.entries.iter().filter(|e| !seen.covers(e.dot));
    let (count, bytes) = survivors.fold((1, new_bytes), |(n, b), e| (n + 1, b + e.bytes as usize));
    if count > siblings_max || (count > 1 && bytes > SIBLINGS_BYTES_MAX) {
        return Err(Rejection::SiblingLimit);
    }
    Ok(())
}

/// A write may not make a clock longer than its bound; one that adds nobody to a longer clock is taken.
fn check_clock(before: &Head, after: &Head) -> Result<(), Rejection> {
    let grows = after.clock.len() > before.clock.len();
    if grows && !after.clock.within(CLOCK_ENTRIES_MAX, CLOCK_BYTES_MAX) {
        return Err(Rejection::ClockLimit);
    }
    Ok(())
}
/// Whether so much of the clock's bound is used that somebody should know.
pub(super) fn is_long(head: &Head) -> bool {
    let part = |bound: usize| bound * CLOCK_ALERT_PERCENT / 100;
    !head.clock.within(part(CLOCK_ENTRIES_MAX), part(CLOCK_BYTES_MAX))
}

/// Whether a head is within what its decoding and a frame allow. One that is not is not stored: nobody could read it
/// again.
pub(super) fn can_be_read(head: &Head) -> bool {
    head.clock.can_be_read()
        && head.entries.len() <= MERGED_SIBLINGS_MAX
        && head.value_bytes() <= MERGED_SIBLINGS_BYTES_MAX
}

fn pick(merged: Merged, left: &Values, right: &Values) -> Siblings {
    let from = |p: &Pick| match p.side {
        Side::Left => left[p.index].clone(),
        Side::Right => right[p.index].clone(),
    };
    Siblings { values: merged.picks.iter().map(from).collect(), head: merged.head }
}

/// Whether a dot that was minted for this very write is news here. It is none, and no harm is done, if this write is
/// known: its message came twice, or after one that superseded it. Else the sender has minted the dot twice: its disk
/// has forgotten the first time. To merge the write then would be to drop it, since the clock says that it was seen.
///
/// What is *not* asked of any other state: a repair, a replayed hint, an old sibling that goes along with a write.
/// Those are often stale, and rightly dropped.
fn check_fresh(entry: &Entry, head: &Head) -> Result<(), Rejection> {
    let dot = entry.dot;
    if dot.is_stamp() || !head.clock.covers(dot) || head.knows_write(entry.write_id) {
        return Ok(());
    }
    let held = head.entries.iter().find(|held| held.dot == dot).map(|held| held.write_id);
    let superseded = head.recent.iter().find(|past| past.dot == dot).map(|past| past.write_id);
    let another = held.or(superseded).is_some_and(|id| id != WriteId(0));
    let known = if another { DOT_OF_ANOTHER_WRITE } else { head.clock.get(dot.actor) };
    Err(Rejection::Refused(Refusal::KnownDot(known)))
}

/// A state from another replica upon what is stored: with the head alone first, with the values when some survive.
/// `fresh`: which entry has a dot that its sender has just minted.
pub(super) fn merge(
    incoming: &Siblings,
    fresh: Option<u16>,
    stored: Option<Stored>,
    conflict: Conflict,
) -> Result<Next, Rejection> {
    let (head, values) = parse(stored)?;
    if let Some(entry) = fresh.and_then(|entry| incoming.head.entries.get(usize::from(entry)))
        && conflict == Conflict::Siblings
    {
        check_fresh(entry, &head)?;
    }
    let merged = head.join(&incoming.head, conflict);
    // Whoever sent it may forget it now: what it remembers of superseded writes is kept, or their other names come
    // back.
    if merged.head.same_state(&head) && merged.head.recent == head.recent {
        return Ok(Next::Nothing);
    }
    let needs_own = merged.picks.iter().any(|p| p.side == Side::Left && p.index >= values.len());
    // A sibling that both hold is taken from the message: its value is at hand.
    let shared: Option<Vec<Pick>> = merged
        .picks
        .iter()
        .zip(&merged.head.entries)
        .map(|(p, e)| match incoming.head.entries.iter().position(|i| i.dot == e.dot) {
            Some(index) => Some(Pick { side: Side::Right, index }),
            None if p.index < values.len() || p.side == Side::Right => Some(*p),
            None => None,
        })
        .collect();
    match shared {
        Some(picks) => {
            let merged = Merged { picks: picks.into_iter().collect(), head: merged.head };
            Ok(Next::Write { siblings: pick(merged, &values, &incoming.values), context: None })
        }
        None if needs_own => Ok(Next::ReadValues),
        None => Err(DAMAGED),
    }
}
