//! Sessions of repair, routed: questions and answers to the machine, folds and scans to the engine, states to the
//! replica machine.

use super::{Effect, Origin, Shard, Standing, exchange_tag, io_tag};
use crate::{
    limits,
    protocol::{
        message::{Lane, Message, Refusal},
        repair::{
            Act, Repair, View,
            sums::{Class, Classes},
        },
        replica::{
            Work,
            keys::{data_key, data_of, parse_data},
        },
        versions::Head,
    },
    types::{Conflict, Instant, Key, Span, TableName, TableSettings},
};
use bytes::{Bytes, BytesMut};
use std::rc::Rc;
use xxhash_rust::xxh3::Xxh3;

/// What sessions go by of tables, and which registry that is of.
pub(super) struct KnownClasses {
    of: Option<u64>,
    classes: Rc<Classes>,
}
impl KnownClasses {
    pub fn new(usual: TableSettings) -> KnownClasses {
        KnownClasses { of: None, classes: Rc::new(Classes { usual: class(usual), tables: Default::default() }) }
    }
}
fn class(settings: TableSettings) -> Class {
    Class { replicas: settings.n, conflict: settings.conflict }
}

impl Shard {
    /// One step of the repair machine, and what it wants done.
    pub(super) fn with_repair(
        &mut self,
        now: Instant,
        out: &mut Vec<Effect>,
        step: impl FnOnce(&mut Repair, View<'_>, &mut Vec<Act>),
    ) {
        if self.repair.is_off() {
            return;
        }
        let tables = self.comparable();
        let mut acts = Vec::new();
        let (health, hints) = (&self.health, &self.hints);
        let usable = |core| health.standing(now, core, Lane::Short) <= Standing::Parting;
        let word = |key: &Key| {
            let word = self.tables.registry.word(key.as_bytes());
            let dropped = self.tables.drops.epoch(self.placement.slice_of(key.token()), key.as_bytes());
            crate::types::TableWord { dropped, ..word }
        };
        let view = View {
            ring: &self.ring,
            placement: &self.placement,
            classes: &self.classes.classes,
            tables,
            usable: &usable,
            owed: &|node| hints.owes(node),
            marked: &|node, slice| hints.is_marked(node, slice),
            word: &word,
        };
        step(&mut self.repair, view, &mut acts);
        self.run_repair(now, acts, out);
    }
    /// What this shard knows of tables, hashed, if keys can be compared by it.
    fn comparable(&mut self) -> Option<u64> {
        let registry = &self.tables.registry;
        let digest = registry.digest();
        if self.classes.of != Some(digest) {
            let mut tables = registry.list();
            let usual = tables.remove(TableName::DEFAULT).unwrap_or_else(|| self.settings.table());
            let tables = tables.into_iter().map(|(name, settings)| (name, class(settings))).collect();
            let classes = Rc::new(Classes { usual: class(usual), tables });
            self.classes = KnownClasses { of: Some(digest), classes };
        }
        let usual = self.classes.classes.usual;
        let mut hash = Xxh3::new();
        hash.update(&digest.to_le_bytes());
        hash.update(&[usual.replicas, u8::from(usual.conflict == Conflict::LastWriteWins)]);
        (self.ready() && self.tables.drops_done()).then(|| hash.digest())
    }

    fn run_repair(&mut self, now: Instant, acts: Vec<Act>, out: &mut Vec<Effect>) {
        for act in acts {
            match act {
                Act::Fold { io, slice, spans, summing } => {
                    let spans = spans.into_iter().map(data_of).collect();
                    out.push(Effect::Fold { io: io << io_tag::BITS | io_tag::REPAIR, slice, spans, summing });
                }
                Act::Scan { io, slice, span, after, limit } => {
                    let (from, to) = bounds(span, after.as_ref());
                    out.push(Effect::Scan { io: io << io_tag::BITS | io_tag::REPAIR, slice, from, to, limit });
                    self.repair_scans.insert(io, limit);
                }
                Act::Load { io, key } => {
                    let (slice, depth) = (self.slice(&key), super::super::message::Depth::Full);
                    let io = io << io_tag::BITS | io_tag::REPAIR;
                    out.push(Effect::Load { io, slice, key: data_key(&key), depth });
                }
                Act::Merge { item, key, siblings, word } => {
                    // What was fetched before a drop is not stored after it.
                    if word != self.word(&key) || self.is_dropping(&key) {
                        let refused = |repair: &mut Repair, view: View<'_>, acts: &mut Vec<Act>| {
                            repair.merged(now, item, false, view, acts);
                        };
                        self.with_repair(now, out, refused);
                        continue;
                    }
                    let deadline = now + limits::BACKGROUND_TIMEOUT;
                    let work = Work::Merge { siblings, behind: None, fresh: None, awaited: false };
                    self.apply(now, Origin::Repair(item), key, work, deadline, out);
                }
                Act::Send { to, exchange, deadline, message } => {
                    let exchange = exchange << exchange_tag::BITS | exchange_tag::REPAIR;
                    out.push(Effect::Send(self.envelope(to, exchange, deadline, message)));
                }
                Act::Answer { to, exchange, deadline, message } => {
                    out.push(Effect::Send(self.envelope(to, exchange, deadline, message)));
                }
                Act::Tell { peer, token, deadline, message } => {
                    if let Some(to) = self.ring.address(peer, token) {
                        out.push(Effect::Send(self.envelope(to, exchange_tag::REPAIR, deadline, message)));
                    }
                }
                Act::EndDoubt { slice } => out.push(Effect::EndDoubt { io: io_tag::REPAIR, slice }),
            }
        }
    }

    /// Keys and heads of a span have been read.
    pub(super) fn repair_scanned(
        &mut self,
        now: Instant,
        io: u64,
        result: Result<Vec<(Bytes, Bytes)>, Refusal>,
        out: &mut Vec<Effect>,
    ) {
        let limit = self.repair_scans.remove(&io).unwrap_or(usize::MAX);
        let decode = |(engine_key, head): &(Bytes, Bytes)| {
            let (_, key) = parse_data(engine_key)?;
            // A copy: the whole page is not kept for one key of it.
            Some((Key::new(Bytes::copy_from_slice(key)).ok()?, Head::decode(head).ok()?))
        };
        let result = result.and_then(|found| {
            let heads = found.iter().map(decode).collect::<Option<Vec<_>>>().ok_or(Refusal::Damaged)?;
            Ok((heads, found.len() >= limit))
        });
        self.with_repair(now, out, |repair, view, acts| repair.scanned(now, io, result, view, acts));
    }

    /// Another home of an arc asks, or says that both agree.
    pub(super) fn repair_asked(
        &mut self,
        now: Instant,
        asked: (super::Address, u64, Instant),
        message: Message,
        out: &mut Vec<Effect>,
    ) {
        if self.repair.is_off() {
            let refused = match message {
                Message::Sums { .. } => Message::Summed(Err(Refusal::NotMine)),
                Message::Keys { .. } => Message::Keyed(Err(Refusal::NotMine)),
                _ => return,
            };
            return out.push(Effect::Send(self.envelope(asked.0, asked.1, asked.2, refused)));
        }
        self.with_repair(now, out, |repair, view, acts| match message {
            Message::Sums { session, part, shift, own } => {
                repair.sums_asked(now, asked, (session, part, shift, own), view, acts);
            }
            Message::Keys { part, after } => repair.keys_asked(now, asked, (part, after), view, acts),
            Message::Agreed { session, part } => repair.agreed(asked.0, session, part, view, acts),
            _ => unreachable!("the shard routes no other message here"),
        });
    }
}

/// Engine keys of a span after a key.
fn bounds(span: Span, after: Option<&Key>) -> (Bytes, Bytes) {
    let (from, to) = data_of(span);
    let Some(after) = after.map(data_key) else { return (from, to) };
    let mut next = BytesMut::with_capacity(after.len() + 1);
    next.extend_from_slice(&after);
    next.extend_from_slice(&[0]);
    (next.freeze(), to)
}
