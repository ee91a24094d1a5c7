//! The end of tombstones, as a model: the specification of purge, and the search through all its histories.
//!
//! # What is specified
//!
//! A delete is stored as a *tombstone*: a version of the key without values, whose clock covers what was deleted. It
//! may go (*purge*) only when no older state of the key can come back, from wherever. The same proof lets clocks shrink
//! (*prune*). There is no grace period. The proof is made of bounds, all of them times: the counters of dots are times,
//! so that one number speaks of the events of all nodes.
//!
//! - `settled`, of each member: "I store no write or hint whose dot is at or below it from now on, I mint none, and I
//!   hold none for anybody else." It is a fence: what comes later is refused.
//! - *S*, the least `settled` of all members: an event at or below it is durable at a home, or nobody was ever told
//!   that it is stored.
//! - `seen`, of each home: the least S that it read before a whole session (one comparison, to its end) with each other
//!   home.
//! - The *floor*, of each home: the least `seen` of all homes, made durable before it is used.
//!
//! The claim: where some home has floor t, every home that does not *fill* (start over) has seen every acknowledged
//! event at or below t. So a tombstone at or below the floor is known to all; every older state is recognised as old
//! wherever it arrives (*door*); and a value at or below the floor that is alive is alive at every home, so what one
//! home lacks was lost there and is not deleted elsewhere (*authority*).
//!
//! The rules that make it true are listed and explained in `models/rules.rs`; what each says exactly stands in
//! `models/steps.rs` and `models/sessions.rs`, the places to look something up; the claims are in `models/judge.rs`.
//!
//! # What the model contains
//!
//! Three homes, one stand-in, one key of one arc, up to three events (puts and deletes, by any home or by the stand-in,
//! with what their clients had read), one message that waits for any time, hints, sessions, floors, purge, prune;
//! crashes, lost disks, disks set back to an old copy, a record that vanishes. The search takes every order of steps;
//! homes are alike, so worlds that differ in their names count once. Some steps are joined where that hides nothing:
//!
//! - Gossip is heard at once and `settled` never seems to fall, since an older or lower bound only makes floors later.
//! - A node that is down is one that takes no step. Coming back is the crash.
//! - A session is one step. One that breaks off is a repair message that arrives alone.
//! - A client has read what some home knows when it writes, or nothing.
//! - A bound is at most the greatest time of the events so far: above all events it says no more.
//! - That `settled` is at most every member's mint clock serves progress alone (a fresh write is not refused for being
//!   late), so the model has one mint clock.
//!
//! # What it found in the first plan, and what was changed
//!
//! 1. *A hint that comes late.* A home takes a delete and tells that its dots are durable; all bounds pass it. Its hint
//!    reaches the stand-in only then, so S does not wait for it; then the home loses its disk. The stand-in delivers to
//!    one home when the floor has passed: that home ends the value, purges, and takes it back from another one that
//!    never saw the delete. Changed: `settled` is a fence ([`Rule::LateWritesRefused`]). It makes two rules of that
//!    plan needless: that `mine` waits for the minter's own disk and, for safety, that `settled` takes the least `mine`
//!    of all members (a variant of this model without it holds).
//! 2. *A session with an empty disk.* W=1: home A has the only copy and S passes it. B takes it from A in a session, A
//!    loses its disk, and C has its session with A only then. C notes that it agrees with A, and agreed with B earlier:
//!    the floor passes an event that C lacks. Changed: a session with a home that fills counts for nothing at the other
//!    ([`Rule::FillingAgreesNothing`]). That the floor stands still meanwhile is not enough: A's filling ends, the note
//!    stays.
//! 3. *Two that fill.* A home took its fill from one that has a floor, then from one that fills as well and holds an
//!    old value; it ends with the floor of the first and shows the value. Changed: a floor that was found holds from
//!    then on ([`Rule::FoundFloorHolds`]). And that the floor stands still has a precise sense
//!    ([`Rule::FloorStandsStill`]): what was heard of a home is forgotten when it is met filling.
//! 4. *A disk set back before its first `seen`.* A home that has agreed with one other home only has told no `seen` and
//!    no floor, so neither can be missed when its disk is set back. Changed: each other home compares what it agreed on
//!    with that home ([`Rule::SetBackFills`]); this covers floors and `seen`.
//!
//! # What is not promised
//!
//! [`known_limits`] holds the histories. A *tombstone* that vanishes unnoticed, before its purge and in one home alone,
//! may bring its value back: that a value is lacking is always read as a loss. A delete that nobody was told of, whose
//! only disk was lost, may come back with an old copy of that disk, and end a value at some homes for some time.
//!
//! # What the model cannot show
//!
//! Of the design's table: 5 only as a disk that comes back old, since homes do not change here; 14 (tables of different
//! N in one arc, last write wins), since there is one table of one N; 15 is inherent. Nor sums and leaves, many keys,
//! strays that nobody hands over, or whether floors do rise: it shows that nothing bad happens, not that something good
//! does. The simulator is for those.
//!
//! # Why the search is our own
//!
//! It is 100 lines. The checker `stateright` brings two dozen crates into every `cargo test`, a web server among them
//! that no feature switches off, and merges worlds that differ in names in its depth-first search only, whose histories
//! are not the shortest.
//!
//! `LONG_TESTS=1` adds wider bounds.

#[path = "models/judge.rs"]
mod judge;
#[path = "models/rules.rs"]
mod rules;
#[path = "models/search.rs"]
mod search;
#[path = "models/sessions.rs"]
mod sessions;
#[path = "models/steps.rs"]
mod steps;
#[path = "models/world.rs"]
mod world;

use rules::{Bounds, HINTS, REPAIRS, REPLAYS, Rule, Rules, WRITES};
use search::{Outcome, search};
use steps::Model;

const CALM: Bounds = Bounds::CALM;
const FLAT: Bounds = Bounds::FLAT;
/// One durable answer is enough: the hardest case for what a disk loses.
const ONE: Bounds = Bounds { write_quorum: 1, ..CALM };
const FLAT_ONE: Bounds = Bounds { write_quorum: 1, ..FLAT };
/// The stand-in coordinates as well.
const STAND_IN: Bounds = Bounds { stand_in_mints: true, ..ONE };

/// Some small worlds instead of a large one: what goes wrong in each.
const HOLDS: &[Bounds] = &[
    CALM,
    Bounds { late: WRITES, ..CALM },
    Bounds { late: HINTS, ..CALM },
    Bounds { late: REPAIRS, ..CALM },
    Bounds { late: REPLAYS, ..CALM },
    Bounds { events: 3, ..CALM },
    Bounds { events: 3, late: REPLAYS, ..ONE },
    Bounds { crashes: 1, ..CALM },
    Bounds { crashes: 1, late: REPAIRS, ..FLAT },
    Bounds { crashes: 1, late: HINTS, ..STAND_IN },
    Bounds { crashes: 1, late: REPLAYS, ..STAND_IN },
    Bounds { events: 3, crashes: 1, late: HINTS, ..FLAT_ONE },
    Bounds { losses: 1, ..CALM },
    Bounds { losses: 1, ..STAND_IN },
    Bounds { losses: 1, late: WRITES, ..FLAT },
    Bounds { losses: 1, late: HINTS, ..FLAT },
    Bounds { losses: 1, late: REPAIRS, ..FLAT },
    Bounds { losses: 1, late: REPLAYS, ..FLAT },
    Bounds { events: 3, losses: 1, ..FLAT },
    Bounds { events: 3, losses: 1, ..FLAT_ONE },
    Bounds { losses: 2, ..FLAT },
    Bounds { losses: 2, ..FLAT_ONE },
    Bounds { rots: 1, ..CALM },
    Bounds { rots: 1, late: REPAIRS, ..FLAT },
    Bounds { backups: 1, ..ONE },
    Bounds { backups: 1, late: HINTS, ..FLAT },
    Bounds { backups: 1, late: REPAIRS, ..FLAT },
];

/// With `LONG_TESTS=1`.
const HOLDS_WIDER: &[Bounds] = &[
    Bounds { losses: 1, late: REPAIRS, ..CALM },
    Bounds { losses: 1, late: HINTS, ..CALM },
    Bounds { events: 3, losses: 1, ..ONE },
    Bounds { events: 3, crashes: 1, late: HINTS, ..ONE },
    Bounds { losses: 2, ..ONE },
    Bounds { events: 3, losses: 2, ..FLAT_ONE },
];

const UNSEEN: &str = "an event at or below a floor is not seen by every home";
const SHOWN: &str = "a home shows a value that was superseded there";
const LACKING: &str = "a home lacks an acknowledged value that nothing superseded";
const READ: &str = "a sloppy read shows a value that was superseded";
const RETURNED: &str = "a session brought a purged tombstone back";

/// Each rule, the smallest world in which it is missed, and the claim that breaks first without it.
const NEEDED: &[(Rule, Bounds, &str)] = &[
    (Rule::DeleteHasDot, CALM, READ),
    (Rule::NewIncarnation, Bounds { puts: 0b11, crashes: 1, ..ONE }, LACKING),
    (Rule::NewIncarnation, Bounds { puts: 0b11, ..STAND_IN }, LACKING),
    (Rule::MintClock, Bounds { crashes: 1, ..ONE }, UNSEEN),
    (Rule::SettledHoldsParked, STAND_IN, UNSEEN),
    (Rule::HoldUntilDelivered, Bounds { late: REPLAYS, ..STAND_IN }, UNSEEN),
    (Rule::SettledOfAllMembers, STAND_IN, UNSEEN),
    (Rule::LateWritesRefused, Bounds { crashes: 1, late: HINTS, ..ONE }, UNSEEN),
    (Rule::LateWritesRefused, Bounds { losses: 1, late: HINTS, ..FLAT }, UNSEEN),
    (Rule::EarlierLivesRefused, Bounds { losses: 1, late: REPAIRS, ..FLAT }, SHOWN),
    (Rule::SessionsWaitForWrites, Bounds { crashes: 1, ..FLAT_ONE }, UNSEEN),
    (Rule::SettledReadFirst, CALM, UNSEEN),
    (Rule::CompareClocks, CALM, UNSEEN),
    (Rule::CompareUnderFloor, CALM, RETURNED),
    (Rule::FloorOfAllHomes, FLAT_ONE, UNSEEN),
    (Rule::FloorIsDurable, Bounds { crashes: 1, late: REPLAYS, ..FLAT }, SHOWN),
    (Rule::Door, Bounds { late: REPLAYS, ..FLAT }, SHOWN),
    (Rule::Door, Bounds { late: REPAIRS, ..CALM }, SHOWN),
    (Rule::DoorInReads, Bounds { events: 3, ..CALM }, READ),
    (Rule::AbsenceIsLoss, Bounds { rots: 1, ..FLAT }, LACKING),
    (Rule::AskTheOthers, Bounds { rots: 1, ..FLAT }, LACKING),
    (Rule::LostDiskFills, Bounds { losses: 1, ..FLAT_ONE }, UNSEEN),
    (Rule::SetBackFills, Bounds { backups: 1, ..FLAT_ONE }, UNSEEN),
    (Rule::FillFromAll, Bounds { losses: 1, ..FLAT }, SHOWN),
    (Rule::FillingAgreesNothing, Bounds { losses: 1, ..FLAT_ONE }, UNSEEN),
    (Rule::FloorStandsStill, Bounds { losses: 2, ..FLAT_ONE }, UNSEEN),
    (Rule::FoundFloorHolds, Bounds { losses: 2, ..FLAT_ONE }, SHOWN),
    (Rule::FillingServesNothing, Bounds { losses: 1, ..FLAT_ONE }, UNSEEN),
];

fn model(bounds: Bounds) -> Model {
    Model { rules: Rules::ALL, bounds }
}

/// Searches everything; a history that breaks a claim is found again with every home under its own name, to be read.
fn holds(bounds: Bounds) -> Outcome {
    let outcome = search(&model(bounds), true);
    if let Some((claim, _)) = &outcome.broken {
        let (_, steps) = search(&model(bounds), false).broken.expect("names of homes do not matter");
        panic!("{claim}, with all rules, in {bounds:?}:\n{}", read(&steps));
    }
    outcome
}

fn read(steps: &[steps::Step]) -> String {
    steps.iter().enumerate().map(|(at, step)| format!("{:3}. {step:?}\n", at + 1)).collect()
}

/// With all rules no history within these bounds breaks a claim; and the searches get to where it would show.
#[test]
fn with_all_rules_every_history_keeps_every_claim() {
    let wider = if std::env::var_os("LONG_TESTS").is_some() { HOLDS_WIDER } else { &[] };
    for bounds in HOLDS.iter().chain(wider) {
        let outcome = holds(*bounds);
        println!("{:>9} worlds, {:>6} purges: {bounds:?}", outcome.worlds, outcome.purges);
        assert!(outcome.purges > 0, "nothing was purged in {bounds:?}");
        assert!(outcome.floors_unequal > 0, "no home was behind another in {bounds:?}");
        let fills = bounds.losses + bounds.backups > 0;
        assert_eq!(outcome.fills_ended > 0, fills, "what was to be filled has been, in {bounds:?}");
    }
}

/// Each rule is needed: without it a history breaks a claim, in bounds in which none does with it.
#[test]
fn without_any_one_rule_some_history_breaks_a_claim() {
    for (rule, bounds, claim) in NEEDED {
        holds(*bounds);
        let rules = Rules::ALL.without(*rule);
        let outcome = search(&Model { rules, bounds: *bounds }, true);
        let Some((broken, steps)) = outcome.broken else {
            panic!("nothing goes wrong without {rule:?} in {} worlds of {bounds:?}", outcome.worlds);
        };
        println!("without {rule:?}: {broken}, after {} steps", steps.len());
        assert_eq!(broken, *claim, "without {rule:?}:\n{}", read(&steps));
    }
}

#[test]
fn no_rule_is_left_untested() {
    let mut rules: Vec<u8> = NEEDED.iter().map(|(rule, ..)| *rule as u8).collect();
    rules.dedup();
    let all: Vec<u8> = (0..=Rule::LAST as u8).collect();
    assert_eq!(rules, all, "each rule, in the order of its definition");
}

/// What purge does not promise: these histories break a claim, and the module's text says so. When a better rule ends
/// one of them, it moves to what holds.
#[test]
fn known_limits() {
    for (bounds, claim) in
        [(Bounds { rots: 1, tombstones_rot: true, ..FLAT }, SHOWN), (Bounds { losses: 1, backups: 1, ..FLAT }, SHOWN)]
    {
        let outcome = search(&model(bounds), true);
        let (broken, steps) = outcome.broken.expect("a known limit");
        println!("{broken}, after {} steps, in {bounds:?}", steps.len());
        assert_eq!(broken, claim, "{}", read(&steps));
    }
}
