//! Versions against an oracle that keeps full causal histories.
//!
//! The oracle has no clocks: a replica is the set of events it knows and the set of those that are superseded, and its
//! siblings are the difference. The real state must agree after every step, whatever the order of puts, deletes, reads
//! and merges. A put that is sent twice is one event in the oracle, two dots in the real state.

use bytes::Bytes;
use dynarc::{
    limits::{CONTEXT_TEXT_BYTES_MAX, RECENT_WRITES_MAX},
    protocol::versions::{Actor, Context, ContextError, Dot, Entry, Head, Merged, Siblings, Side, VersionVector},
    types::{Key, Media, NodeId, Token, Value, WriteId},
};
use proptest::prelude::*;
use std::collections::BTreeSet;

type Events = BTreeSet<u32>;

/// What a reader took home: the real context, and what the oracle says that it has seen.
#[derive(Clone, Default)]
struct Seen {
    context: Context,
    known: Events,
}

#[derive(Clone, Default)]
struct Replica {
    real: Siblings,
    known: Events,
    superseded: Events,
}

/// A put as its client knows it, so that it can be sent again.
#[derive(Clone)]
struct Put {
    event: u32,
    seen: Seen,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Read {
        replica: usize,
        client: usize,
    },
    /// `client`: whose context; none: blind. `keep`: who builds on this write's own context afterwards.
    Put {
        replica: usize,
        client: Option<usize>,
        keep: Option<usize>,
    },
    Delete {
        replica: usize,
        client: Option<usize>,
    },
    /// `to` merges the state of `from`.
    Sync {
        from: usize,
        to: usize,
    },
    /// The `nth` put (counted from the newest) arrives once more, at this replica.
    Retry {
        nth: usize,
        replica: usize,
    },
    /// The replica lost what it knew of its dots and takes a new incarnation.
    Reincarnate {
        replica: usize,
    },
}

struct Model {
    replicas: Vec<Replica>,
    clients: Vec<Seen>,
    puts: Vec<Put>,
    /// Next counter and incarnation of each replica. Counters start far apart, as leases make them; one's incarnations
    /// leave the narrow form soon.
    actors: Vec<(u64, u64)>,
    /// Events that a replica may have to be told of twice: they have more than one dot, or one that a context names
    /// beside its clock.
    loose: Events,
    /// Every state that a replica has had: what a late message or a hint may carry.
    past: Vec<Siblings>,
}

const REPLICAS: usize = 4;
const CLIENTS: usize = 3;

impl Model {
    fn new() -> Model {
        Model {
            replicas: vec![Replica::default(); REPLICAS],
            clients: vec![Seen::default(); CLIENTS],
            puts: Vec::new(),
            actors: (0..REPLICAS as u64).map(|i| (1 + i * 1000, i * 65_535)).collect(),
            loose: Events::new(),
            past: Vec::new(),
        }
    }
    fn apply(&mut self, step: Step) {
        match step {
            Step::Read { replica, client } => {
                let from = &self.replicas[replica];
                self.clients[client] = Seen { context: from.real.head.clock.clone().into(), known: from.known.clone() };
            }
            Step::Put { replica, client, keep } => {
                let seen = client.map_or_else(Seen::default, |c| self.clients[c].clone());
                let event = self.puts.len() as u32;
                self.puts.push(Put { event, seen: seen.clone() });
                let after = self.coordinate(replica, event, &seen);
                if let Some(client) = keep {
                    if !after.context.dots.is_empty() {
                        self.loose.insert(event);
                    }
                    self.clients[client] = after;
                }
            }
            Step::Delete { replica, client } => {
                let target = &mut self.replicas[replica];
                let seen = match client {
                    Some(c) => self.clients[c].clone(),
                    None => Seen { context: target.real.head.clock.clone().into(), known: target.known.clone() },
                };
                let merged = target.real.head.delete(&seen.context);
                target.real = apply(&target.real, merged, None);
                target.known.extend(&seen.known);
                target.superseded.extend(&seen.known);
            }
            Step::Sync { from, to } => {
                let source = self.replicas[from].clone();
                let target = &mut self.replicas[to];
                target.real = target.real.sync(&source.real);
                target.known.extend(&source.known);
                target.superseded.extend(&source.superseded);
            }
            Step::Retry { nth, replica } => {
                if self.puts.is_empty() {
                    return;
                }
                let put = self.puts[self.puts.len() - 1 - nth % self.puts.len()].clone();
                if !self.replicas[replica].real.head.knows_write(write_id(put.event)) {
                    self.loose.insert(put.event);
                    self.coordinate(replica, put.event, &put.seen);
                }
            }
            Step::Reincarnate { replica } => self.actors[replica].1 += 1,
        }
        if let Step::Put { replica, .. } | Step::Delete { replica, .. } | Step::Sync { to: replica, .. } = step {
            self.past.push(self.replicas[replica].real.clone());
        }
    }
    /// What a coordinator does with a put that it does not know yet. Returns what its writer has seen then.
    fn coordinate(&mut self, replica: usize, event: u32, seen: &Seen) -> Seen {
        let (counter, incarnation) = &mut self.actors[replica];
        let dot = Dot { actor: Actor::new(NodeId(replica as u64 + 1), *incarnation + 1), counter: *counter };
        *counter += 1;
        let target = &mut self.replicas[replica];
        let value = value_of(event);
        let entry = Entry {
            dot,
            write_id: write_id(event),
            media: Media::Json,
            bytes: value.bytes.len() as u32,
            checksum: value.checksum,
        };
        let alone = !target.real.head.has_survivors(&seen.context);
        let merged = target.real.head.put(&seen.context, entry);
        target.real = apply(&target.real, merged, Some(value.bytes));
        target.known.extend(&seen.known);
        target.known.insert(event);
        target.superseded.extend(&seen.known);
        let mut known = seen.known.clone();
        known.insert(event);
        if alone {
            known.extend(&target.known);
            return Seen { context: target.real.head.clock.clone().into(), known };
        }
        Seen { context: Context { clock: seen.context.clock.clone(), dots: [dot].into_iter().collect() }, known }
    }
    /// All replicas hear of all.
    fn heal(&mut self) {
        for _ in 0..2 {
            for from in 0..REPLICAS {
                (0..REPLICAS).for_each(|to| self.apply(Step::Sync { from, to }));
            }
        }
    }
    fn check_form(&self, replica: usize) -> Result<(), String> {
        let real = &self.replicas[replica].real;
        real.verify().map_err(|e| format!("values do not fit the head: {e}"))?;
        let decoded = Head::decode(&real.head.encode()).map_err(|e| format!("does not decode: {e}"))?;
        if decoded != real.head {
            return Err("decodes to something else".into());
        }
        if real.head.recent.len() > RECENT_WRITES_MAX {
            return Err("remembers more than the bound".into());
        }
        Ok(())
    }
    /// No event may be missing; `exact`: none may be there in vain either. Else only loose ones may.
    fn check(&self, exact: bool) -> Result<(), String> {
        for (index, replica) in self.replicas.iter().enumerate() {
            self.check_form(index)?;
            let expected: Events = replica.known.difference(&replica.superseded).copied().collect();
            let shown: Vec<u32> = replica.real.values().map(|v| event_of(&v.bytes)).collect();
            let actual: Events = shown.iter().copied().collect();
            if actual.len() != shown.len() {
                return Err(format!("replica {index} shows one write twice: {shown:?}"));
            }
            if let Some(lost) = expected.difference(&actual).next() {
                return Err(format!("replica {index} lost write {lost}: has {actual:?}, should have {expected:?}"));
            }
            let vain: Vec<u32> = actual.difference(&expected).copied().collect();
            if !vain.iter().all(|e| !exact && self.loose.contains(e)) {
                return Err(format!("replica {index} keeps superseded {vain:?} beside {expected:?}"));
            }
        }
        Ok(())
    }
}

fn apply(before: &Siblings, merged: Merged, new: Option<Bytes>) -> Siblings {
    let values = merged.picks.iter().map(|pick| match (pick.side, &new) {
        (Side::Left, _) => before.values[pick.index].clone(),
        (Side::Right, Some(value)) => value.clone(),
        (Side::Right, None) => panic!("a delete brings no value"),
    });
    Siblings { values: values.collect(), head: merged.head }
}
fn write_id(event: u32) -> WriteId {
    WriteId(u64::from(event) + 1)
}
fn value_of(event: u32) -> Value {
    Value::json(format!("{event}"))
}
fn event_of(bytes: &[u8]) -> u32 {
    std::str::from_utf8(bytes).ok().and_then(|t| t.parse().ok()).expect("values are event numbers")
}

/// `retries`: how many in 100 steps.
fn random_step(random: &mut fastrand::Rng, retries: u32) -> Step {
    let replica = random.usize(..REPLICAS);
    let client = random.bool().then(|| random.usize(..CLIENTS));
    if random.u32(..100) < retries {
        return Step::Retry { nth: random.usize(..3), replica };
    }
    match random.u32(..100) {
        0..25 => Step::Read { replica, client: random.usize(..CLIENTS) },
        25..55 => Step::Put { replica, client, keep: (retries > 0 && random.bool()).then(|| random.usize(..CLIENTS)) },
        55..63 => Step::Delete { replica, client },
        63..65 => Step::Reincarnate { replica },
        _ => Step::Sync { from: random.usize(..REPLICAS), to: replica },
    }
}

/// `loose`: with puts that are sent twice, and contexts of writes.
fn step(loose: bool) -> impl Strategy<Value = Step> {
    let replica = 0..REPLICAS;
    let client = proptest::option::of(0..CLIENTS);
    prop_oneof![
        3 => (replica.clone(), 0..CLIENTS).prop_map(|(replica, client)| Step::Read { replica, client }),
        4 => (replica.clone(), client.clone(), client.clone()).prop_map(move |(replica, client, keep)| {
            Step::Put { replica, client, keep: keep.filter(|_| loose) }
        }),
        1 => (replica.clone(), client).prop_map(|(replica, client)| Step::Delete { replica, client }),
        4 => (replica.clone(), replica.clone()).prop_map(|(from, to)| Step::Sync { from, to }),
        if loose { 2 } else { 0 } => (0..4usize, replica.clone()).prop_map(|(nth, replica)| Step::Retry { nth, replica }),
        1 => replica.prop_map(|replica| Step::Reincarnate { replica }),
    ]
}

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { cases: count, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn siblings_are_exactly_the_concurrent_writes(steps in proptest::collection::vec(step(false), 1..60)) {
        let mut model = Model::new();
        for step in steps {
            model.apply(step);
            prop_assert_eq!(model.check(true), Ok(()));
        }
    }

    /// A write with two dots may be superseded under a name that a replica has not met: until it hears of it, it may
    /// keep the other name. It never loses the write, and never shows it twice.
    #[test]
    fn a_put_sent_twice_is_one_event(steps in proptest::collection::vec(step(true), 1..60)) {
        let mut model = Model::new();
        for step in steps {
            model.apply(step);
            prop_assert_eq!(model.check(false), Ok(()));
        }
    }

    /// As long as no replica has had to forget a superseded write, all is exact once all have heard of all.
    #[test]
    fn nothing_superseded_is_left_behind(steps in proptest::collection::vec(step(true), 1..20)) {
        let mut model = Model::new();
        let mut forgot = false;
        for step in steps {
            model.apply(step);
            forgot |= model.replicas.iter().any(|r| r.real.head.recent.len() == RECENT_WRITES_MAX);
        }
        model.heal();
        forgot |= model.replicas.iter().any(|r| r.real.head.recent.len() == RECENT_WRITES_MAX);
        prop_assert_eq!(model.check(!forgot), Ok(()));
        for replica in &model.replicas {
            prop_assert!(replica.real.head.same_state(&model.replicas[0].real.head));
        }
    }

    #[test]
    fn heads_survive_encoding_and_damage_is_an_error_or_a_sound_head(
        steps in proptest::collection::vec(step(true), 1..40),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut model = Model::new();
        steps.into_iter().for_each(|s| model.apply(s));
        for replica in &model.replicas {
            let bytes = replica.real.head.encode();
            let decoded = Head::decode(&bytes);
            prop_assert_eq!(decoded.as_ref(), Ok(&replica.real.head));
            prop_assert!(Head::decode(&bytes[..cut.index(bytes.len())]).is_err());
            let mut damaged = bytes.to_vec();
            damage.iter().for_each(|(at, byte)| damaged[at.index(bytes.len())] = *byte);
            if let Ok(head) = Head::decode(&damaged) {
                prop_assert_eq!(Head::decode(&head.encode()), Ok(head.clone()));
                prop_assert!(head.entries.iter().all(|e| head.clock.covers(e.dot)));
                let merged = head.sync(&replica.real.head).head;
                prop_assert!(merged.clock.descends(&replica.real.head.clock));
            }
        }
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(head) = Head::decode(&bytes) {
            prop_assert_eq!(Head::decode(&head.encode()), Ok(head));
        }
        prop_assert!(Context::from_text(&bytes, Token(7)).is_err());
    }

    #[test]
    fn contexts_survive_their_text(
        dots in proptest::collection::vec((any::<u64>(), 1u64..), 0..340),
        own in proptest::collection::vec((any::<u64>(), 1u64..), 0..3), token in any::<u64>(), other in any::<u32>()
    ) {
        let dot = |(a, counter)| Dot { actor: Actor::from_narrow(a), counter };
        let clock = VersionVector::from_dots(dots.into_iter().map(dot));
        let mut own: Vec<Dot> = own.into_iter().map(dot).collect();
        own.sort_unstable();
        own.dedup();
        let dots = own.into_iter().filter(|d| !clock.covers(*d)).collect();
        let context = Context { clock, dots };
        let text = context.to_text(Token(token));
        prop_assert!(text.len() <= CONTEXT_TEXT_BYTES_MAX);
        prop_assert!(text.bytes().all(|b| b.is_ascii_graphic()));
        prop_assert_eq!(Context::from_text(text.as_bytes(), Token(token)), Ok(context));
        if u64::from(other) != token & 0xffff_ffff {
            let other = Token(u64::from(other));
            prop_assert_eq!(Context::from_text(text.as_bytes(), other), Err(ContextError::OtherKey));
        }
    }
}

/// The same, over long random walks: deterministic, so that a failure names its seed.
#[test]
fn random_walks_agree_with_the_oracle() {
    for seed in 0..400 {
        let mut random = fastrand::Rng::with_seed(seed);
        let retries = if seed % 2 == 0 { 0 } else { 15 };
        let mut model = Model::new();
        for count in 0..300 {
            let step = random_step(&mut random, retries);
            model.apply(step);
            if let Err(problem) = model.check(retries == 0) {
                panic!("seed {seed}, step {count} {step:?}: {problem}");
            }
        }
        model.heal();
        model.check(retries == 0).unwrap_or_else(|problem| panic!("seed {seed}, healed: {problem}"));
        let first = &model.replicas[0].real.head;
        assert!(model.replicas.iter().all(|r| r.real.head.same_state(first)), "seed {seed}: replicas differ");
    }
}

/// States that real histories produce, old ones among them, merged in every order.
#[test]
fn merging_is_commutative_associative_and_idempotent() {
    let state = |s: &Siblings| (s.head.clock.clone(), s.head.entries.clone(), s.values.clone());
    let mut checked = 0;
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        // Short walks do not overflow what is remembered, so that retries are exact as well.
        let (steps, retries) = if seed % 2 == 0 { (150, 0) } else { (12, 25) };
        let mut model = Model::new();
        (0..steps).for_each(|_| model.apply(random_step(&mut random, retries)));
        let full = |s: &Siblings| s.head.recent.len() == RECENT_WRITES_MAX;
        for _ in 0..50 {
            let mut pick = || model.past.get(random.usize(..model.past.len().max(1))).cloned().unwrap_or_default();
            let (a, b, c) = (pick(), pick(), pick());
            let (ab, ba) = (a.sync(&b), b.sync(&a));
            assert_eq!(state(&ab), state(&ba), "seed {seed}: order of two");
            assert_eq!(ab.head.recent, ba.head.recent, "seed {seed}: order of two, recent");
            assert_eq!(a.sync(&a), a, "seed {seed}: with itself");
            assert_eq!(state(&ab.sync(&b)), state(&ab), "seed {seed}: twice");
            let (left, right) = (ab.sync(&c), a.sync(&b.sync(&c)));
            if retries == 0 || !(full(&left) || full(&right)) {
                assert_eq!(state(&left), state(&right), "seed {seed}: grouping of three");
                checked += 1;
            }
            assert_eq!(left.head.recent, right.head.recent, "seed {seed}: grouping of three, recent");
        }
    }
    assert!(checked > 5_000, "only {checked} groupings of three could be compared");
}

/// The least history in which a retried put was once lost: two names, merged, then merged with one of them again.
#[test]
fn a_write_with_two_names_outlives_a_second_merge() {
    let mut model = Model::new();
    model.apply(Step::Put { replica: 0, client: None, keep: None });
    model.apply(Step::Retry { nth: 0, replica: 1 });
    for (from, to) in [(1, 2), (0, 2), (1, 2), (2, 0), (2, 1), (0, 1)] {
        model.apply(Step::Sync { from, to });
        assert_eq!(model.check(true), Ok(()));
    }
}

/// A writer that read a retried put under one name supersedes it under the other as well.
#[test]
fn superseding_one_name_supersedes_the_other() {
    for read_from in [0, 1] {
        let mut model = Model::new();
        model.apply(Step::Put { replica: 0, client: None, keep: None });
        model.apply(Step::Retry { nth: 0, replica: 1 });
        model.apply(Step::Read { replica: read_from, client: 0 });
        model.apply(Step::Sync { from: 0, to: 2 });
        model.apply(Step::Sync { from: 1, to: 2 });
        model.apply(Step::Put { replica: 2, client: Some(0), keep: None });
        assert_eq!(model.check(true), Ok(()), "read from replica {read_from}");
        model.heal();
        assert_eq!(model.check(true), Ok(()), "healed, read from replica {read_from}");
    }
}

/// Counters of actors are far apart (leases skip blocks): what is remembered must not be only of the highest.
#[test]
fn a_late_retry_is_known_whoever_has_the_higher_counters() {
    for writer in 0..REPLICAS {
        let busy = (writer + 1) % REPLICAS;
        let mut model = Model::new();
        for _ in 0..6 {
            model.apply(Step::Read { replica: busy, client: 0 });
            model.apply(Step::Put { replica: busy, client: Some(0), keep: None });
        }
        model.apply(Step::Sync { from: busy, to: writer });
        model.apply(Step::Read { replica: writer, client: 0 });
        model.apply(Step::Put { replica: writer, client: Some(0), keep: None });
        let retried = model.puts.len() as u32 - 1;
        model.apply(Step::Sync { from: writer, to: busy });
        model.apply(Step::Read { replica: busy, client: 0 });
        model.apply(Step::Put { replica: busy, client: Some(0), keep: None });
        assert!(
            model.replicas[busy].real.head.knows_write(write_id(retried)),
            "replica {busy} forgot the write of replica {writer} at once"
        );
    }
}

/// Two clients in turns, each through its own replica, with merges in between as a quorum makes them.
#[test]
fn two_clients_in_turns_never_see_more_than_two_siblings() {
    let mut model = Model::new();
    for turn in 0..1_000 {
        let client = turn % 2;
        model.apply(Step::Sync { from: (client + 1) % 3, to: client });
        model.apply(Step::Read { replica: client, client });
        model.apply(Step::Put { replica: client, client: Some(client), keep: None });
        model.apply(Step::Sync { from: client, to: 2 });
        assert!(model.replicas.iter().all(|r| r.real.values().count() <= 2), "turn {turn}");
        assert_eq!(model.check(true), Ok(()), "turn {turn}");
    }
    model.heal();
    assert_eq!(model.replicas[0].real.head.entries.len(), 1);
}

#[test]
fn every_changed_character_of_a_context_is_noticed() {
    let token = Key::new("cart:8731").map(|k| k.token()).expect("a key of good length");
    for entries in [0, 1, 3, 20] {
        let dots = (0..entries).map(|i| Dot { actor: Actor::new(NodeId(i * 77 + 1), i * 5_000), counter: i * i + 1 });
        let text = Context::from(VersionVector::from_dots(dots)).to_text(token).into_bytes();
        for at in 0..text.len() {
            for byte in 0..=255u8 {
                let mut changed = text.clone();
                changed[at] = byte;
                let read = Context::from_text(&changed, token);
                assert_eq!(read.is_ok(), byte == text[at], "character {at} as {byte:?}");
            }
            assert!(Context::from_text(&text[..at], token).is_err(), "cut to {at}");
        }
        let longer = [text.as_slice(), b"A"].concat();
        assert!(Context::from_text(&longer, token).is_err());
    }
    let huge = vec![b'A'; 1 << 20];
    assert_eq!(Context::from_text(&huge, token), Err(ContextError::TooLong(1 << 20)));
}

/// A client writes beside a sibling that it has not read, then builds on its own write through another coordinator.
#[test]
fn a_writer_supersedes_its_own_write_everywhere() {
    let mut model = Model::new();
    model.apply(Step::Put { replica: 0, client: None, keep: None });
    model.apply(Step::Put { replica: 0, client: None, keep: Some(0) });
    model.apply(Step::Put { replica: 1, client: Some(0), keep: None });
    model.apply(Step::Sync { from: 0, to: 1 });
    assert_eq!(model.check(true), Ok(()));
    model.heal();
    assert_eq!(model.check(true), Ok(()));
}
