//! What was let pass because a fault explains it: each excuse by name, and how often it was made.
//!
//! An excuse in a judge is a hole that a defect may fall through. So each is as narrow as its fault, is counted, and is
//! shown with the faults of a run.

/// Makes the struct with its names, so that no counter is forgotten.
macro_rules! excuses {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// See the module.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Excuses {
            $($(#[$doc])* pub $name: u64,)*
        }
        impl Excuses {
            /// Each excuse by name.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
            pub fn add(&mut self, other: &Excuses) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

excuses! {
    /// A node ended by itself: its disk had failed a call in this life, or its medium had lost what it held.
    failed_disks,
    /// A request was answered with damage: a medium rots, or disks fail.
    damaged_answers,
    /// A request was refused for what was in hand: the plan has made bounds small.
    refused_at_small_bounds,
    /// A request got no answer: its node ended, was stopped or stood still after it had arrived.
    silent_in_disturbance,
    /// A write failed since its stamp did not do at one node, while another was in trouble: that one may have kept it
    /// too long, or its clock is wrong.
    stamps_that_did_not_do,
    /// A write failed since a replica had its successor before it: a client had read it and written after it.
    overtaken_writes,
    /// The medium's node made a message that cannot be sent.
    unsendable_from_rot,
    /// A copy was left out of a comparison: the medium has lost it.
    copies_lost_to_rot,
    /// Marked ranges and hints that wait for what the medium has lost.
    owed_and_lost_to_rot,
    /// Replicas that stay unequal though all were read, while a slice may have lost records: what it has counts for
    /// nothing, so that a read need not wait for it.
    unequal_in_doubt,
    /// A node that had started and did not serve, since too few others could tell it of their tables.
    starts_unheard,
    /// Values that came back because their write was sent twice and its trace was forgotten.
    revived_retries,
    /// Values shown beside one whose writer had seen them under the other dot of their write, which was sent twice: the
    /// replicas that hold the two have not met.
    second_names,
    /// Reads and losses that are not held to overlapping quorums: a disk may forget.
    reads_without_overlap,
    /// A write that was read and never acknowledged is gone: a disk may forget.
    unacknowledged_and_lost,
    /// A write may have been removed by a delete without a context that was still under way.
    losses_to_blind_deletes,
    /// Writes, where the last one wins, with a stamp that their clients were not told.
    untold_stamps,
    /// There: an earlier write has won over a later one, within what clocks and deadlines may differ by.
    winners_within_skew,
}
