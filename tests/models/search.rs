//! Breadth-first search through all worlds that a model can reach: the first that breaks a claim is a nearest one.

use std::hash::{BuildHasherDefault, Hasher};

use hashbrown::{HashMap, hash_map::Entry};

use super::{
    steps::{Model, Step},
    world::World,
};

/// What a search found.
#[derive(Debug, Default)]
pub struct Outcome {
    pub worlds: usize,
    /// The steps to the nearest world that breaks a claim, and the claim.
    pub broken: Option<(&'static str, Vec<Step>)>,
    /// Worlds in which something was purged; in which the door had something to refuse; and so on: a search that never
    /// gets there proves nothing.
    pub purges: usize,
    pub floors_unequal: usize,
    pub fills_ended: usize,
}

/// Keys are fingerprints already.
#[derive(Default)]
struct AsIs(u64);
impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("fingerprints are whole words");
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// 64 bits of a world. Two of ten million worlds share theirs with a chance of one in 300,000; then one of the two
/// would go unseen.
fn fingerprint(world: &World) -> u64 {
    world.bits().iter().fold(0x9e37_79b9_7f4a_7c15, |sum: u64, word| {
        let product = u128::from(sum ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93_a5a3_564e_27f9_1bc5);
        (product >> 64) as u64 ^ (product as u64).rotate_left(23)
    })
}

/// Searches everything, or until a claim is broken. Worlds that differ in the names of homes count once, unless the
/// steps are to be read by people.
pub fn search(model: &Model, alike: bool) -> Outcome {
    let start = model.start();
    let mut outcome = Outcome::default();
    let mut from: HashMap<u64, u64, BuildHasherDefault<AsIs>> = HashMap::default();
    from.insert(fingerprint(&start), 0);
    let (mut level, mut next, mut found) = (vec![start], Vec::new(), Vec::new());
    while !level.is_empty() {
        for world in level.drain(..) {
            let parent = fingerprint(&world);
            model.steps(&world, &mut found);
            for (step, new) in found.drain(..) {
                let new = if alike { new.representative() } else { new };
                let print = fingerprint(&new);
                match from.entry(print) {
                    Entry::Occupied(_) => continue,
                    Entry::Vacant(place) => place.insert(parent),
                };
                outcome.purges += usize::from(matches!(step, Step::Purge { .. }));
                let floors = [0, 1, 2].map(|h| new.homes[h].floor);
                outcome.floors_unequal += usize::from(floors.iter().any(|f| *f != floors[0]));
                let fills = |w: &World| w.homes.iter().filter(|h| h.filling).count();
                outcome.fills_ended += usize::from(fills(&new) < fills(&world));
                if let Some(claim) = model.broken(&new) {
                    outcome.worlds = from.len();
                    outcome.broken = Some((claim, history(model, alike, &from, print)));
                    return outcome;
                }
                next.push(new);
            }
        }
        std::mem::swap(&mut level, &mut next);
    }
    outcome.worlds = from.len();
    outcome
}

/// The steps from the start to a world, found again from the fingerprints on its way.
fn history(model: &Model, alike: bool, from: &HashMap<u64, u64, BuildHasherDefault<AsIs>>, to: u64) -> Vec<Step> {
    let mut way = vec![to];
    while let Some(&parent) = way.last().and_then(|print| from.get(print)).filter(|parent| **parent != 0) {
        way.push(parent);
    }
    let mut world = model.start();
    let mut steps = Vec::new();
    let mut found = Vec::new();
    for print in way.iter().rev().skip(1) {
        model.steps(&world, &mut found);
        let named = found.drain(..).map(|(step, new)| (step, if alike { new.representative() } else { new }));
        let (step, new) = named.into_iter().find(|(_, new)| fingerprint(new) == *print).expect("a step leads there");
        steps.push(step);
        world = new;
    }
    steps
}
