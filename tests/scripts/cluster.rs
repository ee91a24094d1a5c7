//! Nodes of one shard each: the real protocol over a network, disks and a clock that the script commands.
//!
//! A key `B/cart` is one whose first home replica is `B`; the others follow in order of the alphabet.
//!
//! - `cluster A B C [gossip 1s]`: nodes that know each other; without `gossip` they do not gossip
//! - `join D via A`: a new node
//! - `put A KEY VALUE [after NAME] [w N] [id N] [strict] [as NAME]`, `get A KEY [after NAME] [r N] [as NAME]`,
//!   `delete A KEY [after NAME]`: a client asks node `A`; `as` keeps the context
//! - `table A NAME [n N] [r N] [w N] [lww] [strict] [interval]`: a client of node `A` makes or alters a table; `drop A
//!   NAME`; `tables`: what each node knows of them
//! - `clock A ahead 100ms`, `clock A behind 2s`: its wall clock is wrong by this
//! - `silence B ..`: nothing reaches or leaves it; `refuse B ..`: its connections fail, and all are told;
//!   `heal B ..`: both over
//! - `stop A`: its process stands still, and what is sent to it waits in its sockets; `go A`: it runs on
//! - `hold A`: its disk answers no more; `hold A writes`: it still reads; `release A`: it answers all; `crash A`,
//!   `restart A`: what the disk had not answered is lost
//! - `backup A`, `restore A`: its disk holds what it held then; `drain A`: it will stop; `clean A`: an orderly stop
//! - `bound 100`, before the cluster: a node that keeps more bytes of hints than that keeps no further one
//! - `damage A hints`: the hints on its disk cannot be read any more
//! - `forge NAME A:6`: a context that claims this one write of `A`
//! - `wait 300ms`: time passes, timers fire
//! - `state KEY`: what each node has stored; `hints`; `marks`: who is known to lack something; `members A`
//! - `trace disk`, `trace gossip`, `trace off`: what is printed besides messages about keys
//!
//! After each command messages are delivered in the order in which they were sent, until none is left.

#[path = "options.rs"]
mod options;
#[path = "text.rs"]
mod text;

use bytes::Bytes;
use dynarc::{
    protocol::{
        message::{
            Answer, ClientToken, Depth, Envelope, Fetched, Lane, Message, Operation, Purpose, Refusal, Request,
            Response, Words,
        },
        replica::{Change, Leases, Stored, keys},
        ring::Ring,
        shard::{Birth, Effect, Event, Settings, Shard},
        tables,
        versions::{Actor, Context, Dot, Head, Values},
    },
    types::{
        Address, ClusterId, Conflict, Durability, Instant, Key, Member, MemberState, NodeId, Outcome, Ports, SliceId,
        TableChange, TableChangeKind, TableError, TableName, TableSettings, TableWish, Token, Value, mark,
    },
};
use options::Options;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};
use text::{clock_text, context_text, siblings_text};

const NEVER: Duration = Duration::from_secs(1 << 30);

struct Node {
    /// `None`: crashed.
    shard: Option<Shard>,
    member: Member,
    known: Vec<Member>,
    seeds: Vec<SocketAddr>,
    cluster: ClusterId,
    company: bool,
    starts: u64,
    disk: BTreeMap<Bytes, (Bytes, Values)>,
    backup: BTreeMap<Bytes, (Bytes, Values)>,
    /// What cannot be read.
    damaged: BTreeSet<Bytes>,
    /// Its disk may have lost records.
    doubted: bool,
    /// Its disk answers no more: what it was asked.
    held: Option<VecDeque<Effect>>,
    holds_reads: bool,
}

pub struct Stage {
    nodes: BTreeMap<char, Node>,
    now: Instant,
    settings: Settings,
    /// Of wall clocks against true time, in nanoseconds.
    skews: BTreeMap<char, i64>,
    silent: BTreeSet<char>,
    refusing: BTreeSet<char>,
    /// Those that stand still, and what waits for them.
    stopped: BTreeMap<char, VecDeque<Envelope>>,
    network: VecDeque<Envelope>,
    contexts: BTreeMap<String, Context>,
    /// Clients that wait, and the name that the context of the answer is kept under.
    clients: BTreeMap<u64, Option<String>>,
    /// Those that change tables.
    table_clients: BTreeSet<u64>,
    next_client: u64,
    keys: BTreeMap<String, Key>,
    trace_disk: bool,
    trace_gossip: bool,
    lines: Vec<String>,
}

impl Default for Stage {
    fn default() -> Stage {
        let quiet = Settings {
            gossip_interval: NEVER,
            suspect_after: NEVER,
            down_after: NEVER,
            repair_pass: Duration::ZERO,
            ..Settings::default()
        };
        Stage {
            nodes: BTreeMap::new(),
            now: Instant(20_000_000_000),
            settings: quiet,
            skews: BTreeMap::new(),
            silent: BTreeSet::new(),
            refusing: BTreeSet::new(),
            stopped: BTreeMap::new(),
            network: VecDeque::new(),
            contexts: BTreeMap::new(),
            clients: BTreeMap::new(),
            table_clients: BTreeSet::new(),
            next_client: 0,
            keys: BTreeMap::new(),
            trace_disk: false,
            trace_gossip: false,
            lines: Vec::new(),
        }
    }
}

impl super::Stage for Stage {
    fn run(&mut self, command: &str) -> Result<String, String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["cluster", letters @ ..] => self.form(letters)?,
            ["join", newcomer, "via", seed] => self.join(letter(newcomer)?, letter(seed)?),
            ["put", node, key, value, options @ ..] => {
                let options = Options::parse(options, &self.contexts)?;
                let operation = Operation::Put {
                    context: options.context.clone(),
                    value: Value::json(value.to_string()),
                    write_id: options.id,
                };
                self.ask(node, key, operation, options)?;
            }
            ["get", node, key, options @ ..] => {
                let options = Options::parse(options, &self.contexts)?;
                self.ask(node, key, Operation::Get { context: options.context.clone() }, options)?;
            }
            ["delete", node, key, options @ ..] => {
                let options = Options::parse(options, &self.contexts)?;
                let operation = Operation::Delete { context: options.context.clone(), write_id: options.id };
                self.ask(node, key, operation, options)?;
            }
            ["clock", node, "ahead", time] => {
                self.skews.insert(letter(node)?, parse_time(time)?.as_nanos() as i64);
            }
            ["clock", node, "behind", time] => {
                self.skews.insert(letter(node)?, -(parse_time(time)?.as_nanos() as i64));
            }
            ["table", node, name, wishes @ ..] => {
                let kind = TableChangeKind::Set(parse_wish(wishes)?);
                self.change_table(node, name, kind)?;
            }
            ["drop", node, name] => self.change_table(node, name, TableChangeKind::Drop)?,
            ["tables"] => self.tables(),
            ["forge", name, dot] => {
                let (actor, counter) = dot.split_once(':').ok_or("a dot is A:1")?;
                let counter = counter.parse().map_err(|_| format!("{counter} is no number"))?;
                let dot = Dot { actor: Actor::new(id(letter(actor)?), 1), counter };
                let context = Context { dots: [dot].into_iter().collect(), ..Context::default() };
                self.contexts.insert(name.to_string(), context);
            }
            ["silence", letters @ ..] => self.silent.extend(parse_letters(letters)?),
            ["refuse", letters @ ..] => {
                for lost in parse_letters(letters)? {
                    self.refusing.insert(lost);
                    self.tell_lanes(lost, Event::PeerUnreachable);
                }
            }
            ["heal", letters @ ..] => {
                for back in parse_letters(letters)? {
                    self.silent.remove(&back);
                    if self.refusing.remove(&back) {
                        self.tell_lanes(back, Event::PeerReachable);
                    }
                }
            }
            ["stop", node] => drop(self.stopped.insert(letter(node)?, VecDeque::new())),
            ["go", node] => {
                let waiting = self.stopped.remove(&letter(node)?).ok_or_else(|| format!("{node} is not stopped"))?;
                // Timers first: they are due before the sockets are looked at.
                self.tell(letter(node)?, Event::Wake);
                self.network.extend(waiting);
            }
            ["bound", bytes] => {
                self.settings.hint_bytes_max = bytes.parse().map_err(|_| format!("{bytes} is no number"))?;
            }
            ["damage", node, "hints"] => {
                let node = self.node(letter(node)?)?;
                let (from, to) = keys::all_hints();
                node.damaged = node.disk.range(from..to).map(|(key, _)| key.clone()).collect();
            }
            ["lose", node, key] => {
                let stored = keys::data_key(&self.key(key)?);
                let node = self.node(letter(node)?)?;
                node.disk.remove(&stored).ok_or(format!("{key} is not there to be lost"))?;
                node.doubted = true;
            }
            ["hold", node, what @ ..] => {
                let node = self.node(letter(node)?)?;
                node.held = Some(VecDeque::new());
                node.holds_reads = *what != ["writes"];
            }
            ["release", node] => {
                let node = letter(node)?;
                let held = self.node(node)?.held.take().unwrap_or_default();
                held.into_iter().for_each(|effect| self.perform(node, effect));
            }
            ["crash", node] => {
                let node = self.node(letter(node)?)?;
                (node.shard, node.held) = (None, None);
            }
            ["backup", node] => {
                let node = self.node(letter(node)?)?;
                node.backup = node.disk.clone();
            }
            ["restore", node] => {
                let node = self.node(letter(node)?)?;
                node.disk = node.backup.clone();
            }
            ["drain", node] => self.tell(letter(node)?, Event::Drain),
            ["clean", node] => {
                let node = self.node(letter(node)?)?;
                let farewell = node.shard.take().map(|shard| shard.farewell()).unwrap_or_default();
                for Change { key, record, .. } in farewell {
                    record.and_then(|record| node.disk.insert(key, record));
                }
            }
            ["alarms", node] => {
                let shard = self.node(letter(node)?)?.shard.as_ref().ok_or("it is down")?;
                let alarms = shard.stats().identity_alarms;
                self.lines.push(format!("{alarms} alarms"));
            }
            ["restart", node] => self.start(letter(node)?),
            ["full", node] => self.tell(letter(node)?, Event::Space { short: true }),
            ["roomy", node] => self.tell(letter(node)?, Event::Space { short: false }),
            ["wait", time] => self.wait(parse_time(time)?),
            ["state", key] => self.state(key)?,
            ["hints"] => self.hints(),
            ["marks"] => self.marks(),
            ["members", node] => self.members(letter(node)?)?,
            ["trace", what] => {
                self.trace_disk = *what == "disk" || (*what != "off" && self.trace_disk);
                self.trace_gossip = *what == "gossip" || (*what != "off" && self.trace_gossip);
            }
            _ => return Err(format!("unknown command {command:?}")),
        }
        self.settle();
        Ok(std::mem::take(&mut self.lines).join("\n"))
    }
}

impl Stage {
    fn node(&mut self, letter: char) -> Result<&mut Node, String> {
        self.nodes.get_mut(&letter).ok_or(format!("there is no node {letter}"))
    }

    // ---- nodes -------------------------------------------------------------------------------------------------

    fn form(&mut self, words: &[&str]) -> Result<(), String> {
        let mut letters = words;
        if let [rest @ .., "gossip", interval] = words {
            let interval = parse_time(interval)?;
            let settings = Settings { repair_pass: Duration::ZERO, ..Settings::default() };
            self.settings =
                Settings { gossip_interval: interval, hint_bytes_max: self.settings.hint_bytes_max, ..settings };
            letters = rest;
        }
        let letters = parse_letters(letters)?;
        let members: Vec<Member> = letters.iter().map(|l| member(*l, MemberState::Up)).collect();
        for letter in letters {
            let known = members.iter().filter(|m| m.id != id(letter)).cloned().collect();
            self.add(letter, member(letter, MemberState::Up), known, vec![]);
        }
        Ok(())
    }
    fn join(&mut self, newcomer: char, seed: char) {
        let seed = SocketAddr::new(ip(seed), Ports::default().peer);
        self.add(newcomer, member(newcomer, MemberState::Joining), vec![], vec![seed]);
    }
    fn add(&mut self, letter: char, member: Member, known: Vec<Member>, seeds: Vec<SocketAddr>) {
        let node = Node {
            shard: None,
            member,
            cluster: if known.is_empty() { ClusterId::NONE } else { ClusterId(7) },
            company: !known.is_empty(),
            known,
            seeds,
            starts: 0,
            disk: BTreeMap::new(),
            backup: BTreeMap::new(),
            damaged: BTreeSet::new(),
            doubted: false,
            held: None,
            holds_reads: false,
        };
        self.nodes.insert(letter, node);
        self.start(letter);
    }
    fn start(&mut self, letter: char) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&letter) else { return };
        node.starts += 1;
        let last = node.disk.get(&keys::lease_key()).and_then(|(head, _)| keys::parse_lease(head));
        // The count of starts is on the disk too: an old disk has an old one.
        let generation = last.map_or(0, |lease| lease.start) + 1;
        // What each start draws differs, though.
        (node.member.generation, node.member.revision) = (generation, 100 * node.starts as u32);
        let mut leases = Leases::new(id(letter), generation);
        let lease = leases.begin(SliceId(0), last).expect("incarnations are left");
        node.disk.insert(keys::lease_key(), (keys::lease_head(lease), Values::new()));
        let mut owed: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
        let mut behind = Vec::new();
        for (key, (head, _)) in &node.disk {
            if let Some((owner, _, _)) = keys::parse_hint_key(key) {
                let count = owed.entry(owner).or_default();
                *count = (count.0 + 1, count.1 + keys::hint_bytes(key, head));
            }
            behind.extend(keys::parse_behind(key).map(|owner| (owner, SliceId(0))));
        }
        let tables = node.disk.get(&keys::tables_key()).and_then(|(head, _)| tables::decode(head));
        let newcomer = tables.is_none() && !node.seeds.is_empty();
        let tables = tables.map(|entries| (SliceId(0), entries));
        let floor = node.disk.get(&keys::stamps_key()).and_then(|(head, _)| keys::parse_stamps(head));
        let birth = Birth {
            me: address(letter),
            generation,
            member: node.member.clone(),
            known: node.known.clone(),
            seeds: node.seeds.clone(),
            cluster: node.cluster,
            company: node.company,
            listens_first: Duration::ZERO,
            settings: self.settings.clone(),
            leases,
            stamps: floor.map(|floor| (SliceId(0), floor)).into_iter().collect(),
            tables: tables.into_iter().collect(),
            tables_in_doubt: if newcomer { vec![SliceId(0)] } else { Vec::new() },
            hints: owed.into_iter().map(|(owner, (count, bytes))| (owner, count, bytes)).collect(),
            behind,
            doubted: node.doubted.then_some(SliceId(0)).into_iter().collect(),
            copied: false,
            seed: letter as u64 ^ (node.starts - 1) << 8,
        };
        node.shard = Some(Shard::new(birth, now));
        self.tell(letter, Event::Wake);
    }

    // ---- what happens ------------------------------------------------------------------------------------------

    fn ask(&mut self, node: &str, name: &str, operation: Operation, options: Options) -> Result<(), String> {
        let (node, key) = (letter(node)?, self.key(name)?);
        self.node(node)?;
        self.next_client += 1;
        self.clients.insert(self.next_client, options.keep);
        let deadline = self.now + self.settings.request_timeout;
        let request = Request { key, operation, consistency: options.consistency, deadline };
        self.tell(node, Event::Request { client: ClientToken(self.next_client), request });
        Ok(())
    }
    fn change_table(&mut self, node: &str, name: &str, kind: TableChangeKind) -> Result<(), String> {
        let node = letter(node)?;
        self.node(node)?;
        self.next_client += 1;
        self.clients.insert(self.next_client, None);
        self.table_clients.insert(self.next_client);
        let change = TableChange { name: name.parse().map_err(|e: TableError| e.to_string())?, kind };
        let (client, deadline) = (ClientToken(self.next_client), self.now + self.settings.request_timeout);
        self.tell(node, Event::TableChange { client, change, deadline });
        Ok(())
    }
    fn tell_lanes(&mut self, about: char, event: fn(Address, Lane) -> Event) {
        Lane::ALL.into_iter().for_each(|lane| self.tell_all(about, event(address(about), lane)));
    }
    fn tell_all(&mut self, but: char, event: Event) {
        let others: Vec<char> = self.nodes.keys().copied().filter(|l| *l != but).collect();
        others.into_iter().for_each(|l| self.tell(l, event.clone()));
    }
    fn tell(&mut self, letter: char, event: Event) {
        let now = self.now;
        let mut effects = Vec::new();
        let wall = self.now.0.wrapping_add_signed(self.skews.get(&letter).copied().unwrap_or(0));
        if let Some(shard) = self.nodes.get_mut(&letter).and_then(|n| n.shard.as_mut()) {
            shard.wall_time_is(now, wall);
            shard.handle(now, event, &mut effects);
        }
        effects.into_iter().for_each(|effect| self.perform(letter, effect));
    }
    fn perform(&mut self, letter: char, effect: Effect) {
        match effect {
            Effect::Send(envelope) => self.network.push_back(envelope),
            Effect::SendToSeed { seed, message } => {
                if let Some(to) = self.nodes.keys().find(|l| ip(**l) == seed.ip()).copied() {
                    let (from, to, deadline) = (address(letter), address(to), self.now + Duration::from_secs(5));
                    self.network.push_back(Envelope { from, to, exchange: 0, deadline, message });
                }
            }
            Effect::Reply { client, response } => self.reply(client.0, response),
            Effect::SaveMembers { members, cluster, company, .. } => {
                if let Some(node) = self.nodes.get_mut(&letter) {
                    (node.known, node.cluster, node.company) = (members, cluster, company);
                }
            }
            io @ (Effect::Load { .. }
            | Effect::Store { .. }
            | Effect::DropTable { .. }
            | Effect::Scan { .. }
            | Effect::Fold { .. }
            | Effect::EndDoubt { .. }) => self.disk(letter, io),
        }
    }
    fn disk(&mut self, letter: char, io: Effect) {
        let Some(node) = self.nodes.get_mut(&letter) else { return };
        if let Some(held) = &mut node.held
            && (node.holds_reads || matches!(io, Effect::Store { .. } | Effect::DropTable { .. }))
        {
            held.push_back(io);
            return;
        }
        let (event, line) = match io {
            Effect::Load { io, key, depth, .. } => {
                let found = node.disk.get(&key).cloned().map(|(head, values)| {
                    let values = if depth == Depth::Full { values } else { Values::new() };
                    Stored { head, values }
                });
                let depth = if depth == Depth::Full { "whole" } else { "head" };
                let result = if node.damaged.contains(&key) { Err(Refusal::Damaged) } else { Ok(found) };
                (Event::Loaded { io, result, doubted: node.doubted }, format!("{letter} disk: read {depth}"))
            }
            Effect::Store { io, changes, durability } => {
                let count = changes.len();
                for Change { key, record, .. } in changes {
                    node.damaged.remove(&key);
                    match record {
                        Some(record) => drop(node.disk.insert(key, record)),
                        None => drop(node.disk.remove(&key)),
                    }
                }
                let late = if durability == Durability::Interval { ", synced later" } else { "" };
                let line = format!("{letter} disk: write {count} record{}{late}", if count == 1 { "" } else { "s" });
                (Event::Stored { io, result: Ok(()) }, line)
            }
            Effect::DropTable { io, name, life, .. } => {
                let of_table =
                    |key: &Bytes| keys::user_key(key).and_then(TableName::of_key).is_some_and(|of| of == name.as_str());
                let goes = |head: &[u8]| life.is_none_or(|life| (1..=life).contains(&mark::of(head)));
                node.disk.retain(|key, (head, _)| !of_table(key) || !goes(head));
                (Event::Stored { io, result: Ok(()) }, format!("{letter} disk: drop {name}"))
            }
            Effect::Scan { io, from, to, limit, .. } => {
                let found = node.disk.range(from..to).take(limit).map(|(key, (head, _))| (key.clone(), head.clone()));
                let found: Vec<_> = found.collect();
                let line = format!("{letter} disk: scan finds {}", found.len());
                (Event::Scanned { io, result: Ok(found) }, line)
            }
            Effect::Fold { .. } | Effect::EndDoubt { .. } => unreachable!("these nodes compare nothing"),
            Effect::Send(_) | Effect::SendToSeed { .. } | Effect::Reply { .. } | Effect::SaveMembers { .. } => return,
        };
        if self.trace_disk {
            self.lines.push(line);
        }
        self.tell(letter, event);
    }
    fn settle(&mut self) {
        while let Some(envelope) = self.network.pop_front() {
            let (from, to) = (name(envelope.from.node), name(envelope.to.node));
            let lost = |l: char| self.silent.contains(&l) || self.refusing.contains(&l);
            let lost = from != to && (lost(from) || lost(to));
            let down = self.nodes.get(&to).is_none_or(|n| n.shard.is_none());
            let waits = self.stopped.contains_key(&to);
            let fate = match lost || down {
                true => " (lost)",
                false if waits => " (waits)",
                false => "",
            };
            if let Some(what) = self.spell(&envelope.message) {
                self.lines.push(format!("{from} -> {to} {what}{fate}"));
            }
            match self.stopped.get_mut(&to).filter(|_| !lost) {
                Some(waiting) => waiting.push_back(envelope),
                None if lost => {}
                None => self.tell(to, Event::Message(envelope)),
            }
        }
    }
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = |n: &Node| n.shard.as_ref().and_then(|s| s.next_deadline());
            let runs = self.nodes.iter().filter(|(letter, _)| !self.stopped.contains_key(letter));
            let next = runs.filter_map(|(l, n)| due(n).map(|at| (at, *l))).min();
            let Some((at, letter)) = next.filter(|(at, _)| *at <= end) else { break };
            self.now = self.now.max(at);
            self.tell(letter, Event::Wake);
            self.settle();
        }
        self.now = end;
    }

    // ---- what is printed ---------------------------------------------------------------------------------------

    fn reply(&mut self, client: u64, response: Response) {
        let keep = self.clients.remove(&client).flatten();
        let line = match &response {
            Ok(Answer::Got(siblings)) => siblings_text(&siblings.head, Some(&siblings.values)),
            Ok(Answer::Written(context)) => format!("written, context {}", context_text(context)),
            Err(failure) if self.table_clients.contains(&client) => format!("refused: {}", failure.detail),
            Err(failure) => {
                let outcome = if failure.outcome == Outcome::NotApplied { "not applied" } else { "outcome unknown" };
                let counts = match failure.needed {
                    0 => String::new(),
                    needed => format!(", {} of {needed}", failure.acks),
                };
                format!("{}{counts}, {outcome}", failure.code.name())
            }
        };
        self.lines.push(format!("client {client}: {line}"));
        let context = match response {
            Ok(Answer::Got(siblings)) => siblings.head.clock.into(),
            Ok(Answer::Written(context)) => context,
            Err(_) => return,
        };
        keep.and_then(|name| self.contexts.insert(name, context));
    }
    /// What a message says; `None`: not traced.
    fn spell(&self, message: &Message) -> Option<String> {
        let key = |key: &Key| self.keys.iter().find(|(_, k)| *k == key).map_or("?".into(), |(name, _)| name.clone());
        Some(match message {
            Message::Forward { request, .. } => {
                let verb = match request.operation {
                    Operation::Get { .. } => "get",
                    Operation::Put { .. } => "put",
                    Operation::Delete { .. } => "delete",
                };
                format!("forwards {verb} {}", key(&request.key))
            }
            Message::Forwarded(response) => {
                format!("forwarded: {}", response.as_ref().map_or_else(|f| f.code.name(), |_| "done"))
            }
            Message::Replicate { key: k, siblings, purpose, .. } => {
                let purpose = match purpose {
                    Purpose::Write => "replicate".to_string(),
                    Purpose::Hint { owner } => format!("hint for {}", name(*owner)),
                    Purpose::Repair => "repair".into(),
                    Purpose::Replay => "replay".into(),
                };
                format!("{purpose} {}: {}", key(k), siblings_text(&siblings.head, Some(&siblings.values)))
            }
            Message::Replicated(Ok(())) => "stored".into(),
            Message::Replicated(Err(refusal)) | Message::Fetched(Err(refusal)) => format!("refused: {refusal:?}"),
            Message::Fetch { key: k, depth, .. } => {
                format!("{} {}", if *depth == Depth::Full { "fetch" } else { "fetch head of" }, key(k))
            }
            Message::Fetched(Ok(Fetched::Nothing)) => "has nothing".into(),
            Message::Fetched(Ok(Fetched::Head(head))) => format!("has {}", siblings_text(head, None)),
            Message::Fetched(Ok(Fetched::Full(s))) => format!("has {}", siblings_text(&s.head, Some(&s.values))),
            Message::Fetched(Ok(Fetched::Doubted { head, .. })) => {
                format!("has at least {}", siblings_text(head, None))
            }
            Message::GossipDigest { entries, .. } if self.trace_gossip => format!("digest of {}", entries.len()),
            Message::GossipDelta { news, wanted, .. } if self.trace_gossip => {
                format!("delta: {} news, {} wanted", news.len(), wanted.len())
            }
            Message::GossipNews { news, .. } if self.trace_gossip => format!("news: {}", news.len()),
            Message::Returned { .. } if self.trace_gossip => "is back".into(),
            Message::Remembered { entry, .. } if self.trace_gossip => match entry {
                Some(entry) => format!("remembers start {}", entry.generation),
                None => "remembers nothing".into(),
            },
            Message::Parting { .. } => "is stopping".into(),
            Message::GossipDigest { .. }
            | Message::GossipDelta { .. }
            | Message::GossipNews { .. }
            | Message::Returned { .. }
            | Message::Remembered { .. }
            | Message::Clock { .. }
            | Message::Reference { .. }
            | Message::View { .. }
            | Message::Sums { .. }
            | Message::Summed(_)
            | Message::Keys { .. }
            | Message::Keyed(_)
            | Message::Agreed { .. } => return None,
            Message::TableNews(news) => format!("refused: newer word of {}", news.name),
            Message::Tables(Words { news, wanted, .. }) => {
                if !self.trace_gossip {
                    return None;
                }
                let asks = if *wanted { ", asks" } else { "" };
                format!("tables: {} news{asks}", news.len())
            }
        })
    }
    fn state(&mut self, key_name: &str) -> Result<(), String> {
        let data = keys::data_key(&self.key(key_name)?);
        for (letter, node) in &self.nodes {
            let text = match node.disk.get(&data) {
                None => "nothing".to_string(),
                Some((head, values)) => {
                    let head = Head::decode(head).map_err(|e| e.to_string())?;
                    format!("{}, clock {}", siblings_text(&head, Some(values)), clock_text(head.clock.entries()))
                }
            };
            self.lines.push(format!("{letter}: {text}"));
        }
        Ok(())
    }
    fn hints(&mut self) {
        for (letter, node) in &self.nodes {
            for (owner, _, key) in node.disk.keys().filter_map(keys::parse_hint_key) {
                let key = self.keys.iter().find(|(_, k)| **k == key).map_or("?", |(name, _)| name);
                self.lines.push(format!("{letter} owes {} {key}", name(owner)));
            }
        }
        if self.lines.is_empty() {
            self.lines.push("nobody owes anything".into());
        }
    }
    fn marks(&mut self) {
        for (letter, node) in &self.nodes {
            for owner in node.disk.keys().filter_map(|key| keys::parse_behind(key)) {
                self.lines.push(format!("{letter} knows that {} lacks something", name(owner)));
            }
        }
        if self.lines.is_empty() {
            self.lines.push("nothing is marked".into());
        }
    }
    fn tables(&mut self) {
        for (letter, node) in &self.nodes {
            let Some(shard) = &node.shard else { continue };
            let named = shard.tables().list();
            let named: Vec<String> =
                named.iter().map(|(name, settings)| format!("{name} {}", table_text(settings))).collect();
            self.lines.push(format!("{letter}: {}", named.join("; ")));
        }
    }
    fn members(&mut self, letter: char) -> Result<(), String> {
        let now = self.now;
        let shard = self.node(letter)?.shard.as_ref().ok_or(format!("{letter} is down"))?;
        let seen: Vec<String> =
            shard.members().iter().map(|m| format!("{} {}", name(m.id), shard.view(now, m).name())).collect();
        self.lines.push(format!("{letter} sees {}", seen.join(", ")));
        Ok(())
    }
    /// The key of a name: the first of `cart0`, `cart1`, .. whose first home among all nodes is the one named.
    fn key(&mut self, key_name: &str) -> Result<Key, String> {
        if let Some(key) = self.keys.get(key_name) {
            return Ok(key.clone());
        }
        let (first, word) = key_name.split_once('/').ok_or(format!("a key is NODE/NAME, not {key_name}"))?;
        let first = id(letter(first)?);
        let up = |m: &Member| Member { state: MemberState::Up, ..m.clone() };
        let members: Vec<Member> = self.nodes.values().map(|n| up(&n.member)).collect();
        let ring = Ring::new(&members);
        let mut candidates = (0..100_000).filter_map(|i| Key::new(format!("{word}{i}")).ok());
        let key = candidates.find(|k| ring.walk(k.token(), 1).first() == Some(&first)).ok_or("no such key")?;
        self.keys.insert(key_name.to_string(), key.clone());
        Ok(key)
    }
}

// ---- names -----------------------------------------------------------------------------------------------------

fn parse_wish(mut words: &[&str]) -> Result<TableWish, String> {
    let mut wish = TableWish::default();
    loop {
        words = match words {
            [] => return Ok(wish),
            ["lww", rest @ ..] => {
                wish.conflict = Some(Conflict::LastWriteWins);
                rest
            }
            ["strict", rest @ ..] => {
                wish.sloppy = Some(false);
                rest
            }
            ["interval", rest @ ..] => {
                wish.durability = Some(Durability::Interval);
                rest
            }
            [word @ ("n" | "r" | "w"), number, rest @ ..] => {
                let number: u8 = number.parse().map_err(|_| format!("{number} is no number"))?;
                match *word {
                    "n" => wish.n = Some(number),
                    "r" => wish.r = Some(number),
                    _ => wish.w = Some(number),
                }
                rest
            }
            other => return Err(format!("unknown settings {other:?}")),
        }
    }
}
fn table_text(table: &TableSettings) -> String {
    let mut text = format!("n {} r {} w {}", table.n, table.r, table.w);
    if table.conflict == Conflict::LastWriteWins {
        text += " lww";
    }
    if !table.sloppy {
        text += " strict";
    }
    if table.durability == Durability::Interval {
        text += " interval";
    }
    text
}
fn letter(word: &str) -> Result<char, String> {
    let mut letters = word.chars().filter(|c| ('A'..='H').contains(c));
    letters.next().filter(|_| word.len() == 1).ok_or(format!("{word:?} is no node"))
}
fn parse_letters(words: &[&str]) -> Result<Vec<char>, String> {
    words.iter().map(|w| letter(w)).collect()
}
fn parse_time(word: &str) -> Result<Duration, String> {
    let digits = word.trim_end_matches(|c: char| c.is_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("{word} is no time"))?;
    match &word[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        unit => Err(format!("unknown unit {unit:?}")),
    }
}
fn id(letter: char) -> NodeId {
    NodeId(letter as u64)
}
fn name(node: NodeId) -> char {
    char::from_u32(node.0 as u32).unwrap_or('?')
}
fn address(letter: char) -> Address {
    Address::new(id(letter), 0)
}
fn ip(letter: char) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, letter as u8).into()
}
fn member(letter: char, state: MemberState) -> Member {
    // Eight places around the ring.
    let token = Token((letter as u64 - 'A' as u64 + 1) << 61);
    Member {
        id: id(letter),
        ip: ip(letter),
        ports: Ports::default(),
        shards: 1,
        slices: 1,
        tokens: [token].into(),
        state,
        generation: 1,
        revision: 0,
        heartbeat: 0,
    }
}
