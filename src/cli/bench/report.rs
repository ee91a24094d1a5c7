//! What a run came to: verdict, table, JSON, lines per second.

use super::{
    environment::{CacheBytes, CpuTime, Environment, LogCounts},
    latency::{Percentiles, Tally, longest_gap},
    plan::{Pace, Plan},
    session::{Mark, Outcome},
    workload::{Kind, Mix},
};
use crate::limits::INLINE_VALUE_BYTES;
use comfy_table::{CellAlignment, Table, presets};
use std::{collections::BTreeMap, fmt::Write as _, io::Write};

/// Under this share of the scheduled operations a run says nothing.
const ACHIEVED_MIN: f64 = 0.99;
/// Seconds before and after a mark that are held against each other.
const AROUND_MARK: usize = 10;

#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    pub target: String,
    pub loop_kind: &'static str,
    pub mix: Mix,
    pub keys: u64,
    pub value_bytes: usize,
    pub connections: usize,
    pub in_flight: usize,
    /// Requests went to cores that do not own their keys, on purpose.
    pub any_node: bool,
    pub threads: usize,
    pub measured_seconds: f64,
    /// Wished operations a second (open loop).
    pub rate: Option<f64>,
    pub operations_per_second: f64,
    pub mb_per_second: f64,
    /// Answered well over scheduled, in the measured window (open loop).
    pub achieved: Option<f64>,
    pub valid: bool,
    /// Why not.
    pub objections: Vec<String>,
    pub kinds: Vec<KindReport>,
    pub all: Percentiles,
    /// The time from sending to the answer: it hides what waited before it was sent.
    pub service: Percentiles,
    pub counts: Counts,
    /// The longest time without an operation answered well, in whole milliseconds of the measured window, and when it
    /// began.
    pub longest_gap_ms: u64,
    pub longest_gap_at_seconds: f64,
    pub generator: Generator,
    pub durability: Option<Durability>,
    /// What reads, those of updates among them, may have found in memory.
    pub caches: Option<Caches>,
    pub machine: Machine,
    pub marks: Vec<Marked>,
    pub environment: Environment,
}
#[derive(Clone, Debug, serde::Serialize)]
pub struct KindReport {
    pub kind: Kind,
    pub operations: u64,
    pub operations_per_second: f64,
    pub mb_per_second: f64,
    pub latency: Percentiles,
}
#[derive(Clone, Debug, serde::Serialize)]
pub struct Counts {
    pub scheduled: u64,
    pub done: u64,
    pub missing: u64,
    pub siblings: u64,
    pub damaged: u64,
    pub retried: u64,
    pub failed: BTreeMap<String, u64>,
}
/// Whether the generator was the limit.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Generator {
    /// The time from an operation's schedule to its being handed to a connection.
    pub lateness: Percentiles,
    /// Share of its threads' time with nothing to do.
    pub idle: f64,
    /// CPU time an operation, warm-up included.
    pub cpu_us_per_operation: f64,
}
/// What the nodes counted over the run, warm-up included.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Durability {
    pub nodes: usize,
    pub syncs: u64,
    pub durable_writes: u64,
    pub writes_per_sync: f64,
    pub syncs_per_second: f64,
}
/// The memory for what is read, of all nodes together, beside what all keys would need.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct Caches {
    pub nodes: usize,
    /// Short values lie in table blocks, beside their keys.
    pub of_blocks: bool,
    pub bytes: u64,
    /// The greatest share of the keys whose values can be there.
    pub keys_share: f64,
}
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Machine {
    pub steal: f64,
    pub idle: f64,
}

/// What a command in the middle of the run changed.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Marked {
    #[serde(flatten)]
    pub mark: Mark,
    /// The 99th percentile of what ended in the seconds before it, and from its second on.
    pub before_p99_us: f64,
    pub after_p99_us: f64,
    pub failed_after: u64,
}
impl Marked {
    fn of(mark: &Mark, seconds: &[Tally]) -> Marked {
        let at = (mark.at_seconds as usize).min(seconds.len());
        let of = |window: &[Tally]| {
            let mut all = Tally::default();
            window.iter().for_each(|second| all.add(second));
            (Percentiles::of(&all.latency()).p99_us, all.failures())
        };
        let (before_p99_us, _) = of(&seconds[at.saturating_sub(AROUND_MARK)..at]);
        let (after_p99_us, failed_after) = of(&seconds[at..(at + AROUND_MARK).min(seconds.len())]);
        Marked { mark: mark.clone(), before_p99_us, after_p99_us, failed_after }
    }
    fn text(&self) -> String {
        let Marked { mark, before_p99_us: before, after_p99_us: after, failed_after } = self;
        let times = if *before > 0.0 { after / before } else { 0.0 };
        let around =
            format!("p99 {} in {AROUND_MARK} s before, {} in {AROUND_MARK} s after", time(*before), time(*after));
        let Mark { at_seconds, command, result } = mark;
        format!("{at_seconds:.1} s: {command} ({result}): {around}: {times:.1} x; {failed_after} failed")
    }
}

/// What was read before and after a run.
pub struct Surroundings {
    pub target: String,
    pub any_node: bool,
    pub environment: Environment,
    pub cpu: (CpuTime, CpuTime),
    /// What the nodes' logs grew by, and how many nodes that is.
    pub log: (LogCounts, usize),
    /// What the nodes' caches may take, and how many nodes say so.
    pub caches: (CacheBytes, usize),
    pub wall_seconds: f64,
}

impl Report {
    pub fn new(plan: &Plan, outcome: &Outcome, around: &Surroundings) -> Report {
        let total = &outcome.total;
        let seconds = outcome.measured_seconds;
        let rate = match plan.pace {
            Pace::Open { rate, .. } => Some(rate),
            Pace::Closed { .. } => None,
        };
        let achieved = rate.map(|_| total.done as f64 / total.scheduled.max(1) as f64);
        let objections = objections(plan, outcome, achieved);
        let window = plan.warmup.as_secs_f64().ceil() as usize..(plan.warmup + plan.measure).as_secs_f64() as usize;
        let within = outcome.seconds.iter().take(window.end).skip(window.start);
        let (longest_gap_ms, gap_begins_ms) = longest_gap(within);
        let (steal, idle) = around.cpu.1.shares_since(around.cpu.0);
        Report {
            target: around.target.clone(),
            loop_kind: match rate {
                Some(_) => "open loop, latency from the scheduled start",
                None => "closed loop, service time",
            },
            mix: plan.mix,
            keys: plan.keys,
            value_bytes: plan.value_bytes,
            connections: plan.connections,
            in_flight: plan.in_flight,
            any_node: around.any_node,
            threads: plan.threads,
            measured_seconds: seconds,
            rate,
            operations_per_second: total.done as f64 / seconds,
            mb_per_second: total.bytes() as f64 / 1e6 / seconds,
            achieved,
            valid: objections.is_empty(),
            objections,
            kinds: Kind::ALL.into_iter().filter_map(|kind| KindReport::of(kind, total, seconds)).collect(),
            all: Percentiles::of(&total.latency()),
            service: Percentiles::of(&outcome.service),
            counts: Counts {
                scheduled: total.scheduled,
                done: total.done,
                missing: total.missing,
                siblings: total.siblings,
                damaged: total.damaged,
                retried: total.retried,
                failed: total.failed.clone(),
            },
            longest_gap_ms,
            longest_gap_at_seconds: window.start as f64 + gap_begins_ms as f64 / 1e3,
            generator: Generator {
                lateness: Percentiles::of(&outcome.lateness),
                idle: total.idle_ns as f64 / 1e9 / outcome.wall_seconds.max(1e-9) / plan.threads as f64,
                cpu_us_per_operation: outcome.cpu_seconds * 1e6 / total.ended.max(1) as f64,
            },
            durability: Durability::of(around.log, around.wall_seconds),
            caches: if plan.load { None } else { Caches::of(around.caches, plan.keys, plan.value_bytes) },
            machine: Machine { steal, idle },
            marks: outcome.marks.iter().map(|mark| Marked::of(mark, &outcome.seconds)).collect(),
            environment: around.environment.clone(),
        }
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.write_text(&mut out).map_or_else(|e| e.to_string(), |()| out)
    }
    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let e = &self.environment;
        let astray = if self.any_node { ", to the wrong core on purpose" } else { "" };
        writeln!(
            out,
            "target       {}   {} connections x {} in flight{astray}",
            self.target, self.connections, self.in_flight
        )?;
        write!(out, "load         {}, {} keys, {} B values", self.loop_kind, self.keys, self.value_bytes)?;
        match self.rate {
            Some(rate) => {
                writeln!(out, ", {rate:.0}/s wished, {:.2} % achieved", self.achieved.unwrap_or(0.0) * 100.0)?
            }
            None => writeln!(out)?,
        }
        writeln!(out, "{}", self.table())?;
        if self.rate.is_some() {
            let s = self.service;
            writeln!(
                out,
                "from sending p50 {} p99 {} p99.9 {} (what a closed loop would see)",
                time(s.p50_us),
                time(s.p99_us),
                time(s.p999_us)
            )?;
            let g = self.generator.lateness;
            write!(out, "generator    late p50 {} p99 {} max {}, ", time(g.p50_us), time(g.p99_us), time(g.max_us))?;
        } else {
            write!(out, "generator    ")?;
        }
        let g = &self.generator;
        writeln!(out, "idle {:.0} %, {:.2} us of CPU an operation", g.idle * 100.0, g.cpu_us_per_operation)?;
        let c = &self.counts;
        write!(out, "counts       {} missing, {} with siblings, {} retried", c.missing, c.siblings, c.retried)?;
        writeln!(out, ", {} damaged, failed: {:?}", c.damaged, c.failed)?;
        let (gap, at) = (self.longest_gap_ms, self.longest_gap_at_seconds);
        writeln!(out, "longest gap  {gap} ms without an answer, at {at:.1} s")?;
        match self.durability {
            Some(d) => writeln!(
                out,
                "durability   {} durable writes in {} syncs on {} nodes: {:.1} writes a sync, {:.0} syncs/s",
                d.durable_writes, d.syncs, d.nodes, d.writes_per_sync, d.syncs_per_second
            )?,
            None => writeln!(out, "durability   not verified (no GET /v1/node)")?,
        }
        if let Some(c) = self.caches {
            let (kind, percent) = (if c.of_blocks { "blocks" } else { "values" }, c.keys_share * 100.0);
            let mib = c.bytes as f64 / 1_048_576.0;
            writeln!(
                out,
                "caches       {mib:.0} MiB for {kind} on {} nodes: at most {percent:.0} % of the keys",
                c.nodes
            )?;
        }
        let debug = if e.debug_build { ", DEBUG BUILD" } else { "" };
        writeln!(
            out,
            "version      {} {}{debug}, kernel {}",
            e.version,
            e.commit.unwrap_or("(commit unknown)"),
            e.kernel
        )?;
        let m = self.machine;
        writeln!(
            out,
            "machine      {} x {}, load {}, idle {:.0} %, steal {:.1} %",
            e.cpus,
            e.cpu,
            e.load_average,
            m.idle * 100.0,
            m.steal * 100.0
        )?;
        if let Some(file_system) = &e.file_system {
            writeln!(out, "data on      {file_system}")?;
        }
        for mark in &self.marks {
            writeln!(out, "mark         {}", mark.text())?;
        }
        for objection in &self.objections {
            writeln!(out, "INVALID      {objection}")?;
        }
        Ok(())
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["", "operations", "ops/s", "MB/s", "p50", "p90", "p99", "p99.9", "max"]);
        for k in &self.kinds {
            let p = k.latency;
            table.add_row([
                k.kind.name().to_owned(),
                k.operations.to_string(),
                format!("{:.0}", k.operations_per_second),
                format!("{:.1}", k.mb_per_second),
                time(p.p50_us),
                time(p.p90_us),
                time(p.p99_us),
                time(p.p999_us),
                time(p.max_us),
            ]);
        }
        table.column_iter_mut().skip(1).for_each(|c| c.set_cell_alignment(CellAlignment::Right));
        table
    }
}

impl KindReport {
    fn of(kind: Kind, total: &Tally, seconds: f64) -> Option<KindReport> {
        let tally = total.kind(kind)?;
        Some(KindReport {
            kind,
            operations: tally.done,
            operations_per_second: tally.done as f64 / seconds,
            mb_per_second: tally.bytes as f64 / 1e6 / seconds,
            latency: Percentiles::of(&tally.latency),
        })
    }
}

impl Durability {
    fn of((log, nodes): (LogCounts, usize), seconds: f64) -> Option<Durability> {
        (nodes > 0).then(|| Durability {
            nodes,
            syncs: log.syncs,
            durable_writes: log.durable_writes,
            writes_per_sync: log.durable_writes as f64 / log.syncs.max(1) as f64,
            syncs_per_second: log.syncs as f64 / seconds,
        })
    }
}

/// What a cached value, or a record in a block, takes beside its bytes, about.
const CACHED_BESIDE_BYTES: u64 = 128;

impl Caches {
    fn of((caches, nodes): (CacheBytes, usize), keys: u64, value_bytes: usize) -> Option<Caches> {
        let of_blocks = value_bytes < INLINE_VALUE_BYTES;
        let bytes = if of_blocks { caches.block_cache_bytes } else { caches.value_cache_bytes };
        let needed = keys as f64 * (value_bytes as u64 + CACHED_BESIDE_BYTES) as f64;
        (nodes > 0).then(|| Caches { nodes, of_blocks, bytes, keys_share: (bytes as f64 / needed).min(1.0) })
    }
}

/// Everything that makes a run not count.
/// Share of gets that may find nothing in a run that measures gets.
const MISSING_MAX: f64 = 0.01;

fn objections(plan: &Plan, outcome: &Outcome, achieved: Option<f64>) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(share) = achieved.filter(|a| *a < ACHIEVED_MIN) {
        found.push(format!("{:.2} % of the rate achieved: the latencies are those of a growing queue", share * 100.0));
    }
    if outcome.overflowed {
        found.push("the generator stopped: too many operations without an answer".into());
    }
    if outcome.total.damaged > 0 {
        found.push(format!("{} values are not what was written", outcome.total.damaged));
    }
    if outcome.total.done == 0 {
        found.push("no operation succeeded".into());
    }
    let gets = outcome.total.kind(Kind::Get).map_or(0, |get| get.done);
    if outcome.total.missing as f64 > gets as f64 * MISSING_MAX {
        let missing = outcome.total.missing;
        found.push(format!(
            "{missing} of {gets} gets found nothing: write the keys first with --load, and the same --keys"
        ));
    }
    if let Some(seconds) = outcome.interrupted {
        found.push(format!("interrupted after {seconds:.1} s: what was measured until then"));
    }
    if plan.load && outcome.total.failures() > 0 {
        found.push(format!("{} keys were not loaded", outcome.total.failures()));
    }
    found.extend(outcome.fatal.iter().map(|f| format!("a thread of the generator stopped: {f}")));
    found
}

/// A time with three digits and its unit.
pub fn time(us: f64) -> String {
    let (number, unit) = match us {
        us if us < 1e3 => (us, "us"),
        us if us < 1e6 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    let digits = if number < 10.0 { 2 } else { usize::from(number < 100.0) };
    format!("{number:.digits$} {unit}")
}

/// A line for each second and kind.
pub fn write_csv(out: &mut impl Write, seconds: &[Tally], warmup: f64, marks: &[Mark]) -> std::io::Result<()> {
    writeln!(out, "second,phase,kind,operations,mb,p50_us,p90_us,p99_us,p999_us,max_us,failed,retried,mark")?;
    for (second, tally) in seconds.iter().enumerate() {
        let phase = if (second as f64) < warmup { "warmup" } else { "measured" };
        let of_second = |m: &&Mark| m.at_seconds as usize == second;
        let mark: Vec<&str> = marks.iter().filter(of_second).map(|m| m.command.as_str()).collect();
        let mark = mark.join("; ").replace(['"', '\n'], "'");
        for kind in Kind::ALL {
            let Some(k) = tally.kind(kind) else { continue };
            let p = Percentiles::of(&k.latency);
            write!(out, "{second},{phase},{},{},{:.3},", kind.name(), k.done, k.bytes as f64 / 1e6)?;
            write!(out, "{:.1},{:.1},{:.1},{:.1},{:.1},", p.p50_us, p.p90_us, p.p99_us, p.p999_us, p.max_us)?;
            writeln!(out, "{},{},\"{mark}\"", tally.failures(), tally.retried)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        assert_eq!(
            [time(1.234), time(45.67), time(999.4), time(1_500.0), time(2_345_678.0)],
            ["1.23 us", "45.7 us", "999 us", "1.50 ms", "2.35 s"]
        );
    }
    #[test]
    fn what_the_caches_hold_follows_from_their_size_and_that_of_the_keys() {
        let caches = CacheBytes { value_cache_bytes: 192 << 20, block_cache_bytes: 96 << 20 };
        let long = Caches::of((caches, 3), 100_000, 10_240).expect("known");
        assert!(!long.of_blocks && (long.keys_share - 0.194).abs() < 0.001, "{long:?}");
        let short = Caches::of((caches, 3), 100_000, 100).expect("known");
        assert!(short.of_blocks && short.keys_share == 1.0, "{short:?}");
        assert_eq!(Caches::of((caches, 0), 100_000, 100), None, "nobody said");
    }
    #[test]
    fn a_mark_tells_what_it_changed() {
        let second = |us: u64| {
            let mut tally = Tally::default();
            tally.kind_mut(Kind::Get).latency.saturating_record(us * 1_000);
            tally
        };
        let seconds: Vec<Tally> = (0..40).map(|s| second(if s == 25 { 9_000 } else { 1_000 + s })).collect();
        let mark = Mark { at_seconds: 20.5, command: "kill".into(), result: "exit 0".into() };
        let marked = Marked::of(&mark, &seconds);
        assert!((marked.before_p99_us - 1_019.0).abs() < 2.0, "{marked:?}");
        assert!((marked.after_p99_us - 9_000.0).abs() < 10.0, "{marked:?}");
        assert!(marked.text().ends_with("8.8 x; 0 failed"), "{}", marked.text());
        let late = Marked::of(&Mark { at_seconds: 99.0, ..mark }, &seconds);
        assert_eq!((late.after_p99_us, late.failed_after), (0.0, 0));
    }
    #[test]
    fn csv_has_a_line_for_each_second_and_kind() {
        let mut tally = Tally::default();
        tally.kind_mut(Kind::Get).latency.saturating_record(1_000_000);
        tally.kind_mut(Kind::Put).latency.saturating_record(2_000_000);
        let marks = [Mark { at_seconds: 1.2, command: "kill \"x\"".into(), result: "exit 0".into() }];
        let mut out = Vec::new();
        write_csv(&mut out, &[tally.clone(), tally], 1.0, &marks).unwrap();
        let lines: Vec<&str> = std::str::from_utf8(&out).unwrap().lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[1].starts_with("0,warmup,get,0,0.000,10") && lines[1].ends_with(",0,0,\"\""), "{}", lines[1]);
        assert!(lines[4].starts_with("1,measured,put,") && lines[4].ends_with("\"kill 'x'\""), "{}", lines[4]);
    }
}
