//! Homes that compare what they hold, with maps for disks; every message goes as a frame, and its bytes are counted.

use super::{sums::Class, *};
use crate::{
    protocol::{
        message::{Depth, Envelope, Fetched, Refusal},
        versions::{Actor, Dot, Entry, Head},
    },
    types::{Conflict, Media, Member, MemberState, Ports, ShardId, Value, WriteId},
    wire::{Frame, FrameEncoder, Trust, decode_peer, encode_peer},
};
use std::{collections::VecDeque, ops::Bound};

const PASS: Duration = Duration::from_secs(10);

struct Home {
    repair: Repair,
    placement: Placement,
    states: BTreeMap<(Token, Key), Siblings>,
    /// Refuses to store keys with this at their end.
    refuses: Option<&'static str>,
}

impl Home {
    /// What it holds of a span after a key.
    fn within(&self, span: Span, after: Option<Key>) -> impl Iterator<Item = (&(Token, Key), &Siblings)> {
        let least = (span.first, Key::new(&[0][..]).expect("the least key"));
        let first = after.map_or(Bound::Included(least), |key| Bound::Excluded((key.token(), key)));
        self.states.range((first, Bound::Unbounded)).take_while(move |((token, _), _)| *token <= span.last)
    }
}

/// Some nodes of one shard each.
struct Cluster {
    homes: Vec<Home>,
    ring: Ring,
    classes: Rc<Classes>,
    now: Instant,
    queue: VecDeque<Envelope>,
    encoder: FrameEncoder,
    /// What has gone over the network: frames without the bytes of values, lists of keys, values.
    bytes: usize,
    lists: usize,
    values: usize,
    doubts_ended: Vec<(usize, SliceId)>,
    tables: Vec<u64>,
}

fn address(index: usize) -> Address {
    Address { node: NodeId(index as u64 + 1), shard: ShardId(0) }
}
fn key(number: u64) -> Key {
    Key::new(format!("key:{number:07}")).expect("a key")
}
fn written(node: u64, counter: u64, text: &str) -> Siblings {
    let value = Value::new(Media::Json, text.to_string());
    let dot = Dot { actor: Actor::new(NodeId(node), 1), counter };
    let bytes = value.bytes.len() as u32;
    let entry = Entry { dot, write_id: WriteId(counter), media: value.media, bytes, checksum: value.checksum };
    let head = Head::default().put(&Default::default(), entry).head;
    Siblings { head, values: [value.bytes].into_iter().collect() }
}

impl Cluster {
    fn new(count: usize, vnodes: usize) -> Cluster {
        let mut random = fastrand::Rng::with_seed(count as u64);
        let member = |index: usize| {
            let mut tokens: Vec<Token> = (0..vnodes).map(|_| Token(random.u64(..))).collect();
            tokens.sort_unstable();
            Member {
                id: address(index).node,
                ip: std::net::Ipv4Addr::LOCALHOST.into(),
                ports: Ports::default(),
                shards: 1,
                slices: 4,
                tokens: tokens.into(),
                state: MemberState::Up,
                generation: 1,
                revision: 0,
                heartbeat: 0,
            }
        };
        let members: Vec<Member> = (0..count).map(member).collect();
        let home = |(index, member): (usize, &Member)| Home {
            repair: Repair::new(address(index), PASS, 1, 7, Instant(1)),
            placement: Placement::new(&member.tokens, member.slices, member.shards),
            states: BTreeMap::new(),
            refuses: None,
        };
        let usual = Class { replicas: 3, conflict: Conflict::Siblings };
        Cluster {
            homes: members.iter().enumerate().map(home).collect(),
            ring: Ring::new(&members),
            classes: Rc::new(Classes { usual, tables: BTreeMap::new() }),
            now: Instant(1_000_000_000),
            queue: VecDeque::new(),
            encoder: FrameEncoder::new(),
            bytes: 0,
            lists: 0,
            values: 0,
            doubts_ended: Vec::new(),
            tables: vec![1; count],
        }
    }
    fn homes_of(&self, key: &Key) -> Vec<usize> {
        let replicas = usize::from(self.classes.of(key.as_bytes()).replicas);
        self.ring.walk(key.token(), replicas).iter().map(|node| node.0 as usize - 1).collect()
    }
    /// Stores a state at some of the key's homes, by their places.
    fn store(&mut self, key: &Key, state: &Siblings, places: &[usize]) {
        for (place, index) in self.homes_of(key).into_iter().enumerate() {
            if places.contains(&place) {
                self.merge(index, key, state);
            }
        }
    }
    fn merge(&mut self, index: usize, key: &Key, state: &Siblings) -> bool {
        let home = &mut self.homes[index];
        if home.refuses.is_some_and(|end| key.as_bytes().ends_with(end.as_bytes())) {
            return false;
        }
        let conflict = self.classes.of(key.as_bytes()).conflict;
        let known = home.states.entry((key.token(), key.clone())).or_default();
        *known = known.join(state, conflict);
        home.repair.touched(key.token());
        true
    }
    fn with(&mut self, index: usize, step: impl FnOnce(&mut Repair, View<'_>, &mut Vec<Act>)) {
        let mut acts = Vec::new();
        let home = &mut self.homes[index];
        let view = View {
            ring: &self.ring,
            placement: &home.placement,
            classes: &self.classes,
            tables: Some(self.tables[index]),
            usable: &|_| true,
            word: &|_| TableWord::default(),
            owed: &|_| false,
            marked: &|_, _| false,
        };
        step(&mut home.repair, view, &mut acts);
        acts.into_iter().for_each(|act| self.perform(index, act));
    }
    fn perform(&mut self, index: usize, act: Act) {
        let now = self.now;
        match act {
            Act::Fold { io, spans, mut summing, .. } => {
                for span in spans {
                    for ((token, key), state) in self.homes[index].within(span, None) {
                        summing.take(*token, key.as_bytes(), &state.head.encode());
                    }
                }
                let rows = summing.finish();
                self.with(index, |repair, view, out| repair.folded(now, io, rows, view, out));
            }
            Act::Scan { io, span, after, limit, .. } => {
                let states = self.homes[index].within(span, after).take(limit);
                let heads: Vec<_> = states.map(|((_, key), state)| (key.clone(), state.head.clone())).collect();
                let more = heads.len() == limit;
                self.with(index, |repair, view, out| repair.scanned(now, io, Ok((heads, more)), view, out));
            }
            Act::Load { io, key } => {
                let state = self.homes[index].states.get(&(key.token(), key)).cloned().unwrap_or_default();
                self.with(index, |repair, view, out| repair.loaded(now, io, Ok(state), view, out));
            }
            Act::Merge { item, key, siblings, .. } => {
                let well = self.merge(index, &key, &siblings);
                self.with(index, |repair, view, out| repair.merged(now, item, well, view, out));
            }
            Act::Send { to, exchange, deadline, message } | Act::Answer { to, exchange, deadline, message } => {
                self.queue.push_back(Envelope { from: address(index), to, exchange, deadline, message });
            }
            Act::Tell { peer, token, deadline, message } => {
                let to = self.ring.address(peer, token).expect("a member");
                self.queue.push_back(Envelope { from: address(index), to, exchange: 0, deadline, message });
            }
            Act::EndDoubt { slice } => self.doubts_ended.push((index, slice)),
        }
    }
    fn deliver(&mut self, envelope: Envelope) {
        let pieces = encode_peer(&mut self.encoder, &envelope, self.now).expect("within bounds");
        self.bytes += pieces.bytes() - envelope.message.bytes();
        let frame = Frame::from_pieces(pieces).expect("a frame");
        let Envelope { from, to, exchange, deadline, message } =
            decode_peer(&frame, self.now, Trust::Verify).expect("a message");
        let (now, index) = (self.now, to.node.0 as usize - 1);
        let asked = (from, exchange, deadline);
        let answer = |message| Act::Answer { to: from, exchange, deadline, message };
        match message {
            Message::Sums { session, part, shift, own } => self.with(index, |repair, view, out| {
                repair.sums_asked(now, asked, (session, part, shift, own), view, out);
            }),
            Message::Keys { part, after } => {
                self.lists += 1;
                self.with(index, |repair, view, out| repair.keys_asked(now, asked, (part, after), view, out));
            }
            Message::Agreed { session, part } => {
                self.with(index, |repair, view, out| repair.agreed(from, session, part, view, out));
            }
            Message::Summed(result) => {
                self.with(index, |repair, view, out| repair.summed(now, exchange, result, view, out));
            }
            Message::Keyed(result) => self.with(index, |repair, _, out| repair.keyed(now, exchange, result, out)),
            Message::Fetched(result) => {
                self.values += 1;
                self.with(index, |repair, view, out| repair.fetched(now, exchange, result, view, out));
            }
            Message::Replicated(result) => {
                self.with(index, |repair, view, out| repair.replicated(now, exchange, result, view, out));
            }
            Message::Fetch { key, depth: Depth::Full, .. } => {
                let state = self.homes[index].states.get(&(key.token(), key)).cloned();
                let fetched = state.map_or(Fetched::Nothing, Fetched::Full);
                self.perform(index, answer(Message::Fetched(Ok(fetched))));
            }
            Message::Replicate { key, siblings, .. } => {
                self.values += 1;
                let stored = if self.merge(index, &key, &siblings) { Ok(()) } else { Err(Refusal::Damaged) };
                self.perform(index, answer(Message::Replicated(stored)));
            }
            other => panic!("{other:?}"),
        }
    }
    /// Time passes, and all that is said in it arrives.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + Duration::from_millis(50);
            let now = self.now;
            for index in 0..self.homes.len() {
                self.with(index, |repair, view, out| repair.tick(now, view, out));
            }
            while let Some(envelope) = self.queue.pop_front() {
                self.deliver(envelope);
            }
        }
    }
    fn count_anew(&mut self) {
        (self.bytes, self.lists, self.values) = (0, 0, 0);
    }
    fn differing(&self) -> Vec<Key> {
        let keys: BTreeSet<Key> =
            self.homes.iter().flat_map(|home| home.states.keys()).map(|(_, k)| k.clone()).collect();
        let differs = |key: &Key| {
            let mut heads = self.homes_of(key).into_iter().map(|index| {
                self.homes[index]
                    .states
                    .get(&(key.token(), key.clone()))
                    .map(|state| state.head.clone())
                    .unwrap_or_default()
            });
            let first = heads.next().unwrap_or_default();
            heads.any(|head| !head.same_state(&first))
        };
        keys.into_iter().filter(differs).collect()
    }
    fn all_agree_since(&self, then: Instant) -> bool {
        let since = self.now.since(then);
        self.homes.iter().all(|home| home.repair.stats(self.now).oldest <= since)
    }
}

#[test]
fn one_key_that_differs_among_many_costs_little_and_none_costs_nearly_nothing() {
    let mut cluster = Cluster::new(3, 32);
    let keys = 100_000;
    for number in 0..keys {
        cluster.store(&key(number), &written(1, number + 1, "a value"), &[0, 1, 2]);
    }
    cluster.run(PASS * 2);
    assert!(cluster.all_agree_since(cluster.now - PASS * 2));
    cluster.count_anew();
    let sessions =
        |cluster: &Cluster| cluster.homes.iter().map(|home| home.repair.stats(cluster.now).sessions).sum::<u64>();
    let before = sessions(&cluster);
    cluster.run(PASS * 2);
    let sessions = (sessions(&cluster) - before) as usize;
    let equal = cluster.bytes;
    assert_eq!((cluster.lists, cluster.values), (0, 0), "equal replicas exchange sums only");
    let pairs = cluster.homes.iter().map(|home| home.repair.stats(cluster.now).arcs as usize).sum::<usize>() / 2;
    assert!(sessions >= 2 * pairs, "{sessions} sessions of {pairs} arcs with two homes each, in two passes");
    assert!(equal / sessions < 300, "{equal} bytes for {sessions} sessions");

    cluster.store(&key(777), &written(2, 1, "another value"), &[1]);
    cluster.count_anew();
    cluster.run(PASS * 2);
    assert_eq!(cluster.differing(), []);
    assert_eq!(cluster.values, 2, "one to each of the others");
    let more = cluster.bytes.saturating_sub(equal);
    assert!(more <= 64 << 10, "{more} bytes beside the value");
}

#[test]
fn whatever_differs_becomes_equal_and_nothing_is_sent_after_that() {
    for (seed, nodes, vnodes) in [(1, 3, 4), (2, 5, 3), (3, 7, 6)] {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut cluster = Cluster::new(nodes, vnodes);
        let wide = Class { replicas: 5, conflict: Conflict::Siblings };
        let stamped = Class { replicas: 2, conflict: Conflict::LastWriteWins };
        let tables = [("wide".parse().expect("a name"), wide), ("last".parse().expect("a name"), stamped)];
        cluster.classes = Rc::new(Classes { tables: tables.into(), ..(*cluster.classes).clone() });
        for number in 0..3_000u64 {
            let name = ["key", "wide", "last"][random.usize(..3)];
            let key = Key::new(format!("{name}:{number}")).expect("a key");
            for _ in 0..random.usize(1..3) {
                let mut state = written(random.u64(1..4), number + random.u64(1..9), &number.to_string());
                if name == "last" {
                    let entry = state.head.entries[0].clone();
                    state.head = Head::stamped(Dot::stamp(1_000 + random.u64(1..1 << 20), NodeId(1)), Some(entry));
                } else if random.bool() {
                    state =
                        Siblings { head: Head { clock: state.head.clock, ..Head::default() }, ..Default::default() };
                }
                let places: Vec<usize> = (0..5).filter(|_| random.bool()).collect();
                cluster.store(&key, &state, &places);
            }
        }
        assert!(cluster.differing().len() > 1_000);
        let before = cluster.now;
        cluster.run(PASS * 2);
        assert_eq!(cluster.differing(), [], "seed {seed}");
        cluster.run(PASS);
        assert!(cluster.all_agree_since(before));
        cluster.count_anew();
        cluster.run(PASS * 2);
        assert_eq!((cluster.lists, cluster.values), (0, 0), "seed {seed}");
    }
}

/// As by `dynarc repair now`, which asks every node.
#[test]
fn what_both_are_asked_to_compare_is_sent_once() {
    let mut cluster = Cluster::new(2, 5);
    cluster.run(PASS);
    (0..500).for_each(|number| cluster.store(&key(number), &written(1, number + 1, "v"), &[number as usize % 2]));
    cluster.count_anew();
    let now = cluster.now;
    cluster.homes.iter_mut().for_each(|home| home.repair.wish(now, None));
    // Before any arc is due by its age.
    cluster.run(PASS / 5);
    assert_eq!((cluster.differing(), cluster.values), (vec![], 500), "one home lacked each");
    assert!(cluster.homes.iter().all(|home| home.repair.stats(cluster.now).waiting == 0));
    // The second is asked a little later, when the first is through: it does not wait for the first to come again.
    (0..500).for_each(|number| cluster.store(&key(number), &written(3, number + 1, "x"), &[0]));
    for index in [0, 1] {
        let now = cluster.now;
        cluster.homes[index].repair.wish(now, None);
        cluster.run(Duration::from_millis(300));
    }
    cluster.run(Duration::from_millis(600));
    assert!(cluster.homes.iter().all(|home| home.repair.stats(cluster.now).waiting == 0));
    // One that alone is asked does not wait for the others.
    (0..500).for_each(|number| cluster.store(&key(number), &written(2, number + 1, "w"), &[1]));
    let now = cluster.now;
    cluster.homes[1].repair.wish(now, None);
    cluster.run(PASS / 5);
    assert!(cluster.homes.iter().all(|home| home.repair.stats(cluster.now).waiting == 0));
}

#[test]
fn an_emptied_home_gets_all_back_and_its_doubt_ends_only_then() {
    let mut cluster = Cluster::new(3, 5);
    (0..2_000).for_each(|number| cluster.store(&key(number), &written(1, number + 1, "v"), &[0, 1, 2]));
    let held = cluster.homes[1].states.len();
    cluster.homes[1].states.clear();
    cluster.homes[1].refuses = Some("7");
    let repair = std::mem::replace(&mut cluster.homes[1].repair, Repair::new(address(1), PASS, 1, 9, cluster.now));
    cluster.homes[1].repair = Repair { doubted: (0..4).map(SliceId).collect(), ..repair };
    cluster.run(PASS * 2);
    assert_eq!(cluster.homes[1].states.len(), held / 10 * 9, "all but what it refuses");
    let late = |cluster: &Cluster, home: usize| cluster.homes[home].repair.stats(cluster.now).late;
    assert!(late(&cluster, 1) > 0 && cluster.doubts_ended.is_empty(), "what is refused keeps arcs from agreeing");
    cluster.homes[1].refuses = None;
    cluster.run(PASS * 2);
    assert_eq!((cluster.differing(), late(&cluster, 1)), (vec![], 0));
    cluster.doubts_ended.sort_unstable();
    let ended: Vec<_> = (0..4).map(|slice| (1, SliceId(slice))).collect();
    assert_eq!(cluster.doubts_ended, ended);
}

#[test]
fn nothing_is_compared_by_different_knowledge_of_tables() {
    let mut cluster = Cluster::new(3, 3);
    cluster.store(&key(1), &written(1, 1, "v"), &[0]);
    cluster.tables[2] = 5;
    cluster.run(PASS * 3);
    let lacks = |cluster: &Cluster| cluster.homes.iter().map(|home| home.states.len()).collect::<Vec<_>>();
    assert_eq!(lacks(&cluster).iter().sum::<usize>(), 2, "{:?}", lacks(&cluster));
    assert!(cluster.homes[2].states.is_empty() || cluster.values == 0);
    cluster.tables[2] = 1;
    cluster.run(PASS);
    assert_eq!(cluster.differing(), []);
}

#[test]
fn two_values_of_one_dot_are_noticed_and_left_alone() {
    let mut cluster = Cluster::new(3, 3);
    cluster.store(&key(1), &written(1, 1, "one"), &[0, 1]);
    cluster.store(&key(1), &written(1, 1, "two"), &[2]);
    cluster.run(PASS * 2);
    assert_eq!(cluster.values, 0);
    let noticed: u64 = cluster.homes.iter().map(|home| home.repair.stats(cluster.now).unmendable).sum();
    assert!(noticed > 0 && cluster.all_agree_since(cluster.now - PASS * 2));
}
