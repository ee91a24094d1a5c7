//! Tables where the last write wins, against an oracle that keeps every write: one winner everywhere, the greatest by
//! (time, node, bytes), whatever meets what, how often and in which order, and with states that have no stamps. And
//! whole nodes under cuts, crashes and wrong clocks: they agree in the end, and on nothing older than any write that
//! was acknowledged.

#[allow(dead_code, reason = "shared with tests/scripts.rs")]
#[path = "scripts/cluster.rs"]
mod cluster;

use bytes::Bytes;
use dynarc::{
    protocol::versions::{Actor, Context, Dot, Entry, Head, Siblings, Side},
    types::{Conflict, Media, NodeId, Value, WriteId},
};
use proptest::prelude::*;

/// What the nodes' commands are given to.
trait Stage {
    fn run(&mut self, command: &str) -> Result<String, String>;
}

const LAST: Conflict = Conflict::LastWriteWins;
const NODES: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A write at this node, at a time that may be that of another; `None`: a delete.
    Write {
        node: usize,
        time: u64,
        value: Option<u8>,
    },
    /// A sibling from before the table was made.
    Plain {
        node: usize,
        value: u8,
    },
    Meet {
        from: usize,
        to: usize,
    },
}

fn entry(value: &Value, dot: Dot) -> Entry {
    let bytes = value.bytes.len() as u32;
    Entry { dot, write_id: WriteId(0), media: Media::Json, bytes, checksum: value.checksum }
}
fn value(byte: u8) -> Value {
    Value::json(vec![b'0' + byte % 10; 1 + usize::from(byte / 10)])
}
/// What one write makes.
fn stamped(node: usize, time: u64, byte: Option<u8>) -> Siblings {
    let stamp = Dot::stamp(time, NodeId(node as u64 + 1));
    let value = byte.map(value);
    let head = Head::stamped(stamp, value.as_ref().map(|v| entry(v, stamp)));
    Siblings { head, values: value.into_iter().map(|v| v.bytes).collect() }
}
fn plain(state: &Siblings, node: usize, counter: u64, byte: u8) -> Siblings {
    let value = value(byte);
    let dot = Dot { actor: Actor::new(NodeId(node as u64 + 1), 1), counter };
    let merged = state.head.put(&Context::default(), entry(&value, dot));
    let pick = |p: &dynarc::protocol::versions::Pick| match p.side {
        Side::Left => state.values[p.index].clone(),
        Side::Right => value.bytes.clone(),
    };
    Siblings { values: merged.picks.iter().map(pick).collect(), head: merged.head }
}
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (0..NODES, 1..12u64, proptest::option::weighted(0.7, any::<u8>()))
        .prop_map(|(node, time, value)| Step::Write { node, time, value });
    let plain = (0..NODES, any::<u8>()).prop_map(|(node, value)| Step::Plain { node, value });
    let meet = (0..NODES, 0..NODES).prop_map(|(from, to)| Step::Meet { from, to });
    proptest::collection::vec(prop_oneof![4 => write, 1 => plain, 4 => meet], 1..60)
}

/// What a stamped write is ordered by.
type Order = (u64, usize, Option<(u32, u32)>);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn there_is_one_winner_everywhere(steps in steps(), order in any::<u64>()) {
        let mut states = vec![Siblings::default(); NODES];
        let mut written: Vec<Vec<(Order, Option<Bytes>)>> = vec![Vec::new(); NODES];
        let mut plain_writes = 0;
        for step in steps {
            match step {
                Step::Write { node, time, value: byte } => {
                    let state = stamped(node, time, byte);
                    let content = state.head.entries.first().map(|e| (e.checksum, e.bytes));
                    written[node].push(((time, node, content), state.values.first().cloned()));
                    states[node] = states[node].join(&state, LAST);
                }
                Step::Plain { node, value } if states[node].head.stamp().is_none() => {
                    plain_writes += 1;
                    states[node] = plain(&states[node], node, plain_writes, value);
                }
                Step::Plain { .. } => {}
                Step::Meet { from, to } => {
                    let known = written[from].clone();
                    written[to].extend(known);
                    states[to] = states[to].join(&states[from], LAST);
                }
            }
            // Each holds the greatest of all that it has heard of, alone.
            for (state, heard) in states.iter().zip(&written) {
                prop_assert!(state.verify().is_ok());
                if let Some((_, winner)) = heard.iter().max_by_key(|(order, _)| *order) {
                    prop_assert_eq!(state.values.first(), winner.as_ref());
                    prop_assert_eq!(state.head.clock.len(), 1);
                    prop_assert!(state.values.len() <= 1 && Head::decode(&state.head.encode()).is_ok());
                }
            }
        }
        // In any order, and however grouped, the same comes of it.
        let all = |order: &[usize]| order.iter().fold(Siblings::default(), |all, i| all.join(&states[*i], LAST));
        let (one, other) = ([[0, 1, 2], [1, 2, 0], [2, 0, 1]][(order % 3) as usize], all(&[2, 1, 0, 2, 1]));
        prop_assert!(all(&one).head.same_state(&other.head));
        prop_assert_eq!(&all(&one).values, &other.values);
        prop_assert!(other.join(&other, LAST) == other);
        let right = states[0].join(&states[1].join(&states[2], LAST), LAST);
        prop_assert_eq!(right.values, other.values);
    }
}

/// Time, and node to tell equal times apart: as printed, `A@20040+3`.
type Stamp = (u64, char);

fn parse_stamp(text: &str) -> Stamp {
    let (node, time) = text.split_once('@').unwrap_or_else(|| panic!("a stamp, not {text:?}"));
    let (millis, more) = time.split_once('+').expect("milliseconds and more");
    let number = |text: &str| text.parse::<u64>().expect("a number");
    (number(millis) * 1_000_000 + number(more), node.chars().next().expect("a node"))
}
/// What stands between these two.
fn between<'a>(line: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &line[line.find(before)? + before.len()..];
    Some(&rest[..rest.find(after)?])
}

/// What clients were told: for each acknowledged write its stamp and its value, if it was not a delete.
#[derive(Default)]
struct Course {
    clients: u64,
    asked: Vec<Option<String>>,
    acknowledged: Vec<(Stamp, Option<String>)>,
    refused_future: bool,
}
impl Course {
    fn ask(&mut self, stage: &mut cluster::Stage, command: &str, value: Option<String>) {
        self.clients += 1;
        self.asked.push(value);
        self.play(stage, command);
    }
    fn play(&mut self, stage: &mut cluster::Stage, command: &str) -> Vec<String> {
        let said = Stage::run(stage, command).unwrap_or_else(|e| panic!("{command}: {e}"));
        for line in said.lines() {
            self.refused_future |= line.ends_with("ClockAhead");
            if let Some(client) = between(line, "client ", ": written, context [")
                && let Some(stamp) = between(line, "context [", "]")
            {
                let value = self.asked[client.parse::<usize>().expect("a client") - 1].clone();
                self.acknowledged.push((parse_stamp(stamp), value));
            }
        }
        said.lines().map(str::to_string).collect()
    }
}

#[test]
fn nodes_under_faults_agree_on_one_winner_that_is_no_older_than_any_acknowledged_write() {
    let (mut writes, mut crashes, mut cuts) = (0, 0, 0);
    for seed in 0..400 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut stage, mut course) = (cluster::Stage::default(), Course::default());
        course.play(&mut stage, "cluster A B C D E");
        // The first client is the one that makes the table.
        course.clients += 1;
        course.asked.push(None);
        Stage::run(&mut stage, "table A t n 3 r 2 w 2 lww").expect("a table");
        for node in ['A', 'B', 'C'] {
            let (side, skew) = (if rng.bool() { "ahead" } else { "behind" }, rng.u64(0..240));
            course.play(&mut stage, &format!("clock {node} {side} {skew}ms"));
        }
        let (mut down, mut cut) = (None, None);
        for step in 0..40 {
            let node = ['A', 'B', 'C'][rng.usize(0..3)];
            match rng.u8(0..20) {
                0 if cut.is_none() => {
                    cuts += 1;
                    cut = Some(node);
                    course.play(&mut stage, &format!("silence {node}"));
                }
                1 | 2 => {
                    if let Some(node) = cut.take() {
                        course.play(&mut stage, &format!("heal {node}"));
                    }
                }
                3 if down.is_none() => {
                    crashes += 1;
                    down = Some(node);
                    course.play(&mut stage, &format!("crash {node}"));
                }
                4 | 5 => {
                    if let Some(node) = down.take() {
                        course.play(&mut stage, &format!("restart {node}"));
                    }
                }
                6 => {
                    let (side, skew) = (if rng.bool() { "ahead" } else { "behind" }, rng.u64(0..240));
                    course.play(&mut stage, &format!("clock {node} {side} {skew}ms"));
                }
                7..=10 => {
                    let time = [1, 20, 400, 700][rng.usize(0..4)];
                    course.play(&mut stage, &format!("wait {time}ms"));
                }
                kind if down != Some(node) => {
                    writes += 1;
                    let w = rng.u8(1..=2);
                    let value = (kind > 11).then(|| format!("v{step}"));
                    let command = match &value {
                        Some(value) => format!("put {node} A/t: {value} w {w}"),
                        None => format!("delete {node} A/t: w {w}"),
                    };
                    course.ask(&mut stage, &command, value);
                }
                _ => {}
            }
        }
        down.into_iter().for_each(|node| drop(course.play(&mut stage, &format!("restart {node}"))));
        cut.into_iter().for_each(|node| drop(course.play(&mut stage, &format!("heal {node}"))));
        course.play(&mut stage, "wait 20s");
        // A read of all mends what no hint was kept for.
        course.asked.push(None);
        course.play(&mut stage, "get A A/t: r 3");
        course.play(&mut stage, "wait 20s");
        assert_eq!(course.play(&mut stage, "hints"), ["nobody owes anything"], "seed {seed}");
        let states = course.play(&mut stage, "state A/t:");
        let states: Vec<&str> = states[..3].iter().map(|line| &line[3..]).collect();
        assert!(states[0] == states[1] && states[1] == states[2], "seed {seed}: {states:#?}");
        assert!(!course.refused_future, "seed {seed}: clocks are less than half a second apart");
        if let Some((newest, value)) = course.acknowledged.iter().max_by_key(|(stamp, _)| *stamp) {
            let stamp = parse_stamp(between(states[0], "clock [", "]").expect("one stamp"));
            assert!(stamp >= *newest, "seed {seed}: {newest:?} is lost, there is {states:?}");
            let shown = value.as_ref().map_or("deleted".to_string(), |value| format!("{value} ("));
            assert!(stamp > *newest || states[0].starts_with(&shown), "seed {seed}: {states:?}, not {value:?}");
        }
    }
    assert!(writes > 5_000 && crashes > 200 && cuts > 200, "{writes} {crashes} {cuts}");
}
