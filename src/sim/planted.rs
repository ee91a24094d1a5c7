//! Defects planted on purpose, to show that the checkers see them. Each is done to what nodes say to each other or to
//! clients, to their disks or to their settings: production code knows nothing of them.

mod identity;
mod leases;
mod rolls;

use super::{
    cluster::{Cluster, End},
    plan::{NodeSet, Plan, SHARDS_MAX},
    prng::Prng,
};
use crate::{
    driver::{core::Settings, world::Arrival},
    limits::{KIB, SKEW_MAX},
    protocol::{
        message::{Answer, Envelope, Fetched, Message, News, Operation, Purpose, Refusal, Request, Response, Summed},
        tables::Tables,
        versions::{Actor, Dot, Head, Siblings, VersionVector},
    },
    types::{Address, ErrorCode, Failure, NodeId, Outcome, TableEntry, Token, Value, WriteId},
};
use std::{rc::Rc, time::Duration};

/// Makes the enum with its list and names, so that none is forgotten.
macro_rules! planted {
    ($($(#[$doc:meta])* $variant:ident $name:literal,)*) => {
        /// What is wrong.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Planted {
            $($(#[$doc])* $variant,)*
        }
        impl Planted {
            pub const ALL: &[Planted] = &[$(Planted::$variant,)*];
            pub fn name(self) -> &'static str {
                match self {
                    $(Planted::$variant => $name,)*
                }
            }
        }
    };
}

planted! {
    /// Disks say that they have synced and have not.
    SkippedSync "skipped-sync",
    /// Disks now and then write half of what they are given and say that all went well.
    ShortWrite "short-write",
    /// Replicas acknowledge fresh dots that they know already, and say that they remember nothing of nodes that come
    /// back.
    KnownDotStored "known-dot-acknowledged",
    /// A sign that the disk is an older state doubts the slices of one core only.
    LoneSign "sign-doubts-one-core",
    /// A node of another cluster is heard as if it were of this one.
    TakenStranger "stranger-taken-in",
    /// A replicated write sometimes carries the dot of its predecessor.
    ReusedDot "reused-dot",
    /// A replicated state sometimes lacks one of its siblings, though its clock covers it.
    DroppedSibling "dropped-sibling",
    /// A replicated state sometimes carries another key's value.
    ForeignValue "foreign-value",
    /// A home replica acknowledges before it has stored, and sometimes never does.
    EarlyAcknowledgement "early-acknowledgement",
    /// A stand-in acknowledges and keeps no hint.
    DroppedHint "dropped-hint",
    /// A stand-in that keeps no further hints acknowledges and stores nothing.
    DroppedAtBound "dropped-at-bound",
    /// A hint is dropped before its owner has it.
    HintDeletedEarly "hint-deleted-early",
    /// Hints are never delivered.
    UndeliveredHint "undelivered-hint",
    /// What a read found stale is not written back.
    SkippedRepair "skipped-repair",
    /// A replica that cannot read says that there is nothing.
    ErrorAsNotFound "error-as-not-found",
    /// A tombstone is taken for nothing.
    ForgottenTombstone "forgotten-tombstone",
    /// A forwarded write is given another identity.
    SecondIdentity "second-identity",
    /// One acknowledgement less than W is waited for.
    WritesCountedWrong "writes-counted-wrong",
    /// One answer less than R is merged.
    ReadsCountedWrong "reads-counted-wrong",
    /// The context of an answer covers a value that it does not show.
    UnseenInContext "unseen-in-context",
    /// A member's entry is changed on its way.
    ForgedEntry "forged-entry",
    /// A failure whose outcome is unknown is reported as not applied.
    CertainFailure "certain-failure",
    /// A replicated write sometimes has an earlier stamp than its writer was told.
    EarlierStamp "earlier-stamp",
    /// Some answers are never sent.
    LostAnswer "lost-answer",
    /// A put to a table where the last write wins is stored as a tombstone, under the right stamp.
    ForgottenValue "forgotten-value",
    /// There, replicas take deletes under a later stamp than their clients are told.
    AheadDelete "delete-stamped-ahead",
    /// Hints are kept without a bound.
    BoundlessHints "hints-without-bound",
    /// A key is believed to hold nothing though no home replica has said so.
    EmptyStandIn "empty-stand-in",
    /// What was superseded lately is not remembered.
    ForgottenTraces "forgotten-traces",
    /// A stand-in acknowledges before its hint is durable.
    EarlyHint "early-hint",
    /// The counters of a lease that is renewed in use begin anew.
    RenewedAnew "lease-renewed-anew",
    /// The leases that a stop in good order leaves are three too small.
    ShortLease "short-clean-lease",
    /// What waits for a stopped process is carried out with its whole deadline when it goes on.
    LateWrites "late-writes",
    /// Replicas take any stamp, however far it is ahead, and all tell a node that its clock is right.
    FutureStamp "future-stamp",
    /// A write is stamped with what the clock shows, though something later is stored.
    ClockStamp "clock-stamp",
    /// After an unclean start a node goes on under the incarnation of its first life.
    ReusedIncarnation "incarnation-reused",
    /// A replica's clock sometimes covers what its writer has not written yet, as if a forged context had been taken.
    ForgedClock "forged-clock",
    /// Memtables grow far beyond what was declared.
    OversizedMemory "oversized-memory",
    /// A state from before a drop of its table is taken as if it came after it.
    LateWriteTaken "late-write-taken",
    /// One node never hears of drops, and nobody notices by what it says.
    MissedDrop "missed-drop",
    /// One node never hears of tables, and treats their keys as those of the table `default`; nobody notices either.
    UnknownTable "unknown-table",
    /// Nobody stands in for a home that is away.
    NobodyStandsIn "nobody-stands-in",
    /// One write of ten is refused, for nothing.
    RefusedWrites "refused-writes",
    /// A node whose disk is full ends.
    FullDiskEnds "full-disk-ends",
    /// The acknowledgement of one replica counts for another as well.
    DoubledAcknowledgement "doubled-acknowledgement",
    /// Reads now and then show nothing where there is something.
    HiddenValues "hidden-values",
    /// A replica takes what its own disk has damaged for nothing, and what that may have lost is not in doubt.
    OwnDamageAsNothing "own-damage-as-nothing",
    /// What repair sends is acknowledged and not stored.
    RepairNotStored "repair-not-stored",
    /// Sums are told to be equal that are not, as those would be that leave clocks out, or in which equal terms cancel.
    EqualSums "equal-sums",
    /// Lists of keys lack their last one.
    ShortLists "short-lists",
    /// Nothing proves which segments of the log must be there, and where each must end.
    UnprovenEnds "unproven-ends",
}

impl Planted {
    pub fn from_name(name: &str) -> Option<Planted> {
        Planted::ALL.iter().copied().find(|p| p.name() == name)
    }
}

impl Plan {
    /// Plants a defect, and makes the conditions under which it does harm likely.
    pub fn plant(mut self, planted: Planted) -> Plan {
        self.planted = Some(planted);
        self.last_write_wins = matches!(
            planted,
            Planted::EarlierStamp
                | Planted::ForgottenValue
                | Planted::AheadDelete
                | Planted::LateWrites
                | Planted::FutureStamp
                | Planted::ClockStamp
        );
        // Keys of tables that come and go are judged less strictly.
        self.tables.count = 0;
        // What others leave undone is not to be made good by it.
        self.repair_pass = Duration::ZERO;
        let often = self.duration / 10;
        match planted {
            Planted::SkippedSync => self.faults.power_cut_every = self.duration / 3,
            Planted::ShortWrite => self.faults.kill_every = self.duration / 20,
            Planted::WritesCountedWrong | Planted::ReadsCountedWrong | Planted::ErrorAsNotFound => self.overlap(),
            Planted::ForgottenTombstone => {
                self.overlap();
                self.workload.mix[5] += 6;
            }
            Planted::EarlyAcknowledgement => self.overlap(),
            Planted::KnownDotStored | Planted::LoneSign => {
                if planted == Planted::KnownDotStored {
                    // Whoever starts and can't hear all others goes on far away, whatever its disk is.
                    self.be_calm();
                    // Leases end soon, so that an older disk begins with dots that others know.
                    self.bounds.dot_lease = 4;
                }
                self.lose_disks(&mut Prng::stream(self.seed, "planted"));
                (self.faults.wipe_every, self.faults.restore_every) = (Duration::ZERO, self.duration / 12);
                self.faults.reshard = 0.0;
                if planted == Planted::LoneSign {
                    self.faults.kill_every = often;
                }
                self.workload.keys = self.workload.keys.min(16);
                self.shards.iter_mut().for_each(|shards| *shards = SHARDS_MAX);
                self.workload.mix[2] += 6;
            }
            Planted::TakenStranger => self.outsider = true,
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
            Planted::AheadDelete => {
                self.be_calm();
                self.workload.mix[5] += 6;
            }
            Planted::BoundlessHints => {
                (self.sloppy, self.hint_bytes_max) = (true, 0);
                (self.workload.value_bytes_max, self.workload.mix[2]) = (8_000, 8);
                (self.workload.think, self.workload.clients) = (Duration::from_millis(10), 24);
                self.without_crashes();
                (self.faults.pause_every, self.faults.lasting) = (often, self.duration / 3);
            }
            Planted::EmptyStandIn => {
                (self.r, self.w, self.sloppy) = (1, self.n, false);
                self.workload.override_level = 0.8;
                self.without_crashes();
                (self.faults.cut_every, self.faults.lasting) = (often, self.duration / 6);
            }
            Planted::ForgottenTraces => {
                (self.workload.keys, self.workload.zipf) = (300, 0.0);
                (self.workload.retry, self.network.client_loss) = (1.0, 0.3);
                self.workload.timeout_max = self.workload.timeout_min;
                (self.workload.follow, self.workload.mix[1]) = (0.6, self.workload.mix[1] + 6);
            }
            Planted::EarlyHint => {
                self.lose_disks(&mut Prng::stream(self.seed, "planted"));
                (self.faults.wipe_every, self.faults.restore_every) = (self.duration, Duration::ZERO);
                (self.n, self.r, self.w, self.sloppy) = (2, 1, 2, true);
                self.faults.fickle = NodeSet::of(&[0]);
                (self.workload.writes_min, self.workload.override_level) = (2, 0.0);
                (self.faults.pause_every, self.faults.cut_every) = (often, often);
            }
            Planted::RenewedAnew => self.bounds.dot_lease = 4,
            Planted::ShortLease => self.faults.stop_every = self.duration / 20,
            Planted::LateWrites => {
                (self.workload.timeout_min, self.workload.timeout_max) =
                    (Duration::from_millis(500), Duration::from_secs(1));
                (self.workload.keys, self.workload.zipf) = (300, 0.0);
                (self.faults.pause_every, self.faults.lasting) = (often, self.duration / 4);
            }
            Planted::FutureStamp => self.go_wild(&mut Prng::stream(self.seed, "planted")),
            Planted::ClockStamp => self.overlap(),
            Planted::ReusedIncarnation => self.faults.kill_every = self.duration / 20,
            Planted::ForgottenValue | Planted::ForgedClock => {}
            Planted::LateWriteTaken | Planted::MissedDrop | Planted::UnknownTable => {
                let count = self.tables.count;
                self.change_tables(&mut Prng::stream(self.seed, "planted"));
                self.tables.count = count.max(1);
                self.tables.change_every = self.duration / 12;
                self.workload.mix[2] += 4;
            }
            Planted::NobodyStandsIn => {
                // A home is away for long, all N are wanted, and there are others.
                self.be_calm();
                self.nodes = self.nodes.max(5);
                self.shards.resize(self.nodes, 1);
                (self.n, self.r, self.w, self.sloppy) = (3, 1, 3, true);
                self.faults.kill_every = self.duration / 3;
                (self.faults.lasting, self.faults.down_max) = (self.duration, 1);
                (self.workload.timeout_min, self.workload.timeout_max) =
                    (Duration::from_secs(4), Duration::from_secs(5));
            }
            Planted::RefusedWrites => self.be_calm(),
            Planted::FullDiskEnds => self.faults.full_disk_every = often,
            Planted::DoubledAcknowledgement => {
                self.overlap();
                (self.n, self.r, self.w) = (3, 1, 3);
            }
            Planted::HiddenValues => {}
            Planted::RepairNotStored | Planted::EqualSums | Planted::ShortLists => {
                self.repair_pass = Duration::from_secs(5);
                self.lose_disks(&mut Prng::stream(self.seed, "planted"));
                (self.faults.wipe_every, self.faults.restore_every) = (often, Duration::ZERO);
                // Nobody reads what was lost.
                (self.workload.keys, self.workload.zipf) = (300, 0.0);
                self.workload.mix[2] += 8;
            }
            Planted::OwnDamageAsNothing => self.rot_away(),
            Planted::UnprovenEnds => {
                self.rot_away();
                // What is in tables is lost with none of these files.
                self.engine.memtable_bytes = 512 * KIB;
            }
            Planted::SkippedRepair | Planted::UnseenInContext | Planted::SecondIdentity | Planted::ForgedEntry => {}
            Planted::DroppedSibling | Planted::ReusedDot | Planted::ForeignValue => {}
            Planted::CertainFailure | Planted::LostAnswer | Planted::EarlierStamp => {}
        }
        self
    }
    /// No node ends, and every message arrives in time.
    fn be_calm(&mut self) {
        self.without_crashes();
        let faults = &mut self.faults;
        (faults.pause_every, faults.cut_every) = (Duration::ZERO, Duration::ZERO);
        (faults.link_cut_every, faults.clog_every) = (Duration::ZERO, Duration::ZERO);
        (faults.slow_disk_every, faults.hang_disk_every) = (Duration::ZERO, Duration::ZERO);
        (self.network.loss, self.network.hold) = (0.0, 0.0);
    }
    /// The medium of one node loses what it held, and tells.
    fn rot_away(&mut self) {
        self.overlap();
        self.faults.fickle = NodeSet::default();
        (self.faults.wipe_every, self.faults.restore_every) = (Duration::ZERO, Duration::ZERO);
        self.faults.unsound = Some(self.seed as usize % self.nodes);
        (self.faults.stray_writes, self.faults.spoilt_files) = (false, 1.0);
        (self.faults.rot_every, self.faults.kill_every) = (self.duration / 20, self.duration / 20);
        self.w = self.w.max(2);
        self.workload.mix[0] += 8;
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
        Some(Planted::BoundlessHints) => settings.hint_bytes_max = u64::MAX,
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
        if self.spoil_identity(planted, &mut envelope) {
            self.struck();
        }
        if !self.spoil_word(planted, &mut envelope) {
            self.struck();
            return None;
        }
        let struck = match &mut envelope.message {
            Message::Replicate { purpose: Purpose::Hint { .. }, .. }
                if planted == Planted::DroppedAtBound && self.keeps_no_hints(to) =>
            {
                self.struck();
                self.acknowledge_falsely(&envelope);
                return None;
            }
            Message::Replicate { purpose: Purpose::Hint { .. }, .. } if planted == Planted::EarlyHint => {
                return (!self.lose_early_hint(&envelope)).then_some(envelope);
            }
            Message::Clock { wall: Some(wall), .. } if planted == Planted::FutureStamp => {
                let shown = self.index_of(to.node).map_or(*wall, |node| self.wall_time(node));
                std::mem::replace(wall, shown).abs_diff(shown) > SKEW_MAX.as_nanos() as u64
            }
            Message::Replicate { siblings, purpose, .. } if planted == Planted::FutureStamp => {
                let wall = self.index_of(to.node).map_or(u64::MAX, |node| self.wall_time(node));
                let ahead = siblings.head.stamp().is_some_and(|stamp| stamp.counter > wall);
                if ahead {
                    *purpose = Purpose::Repair;
                }
                ahead
            }
            Message::Replicate { siblings, purpose: Purpose::Write, .. } if planted == Planted::ClockStamp => {
                let wall = self.index_of(envelope.from.node).map_or(u64::MAX, |node| self.wall_time(node));
                siblings.head.stamp().filter(|stamp| stamp.counter > wall).is_some_and(|stamp| {
                    restamp(siblings, Dot { counter: wall, ..stamp });
                    true
                })
            }
            Message::Replicate { purpose: Purpose::Repair, .. } if planted == Planted::RepairNotStored => {
                self.struck();
                self.acknowledge_falsely(&envelope);
                return None;
            }
            Message::Sums { own: Some(own), .. } if planted == Planted::EqualSums => {
                let answer = Message::Summed(Ok(Summed { shift: u64::BITS as u8, sums: vec![*own] }));
                self.struck();
                self.answer_falsely(&envelope, answer);
                return None;
            }
            Message::Keyed(Ok(listed)) if planted == Planted::ShortLists && !listed.more => {
                listed.heads.pop().is_some()
            }
            Message::Replicate { purpose: Purpose::Hint { .. }, .. } if planted == Planted::NobodyStandsIn => {
                self.struck();
                return None;
            }
            Message::Replicated(Ok(())) if planted == Planted::DoubledAcknowledgement && spoiler.chance(0.3) => {
                self.double(&envelope);
                true
            }
            Message::Replicate { siblings, purpose: Purpose::Write, .. }
                if matches!(planted, Planted::ReusedIncarnation | Planted::ForgedClock) =>
            {
                spoil_own_dots(planted, siblings, envelope.from.node, spoiler)
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
            Message::GossipDelta { news, .. } | Message::GossipNews { news, .. } if planted == Planted::ForgedEntry => {
                spoiler.chance(0.2) && news.iter_mut().any(spoil_news)
            }
            _ => false,
        };
        if struck {
            self.struck();
        }
        Some(envelope)
    }
    /// The one that does not hear of tables.
    pub fn is_deaf(&self, node: usize) -> bool {
        let deaf = self.planted(Planted::MissedDrop) || self.planted(Planted::UnknownTable);
        deaf && node == self.plan.seed as usize % self.node_count()
    }
    /// What is said by another word of a table than the receiver goes by, as if it went by the same; `false`: it is not
    /// said at all.
    fn spoil_word(&self, planted: Planted, envelope: &mut Envelope) -> bool {
        if !matches!(planted, Planted::LateWriteTaken | Planted::MissedDrop | Planted::UnknownTable) {
            return true;
        }
        let (from, to) = (self.index_of(envelope.from.node), self.index_of(envelope.to.node));
        let (Some(from), Some(to)) = (from, to) else { return true };
        let Some(handle) = self.handle(to, envelope.to.shard.0) else { return true };
        let known = handle.tables();
        let deaf = self.is_deaf(to);
        let deceived = planted == Planted::LateWriteTaken || deaf || self.is_deaf(from);
        match &mut envelope.message {
            // As one says it that knows of no tables either: whoever heard that there is more would ask without end.
            Message::Tables(words) if deaf && from != to && planted == Planted::UnknownTable => {
                (words.digest, words.news) = (0, Vec::new());
            }
            Message::Tables(words) if deaf && from != to => {
                words.news.iter_mut().for_each(|entry| hide(planted, entry, &known));
            }
            Message::TableNews(entry) if deaf && from != to => {
                hide(planted, entry, &known);
                return planted == Planted::MissedDrop;
            }
            Message::Replicate { key, siblings, word, .. } if deceived => {
                let own = known.word(key.as_bytes());
                if *word != own {
                    self.struck();
                    *word = own;
                    siblings.head.life = siblings.head.life.max(known.life(key.as_bytes()));
                }
            }
            Message::Fetch { key, word, .. } if deceived => *word = known.word(key.as_bytes()),
            Message::Forward { request, word, .. } if deceived => *word = known.word(request.key.as_bytes()),
            _ => {}
        }
        true
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
                restamp(siblings, Dot { counter: stamp.counter - 2_000_000_000, ..stamp });
                Verdict::Spoiled
            }
            Planted::AheadDelete if purpose == Purpose::Write && siblings.head.entries.is_empty() => {
                let Some(stamp) = siblings.head.stamp() else { return Verdict::Pass };
                let ahead = Dot { counter: stamp.counter + 90_000_000, ..stamp };
                siblings.head.clock = VersionVector::from_dots([ahead]);
                Verdict::Spoiled
            }
            Planted::ForgottenTraces if !siblings.head.recent.is_empty() => {
                siblings.head.recent.clear();
                Verdict::Spoiled
            }
            Planted::RenewedAnew if purpose == Purpose::Write && siblings.head.entries.len() == 1 => {
                let dot = &mut siblings.head.entries[0].dot;
                let (block, counter) = (self.plan.bounds.dot_lease, dot.counter);
                dot.counter = if dot.is_stamp() { counter } else { (counter - 1) % block + 1 };
                if dot.counter == counter { Verdict::Pass } else { Verdict::Spoiled }
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
    /// A stand-in acknowledges, and its machine loses power before the hint is durable; soon after, the disk of the
    /// coordinator is lost, if it is one of those that may be. Says whether it came to that.
    fn lose_early_hint(self: &Rc<Self>, envelope: &Envelope) -> bool {
        let nodes = (self.index_of(envelope.from.node), self.index_of(envelope.to.node));
        let (Some(from), Some(to)) = nodes else { return false };
        if !self.plan.faults.fickle.contains(from) || !self.listening(to) || self.paused(to) {
            return false;
        }
        self.struck();
        self.acknowledge_falsely(envelope);
        let (cluster, now) = (self.clone(), self.executor.now());
        self.executor.schedule(now, move || cluster.end(to, End::PowerLoss));
        let cluster = self.clone();
        self.executor.schedule(now + Duration::from_millis(400), move || {
            cluster.end(from, End::Kill);
            cluster.wipe_disk(from);
        });
        let cluster = self.clone();
        self.executor.schedule(now + Duration::from_secs(2), move || {
            [from, to].into_iter().for_each(|node| cluster.start(node));
        });
        true
    }
    /// Says the same once more, as if it were the answer to what another replica was sent.
    fn double(self: &Rc<Self>, envelope: &Envelope) {
        // The number of a request's message is in the middle, and the first two are those to the other homes.
        const OTHER: u64 = 1 << 3;
        let Some(receiver) = self.index_of(envelope.to.node).filter(|_| envelope.exchange & 7 == 0) else { return };
        let Some(inbox) = self.inbox(receiver, envelope.to.shard.0) else { return };
        let deadline = self.local_now(receiver) + Duration::from_secs(5);
        inbox.push(Arrival::Message(Envelope { exchange: envelope.exchange ^ OTHER, deadline, ..envelope.clone() }));
    }
    /// Whether a request is answered with a refusal in the place of its node.
    pub(super) fn refuses(&self, request: &Request, spoiler: &mut Prng) -> bool {
        let refused = self.planted(Planted::RefusedWrites) && request.operation.is_write() && spoiler.chance(0.1);
        if refused {
            self.struck();
        }
        refused
    }
    fn keeps_no_hints(&self, address: Address) -> bool {
        let handle = self.index_of(address.node).and_then(|node| self.handle(node, address.shard.0));
        handle.is_some_and(|handle| handle.stats().shard.hints_pending_bytes > self.plan.hint_bytes_max)
    }
    /// Answers a state as if it had been stored.
    fn acknowledge_falsely(self: &Rc<Self>, envelope: &Envelope) {
        self.answer_falsely(envelope, Message::Replicated(Ok(())));
    }
    fn answer_falsely(self: &Rc<Self>, envelope: &Envelope, message: Message) {
        let Some(receiver) = self.index_of(envelope.to.node).filter(|node| self.listening(*node)) else { return };
        let Envelope { from, to, exchange, .. } = *envelope;
        let deadline = self.local_now(receiver) + Duration::from_secs(5);
        self.send(receiver, Envelope { from: to, to: from, exchange, deadline, message });
    }

    /// The defects of what is made of clients' requests.
    pub(super) fn spoil_request(&self, request: &mut Request, spoiler: &mut Prng) {
        if self.planted(Planted::ForgottenValue)
            && let Operation::Put { context, write_id, .. } = &request.operation
            && spoiler.chance(0.05)
        {
            request.operation = Operation::Delete { context: context.clone(), write_id: *write_id };
            self.struck();
        }
    }
    /// The defects of answers to clients. `sloppy_read`: what was asked is a read in which stand-ins count.
    pub(super) fn spoil_answer(&self, response: Response, sloppy_read: bool, spoiler: &mut Prng) -> Option<Response> {
        match (self.plan.planted, response) {
            (Some(Planted::LostAnswer), _) if spoiler.chance(0.002) => {
                self.struck();
                None
            }
            (Some(Planted::HiddenValues), Ok(Answer::Got(siblings)))
                if !siblings.head.entries.is_empty() && spoiler.chance(0.05) =>
            {
                self.struck();
                Some(Ok(Answer::Got(Siblings::default())))
            }
            (Some(Planted::CertainFailure), Err(failure)) if failure.outcome == Outcome::Unknown => {
                self.struck();
                Some(Err(Failure { outcome: Outcome::NotApplied, ..failure }))
            }
            (Some(Planted::EmptyStandIn), Err(failure))
                if sloppy_read && failure.code == ErrorCode::QuorumUnavailable =>
            {
                self.struck();
                Some(Ok(Answer::Got(Siblings::default())))
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

/// Hides what the receiver of an entry is not to hear.
fn hide(planted: Planted, entry: &mut TableEntry, known: &Tables) {
    if planted == Planted::MissedDrop {
        entry.dropped = known.entry(entry.name.as_str()).map_or(0, |known| known.dropped);
    }
}

/// The state of one write, under another stamp.
fn restamp(siblings: &mut Siblings, stamp: Dot) {
    siblings.head.clock = VersionVector::from_dots([stamp]);
    siblings.head.entries.iter_mut().for_each(|entry| entry.dot = stamp);
}

/// Changes what a state says of its sender's own dots.
fn spoil_own_dots(planted: Planted, siblings: &mut Siblings, sender: NodeId, spoiler: &mut Prng) -> bool {
    let head = &mut siblings.head;
    let last = head.clock.entries().iter().copied().rfind(|dot| dot.actor.node() == sender && !dot.is_stamp());
    let Some(last) = last else { return false };
    if planted == Planted::ForgedClock {
        let struck = spoiler.chance(0.05);
        if struck {
            head.clock.record(Dot { counter: last.counter + 50, ..last });
        }
        return struck;
    }
    let first = Actor::new(sender, 1);
    let reused = |dot: Dot| {
        let own = dot.actor.node() == sender && !dot.is_stamp();
        if own { Dot { actor: first, ..dot } } else { dot }
    };
    head.clock = VersionVector::from_dots(head.clock.entries().iter().map(|dot| reused(*dot)));
    head.entries.iter_mut().for_each(|entry| entry.dot = reused(entry.dot));
    let unique = head.entries.windows(2).all(|pair| pair[0].dot < pair[1].dot);
    if !unique {
        // Only one of two siblings of one dot can be stored at all.
        head.entries.truncate(1);
        siblings.values.truncate(1);
    }
    last.actor != first
}

/// What becomes of a state on its way.
enum Verdict {
    Pass,
    Spoiled,
    Swallow,
    Acknowledge,
}

fn spoil_fetched(planted: Planted, answer: &mut Result<Fetched, Refusal>, spoiler: &mut Prng) -> bool {
    let is_tombstone = |head: &Head| head.entries.is_empty();
    if planted == Planted::OwnDamageAsNothing {
        return forget_damage(answer);
    }
    if planted == Planted::ForgottenTraces {
        let head = match answer {
            Ok(Fetched::Head(head) | Fetched::Doubted { head, .. }) => head,
            Ok(Fetched::Full(siblings)) => &mut siblings.head,
            Ok(Fetched::Nothing) | Err(_) => return false,
        };
        return !std::mem::take(&mut head.recent).is_empty();
    }
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

fn forget_damage(answer: &mut Result<Fetched, Refusal>) -> bool {
    let fetched = match std::mem::replace(answer, Ok(Fetched::Nothing)) {
        Err(Refusal::Damaged) => Fetched::Nothing,
        Ok(Fetched::Doubted { head, .. }) if head.is_empty() => Fetched::Nothing,
        Ok(Fetched::Doubted { head, values: None }) => Fetched::Head(head),
        Ok(Fetched::Doubted { head, values: Some(values) }) => Fetched::Full(Siblings { head, values }),
        sound => {
            *answer = sound;
            return false;
        }
    };
    *answer = Ok(fetched);
    true
}

fn spoil_identity(request: &mut Request) -> bool {
    match &mut request.operation {
        Operation::Put { write_id, .. } => {
            *write_id = WriteId(write_id.0 | 1 << 60);
            true
        }
        Operation::Get { .. } | Operation::Delete { .. } => false,
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
