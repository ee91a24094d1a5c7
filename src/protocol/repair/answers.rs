//! What the other side of a session answers: without a memory of it, but for when it began.

use super::{Act, Repair, View, arcs::Waiter};
use crate::{
    limits::{KEYS_BYTES, REPAIR_QUESTIONS, REPAIR_SCAN},
    protocol::{
        message::{Listed, Message, Part, Refusal, Sum},
        versions::Head,
    },
    types::{Address, Instant, Key, SliceId, Span, Token},
};

/// A list that is being put together for another node.
pub(super) struct Listing {
    to: Address,
    exchange: u64,
    deadline: Instant,
    span: Span,
    slice: SliceId,
    replicas: u8,
}

/// A question: who asks, by which number, until when.
pub type Asked = (Address, u64, Instant);

impl Repair {
    /// The arc that a part is of, if both sides go by the same.
    fn arc_of(&self, from: Address, part: &Part, view: View<'_>) -> Result<Token, Refusal> {
        let tables = view.tables.ok_or(Refusal::NotYet)?;
        let (last, arc) = self.arcs.range(part.span.last..).next().ok_or(Refusal::NotYet)?;
        let pair = arc.pairs.iter().find(|pair| pair.peer == from.node);
        let same = arc.span.covers(&part.span) && arc.homes == part.homes && tables == part.tables;
        let both = pair.is_some_and(|pair| pair.replicas == part.replicas);
        if same && both { Ok(*last) } else { Err(Refusal::NotYet) }
    }

    /// Another home asks what a part comes to here.
    pub fn sums_asked(
        &mut self,
        now: Instant,
        asked: Asked,
        (session, part, shift, own): (u64, Part, u8, Option<Sum>),
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        self.draw(now, view, out);
        let (to, exchange, deadline) = asked;
        let refused = match self.arc_of(to, &part, view) {
            Ok(_) if self.is_off() => Refusal::NotMine,
            Ok(_) if self.questions() >= REPAIR_QUESTIONS => Refusal::Overloaded,
            Ok(last) => {
                if let Some(arc) = self.arcs.get_mut(&last).filter(|arc| arc.span == part.span)
                    && let Some(pair) = arc.pair(to.node)
                    && pair.heard.is_none_or(|(known, _)| known != session)
                {
                    pair.heard = Some((session, now));
                }
                let waiter = Waiter::Question { asked, session, part, shift, own };
                return self.want_leaves(now, last, waiter, view, out);
            }
            Err(refusal) => refusal,
        };
        out.push(Act::Answer { to, exchange, deadline, message: Message::Summed(Err(refused)) });
    }
    fn questions(&self) -> usize {
        self.listings.len() + self.folds.len()
    }

    /// Another home asks for keys and heads.
    pub fn keys_asked(
        &mut self,
        now: Instant,
        (to, exchange, deadline): Asked,
        (part, after): (Part, Option<Key>),
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        self.draw(now, view, out);
        let slice = match self.arc_of(to, &part, view) {
            Ok(_) if self.is_off() => Err(Refusal::NotMine),
            Ok(_) if self.questions() >= REPAIR_QUESTIONS => Err(Refusal::Overloaded),
            Ok(last) => self.arcs.get(&last).map(|arc| arc.slice).ok_or(Refusal::NotYet),
            Err(refusal) => Err(refusal),
        };
        match slice {
            Ok(slice) => {
                let (span, replicas) = (part.span, part.replicas);
                self.list(Listing { to, exchange, deadline, span, slice, replicas }, after, out);
            }
            Err(refusal) => {
                out.push(Act::Answer { to, exchange, deadline, message: Message::Keyed(Err(refusal)) });
            }
        }
    }
    fn list(&mut self, listing: Listing, after: Option<Key>, out: &mut Vec<Act>) {
        let io = self.number();
        out.push(Act::Scan { io, slice: listing.slice, span: listing.span, after, limit: REPAIR_SCAN });
        self.listings.insert(io, listing);
    }
    /// Keys and heads have been read, for a session or for a list. With `more` there may be others after them.
    pub fn scanned(
        &mut self,
        now: Instant,
        io: u64,
        result: Result<(Vec<(Key, Head)>, bool), Refusal>,
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        let Some(listing) = self.listings.remove(&io) else { return self.scanned_own(now, io, result, view, out) };
        let Listing { to, exchange, deadline, replicas, .. } = listing;
        let listed = match result {
            Ok((found, more)) => {
                let last = found.last().map(|(key, _)| key.clone());
                let wanted = found.into_iter().filter(|(key, _)| view.classes.of(key.as_bytes()).replicas >= replicas);
                let listed = as_many_as_fit(wanted, more);
                if listed.heads.is_empty() && more {
                    // All of these are none of the other's business.
                    if now <= deadline {
                        self.list(listing, last, out);
                    }
                    return;
                }
                Ok(listed)
            }
            Err(refusal) => Err(refusal),
        };
        out.push(Act::Answer { to, exchange, deadline, message: Message::Keyed(listed) });
    }

    /// The other side of a session has seen it through to its end.
    pub fn agreed(&mut self, from: Address, session: u64, part: Part, view: View<'_>, out: &mut Vec<Act>) {
        let Ok(last) = self.arc_of(from, &part, view) else { return };
        let Some(arc) = self.arcs.get_mut(&last).filter(|arc| arc.span == part.span) else { return };
        let slice = arc.slice;
        let Some(pair) = arc.pair(from.node) else { return };
        // One that was begun with an earlier life of this node says nothing of what this one has.
        if let Some((_, began)) = pair.heard.filter(|(known, _)| *known == session) {
            (pair.agreed, pair.wished) = (pair.agreed.max(Some(began)), None);
            self.settle_doubt(slice, out);
        }
    }
}

/// Cuts a list to what one message takes, and says whether there is more.
fn as_many_as_fit(heads: impl Iterator<Item = (Key, Head)>, more: bool) -> Listed {
    let (mut listed, mut bytes) = (Listed { heads: Vec::new(), more }, 0);
    for (key, head) in heads {
        bytes += Listed::bytes_of(&key, &head);
        if bytes > KEYS_BYTES && !listed.heads.is_empty() {
            listed.more = true;
            break;
        }
        listed.heads.push((key, head));
    }
    listed
}
