//! What happens to the cluster, in the log of each node that it concerns: a member that is suspected, down or back,
//! hints that begin to gather and are drained, tables that are made, altered or dropped, requests that find too few
//! replicas, a disk that hangs.
//!
//! Each is said once when it happens. A core looks once a second, so what begins and ends within one is not told.

use crate::{
    limits::REPLICA_LATE,
    types::{Instant, MemberView, NodeId, TableName, TableSettings},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

/// Requests that failed for want of replicas are told of at most so often; and so long without one means that it is
/// over.
const FAILURES_TOLD_EVERY: Duration = Duration::from_secs(10);

/// A disk that has answered for so long is well again: under load one that hangs now and then does so often.
const STALL_OVER: Duration = Duration::from_secs(10);
/// The time between two lines that say that the disk hangs.
const STALL_TOLD_EVERY: Duration = Duration::from_secs(60);

/// What a core knows now.
pub struct Sight {
    /// The other members; empty on cores that do not watch them.
    pub members: Vec<(NodeId, IpAddr, MemberView)>,
    /// Members that are stopping, or have stopped since they said so.
    pub parting: Vec<NodeId>,
    /// The tables; empty on cores that do not tell of them.
    pub tables: BTreeMap<TableName, TableSettings>,
    /// Tables that two nodes have made, neither knowing of the other.
    pub made_apart: BTreeSet<TableName>,
    pub hints_pending: u64,
    /// Requests that failed since the start because too few replicas answered.
    pub failures: u64,
    /// Whether the core's disk answers no writes now, and how often that has been so since the start.
    pub stalled: bool,
    pub stalls: u64,
}

/// One thing that has happened.
#[derive(Clone, PartialEq, Debug)]
pub enum News {
    Member {
        node: NodeId,
        ip: IpAddr,
        was: Option<MemberView>,
        is: MemberView,
        lasted: Duration,
    },
    MemberParting {
        node: NodeId,
    },
    /// A member that had said that it would stop does not answer any more.
    MemberStopped {
        node: NodeId,
        ip: IpAddr,
    },
    HintsBegun {
        pending: u64,
    },
    HintsDrained,
    TableMade {
        name: TableName,
        settings: TableSettings,
    },
    TableAltered {
        name: TableName,
        settings: TableSettings,
    },
    TableDropped {
        name: TableName,
    },
    TableMadeApart {
        name: TableName,
    },
    QuorumLost {
        failures: u64,
    },
    QuorumRegained,
    DiskStalled {
        times: u64,
    },
    DiskAnswers {
        lasted: Duration,
        times: u64,
    },
}

/// What was last told.
#[derive(Default)]
pub struct Tidings {
    members: BTreeMap<NodeId, (MemberView, Instant)>,
    parting: Vec<NodeId>,
    tables: Option<BTreeMap<TableName, TableSettings>>,
    made_apart: BTreeSet<TableName>,
    hints: bool,
    /// Failures seen, and of those the ones that have been told of.
    failures: u64,
    failures_told: u64,
    /// When the latest failure was seen, while requests fail.
    failing: Option<Instant>,
    /// When failures were last told of.
    told: Option<Instant>,
    /// Stalls of the disk that have been seen.
    stalls: u64,
    stalling: Option<Stalling>,
    /// When a stall was last told of.
    stall_told: Option<Instant>,
}

/// A disk that hangs, or does so again and again.
struct Stalling {
    since: Instant,
    /// When it was last seen to hang.
    latest: Instant,
    times: u64,
    told: bool,
}

impl Tidings {
    /// Takes in what a core knows now and gives what has changed since the last look.
    pub fn look(&mut self, now: Instant, sight: Sight) -> Vec<News> {
        let mut news = Vec::new();
        for (node, ip, is) in sight.members {
            match self.members.get(&node) {
                Some((was, _)) if *was == is => {}
                known => {
                    let was = known.map(|(was, _)| *was);
                    let lasted = known.map_or(Duration::ZERO, |(_, since)| now.since(*since));
                    let stopped = sight.parting.contains(&node) && matches!(is, MemberView::Suspect);
                    news.push(match stopped {
                        true => News::MemberStopped { node, ip },
                        false => News::Member { node, ip, was, is, lasted },
                    });
                    self.members.insert(node, (is, now));
                }
            }
        }
        let parting = sight.parting.iter().filter(|node| !self.parting.contains(node));
        news.extend(parting.map(|node| News::MemberParting { node: *node }));
        self.parting = sight.parting;
        self.tables_are(sight.tables, &mut news);
        let apart = sight.made_apart.difference(&self.made_apart);
        news.extend(apart.map(|name| News::TableMadeApart { name: name.clone() }));
        self.made_apart = sight.made_apart;
        let hints = sight.hints_pending > 0;
        if hints != self.hints {
            self.hints = hints;
            news.push(if hints { News::HintsBegun { pending: sight.hints_pending } } else { News::HintsDrained });
        }
        self.failures_are(now, sight.failures, &mut news);
        self.stalls_are(now, sight.stalled, sight.stalls, &mut news);
        news
    }
    fn stalls_are(&mut self, now: Instant, stalled: bool, stalls: u64, news: &mut Vec<News>) {
        let times = stalls - std::mem::replace(&mut self.stalls, stalls);
        if stalled || times > 0 {
            let begun = || Stalling { since: now, latest: now, times: 0, told: false };
            let stalling = self.stalling.get_or_insert_with(begun);
            (stalling.latest, stalling.times) = (now, stalling.times + times);
        }
        let Some(stalling) = &mut self.stalling else { return };
        if !stalling.told && self.stall_told.is_none_or(|told| now.since(told) >= STALL_TOLD_EVERY) {
            (stalling.told, self.stall_told) = (true, Some(now));
            news.push(News::DiskStalled { times: stalling.times });
        }
        if !stalled && now.since(stalling.latest) >= STALL_OVER {
            if stalling.told {
                news.push(News::DiskAnswers { lasted: stalling.latest.since(stalling.since), times: stalling.times });
            }
            self.stalling = None;
        }
    }
    /// The tables of a node that has just started are no news.
    fn tables_are(&mut self, tables: BTreeMap<TableName, TableSettings>, news: &mut Vec<News>) {
        if let Some(known) = &self.tables {
            for (name, settings) in &tables {
                let (name, settings) = (name.clone(), *settings);
                match known.get(&name) {
                    None => news.push(News::TableMade { name, settings }),
                    Some(before) if *before != settings => news.push(News::TableAltered { name, settings }),
                    Some(_) => {}
                }
            }
            let gone = known.keys().filter(|name| !tables.contains_key(*name));
            news.extend(gone.map(|name| News::TableDropped { name: name.clone() }));
        }
        self.tables = Some(tables);
    }
    fn failures_are(&mut self, now: Instant, failures: u64, news: &mut Vec<News>) {
        if failures > self.failures {
            self.failures = failures;
            self.failing = Some(now);
        }
        let Some(last) = self.failing else { return };
        if now.since(last) >= FAILURES_TOLD_EVERY {
            self.failing = None;
            self.failures_told = failures;
            news.push(News::QuorumRegained);
        } else if failures > self.failures_told && self.told.is_none_or(|told| now.since(told) >= FAILURES_TOLD_EVERY) {
            news.push(News::QuorumLost { failures: failures - self.failures_told });
            (self.told, self.failures_told) = (Some(now), failures);
        }
    }
}

impl News {
    /// Writes it to the log of the process.
    pub fn tell(&self, shard: u16) {
        use MemberView::{Down, Suspect, Up};
        match self {
            News::Member { node, ip, is: is @ (Suspect | Down), .. } => {
                tracing::warn!(%node, %ip, state = is.name(), "a member does not answer and is routed around");
            }
            News::Member { node, ip, is, was: None, .. } => tracing::info!(%node, %ip, state = is.name(), "a member"),
            News::Member { node, ip, is: Up, was: Some(was), lasted } => {
                let seconds = lasted.as_secs();
                tracing::info!(%node, %ip, was = was.name(), seconds, "a member is up again");
            }
            News::Member { node, ip, is, .. } => tracing::info!(%node, %ip, state = is.name(), "a member has changed"),
            News::MemberParting { node } => tracing::info!(%node, "a member is stopping: others are asked first"),
            News::MemberStopped { node, ip } => tracing::info!(%node, %ip, "a member has stopped, as it had said"),
            News::HintsBegun { pending } => tracing::info!(shard, pending, "keeping writes for members that are away"),
            News::HintsDrained => tracing::info!(shard, "all writes kept for other members are delivered"),
            News::TableMade { name, settings } => tracing::info!(table = %name, ?settings, "a table is made"),
            News::TableAltered { name, settings } => tracing::info!(table = %name, ?settings, "a table is altered"),
            News::TableDropped { name } => tracing::info!(table = %name, "a table is dropped"),
            News::TableMadeApart { name } => {
                tracing::warn!(table = %name, "two nodes have made this table, neither knowing of the other; `table list` says what is in force");
            }
            News::QuorumLost { failures } => tracing::warn!(shard, failures, "requests fail: too few replicas answer"),
            News::QuorumRegained => tracing::info!(shard, "requests find enough replicas again"),
            News::DiskStalled { times } => {
                tracing::warn!(
                    shard,
                    times,
                    "the disk answers no writes for more than {REPLICA_LATE:?}; other replicas take them meanwhile"
                );
            }
            News::DiskAnswers { lasted, times } => {
                tracing::info!(shard, times, within = ?lasted, "the disk answers writes again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Conflict, Durability};

    const B: NodeId = NodeId(2);

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }
    fn sight(view: MemberView, failures: u64, hints_pending: u64) -> Sight {
        let ip = IpAddr::from([127, 0, 0, 2]);
        Sight {
            members: vec![(B, ip, view)],
            parting: Vec::new(),
            tables: BTreeMap::new(),
            made_apart: BTreeSet::new(),
            hints_pending,
            failures,
            stalled: false,
            stalls: 0,
        }
    }
    fn states(news: &[News]) -> Vec<&'static str> {
        let name = |news: &News| match news {
            News::Member { is, .. } => is.name(),
            News::MemberParting { .. } => "parting",
            News::MemberStopped { .. } => "stopped",
            News::HintsBegun { .. } => "begun",
            News::HintsDrained => "drained",
            News::TableMade { .. } => "made",
            News::TableMadeApart { .. } => "made apart",
            News::TableAltered { .. } => "altered",
            News::TableDropped { .. } => "dropped",
            News::QuorumLost { .. } => "lost",
            News::QuorumRegained => "regained",
            News::DiskStalled { .. } => "stalled",
            News::DiskAnswers { .. } => "answers",
        };
        news.iter().map(name).collect()
    }

    #[test]
    fn each_thing_is_told_once() {
        let mut tidings = Tidings::default();
        assert_eq!(states(&tidings.look(at(0), sight(MemberView::Up, 0, 0))), ["up"]);
        assert!(tidings.look(at(1), sight(MemberView::Up, 0, 0)).is_empty());
        assert_eq!(states(&tidings.look(at(2), sight(MemberView::Suspect, 0, 3))), ["suspect", "begun"]);
        assert!(tidings.look(at(3), sight(MemberView::Suspect, 0, 400)).is_empty());
        assert_eq!(states(&tidings.look(at(4), sight(MemberView::Down, 0, 9))), ["down"]);
        let back = tidings.look(at(64), sight(MemberView::Up, 0, 0));
        assert_eq!(states(&back), ["up", "drained"]);
        assert!(matches!(back[0], News::Member { lasted, .. } if lasted == Duration::from_secs(60)));
    }

    #[test]
    fn who_stops_in_order_is_no_alarm_until_it_is_away_for_long() {
        let mut tidings = Tidings::default();
        let mut look = |second: u64, view: MemberView, parting: &[NodeId]| {
            states(&tidings.look(at(second), Sight { parting: parting.to_vec(), ..sight(view, 0, 0) }))
        };
        assert_eq!(look(0, MemberView::Up, &[]), ["up"]);
        assert_eq!(look(1, MemberView::Up, &[B]), ["parting"]);
        assert!(look(2, MemberView::Up, &[B]).is_empty());
        assert_eq!(look(3, MemberView::Suspect, &[B]), ["stopped"]);
        assert_eq!(look(40, MemberView::Down, &[B]), ["down"]);
        assert_eq!(look(50, MemberView::Up, &[]), ["up"]);
        assert_eq!(look(60, MemberView::Suspect, &[]), ["suspect"]);
    }

    #[test]
    fn failures_are_told_at_a_bounded_rate_and_so_is_their_end() {
        let mut tidings = Tidings::default();
        let mut told = Vec::new();
        for second in 0..25 {
            told.extend(tidings.look(at(second), sight(MemberView::Up, second * 100, 0)));
        }
        assert_eq!(states(&told), ["up", "lost", "lost", "lost"]);
        assert!(tidings.look(at(26), sight(MemberView::Up, 2_400, 0)).is_empty(), "not over yet");
        assert_eq!(states(&tidings.look(at(40), sight(MemberView::Up, 2_400, 0))), ["regained"]);
        assert!(tidings.look(at(60), sight(MemberView::Up, 2_400, 0)).is_empty());
    }

    #[test]
    fn tables_are_compared_with_those_of_the_last_look() {
        let settings = |n| TableSettings {
            n,
            r: 1,
            w: 1,
            conflict: Conflict::Siblings,
            sloppy: true,
            durability: Durability::Sync,
        };
        let name = |text: &str| text.parse::<TableName>().expect("a name");
        let mut tidings = Tidings::default();
        let mut look = |tables: &[(&str, u8)]| {
            let tables = tables.iter().map(|(table, n)| (name(table), settings(*n))).collect();
            states(&tidings.look(at(1), Sight { members: Vec::new(), tables, ..sight(MemberView::Up, 0, 0) }))
        };
        assert!(look(&[("default", 3), ("a", 3)]).is_empty(), "known before the start");
        assert_eq!(look(&[("default", 3), ("a", 2), ("b", 3)]), ["altered", "made"]);
        assert_eq!(look(&[("default", 3), ("b", 3)]), ["dropped"]);
    }

    #[test]
    fn a_disk_that_hangs_now_and_then_is_told_of_once_and_so_is_its_end() {
        let mut tidings = Tidings::default();
        let mut look = |second: u64, stalled: bool, stalls: u64| {
            tidings.look(at(second), Sight { members: Vec::new(), stalled, stalls, ..sight(MemberView::Up, 0, 0) })
        };
        let mut told = Vec::new();
        // Under load it hangs for a moment in every second.
        for second in 1..=30 {
            told.extend(look(second, second % 2 == 0, second * 2));
        }
        assert_eq!(told, [News::DiskStalled { times: 2 }]);
        assert!(look(39, false, 60).is_empty());
        assert_eq!(look(40, false, 60), [News::DiskAnswers { lasted: Duration::from_secs(29), times: 60 }]);
        assert!(look(45, false, 61).is_empty() && look(56, false, 61).is_empty(), "not again within the minute");
        assert_eq!(look(70, true, 62), [News::DiskStalled { times: 1 }]);
        assert!(look(200, true, 62).is_empty() && look(201, false, 62).is_empty());
        assert_eq!(look(211, false, 62), [News::DiskAnswers { lasted: Duration::from_secs(130), times: 1 }]);
        // One that lasts is told of as soon as that may be.
        assert_eq!(states(&look(220, true, 63)), ["stalled"]);
        assert_eq!(states(&look(231, false, 63)), ["answers"]);
        assert!(look(240, true, 64).is_empty() && look(279, true, 64).is_empty());
        assert_eq!(states(&look(280, true, 64)), ["stalled"]);
    }
}
