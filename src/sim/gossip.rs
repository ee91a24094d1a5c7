//! How news travels among many nodes: the membership machine alone, over encoded frames, on a lossy network.
//!
//! All other machines are left out, so that a thousand nodes fit. A trial starts with members that know each other,
//! watches them for a while, lets one fall silent, and lets one join. Connections tell nothing here: a failure is known
//! by silence only, which is the slowest way.

use super::prng::Prng;
use crate::{
    limits::{BACKGROUND_TIMEOUT, DOWN_AFTER, GOSSIP_INTERVAL, SUSPECT_AFTER},
    protocol::{
        membership::{Act, Membership, Timing},
        message::{Envelope, Message},
    },
    types::{Address, ClusterId, Instant, Member, MemberState, NodeId, Ports, Token},
    wire::{self, Frame, FrameEncoder, Pieces, Trust},
};
use std::{
    collections::{BTreeMap, BinaryHeap},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

/// What a trial is like.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Trial {
    pub seed: u64,
    pub nodes: usize,
    pub vnodes: usize,
    /// Share of messages that are lost.
    pub loss: f64,
}

/// What a trial came to.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Outcome {
    pub nodes: usize,
    /// Rounds until every member knew the newcomer, and until half of them did.
    pub join_rounds: f64,
    pub join_rounds_half: f64,
    /// Rounds from a member's silence until every other suspected it; those that suspicion waits for are in it.
    pub failure_rounds: f64,
    /// Rounds between the first to suspect it and the last.
    pub failure_spread_rounds: f64,
    /// Bytes that a node sends in a second when nothing happens.
    pub bytes_per_second: f64,
    pub messages_per_second: f64,
    /// The largest frame of the whole trial.
    pub frame_bytes_max: usize,
    /// Times that a living member was suspected by another, and member-hours of watching.
    pub false_suspicions: u64,
    pub watched_hours: f64,
}

/// Seconds in which nothing happens, and seconds at most for each piece of news.
const QUIET: u64 = 20;
const NEWS_MAX: u64 = 60;
/// How often every member's view of every other is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const DELAY: [Duration; 2] = [Duration::from_micros(300), Duration::from_millis(20)];

enum Event {
    Round(usize),
    Arrive { to: usize, from: usize, pieces: Pieces },
}
/// Ordered by time, the earliest first, then by sequence.
struct Due(Instant, u64, Event);
impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.1 == other.1
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (other.0, other.1).cmp(&(self.0, self.1))
    }
}

struct World {
    trial: Trial,
    machines: Vec<Membership>,
    ids: BTreeMap<NodeId, usize>,
    silent: Option<usize>,
    now: Instant,
    due: BinaryHeap<Due>,
    sequence: u64,
    prng: Prng,
    encoder: FrameEncoder,
    bytes: u64,
    messages: u64,
    frame_bytes_max: usize,
}

const INTERVAL: Duration = GOSSIP_INTERVAL;
const CLUSTER: ClusterId = ClusterId(7);

fn member(index: usize, vnodes: usize, prng: &mut Prng) -> Member {
    let mut tokens: Vec<Token> = (0..vnodes).map(|_| Token(prng.bits())).collect();
    tokens.sort_unstable();
    tokens.dedup();
    Member {
        id: NodeId(index as u64 + 1),
        ip: ip_of(index),
        ports: Ports::default(),
        shards: 4,
        slices: 64,
        tokens: tokens.into(),
        state: MemberState::Up,
        generation: 1,
        revision: 0,
        heartbeat: 1,
    }
}
fn ip_of(index: usize) -> IpAddr {
    Ipv4Addr::new(10, (index >> 16) as u8, (index >> 8) as u8, index as u8).into()
}

impl World {
    /// Members that know each other. The last is not among them yet.
    fn new(trial: Trial) -> World {
        let mut prng = Prng::stream(trial.seed, "gossip");
        let members: Vec<Member> = (0..trial.nodes).map(|i| member(i, trial.vnodes, &mut prng)).collect();
        let now = Instant(1_000_000_000);
        let mut world = World {
            trial,
            machines: Vec::new(),
            ids: members.iter().enumerate().map(|(index, m)| (m.id, index)).collect(),
            silent: None,
            now,
            due: BinaryHeap::new(),
            sequence: 0,
            prng,
            encoder: FrameEncoder::new(),
            bytes: 0,
            messages: 0,
            frame_bytes_max: 0,
        };
        let known = &members[..trial.nodes - 1];
        for (index, me) in known.iter().enumerate() {
            let others = known.iter().filter(|m| m.id != me.id).cloned().collect();
            world.add(index, me.clone(), others, vec![]);
        }
        world
    }
    fn add(&mut self, index: usize, me: Member, known: Vec<Member>, seeds: Vec<SocketAddr>) {
        let timing = Timing { interval: INTERVAL, suspect_after: SUSPECT_AFTER, down_after: DOWN_AFTER };
        // Nodes start at any time: their rounds are spread over the interval.
        let first = self.now + self.prng.duration(Duration::ZERO, INTERVAL);
        let seed = self.prng.bits();
        let cluster = if known.is_empty() { ClusterId::NONE } else { CLUSTER };
        let machine = Membership::new(me, known, seeds, timing, seed, first);
        self.machines.push(machine.of_cluster(cluster, !cluster.is_none()));
        self.push(first, Event::Round(index));
    }
    fn push(&mut self, at: Instant, event: Event) {
        self.sequence += 1;
        self.due.push(Due(at, self.sequence, event));
    }
    fn id(&self, index: usize) -> NodeId {
        NodeId(index as u64 + 1)
    }

    /// Runs until `until`; looks now and then, and ends early when the look says so. Gives the time of the end.
    fn run(&mut self, until: Instant, mut look: impl FnMut(&World) -> bool) -> Result<Instant, wire::WireError> {
        let mut next_look = self.now + LOOK_EVERY;
        while let Some(due) = self.due.pop() {
            while due.0 >= next_look {
                self.now = next_look;
                next_look = next_look + LOOK_EVERY;
                if look(self) || self.now >= until {
                    self.due.push(due);
                    return Ok(self.now);
                }
            }
            self.now = due.0;
            self.happen(due.2)?;
        }
        Ok(self.now)
    }
    fn happen(&mut self, event: Event) -> Result<(), wire::WireError> {
        let mut acts = Vec::new();
        let index = match event {
            Event::Round(index) if self.silent == Some(index) => return Ok(()),
            Event::Round(index) => {
                self.machines[index].tick(self.now, &mut acts);
                let next = self.machines[index].next_deadline();
                self.push(next, Event::Round(index));
                index
            }
            Event::Arrive { to, .. } if self.silent == Some(to) => return Ok(()),
            Event::Arrive { to, from, pieces } => {
                let frame = Frame::from_pieces(pieces)?;
                let message = wire::decode_peer(&frame, self.now, Trust::Verify)?.message;
                let (now, from, machine) = (self.now, self.id(from), &mut self.machines[to]);
                match message {
                    Message::GossipDigest { cluster, entries } => {
                        machine.digest_arrived(now, from, cluster, &entries, &mut acts);
                    }
                    Message::GossipDelta { cluster, news, wanted, group } => {
                        machine.delta_arrived(now, from, cluster, (news, &wanted, &group), &mut acts);
                    }
                    Message::GossipNews { cluster, news } => {
                        machine.news_arrived(now, from, cluster, news, &mut acts);
                    }
                    _ => {}
                }
                to
            }
        };
        acts.into_iter().try_for_each(|act| self.act(index, act))
    }
    fn act(&mut self, from: usize, act: Act) -> Result<(), wire::WireError> {
        let (to, message) = match act {
            Act::Say { to, message } => (self.ids.get(&to).copied(), message),
            Act::SayToSeed { seed, message } => {
                ((0..self.machines.len()).find(|index| ip_of(*index) == seed.ip()), message)
            }
        };
        let Some(to) = to.filter(|to| *to < self.machines.len()) else { return Ok(()) };
        let address = |index| Address::new(NodeId(index as u64 + 1), 0);
        let deadline = self.now + BACKGROUND_TIMEOUT;
        let envelope = Envelope { from: address(from), to: address(to), exchange: 2, deadline, message };
        let pieces = wire::encode_peer(&mut self.encoder, &envelope, self.now)?;
        self.bytes += pieces.bytes() as u64;
        self.messages += 1;
        self.frame_bytes_max = self.frame_bytes_max.max(pieces.bytes());
        if self.prng.chance(self.trial.loss) {
            return Ok(());
        }
        let at = self.now + self.prng.duration(DELAY[0], DELAY[1]);
        self.push(at, Event::Arrive { to, from, pieces });
        Ok(())
    }

    /// How many of the others say this of a node.
    fn count(&self, about: usize, says: impl Fn(&Membership) -> bool) -> usize {
        let others =
            self.machines.iter().enumerate().filter(|(index, _)| *index != about && self.silent != Some(*index));
        others.filter(|(_, machine)| says(machine)).count()
    }
    fn suspects(&self, machine: &Membership, about: usize) -> bool {
        machine.view(self.now, self.id(about)).is_some_and(|view| !view.healthy())
    }
}

fn rounds(from: Instant, to: Instant) -> f64 {
    to.since(from).as_secs_f64() / INTERVAL.as_secs_f64()
}

/// Runs a trial. Fails when the machines make what the wire cannot carry.
pub fn run(trial: Trial) -> Result<Outcome, wire::WireError> {
    let mut world = World::new(trial);
    let mut outcome = Outcome { nodes: trial.nodes, ..Outcome::default() };
    world.watch(&mut outcome)?;
    world.fail(&mut outcome)?;
    world.join(&mut outcome)?;
    outcome.frame_bytes_max = world.frame_bytes_max;
    Ok(outcome)
}

impl World {
    /// Nothing happens, and nobody should be suspected.
    fn watch(&mut self, outcome: &mut Outcome) -> Result<(), wire::WireError> {
        // The first rounds bring everybody to the same heartbeats.
        self.run(self.now + INTERVAL * 5, |_| false)?;
        let (start, bytes, messages) = (self.now, self.bytes, self.messages);
        let count = self.machines.len();
        let mut suspected = vec![false; count * count];
        let mut suspicions = 0;
        self.run(start + INTERVAL * QUIET as u32, |world| {
            for (index, machine) in world.machines.iter().enumerate() {
                for about in 0..count {
                    let suspect = world.suspects(machine, about);
                    let before = std::mem::replace(&mut suspected[index * count + about], suspect);
                    suspicions += u64::from(suspect && !before);
                }
            }
            false
        })?;
        let node_seconds = count as f64 * self.now.since(start).as_secs_f64();
        outcome.bytes_per_second = (self.bytes - bytes) as f64 / node_seconds;
        outcome.messages_per_second = (self.messages - messages) as f64 / node_seconds;
        outcome.false_suspicions = suspicions;
        outcome.watched_hours = node_seconds / 3600.0;
        Ok(())
    }
    /// One member falls silent, and all others come to suspect it.
    fn fail(&mut self, outcome: &mut Outcome) -> Result<(), wire::WireError> {
        let (start, silent) = (self.now, self.machines.len() / 2);
        self.silent = Some(silent);
        let mut first = None;
        let end = self.run(start + INTERVAL * NEWS_MAX as u32, |world| {
            let count = world.count(silent, |machine| world.suspects(machine, silent));
            if count > 0 && first.is_none() {
                first = Some(world.now);
            }
            count + 1 == world.machines.len()
        })?;
        outcome.failure_rounds = rounds(start, end);
        outcome.failure_spread_rounds = rounds(first.unwrap_or(end), end);
        Ok(())
    }
    /// The last node joins through the first, and all hear of it.
    fn join(&mut self, outcome: &mut Outcome) -> Result<(), wire::WireError> {
        let (start, index) = (self.now, self.machines.len());
        let newcomer = Member { state: MemberState::Joining, ..member(index, self.trial.vnodes, &mut self.prng) };
        let seed = SocketAddr::new(ip_of(0), Ports::default().peer);
        self.add(index, newcomer, vec![], vec![seed]);
        let mut half = None;
        let end = self.run(start + INTERVAL * NEWS_MAX as u32, |world| {
            let id = world.id(index);
            let count = world.count(index, |machine| machine.view(world.now, id).is_some());
            if count * 2 >= world.machines.len() && half.is_none() {
                half = Some(world.now);
            }
            // Not the newcomer itself, nor the silent one.
            count + 2 == world.machines.len()
        })?;
        outcome.join_rounds = rounds(start, end);
        outcome.join_rounds_half = rounds(start, half.unwrap_or(end));
        Ok(())
    }
}

/// The means of some outcomes as a row of a Markdown table; the largest frame is the largest of all.
fn row(outcomes: &[Outcome], vnodes: usize, loss: f64) -> String {
    let mean = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).sum::<f64>() / outcomes.len().max(1) as f64;
    let hours = outcomes.iter().map(|o| o.watched_hours).sum::<f64>();
    let suspicions = outcomes.iter().map(|o| o.false_suspicions).sum::<u64>();
    format!(
        "| {} | {vnodes} | {} % | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.0} | {suspicions} in {hours:.1} h |",
        outcomes.first().map_or(0, |o| o.nodes),
        loss * 100.0,
        mean(|o| o.join_rounds_half),
        mean(|o| o.join_rounds),
        mean(|o| o.failure_rounds),
        mean(|o| o.failure_spread_rounds),
        mean(|o| o.bytes_per_second) / 1024.0,
        outcomes.iter().map(|o| o.frame_bytes_max).max().unwrap_or(0) as f64 / 1024.0,
    )
}

/// Prints the table of the README: 18, 100 and 1,000 nodes. Fewer trials of the largest, which take long.
pub fn table(seed: u64, out: &mut dyn io::Write) -> io::Result<()> {
    let lines = [
        "| nodes | vnodes | loss | a join is known to half (rounds) | to all | a failure is known to all | first to last | \
         KiB/s sent by a node | largest frame (KiB) | false suspicions in node-hours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ];
    lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    for (nodes, vnodes, trials) in [(18, 256, 10), (100, 256, 5), (1000, 256, 1)] {
        for loss in [0.0, 0.01] {
            let trial = |number| run(Trial { seed: seed + number, nodes, vnodes, loss });
            let outcomes: Result<Vec<Outcome>, wire::WireError> = (0..trials).map(trial).collect();
            let outcomes = outcomes.map_err(io::Error::other)?;
            writeln!(out, "{}", row(&outcomes, vnodes, loss))?;
            out.flush()?;
        }
    }
    Ok(())
}
