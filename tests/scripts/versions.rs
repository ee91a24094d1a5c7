//! Replicas of one key, each with an actor of its own: `A`, `B`, ...
//!
//! - `put A VALUE [after NAME] [id N]`: `A` coordinates a write; `NAME`: what its writer had read; none: blind
//! - `delete A [after NAME]`
//! - `read A as NAME`
//! - `sync A B`: `B` merges what `A` has
//! - `compare NAME NAME`: how two things that were read stand to each other
//! - `show A`
//! - `turns COUNT A B`: two clients read, merge and write in turns, each at its replica, which first hears of the other

use bytes::Bytes;
use dynarc::{
    protocol::versions::{Actor, Causality, Context, Dot, Entry, Merged, Siblings, Side},
    types::{Media, NodeId, Value, WriteId},
};
use std::{collections::BTreeMap, fmt::Write};

#[derive(Default)]
pub struct Replicas {
    states: BTreeMap<char, Siblings>,
    counters: BTreeMap<char, u64>,
    read: BTreeMap<String, Siblings>,
}

impl super::Stage for Replicas {
    fn run(&mut self, command: &str) -> Result<String, String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["put", replica, value, rest @ ..] => {
                let replica = letter(replica)?;
                let (context, id) = self.options(rest)?;
                self.put(replica, value, &context, id);
                self.show(replica)
            }
            ["delete", replica, rest @ ..] => {
                let replica = letter(replica)?;
                let state = self.states.entry(replica).or_default();
                let blind = Context::from(state.head.clock.clone());
                let (context, _) = if rest.is_empty() { (blind, 0) } else { self.options(rest)? };
                let state = self.states.entry(replica).or_default();
                *state = apply(state, state.head.delete(&context), None);
                self.show(replica)
            }
            ["read", replica, "as", name] => {
                let state = self.states.entry(letter(replica)?).or_default().clone().into_shown();
                self.read.insert(name.to_string(), state.clone());
                Ok(format!("{name}: {}", text(&state)))
            }
            ["sync", from, to] => {
                let source = self.states.entry(letter(from)?).or_default().clone();
                let target = self.states.entry(letter(to)?).or_default();
                *target = target.sync(&source);
                self.show(letter(to)?)
            }
            ["compare", left, right] => {
                let relation = self.named(left)?.head.clock.compare(&self.named(right)?.head.clock);
                Ok(match relation {
                    Causality::Equal => format!("{left} and {right} have seen the same"),
                    Causality::Before => format!("{right} descends from {left}"),
                    Causality::After => format!("{left} descends from {right}"),
                    Causality::Concurrent => format!("{left} and {right} are concurrent"),
                })
            }
            ["show", replica] => self.show(letter(replica)?),
            ["turns", count, first, second] => {
                let count = count.parse::<u32>().map_err(|e| e.to_string())?;
                self.turns(count, [letter(first)?, letter(second)?])
            }
            _ => Err(format!("unknown command {command:?}")),
        }
    }
}

impl Replicas {
    fn options(&self, mut words: &[&str]) -> Result<(Context, u64), String> {
        let (mut context, mut id) = (Context::default(), 0);
        while let [word, value, rest @ ..] = words {
            match *word {
                "after" => context = self.named(value)?.head.clock.clone().into(),
                "id" => id = value.parse().map_err(|_| format!("{value} is no write id"))?,
                _ => return Err(format!("unknown option {word}")),
            }
            words = rest;
        }
        if words.is_empty() { Ok((context, id)) } else { Err(format!("{words:?} is too much")) }
    }
    fn named(&self, name: &str) -> Result<&Siblings, String> {
        self.read.get(name).ok_or(format!("nothing was read as {name}"))
    }
    fn put(&mut self, replica: char, value: &str, context: &Context, id: u64) {
        let state = self.states.entry(replica).or_default();
        if state.head.knows_write(WriteId(id)) {
            return;
        }
        let counter = self.counters.entry(replica).or_default();
        *counter += 1;
        let dot = Dot { actor: Actor::new(NodeId(replica as u64), 1), counter: *counter };
        let value = Value::new(Media::Json, value.to_string());
        let (bytes, checksum) = (value.bytes.len() as u32, value.checksum);
        let entry = Entry { dot, write_id: WriteId(id), media: Media::Json, bytes, checksum };
        *state = apply(state, state.head.put(context, entry), Some(value.bytes));
    }
    fn turns(&mut self, count: u32, replicas: [char; 2]) -> Result<String, String> {
        let mut most = 0;
        for turn in 0..count {
            let (mine, other) = (replicas[turn as usize % 2], replicas[(turn as usize + 1) % 2]);
            let theirs = self.states.entry(other).or_default().clone();
            let state = self.states.entry(mine).or_default();
            *state = state.sync(&theirs);
            most = most.max(state.values().count());
            let context = state.head.clock.clone().into();
            self.put(mine, &turn.to_string(), &context, u64::from(turn) + 1);
        }
        Ok(format!("at most {most} sibling{} seen\n{}", if most == 1 { "" } else { "s" }, self.show(replicas[0])?))
    }
    fn show(&mut self, replica: char) -> Result<String, String> {
        Ok(format!("{replica}: {}", text(self.states.entry(replica).or_default())))
    }
}

fn letter(word: &str) -> Result<char, String> {
    let mut letters = word.chars().filter(char::is_ascii_uppercase);
    letters.next().filter(|_| word.len() == 1).ok_or(format!("{word:?} is no replica"))
}

fn apply(before: &Siblings, merged: Merged, new: Option<Bytes>) -> Siblings {
    let new = new.unwrap_or_default();
    let values = merged.picks.iter().map(|pick| match pick.side {
        Side::Left => before.values[pick.index].clone(),
        Side::Right => new.clone(),
    });
    Siblings { values: values.collect(), head: merged.head }
}

fn dot(dot: &Dot) -> String {
    format!("{}:{}", char::from_u32(dot.actor.node().0 as u32).unwrap_or('?'), dot.counter)
}
fn text(state: &Siblings) -> String {
    let mut out = String::new();
    for (entry, value) in state.head.entries.iter().zip(&state.values) {
        let _ = write!(out, "{} ({}), ", value.escape_ascii(), dot(&entry.dot));
    }
    if state.head.entries.is_empty() {
        out += if state.head.is_empty() { "nothing, " } else { "deleted, " };
    }
    let clock: Vec<String> = state.head.clock.entries().iter().map(dot).collect();
    out + "clock [" + &clock.join(" ") + "]"
}
