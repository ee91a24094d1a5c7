//! Defects planted on purpose, to show that the checkers see them. Each is done to what nodes say to each other or to
//! clients, to their disks or to their settings: production code knows nothing of them.

use super::{cluster::Cluster, plan::Plan, prng::Prng};
use crate::{
    driver::core::Settings,
    limits::KIB,
    protocol::{
        message::{Answer, Envelope, Fetched, Message, News, Purpose, Request, Response},
        versions::{Dot, Head, Siblings, VersionVector},
    },
    types::{Address, Failure, Outcome, Token, Value, WriteId},
};
use std::{rc::Rc, time::Duration};

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Planted {
    /// Disks say that they have synced and have not.
    SkippedSync,
    /// Disks now and then write half of what they are given and say that all went well.
    ShortWrite,
    /// After a loss of power a disk shows what it held long ago, the leases of dots included.
    ForgottenLease,
    /// A disk that was emptied comes back under the node's name, as if it had never been used.
    WipedName,
    /// A node is not told that its disk is an older one.
    UntoldBackup,
    /// A replicated write sometimes carries the dot of its predecessor.
    ReusedDot,
    /// A replicated state sometimes lacks one of its siblings, though its clock covers it.
    DroppedSibling,
    /// A replicated state sometimes carries another key's value.
    ForeignValue,
    /// A home replica acknowledges before it has stored, and sometimes never does.
    EarlyAcknowledgement,
    /// A stand-in acknowledges and keeps no hint.
    DroppedHint,
    /// A stand-in that keeps no further hints acknowledges and stores nothing.
    DroppedAtBound,
    /// A hint is dropped before its owner has it.
    HintDeletedEarly,
    /// Hints are never delivered.
    UndeliveredHint,
    /// What a read found stale is not written back.
    SkippedRepair,
    /// A replica that cannot read says that there is nothing.
    ErrorAsNotFound,
    /// A tombstone is taken for nothing.
    ForgottenTombstone,
    /// A forwarded write is given another identity.
    SecondIdentity,
    /// One acknowledgement less than W is waited for.
    WritesCountedWrong,
    /// One answer less than R is merged.
    ReadsCountedWrong,
    /// The context of an answer covers a value that it does not show.
    UnseenInContext,
    /// A member's entry is changed on its way.
    ForgedEntry,
    /// A failure whose outcome is unknown is reported as not applied.
    CertainFailure,
    /// A replicated write sometimes has an earlier stamp than its writer was told.
    EarlierStamp,
    /// Some answers are never sent.
    LostAnswer,
    /// Memtables grow far beyond what was declared.
    OversizedMemory,
}

impl Planted {
    pub const ALL: [Planted; 25] = [
        Planted::SkippedSync,
        Planted::ShortWrite,
        Planted::ForgottenLease,
        Planted::WipedName,
        Planted::UntoldBackup,
        Planted::ReusedDot,
        Planted::DroppedSibling,
        Planted::ForeignValue,
        Planted::EarlyAcknowledgement,
        Planted::DroppedHint,
        Planted::DroppedAtBound,
        Planted::HintDeletedEarly,
        Planted::UndeliveredHint,
        Planted::SkippedRepair,
        Planted::ErrorAsNotFound,
        Planted::ForgottenTombstone,
        Planted::SecondIdentity,
        Planted::WritesCountedWrong,
        Planted::ReadsCountedWrong,
        Planted::UnseenInContext,
        Planted::ForgedEntry,
        Planted::CertainFailure,
        Planted::EarlierStamp,
        Planted::LostAnswer,
        Planted::OversizedMemory,
    ];
    pub fn name(self) -> &'static str {
        match self {
            Planted::SkippedSync => "skipped-sync",
            Planted::ShortWrite => "short-write",
            Planted::ForgottenLease => "forgotten-lease",
            Planted::WipedName => "wiped-name",
            Planted::UntoldBackup => "untold-backup",
            Planted::ReusedDot => "reused-dot",
            Planted::DroppedSibling => "dropped-sibling",
            Planted::ForeignValue => "foreign-value",
            Planted::EarlyAcknowledgement => "early-acknowledgement",
            Planted::DroppedHint => "dropped-hint",
            Planted::DroppedAtBound => "dropped-at-bound",
            Planted::HintDeletedEarly => "hint-deleted-early",
            Planted::UndeliveredHint => "undelivered-hint",
            Planted::SkippedRepair => "skipped-repair",
            Planted::ErrorAsNotFound => "error-as-not-found",
            Planted::ForgottenTombstone => "forgotten-tombstone",
            Planted::SecondIdentity => "second-identity",
            Planted::WritesCountedWrong => "writes-counted-wrong",
            Planted::ReadsCountedWrong => "reads-counted-wrong",
            Planted::UnseenInContext => "unseen-in-context",
            Planted::ForgedEntry => "forged-entry",
            Planted::CertainFailure => "certain-failure",
            Planted::EarlierStamp => "earlier-stamp",
            Planted::LostAnswer => "lost-answer",
            Planted::OversizedMemory => "oversized-memory",
        }
    }
    pub fn from_name(name: &str) -> Option<Planted> {
        Planted::ALL.into_iter().find(|p| p.name() == name)
    }
}

impl Plan {
    /// Plants a defect, and makes the conditions under which it does harm likely.
    pub fn plant(mut self, planted: Planted) -> Plan {
        self.planted = Some(planted);
        self.last_write_wins = planted == Planted::EarlierStamp;
        let often = self.duration / 10;
        match planted {
            Planted::SkippedSync => self.faults.power_cut_every = self.duration / 3,
            Planted::ShortWrite => self.faults.kill_every = self.duration / 20,
            Planted::ForgottenLease => self.faults.power_loss_every = self.duration / 6,
            Planted::WritesCountedWrong | Planted::ReadsCountedWrong | Planted::ErrorAsNotFound => self.overlap(),
            Planted::ForgottenTombstone => {
                self.overlap();
                self.workload.mix[5] += 6;
            }
            Planted::EarlyAcknowledgement => self.overlap(),
            Planted::WipedName | Planted::UntoldBackup => {
                self.lose_disks(&mut Prng::stream(self.seed, "planted"));
                let wiped = planted == Planted::WipedName;
                self.faults.wipe_every = if wiped { self.duration / 6 } else { Duration::ZERO };
                self.faults.restore_every = if wiped { Duration::ZERO } else { self.duration / 6 };
            }
            Planted::DroppedHint | Planted::DroppedAtBound | Planted::HintDeletedEarly => {
                self.sloppy = true;
                if planted == Planted::DroppedAtBound {
                    self.hint_bytes_max = 0;
                }
                self.without_crashes();
                self.faults.pause_every = often;
                self.faults.cut_every = often;
            }
            Planted::UndeliveredHint => {
                self.faults.pause_every = often;
                self.faults.cut_every = often;
            }
            Planted::OversizedMemory => {
                // Small enough to stay beside the heads, in memory.
                self.workload.value_bytes_max = 1_000;
                self.workload.mix[2] += 8;
                self.engine.memtable_bytes = 16 * KIB;
            }
            Planted::SkippedRepair | Planted::UnseenInContext | Planted::SecondIdentity | Planted::ForgedEntry => {}
            Planted::DroppedSibling | Planted::ReusedDot | Planted::ForeignValue => {}
            Planted::CertainFailure | Planted::LostAnswer | Planted::EarlierStamp => {}
        }
        self
    }
    /// Quorums overlap by one, and messages are lost.
    fn overlap(&mut self) {
        let majority = self.n / 2 + 1;
        (self.r, self.w, self.sloppy) = (majority, majority, false);
        self.workload.override_level = 0.0;
        self.network.loss = self.network.loss.max(0.1);
    }
}

/// The settings of every node, with the defects of settings.
pub(super) fn spoil_settings(planted: Option<Planted>, settings: &mut Settings) {
    match planted {
        Some(Planted::WritesCountedWrong) => settings.w = (settings.w - 1).max(1),
        Some(Planted::ReadsCountedWrong) => settings.r = (settings.r - 1).max(1),
        _ => {}
    }
}

impl Cluster {
    pub fn planted(&self, planted: Planted) -> bool {
        self.plan.planted == Some(planted)
    }
    fn struck(&self) {
        self.count(|c| c.planted += 1);
    }

    /// Changes a message as a planted defect would, or answers it in the receiver's place.
    pub(super) fn spoil_message(self: &Rc<Self>, mut envelope: Envelope, spoiler: &mut Prng) -> Option<Envelope> {
        let (planted, to) = (self.plan.planted?, envelope.to);
        let struck = match &mut envelope.message {
            Message::Replicate { purpose: Purpose::Hint { .. }, .. }
                if planted == Planted::DroppedAtBound && self.keeps_no_hints(to) =>
            {
                self.struck();
                self.acknowledge_falsely(&envelope);
                return None;
            }
            Message::Replicate { siblings, purpose, .. } => match self.spoil_copy(planted, siblings, *purpose, spoiler)
            {
                Verdict::Pass => false,
                Verdict::Spoiled => true,
                Verdict::Swallow => {
                    self.struck();
                    return None;
                }
                Verdict::Acknowledge => {
                    self.struck();
                    self.acknowledge_falsely(&envelope);
                    return None;
                }
            },
            Message::Fetched(answer) => spoil_fetched(planted, answer, spoiler),
            Message::Forward { request, .. } if planted == Planted::SecondIdentity => spoil_identity(request),
            Message::GossipDelta { news, .. } | Message::GossipNews { news } if planted == Planted::ForgedEntry => {
                spoiler.chance(0.2) && news.iter_mut().any(spoil_news)
            }
            _ => false,
        };
        if struck {
            self.struck();
        }
        Some(envelope)
    }
    fn spoil_copy(&self, planted: Planted, siblings: &mut Siblings, purpose: Purpose, spoiler: &mut Prng) -> Verdict {
        let mut chance = |p: f64| spoiler.chance(p);
        let is_hint = matches!(purpose, Purpose::Hint { .. });
        match planted {
            Planted::EarlyAcknowledgement if purpose == Purpose::Write && chance(0.05) => Verdict::Acknowledge,
            Planted::DroppedHint if is_hint => Verdict::Acknowledge,
            Planted::HintDeletedEarly if purpose == Purpose::Replay => Verdict::Acknowledge,
            Planted::UndeliveredHint if purpose == Purpose::Replay => Verdict::Swallow,
            Planted::SkippedRepair if purpose == Purpose::Repair => Verdict::Swallow,
            Planted::ForgottenTombstone if siblings.head.entries.is_empty() => {
                *siblings = Siblings::default();
                Verdict::Spoiled
            }
            Planted::DroppedSibling if siblings.head.entries.len() > 1 && chance(0.1) => {
                siblings.head.entries.remove(0);
                siblings.values.remove(0);
                Verdict::Spoiled
            }
            Planted::ReusedDot if purpose == Purpose::Write && siblings.head.entries.len() == 1 && chance(0.1) => {
                let dot = &mut siblings.head.entries[0].dot;
                let used = dot.counter > 1;
                dot.counter -= u64::from(used);
                if used { Verdict::Spoiled } else { Verdict::Pass }
            }
            Planted::EarlierStamp if siblings.head.stamp().is_some() && chance(0.1) => {
                let stamp = siblings.head.stamp().unwrap_or_default();
                let earlier = Dot { counter: stamp.counter - 2_000_000_000, ..stamp };
                siblings.head.clock = VersionVector::from_dots([earlier]);
                siblings.head.entries.iter_mut().for_each(|entry| entry.dot = earlier);
                Verdict::Spoiled
            }
            Planted::ForeignValue if !siblings.values.is_empty() && chance(0.05) => {
                let foreign = Value::json(&b"another key's value"[..]);
                let entry = &mut siblings.head.entries[0];
                (entry.bytes, entry.checksum) = (foreign.bytes.len() as u32, foreign.checksum);
                siblings.values[0] = foreign.bytes;
                Verdict::Spoiled
            }
            _ => Verdict::Pass,
        }
    }
    fn keeps_no_hints(&self, address: Address) -> bool {
        let handle = self.index_of(address.node).and_then(|node| self.handle(node, address.shard.0));
        handle.is_some_and(|handle| handle.stats().shard.hints_pending_bytes > self.plan.hint_bytes_max)
    }
    /// Answers a state as if it had been stored.
    fn acknowledge_falsely(self: &Rc<Self>, envelope: &Envelope) {
        let Some(receiver) = self.index_of(envelope.to.node).filter(|node| self.listening(*node)) else { return };
        let Envelope { from, to, exchange, .. } = *envelope;
        let deadline = self.local_now(receiver) + Duration::from_secs(5);
        self.send(receiver, Envelope { from: to, to: from, exchange, deadline, message: Message::Replicated(Ok(())) });
    }

    /// The defects of answers to clients.
    pub(super) fn spoil_answer(&self, response: Response, spoiler: &mut Prng) -> Option<Response> {
        match (self.plan.planted, response) {
            (Some(Planted::LostAnswer), _) if spoiler.chance(0.002) => {
                self.struck();
                None
            }
            (Some(Planted::CertainFailure), Err(failure)) if failure.outcome == Outcome::Unknown => {
                self.struck();
                Some(Err(Failure { outcome: Outcome::NotApplied, ..failure }))
            }
            (Some(Planted::UnseenInContext), Ok(Answer::Got(mut siblings)))
                if siblings.head.entries.len() > 1 && spoiler.chance(0.1) =>
            {
                self.struck();
                siblings.head.entries.remove(0);
                siblings.values.remove(0);
                Some(Ok(Answer::Got(siblings)))
            }
            (_, response) => Some(response),
        }
    }
}

/// What becomes of a state on its way.
enum Verdict {
    Pass,
    Spoiled,
    Swallow,
    Acknowledge,
}

fn spoil_fetched<E>(planted: Planted, answer: &mut Result<Fetched, E>, spoiler: &mut Prng) -> bool {
    let is_tombstone = |head: &Head| head.entries.is_empty();
    let forget = match (planted, &*answer) {
        (Planted::ErrorAsNotFound, _) => spoiler.chance(0.3),
        (Planted::ForgottenTombstone, Ok(Fetched::Head(head))) => is_tombstone(head),
        (Planted::ForgottenTombstone, Ok(Fetched::Full(siblings))) => is_tombstone(&siblings.head),
        _ => false,
    };
    if forget {
        *answer = Ok(Fetched::Nothing);
    }
    forget
}

fn spoil_identity(request: &mut Request) -> bool {
    use crate::protocol::message::Operation;
    match &mut request.operation {
        Operation::Put { write_id, .. } => {
            *write_id = WriteId(write_id.0 | 1 << 60);
            true
        }
        Operation::Get | Operation::Delete { .. } => false,
    }
}

fn spoil_news(news: &mut News) -> bool {
    match news {
        News::Member(member) if member.tokens.len() > 1 => {
            let mut tokens: Vec<Token> = member.tokens.to_vec();
            tokens[0].0 -= 1;
            member.tokens = tokens.into();
            true
        }
        _ => false,
    }
}
