//! Tables where the last write wins, against an oracle that keeps every write: one winner everywhere, the greatest by (time,
//! node, bytes), whatever meets what, how often and in which order, and with states that have no stamps.

use bytes::Bytes;
use dynarc::{
    protocol::versions::{Actor, Context, Dot, Entry, Head, Siblings, Side},
    types::{Conflict, Media, NodeId, Value, WriteId},
};
use proptest::prelude::*;

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
