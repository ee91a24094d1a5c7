//! Whoever makes, alters and drops the tables of a run, under all its faults.
//!
//! One task a table changes it now and then, by way of any node; now and then two nodes make it apart, of two kinds.
//! After each change it looks until all nodes that serve, most of all there are and those among them that were asked,
//! go by the same word, and tells the history: what is written from then on until the next change belongs for certain
//! to the table, or to the table `default` ([`super::checker::lives`]).

use super::{
    checker::{Invariant, lives::Settled},
    cluster::Cluster,
    executor::Life,
    plan::NodeSet,
    prng::Prng,
    sockets::Ask,
    workload::Workload,
};
use crate::types::{Conflict, TableChange, TableChangeKind, TableEntry, TableName, TableWish};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

/// Longer than a node may take to answer a change.
const TIMEOUT: Duration = Duration::from_secs(6);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Looks after a change before the next one comes in any case.
const LOOKS_MAX: usize = 60;
/// After a pause a node takes what has waited for it.
const CALM: Duration = Duration::from_secs(1);

/// See the module.
pub struct Operator {
    cluster: Rc<Cluster>,
    workload: Rc<Workload>,
    stop: Cell<bool>,
    active: Cell<usize>,
    names: Vec<TableName>,
    /// Whether the last change of each table is known everywhere.
    settled: RefCell<Vec<bool>>,
    /// The nodes that were asked to change each table since it was settled: one that is away may bring a change that
    /// nobody else has heard of, answered or not.
    asked: RefCell<Vec<NodeSet>>,
}

/// The name of a run's table.
pub fn name_of(index: usize) -> TableName {
    match format!("t{index}").parse() {
        Ok(name) => name,
        Err(_) => unreachable!("a letter and digits are a name"),
    }
}

impl Operator {
    pub fn start(cluster: &Rc<Cluster>, workload: &Rc<Workload>) -> Rc<Operator> {
        let count = cluster.plan.tables.count;
        let operator = Rc::new(Operator {
            cluster: cluster.clone(),
            workload: workload.clone(),
            stop: Cell::new(false),
            active: Cell::new(count),
            names: (0..count).map(name_of).collect(),
            settled: RefCell::new(vec![true; count]),
            asked: RefCell::new(vec![NodeSet::default(); count]),
        });
        let mut prng = Prng::stream(cluster.plan.seed, "operator");
        for table in 0..count {
            let (operator, prng) = (operator.clone(), prng.fork());
            cluster.executor.spawn(Life::OUTSIDE, async move {
                operator.change_again_and_again(table, prng).await;
                operator.active.set(operator.active.get() - 1);
            });
        }
        operator
    }
    pub fn stop(&self) {
        self.stop.set(true);
    }
    /// All changes have come to their end, and are known everywhere.
    pub fn ended(&self) -> bool {
        let known = |table: usize| {
            let settled = self.settled.borrow()[table];
            settled || self.look(table)
        };
        self.active.get() == 0 && (0..self.names.len()).all(known)
    }

    async fn change_again_and_again(self: &Rc<Self>, table: usize, mut prng: Prng) {
        loop {
            self.cluster.executor.sleep(prng.exponential(self.cluster.plan.tables.change_every)).await;
            if self.stop.get() {
                return;
            }
            self.settled.borrow_mut()[table] = false;
            self.workload.history.borrow_mut().table_changes(table);
            self.change(table, &mut prng).await;
            for _ in 0..LOOKS_MAX {
                self.cluster.executor.sleep(LOOK_EVERY).await;
                if self.look(table) || self.stop.get() {
                    break;
                }
            }
        }
    }
    async fn change(self: &Rc<Self>, table: usize, prng: &mut Prng) {
        let name = &self.names[table];
        let exists = self.cluster.handles().iter().any(|handle| handle.tables().get(name.as_str()).is_some());
        let wish = |conflict| TableWish { conflict, ..TableWish::default() };
        let kinds = [Conflict::Siblings, Conflict::LastWriteWins];
        let kind = *prng.pick(&kinds).unwrap_or(&kinds[0]);
        let choice = prng.below(4);
        let (first, second) = match (exists, choice) {
            (true, 0 | 1) => (TableChangeKind::Drop, None),
            (true, 2) => (TableChangeKind::Drop, Some(TableChangeKind::Make(wish(Some(kind))))),
            // Nothing but a newer word.
            (true, _) => (TableChangeKind::Set(wish(None)), None),
            (false, 0) => {
                (TableChangeKind::Make(wish(Some(kinds[0]))), Some(TableChangeKind::Make(wish(Some(kinds[1])))))
            }
            (false, _) => (TableChangeKind::Make(wish(Some(kind))), None),
        };
        let apart = !exists && second.is_some();
        let mut asked = self.ask(table, first, prng);
        if !apart {
            asked.await;
            if let Some(second) = second {
                self.ask(table, second, prng).await;
            }
        } else if let Some(second) = second {
            let other = self.ask(table, second, prng);
            futures_util::future::join(&mut asked, other).await;
        }
    }
    fn ask(self: &Rc<Self>, table: usize, kind: TableChangeKind, prng: &mut Prng) -> Asked {
        let (cluster, name) = (self.cluster.clone(), self.names[table].clone());
        let node = prng.index(cluster.node_count());
        self.asked.borrow_mut()[table].add(node);
        let shard = prng.below(u64::from(cluster.shard_count(node))) as u16;
        cluster.count(|c| c.table_changes += 1);
        Box::pin(async move {
            let change = TableChange { name, kind };
            cluster.call_with(node, shard, Ask::Change(change), TIMEOUT).await;
        })
    }

    /// Looks whether all that serve go by one word; tells the history if so.
    fn look(&self, table: usize) -> bool {
        let Some(settled) = self.agreed(table) else { return false };
        if !std::mem::replace(&mut self.settled.borrow_mut()[table], true) {
            self.asked.borrow_mut()[table] = NodeSet::default();
            self.cluster.note(60, table as u64, || format!("{} is settled: {settled:?}", self.names[table]));
            self.workload.history.borrow_mut().table_settled(table, settled);
        }
        true
    }
    fn agreed(&self, table: usize) -> Option<Settled> {
        let (cluster, now) = (&self.cluster, self.cluster.executor.now());
        let mut word: Option<Option<TableEntry>> = None;
        let mut serving = NodeSet::default();
        for node in (0..cluster.node_count()).filter(|node| cluster.listening(*node)) {
            if cluster.paused(node) || now.since(cluster.disturbed(node)) < CALM {
                return None;
            }
            let shards = (0..cluster.shard_count(node)).map(|shard| cluster.handle(node, shard));
            let handles = shards.collect::<Option<Vec<_>>>()?;
            if !handles.iter().all(|handle| handle.ready()) {
                continue;
            }
            serving.add(node);
            // A node that is made not to hear is what the history is to notice.
            for handle in handles.iter().filter(|_| !cluster.is_deaf(node)) {
                let entry = handle.tables().entry(self.names[table].as_str()).cloned();
                if word.as_ref().is_some_and(|word| *word != entry) {
                    return None;
                }
                word = Some(entry);
            }
        }
        if serving.len() * 2 <= cluster.node_count() || !self.asked.borrow()[table].iter().all(|n| serving.contains(n))
        {
            return None;
        }
        let entry = word?;
        let conflict = entry.as_ref().and_then(TableEntry::in_force).map(|settings| settings.conflict);
        Some(Settled { dropped: entry.map_or(0, |entry| entry.dropped), conflict })
    }
    /// What keeps the tables from being settled after healing.
    pub fn complain(&self) {
        for name in &self.names {
            let words: Vec<String> = self
                .cluster
                .handles()
                .iter()
                .map(|h| {
                    format!("{:?} {:?}", h.tables().certainty(), h.tables().entry(name.as_str()).map(|e| e.word()))
                })
                .collect();
            self.cluster.note(61, 0, || words.join("; "));
        }
        self.cluster.violate(Invariant::Converge, "the nodes do not come to one word on a table");
    }
}

type Asked = std::pin::Pin<Box<dyn Future<Output = ()>>>;
