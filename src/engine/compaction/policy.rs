//! What to compact next: a pure function of the tables' metas and the options.
//!
//! Level 0 is compacted once it has [`level0_tables`](EngineOptions::level0_tables) tables that together are worth a
//! rewrite of level 1 (a quarter of its bytes), or a few times that many in any case: with many slices a core, flushes
//! are small, and merging each few into a large level 1 would write it over and over. A deeper level is compacted when
//! its bytes exceed its bound: of its tables, the one goes down that drags the fewest bytes along for its size, with
//! a discount for delete records. When all levels are within their bounds, tables with many delete records are
//! compacted, so that what they cover does not stay for ever.

use super::set::TableSet;
use crate::{
    engine::{
        disk::Disk,
        table::{Table, TableMeta},
        types::EngineOptions,
    },
    limits::{LEVEL0_PATIENCE, LEVELS, TABLE_DELETES_PERCENT},
};
use std::{cmp::Reverse, rc::Rc};

/// Metas by level; level 0 newest first, the others by key.
pub type Shape<'a> = Vec<Vec<&'a TableMeta>>;

/// The next compaction of a slice.
pub enum Choice<D: Disk> {
    /// Nothing to do.
    Rest,
    /// A table changes its level, its bytes stay: [`run`](super::run) gives the same id in `removed` and in `added`.
    Move {
        table: Rc<Table<D>>,
        to: u8,
    },
    Merge(Merge<D>),
}
/// Tables to be merged into one level.
pub struct Merge<D: Disk> {
    /// Runs of tables that do not overlap within the run, newest run first.
    pub runs: Vec<Vec<Rc<Table<D>>>>,
    pub to: u8,
    /// Tables of deeper levels that overlap, by level: what may hold an older record of a deleted key.
    pub deeper: Vec<Vec<Rc<Table<D>>>>,
    /// Tables set aside that overlap: they may hold an older record too, and nobody can tell.
    pub aside: Vec<TableMeta>,
}
impl<D: Disk> Choice<D> {
    /// The tables that are read.
    pub fn inputs(&self) -> Vec<Rc<Table<D>>> {
        match self {
            Choice::Rest | Choice::Move { .. } => Vec::new(),
            Choice::Merge(merge) => merge.runs.iter().flatten().cloned().collect(),
        }
    }
    /// Bytes of the tables that take part.
    pub fn bytes(&self) -> u64 {
        match self {
            Choice::Rest => 0,
            Choice::Move { table, .. } => table.meta().bytes,
            Choice::Merge(merge) => merge.runs.iter().flatten().map(|table| table.meta().bytes).sum(),
        }
    }
}

/// The same by numbers.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    pub from: u8,
    pub to: u8,
    /// Ids of tables of level `from`; of level 0 the oldest, in the level's order.
    pub upper: Vec<u64>,
    /// Ids of all tables of level `to` that overlap these, in key order. Empty when `to` is `from`.
    pub lower: Vec<u64>,
    pub pressure: f64,
}
impl Plan {
    /// Whether this is a single table that overlaps none below: it moves down without being rewritten.
    pub fn is_move(&self) -> bool {
        self.from != self.to && self.upper.len() == 1 && self.lower.is_empty()
    }
}

/// Chooses the next compaction. The same set and options give the same choice.
pub fn choose<D: Disk>(set: &TableSet<D>, options: &EngineOptions) -> Choice<D> {
    plan_beside(&set.shape(), set.aside(), options).map_or(Choice::Rest, |plan| carry_out(set, &plan, false))
}

/// Chooses a compaction when space is wanted: level 0 goes down, however small it is.
pub fn choose_for_space<D: Disk>(set: &TableSet<D>, options: &EngineOptions) -> Choice<D> {
    let shape = set.shape();
    let waiting = shape.first().is_some_and(|level| !level.is_empty());
    if waiting { carry_out(set, &level0_plan(&shape, options, 1.0), false) } else { Choice::Rest }
}

/// Chooses a compaction that removes dropped records: the oldest table, if it may hold any, is rewritten without them.
/// A table of level 0 goes down with all others there, since its delete records may hide records of theirs.
pub fn choose_for_drops<D: Disk>(set: &TableSet<D>, options: &EngineOptions, below: u64) -> Choice<D> {
    let shape = set.shape();
    let tables = shape.iter().enumerate().flat_map(|(level, tables)| tables.iter().map(move |table| (level, *table)));
    match tables.filter(|(_, table)| table.id < below).min_by_key(|(_, table)| table.id) {
        None => Choice::Rest,
        Some((0, _)) => carry_out(set, &level0_plan(&shape, options, 1.0), true),
        Some((level, table)) => {
            let level = level as u8;
            carry_out(
                set,
                &Plan { from: level, to: level, upper: vec![table.id], lower: Vec::new(), pressure: 1.0 },
                true,
            )
        }
    }
}

/// A table that could move as it is, is written anew if that is wanted.
fn carry_out<D: Disk>(set: &TableSet<D>, plan: &Plan, rewrite: bool) -> Choice<D> {
    let pick = |level: u8, ids: &[u64]| -> Vec<Rc<Table<D>>> {
        let level = set.levels().get(usize::from(level)).into_iter().flatten();
        level.filter(|table| ids.contains(&table.meta().id)).cloned().collect()
    };
    let upper = pick(plan.from, &plan.upper);
    if let [table] = &upper[..]
        && plan.is_move()
        && !rewrite
    {
        return Choice::Move { table: table.clone(), to: plan.to };
    }
    let mut runs: Vec<_> =
        if plan.from == 0 { upper.into_iter().map(|table| vec![table]).collect() } else { vec![upper] };
    let lower = pick(plan.to, &plan.lower);
    if plan.from != plan.to && !lower.is_empty() {
        runs.push(lower);
    }
    let bounds = bounds(runs.iter().flatten().map(|table| table.meta()));
    let overlaps = |table: &&Rc<Table<D>>| bounds.is_some_and(|bounds| touches(table.meta(), bounds));
    let deeper = set.levels().iter().skip(usize::from(plan.to) + 1);
    let deeper = deeper.map(|level| level.iter().filter(overlaps).cloned().collect::<Vec<_>>());
    let deeper = deeper.filter(|level| !level.is_empty()).collect();
    let aside =
        set.aside().iter().filter(|table| bounds.is_some_and(|bounds| touches(table, bounds))).cloned().collect();
    Choice::Merge(Merge { runs, to: plan.to, deeper, aside })
}

/// The most urgent compaction; nothing when every level is within its bound.
pub fn plan(shape: &Shape<'_>, options: &EngineOptions) -> Option<Plan> {
    plan_beside(shape, &[], options)
}

/// The same for a set with tables that are set aside: delete records of their keys stay, so nothing is compacted for
/// the sake of these.
pub fn plan_beside(shape: &Shape<'_>, aside: &[TableMeta], options: &EngineOptions) -> Option<Plan> {
    let level0 = level0_pressure(shape, options);
    let deeper = (1..shape.len().min(LEVELS - 1)).map(|level| {
        let pressure = bytes(&shape[level]) as f64 / level_bytes_max(level, options) as f64;
        (level, pressure)
    });
    // Ties go to the upper level.
    let mut worst = (0, level0);
    for (level, pressure) in deeper {
        if pressure > worst.1 {
            worst = (level, pressure);
        }
    }
    match worst {
        (_, pressure) if pressure < 1.0 => deletes_plan(shape, aside),
        (0, pressure) => Some(level0_plan(shape, options, pressure)),
        (level, pressure) => level_plan(shape, level, pressure),
    }
}

/// Bytes that lie above the bound of their level.
pub fn backlog_bytes(shape: &Shape<'_>, options: &EngineOptions) -> u64 {
    let mut backlog = 0;
    let mut carried = 0;
    if level0_pressure(shape, options) >= 1.0 {
        carried = bytes(&shape[0]);
        backlog = carried;
    }
    for (level, tables) in shape.iter().enumerate().take(LEVELS - 1).skip(1) {
        carried = (bytes(tables) + carried).saturating_sub(level_bytes_max(level, options));
        backlog += carried;
    }
    backlog
}

/// Bytes that a level (1 and deeper) may have before tables of it are moved down.
pub fn level_bytes_max(level: usize, options: &EngineOptions) -> u64 {
    let factor = options.level_factor.max(2) as u64;
    (options.table_bytes.max(1) as u64).saturating_mul(factor.saturating_pow(level as u32))
}

fn bytes(level: &[&TableMeta]) -> u64 {
    level.iter().map(|table| table.bytes).sum()
}

fn level0_pressure(shape: &Shape<'_>, options: &EngineOptions) -> f64 {
    let Some(tables) = shape.first() else { return 0.0 };
    let trigger = options.level0_tables.max(1);
    let worthwhile = shape.get(1).is_none_or(|level1| bytes(tables) >= bytes(level1) / 4);
    if tables.len() >= trigger * LEVEL0_PATIENCE || (tables.len() >= trigger && worthwhile) {
        tables.len() as f64 / trigger as f64
    } else {
        0.0
    }
}

/// The oldest tables of level 0, so that what stays behind is newer than what goes down.
fn level0_plan(shape: &Shape<'_>, options: &EngineOptions, pressure: f64) -> Plan {
    let most = options.level0_tables.max(1) * LEVEL0_PATIENCE;
    let tables = &shape[0];
    into_next(shape, 0, &tables[tables.len().saturating_sub(most)..], pressure)
}

fn level_plan(shape: &Shape<'_>, level: usize, pressure: f64) -> Option<Plan> {
    let cost = |table: &TableMeta| {
        let dragged: u64 = overlapping(shape, level + 1, table).iter().map(|other| other.bytes).sum();
        // A table of nothing but delete records counts five times its size.
        let worth = table.bytes + 4 * table.bytes * table.deletes / table.entries.max(1);
        u128::from(dragged) * 1024 / u128::from(worth.max(1))
    };
    let table = shape[level].iter().min_by_key(|table| (cost(table), table.id))?;
    Some(into_next(shape, level, &[*table], pressure))
}

/// The table with the largest share of delete records, if that is large: down one level, or rewritten where it is when
/// nothing lies below (all its delete records go then).
fn deletes_plan(shape: &Shape<'_>, aside: &[TableMeta]) -> Option<Plan> {
    let stay = |table: &TableMeta| aside.iter().any(|lost| touches(lost, (&table.smallest, &table.largest)));
    let many = |table: &&TableMeta| {
        table.deletes * 100 >= table.entries * TABLE_DELETES_PERCENT && table.deletes > 0 && !stay(table)
    };
    let tables = (1..shape.len()).flat_map(|level| shape[level].iter().copied().filter(many).map(move |t| (level, t)));
    let share = |table: &TableMeta| u128::from(table.deletes) * 1024 / u128::from(table.entries.max(1));
    let (level, table) = tables.max_by_key(|(level, table)| (share(table), Reverse(*level), Reverse(table.id)))?;
    let below = (level + 1..shape.len()).any(|deeper| !overlapping(shape, deeper, table).is_empty());
    if below {
        return Some(into_next(shape, level, &[table], 1.0));
    }
    let level = level as u8;
    Some(Plan { from: level, to: level, upper: vec![table.id], lower: Vec::new(), pressure: 1.0 })
}

fn into_next(shape: &Shape<'_>, from: usize, upper: &[&TableMeta], pressure: f64) -> Plan {
    let lower = bounds(upper.iter().copied()).map_or_else(Vec::new, |bounds| {
        let next = shape.get(from + 1).into_iter().flatten();
        next.filter(|table| touches(table, bounds)).map(|table| table.id).collect()
    });
    let upper = upper.iter().map(|table| table.id).collect();
    Plan { from: from as u8, to: from as u8 + 1, upper, lower, pressure }
}

/// Smallest and largest key of all.
fn bounds<'a>(mut tables: impl Iterator<Item = &'a TableMeta>) -> Option<(&'a [u8], &'a [u8])> {
    let first = tables.next()?;
    Some(tables.fold((&first.smallest[..], &first.largest[..]), |(smallest, largest), table| {
        (smallest.min(&table.smallest), largest.max(&table.largest))
    }))
}
fn touches(table: &TableMeta, (smallest, largest): (&[u8], &[u8])) -> bool {
    &table.smallest[..] <= largest && smallest <= &table.largest[..]
}
/// The tables of a level (1 and deeper: by key) that overlap with a table.
fn overlapping<'s, 'a>(shape: &'s Shape<'a>, level: usize, table: &TableMeta) -> &'s [&'a TableMeta] {
    let tables = shape.get(level).map_or(&[][..], |tables| &tables[..]);
    let begin = tables.partition_point(|other| other.largest < table.smallest);
    let end = tables.partition_point(|other| other.smallest <= table.largest);
    tables.get(begin..end).unwrap_or_default()
}
