//! The rules of purge, each with a name, so that each can be left out; and the bounds of a search.
//!
//! Where a rule says more than "do this", `steps.rs` shows where it applies. In brackets: the number of the
//! counterexample in the table of the design of repair.

/// What must hold for a tombstone to go. With all of them in force the claims of `judge.rs` hold in every history
/// within the bounds; without any one of them some history breaks a claim.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Rule {
    /// A delete that changes anything mints a dot of its own, so that clocks tell who has seen the delete. (9)
    DeleteHasDot,
    /// A node that starts again mints under a new incarnation, and so does one that dropped a record which is not dead.
    /// Otherwise a later dot of the same actor seems to have seen the lost ones, and ends values that nobody replaced.
    NewIncarnation,
    /// The mint clock never goes back, and never below a bound that was told: no floor is above a dot to come. (7, 12)
    MintClock,
    /// The stand-in tells no greater `settled` while it holds anything: what it holds came when this was the greatest
    /// that it had told. (1)
    SettledHoldsParked,
    /// What is parked counts as held until its owner's copy is durable, not only until it was sent. (2)
    HoldUntilDelivered,
    /// S is the least `settled` of all members: of those that are no homes too. (1)
    SettledOfAllMembers,
    /// `settled` is a fence: who told it refuses every write and hint whose own dot is at or below it, and does not
    /// answer for it. So each event is at its home, or held by who parks it, before S reaches it. (11)
    LateWritesRefused,
    /// Who has met a later life of a node refuses the messages of its earlier ones.
    EarlierLivesRefused,
    /// A session does not end while one of its homes has a write in hand that is not durable.
    SessionsWaitForWrites,
    /// A session counts for the S that was read before it began, not for the one read when it was over. (8)
    SettledReadFirst,
    /// A session compares clocks, not the siblings alone: a home without a delete has none either.
    CompareClocks,
    /// Clocks at or below the floor are not compared, so that a home that has purged and one that has not are equal and
    /// the tombstone is not brought back for ever. (6)
    CompareUnderFloor,
    /// The floor is the least `seen` of all homes: not of the own sessions alone. (8)
    FloorOfAllHomes,
    /// The floor is durable before anything is purged by it.
    FloorIsDurable,
    /// The door. Values at or below the floor that the own copy lacks are dead, if they come from no home or from one
    /// with a lower floor. A hint is stored without them; any other message that has some is refused. (3)
    Door,
    /// The door stands in sloppy reads too, before what a stand-in answers. (10)
    DoorInReads,
    /// Under equal floors a value that one home lacks was lost there: it is taken back, not deleted. (13)
    AbsenceIsLoss,
    /// Under unequal floors a value that the home with the higher one lacks is dead only if no third home holds it.
    /// (13)
    AskTheOthers,
    /// A home whose disk was lost is filling. It refuses all but writes and sessions, and has no own floor.
    LostDiskFills,
    /// A home whose disk is an old copy is filling likewise, and is told so by any home that has agreed with it on more
    /// than it remembers. (4, and 5: an old owner that comes back with its old disk)
    SetBackFills,
    /// Filling ends after whole sessions with all other homes, not after the first.
    FillFromAll,
    /// A session with a home that fills does not count as agreed for the other home.
    FillingAgreesNothing,
    /// A home that has met another one filling forgets the `seen` that it had heard of it, until that one has filled.
    FloorStandsStill,
    /// A home that fills judges by the greatest floor found so far, from the first whole session on.
    FoundFloorHolds,
    /// A home that fills answers no reads.
    FillingServesNothing,
}

impl Rule {
    pub const LAST: Rule = Rule::FillingServesNothing;
}

/// The rules in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules(u32);
impl Rules {
    pub const ALL: Rules = Rules(u32::MAX);
    pub fn without(self, rule: Rule) -> Rules {
        Rules(self.0 & !(1 << rule as u8))
    }
    pub fn has(self, rule: Rule) -> bool {
        self.0 >> rule as u8 & 1 == 1
    }
}

/// Kinds of messages that may wait for any time before they arrive, as a mask.
pub const WRITES: u8 = 1;
pub const HINTS: u8 = 2;
pub const REPAIRS: u8 = 4;
pub const REPLAYS: u8 = 8;

/// How much may happen in one search.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Number of events, at most 3; and the set of those that are puts. The others are deletes.
    pub events: usize,
    pub puts: u8,
    /// Durable answers after which a client is told that its write is stored.
    pub write_quorum: u8,
    /// The greatest counter of a dot, at most 3. Dots of different nodes may have the same one.
    pub time_max: u8,
    /// The stand-in coordinates writes too.
    pub stand_in_mints: bool,
    /// One message of these kinds may wait for any time.
    pub late: u8,
    pub crashes: u8,
    pub losses: u8,
    /// Records that vanish from a disk unnoticed: those with values, and tombstones too if that is set.
    pub rots: u8,
    pub tombstones_rot: bool,
    /// Copies of a disk, each of which may take the disk's place once.
    pub backups: u8,
}

impl Bounds {
    /// A put and a delete that two durable answers acknowledge; nothing goes wrong.
    pub const CALM: Bounds = Bounds {
        events: 2,
        puts: 0b101,
        write_quorum: 2,
        time_max: 2,
        stand_in_mints: false,
        late: 0,
        crashes: 0,
        losses: 0,
        rots: 0,
        tombstones_rot: false,
        backups: 0,
    };
    /// The same with dots that all have the same time: an event is below the floor when any is.
    pub const FLAT: Bounds = Bounds { time_max: 1, ..Bounds::CALM };
}
