//! How often each fault has struck.

/// Makes the struct with its names and sum, so that no counter is forgotten.
macro_rules! fault_counts {
    ($($(#[$doc:meta])* $name:ident $of:literal,)*) => {
        /// See the module. Faults of nodes, links and disks count into [`FaultCounts::total`]; single messages and
        /// consequences do not.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct FaultCounts {
            $($(#[$doc])* pub $name: u64,)*
        }
        impl FaultCounts {
            /// Each kind of fault by name.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
            /// Faults of nodes, links and disks.
            pub fn total(&self) -> u64 {
                0 $(+ if $of { self.$name } else { 0 })*
            }
            pub fn add(&mut self, other: &FaultCounts) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

fault_counts! {
    kills true,
    power_losses true,
    /// All nodes at once; each counts as a loss of power as well.
    power_cuts false,
    restarts false,
    /// Restarts with another number of shards.
    reshards true,
    /// Stops in good order.
    stops true,
    /// Stops after the node had told the others.
    drains false,
    pauses true,
    /// Directions of single links.
    links_cut true,
    /// Single links, from core to core, cut alone.
    lone_cuts true,
    cuts_two_way false,
    cuts_one_way false,
    clogs true,
    /// Jumps of wall clocks.
    clock_steps true,
    /// Steps of clocks that led far off.
    clocks_astray false,
    slow_disks true,
    disk_errors true,
    full_disks true,
    /// Disks that answered nothing for a while.
    hung_disks true,
    /// Flipped bits on a medium.
    rotten_pages true,
    misdirected_writes true,
    /// Writes that were said to be done and reached nothing.
    vanished_writes true,
    /// Files that were gone, exchanged, or began with another one's page, at a start.
    removed_files true,
    swapped_files true,
    foreign_pages true,
    /// Disks that came back empty, but for the node's name.
    wiped_disks true,
    /// Disks that came back as they had been some time before.
    restored_backups true,
    /// Older disks of which the node was not told.
    untold_set_backs false,
    /// Hints not kept at the bound, or given up, and marked ranges gone through, by shards that were there at the end.
    hints_dropped false,
    ranges_swept false,
    /// Tables made, altered or dropped while a run lasts.
    table_changes false,
    storage_failures false,
    messages_lost false,
    messages_doubled false,
    messages_held false,
    messages_to_the_dead false,
    /// Starts that were counted and ended before they served.
    false_starts true,
    /// Requests with a context that nobody was given.
    forged_contexts false,
    /// Frames of damaged content or unknown kind.
    strange_frames false,
    /// Frames that waited in the sockets of a stopped process, and those for which there was no room.
    frames_kept false,
    frames_blocked false,
    connections_broken false,
    client_losses false,
    lost_writes false,
    torn_writes false,
    lost_names false,
    planted false,
}
