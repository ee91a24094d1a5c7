//! One membership view, one ring (I10), as shards are looked at during a run.

use super::{Invariant, Verdict};
use crate::{
    protocol::ring::{FixedMap, Ring, owns},
    types::{Address, Member, MemberState, NodeId},
};
use xxhash_rust::xxh3::Xxh3;

/// The rings that have been seen, by the view that they were made of.
#[derive(Default)]
pub struct Rings {
    by_view: FixedMap<u64, (u64, Address)>,
    /// Who was seen as gone for ever, and by whom first.
    gone: FixedMap<(Address, NodeId), ()>,
    /// A node's entry in a generation and revision, as first seen anywhere.
    entries: FixedMap<(NodeId, u64, u32), (u64, Address)>,
    /// Nodes that may be set back to an older state: until one hears of its later starts it may count one of them
    /// again, and say something else of itself.
    pub set_back: Vec<NodeId>,
    pub looks: u64,
}

impl Rings {
    /// A shard has this ring and, in this life, these members.
    pub fn look(&mut self, shard: Address, members: &[Member], ring: &Ring) -> Verdict {
        self.looks += 1;
        for member in members {
            self.look_at_entry(shard, member)?;
        }
        let view = digest(members.iter().filter(|m| owns(m.state)));
        let (expected, other) = *self.by_view.entry(view).or_insert((ring.digest(), shard));
        if expected != ring.digest() {
            let text = format!("{shard} has another ring than {other} had with the same members");
            return Err((Invariant::I10, text));
        }
        for member in members {
            let gone = member.state.is_gone();
            if gone {
                self.gone.insert((shard, member.id), ());
            } else if self.gone.contains_key(&(shard, member.id)) {
                return Err((Invariant::I10, format!("{shard} takes node {} back, which had gone", member.id)));
            }
            if gone && ring.contains(member.id) {
                let text = format!("node {} is {:?} and still in the ring of {shard}", member.id, member.state);
                return Err((Invariant::I10, text));
            }
        }
        Ok(())
    }
    /// An entry has one writer: whoever holds it in the same generation and revision holds the same.
    fn look_at_entry(&mut self, shard: Address, member: &Member) -> Verdict {
        let place = (member.id, member.generation, member.revision);
        let shape = digest(std::iter::once(member));
        let (expected, other) = *self.entries.entry(place).or_insert((shape, shard));
        if expected == shape || member.state == MemberState::Removed || self.set_back.contains(&member.id) {
            return Ok(());
        }
        let text = format!("{shard} and {other} differ in what node {} said of itself", member.id);
        Err((Invariant::I10, text))
    }
}

/// Over all of the members that rings depend on.
fn digest<'a>(members: impl Iterator<Item = &'a Member>) -> u64 {
    let mut sorted: Vec<&Member> = members.collect();
    sorted.sort_by_key(|m| m.id);
    let mut hash = Xxh3::new();
    for member in sorted {
        hash.update(&member.id.0.to_le_bytes());
        hash.update(&[member.state as u8]);
        hash.update(&member.shards.to_le_bytes());
        hash.update(&member.slices.to_le_bytes());
        member.tokens.iter().for_each(|t| hash.update(&t.0.to_le_bytes()));
    }
    hash.digest()
}
