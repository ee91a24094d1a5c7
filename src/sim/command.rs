//! `dynarc simulate`: one seed with its trace, or many seeds with a summary.

use super::{
    counts::FaultCounts,
    coverage::Coverage,
    excuses::Excuses,
    plan::Plan,
    planted::Planted,
    run::{Report, run},
    trace::Sink,
};
use serde_json::{Map, Value as Json, json};
use std::{
    io::{self, Write},
    time::Duration,
};

/// What the command line asks for.
pub struct CommandOptions {
    /// The first seed.
    pub seed: u64,
    /// How many seeds, one after the other.
    pub count: u64,
    /// Virtual minutes of the faulty phase of each run.
    pub minutes: f64,
    pub json: bool,
    /// Prints every event. For one seed.
    pub trace: bool,
    /// Plants a defect outside of production code, to show that it is noticed.
    pub planted: Option<Planted>,
    /// Real time since some start, for the figures; the simulator itself reads no clock.
    pub elapsed: Box<dyn Fn() -> Duration>,
}

/// Virtual minutes of the faulty phase, unless asked otherwise.
pub const MINUTES: f64 = 0.75;

impl CommandOptions {
    pub fn seeds(&self) -> impl Iterator<Item = u64> + use<> {
        self.seed..self.seed.saturating_add(self.count)
    }
    /// The plan of one seed.
    pub fn plan(&self, seed: u64) -> Plan {
        self.planner()(seed)
    }
    /// What makes the plan of each seed, for other threads.
    pub fn planner(&self) -> impl Fn(u64) -> Plan + Send + Sync + use<> {
        let duration = Duration::from_secs_f64(self.minutes.clamp(0.01, 100_000.0) * 60.0);
        let planted = self.planted;
        move |seed| {
            let plan = Plan::draw(seed, duration);
            match planted {
                Some(planted) => plan.plant(planted),
                None => plan,
            }
        }
    }
    /// The command that repeats one run.
    fn again(&self, seed: u64) -> String {
        let mut words = format!("dynarc simulate {seed}");
        if self.minutes != MINUTES {
            words += &format!(" --minutes {}", self.minutes);
        }
        if let Some(planted) = self.planted {
            words += &format!(" --plant {}", planted.name());
        }
        words
    }
}

/// Runs what is asked for, one seed after the other, and prints it. False when any promise was broken.
pub fn command(options: &CommandOptions, out: &mut dyn Write) -> io::Result<bool> {
    if options.count <= 1 {
        return one(options, out);
    }
    let mut reports = options.seeds().map(|seed| run(options.plan(seed), None));
    many(options, &mut reports, out, &mut io::sink())
}

fn one(options: &CommandOptions, out: &mut dyn Write) -> io::Result<bool> {
    let plan = options.plan(options.seed);
    if options.trace {
        writeln!(out, "{plan:#?}")?;
    }
    // Lines go straight out: a run that hangs or panics shows how far it came.
    let sink: Option<Sink> = options.trace.then(|| {
        Box::new(|line: &str| {
            // A closed pipe ends the printing, not the run.
            let _ = writeln!(io::stdout(), "{line}");
        }) as Sink
    });
    let start = (options.elapsed)();
    let report = run(plan.clone(), sink);
    let took = (options.elapsed)().saturating_sub(start);
    if options.json {
        writeln!(out, "{}", json_of(&report, took))?;
        return Ok(report.ok());
    }
    writeln!(
        out,
        "seed {}: {} nodes of {:?} shards, n={} r={} w={}, {} clients, {} keys",
        report.seed, plan.nodes, plan.shards, plan.n, plan.r, plan.w, plan.workload.clients, plan.workload.keys
    )?;
    writeln!(
        out,
        "{} operations, {} writes ({} acknowledged, {} not applied, {} unknown), {} values read",
        report.clients.operations,
        report.writes,
        report.outcomes[0],
        report.outcomes[1],
        report.outcomes[2],
        report.values_read
    )?;
    writeln!(out, "{} events in {:.1} s of virtual time", report.events, report.virtual_time.as_secs_f64())?;
    print_faults(out, &report.faults)?;
    print_excuses(out, &report.excuses)?;
    writeln!(out, "trace hash {:016x}", report.hash)?;
    print_speed(out, report.clients.operations, took)?;
    print_violations(options, out, &report)?;
    Ok(report.ok())
}

/// Time between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Adds up the reports of many seeds, in whatever order they come. Lines of progress go to `progress`.
pub fn many(
    options: &CommandOptions,
    reports: &mut dyn Iterator<Item = Report>,
    out: &mut dyn Write,
    progress: &mut dyn Write,
) -> io::Result<bool> {
    let start = (options.elapsed)();
    let (mut summary, mut said) = (Summary::default(), start);
    for report in reports {
        if !report.ok() && !options.json {
            print_violations(options, out, &report)?;
        }
        summary.add(&report);
        let now = (options.elapsed)();
        if now.saturating_sub(said) >= PROGRESS_EVERY {
            said = now;
            let took = now.saturating_sub(start);
            writeln!(
                progress,
                "{} of {} seeds, {} operations, {} faults, {} broken, {:.0} operations/s",
                summary.seeds,
                options.count,
                summary.operations,
                summary.faults.total(),
                summary.broken.len(),
                per_second(summary.operations, took)
            )?;
        }
    }
    let took = (options.elapsed)().saturating_sub(start);
    if options.json {
        writeln!(out, "{}", summary.to_json(took))?;
        return Ok(summary.broken.is_empty());
    }
    writeln!(
        out,
        "{} seeds, {} operations, {} acknowledged writes, {} values read, {:.0} s of virtual time",
        summary.seeds,
        summary.operations,
        summary.acknowledged,
        summary.values_read,
        summary.virtual_time.as_secs_f64()
    )?;
    print_faults(out, &summary.faults)?;
    summary.coverage.print(out)?;
    print_excuses(out, &summary.excuses)?;
    writeln!(out, "{} keys that only reads made equal", summary.unequal_before_reads)?;
    print_speed(out, summary.operations, took)?;
    writeln!(out, "{} seeds with violations {:?}", summary.broken.len(), summary.broken)?;
    Ok(summary.broken.is_empty())
}

/// What many runs came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub seeds: u64,
    pub operations: u64,
    pub acknowledged: u64,
    pub values_read: u64,
    pub excuses: Excuses,
    pub unequal_before_reads: u64,
    pub faults: FaultCounts,
    pub coverage: Coverage,
    pub virtual_time: Duration,
    pub heal_time_max: Duration,
    /// Seeds of runs that broke a promise.
    pub broken: Vec<u64>,
}
impl Summary {
    pub fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.operations += report.clients.operations;
        self.acknowledged += report.outcomes[0] as u64;
        self.values_read += report.values_read;
        self.excuses.add(&report.excuses);
        self.unequal_before_reads += report.unequal_before_reads as u64;
        self.faults.add(&report.faults);
        self.coverage.add(&report.coverage);
        self.virtual_time += report.virtual_time;
        self.heal_time_max = self.heal_time_max.max(report.heal_time);
        if !report.ok() {
            self.broken.push(report.seed);
        }
    }
    fn to_json(&self, took: Duration) -> Json {
        json!({
            "seeds": self.seeds,
            "operations": self.operations,
            "acknowledged_writes": self.acknowledged,
            "values_read": self.values_read,
            "excuses": named_json(&self.excuses.named()),
            "unequal_before_reads": self.unequal_before_reads,
            "faults": named_json(&self.faults.named()),
            "virtual_seconds": self.virtual_time.as_secs_f64(),
            "heal_seconds_max": self.heal_time_max.as_secs_f64(),
            "seconds": took.as_secs_f64(),
            "operations_per_second": per_second(self.operations, took),
            "violations": self.broken,
        })
    }
}

fn per_second(operations: u64, took: Duration) -> f64 {
    if took.is_zero() { 0.0 } else { operations as f64 / took.as_secs_f64() }
}
fn named_json(named: &[(&str, u64)]) -> Json {
    Json::Object(named.iter().map(|(name, count)| (name.to_string(), json!(count))).collect::<Map<_, _>>())
}
fn json_of(report: &Report, took: Duration) -> Json {
    json!({
        "seed": report.seed,
        "trace_hash": format!("{:016x}", report.hash),
        "events": report.events,
        "operations": report.clients.operations,
        "acknowledged_writes": report.outcomes[0],
        "not_applied_writes": report.outcomes[1],
        "unknown_writes": report.outcomes[2],
        "values_read": report.values_read,
        "excuses": named_json(&report.excuses.named()),
        "unequal_before_reads": report.unequal_before_reads,
        "faults": named_json(&report.faults.named()),
        "virtual_seconds": report.virtual_time.as_secs_f64(),
        "heal_seconds": report.heal_time.as_secs_f64(),
        "seconds": took.as_secs_f64(),
        "operations_per_second": per_second(report.clients.operations, took),
        "violations": report.violations.iter().map(|v| v.to_string()).collect::<Vec<_>>(),
    })
}

fn print_faults(out: &mut dyn Write, faults: &FaultCounts) -> io::Result<()> {
    let struck: Vec<String> =
        faults.named().iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {n}")).collect();
    writeln!(
        out,
        "{} faults: {}",
        faults.total(),
        if struck.is_empty() { "none".to_string() } else { struck.join(", ") }
    )
}
fn print_excuses(out: &mut dyn Write, excuses: &Excuses) -> io::Result<()> {
    let made: Vec<String> =
        excuses.named().iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {n}")).collect();
    writeln!(out, "excused: {}", if made.is_empty() { "nothing".to_string() } else { made.join(", ") })
}
fn print_speed(out: &mut dyn Write, operations: u64, took: Duration) -> io::Result<()> {
    writeln!(out, "{:.1} s, {:.0} operations/s", took.as_secs_f64(), per_second(operations, took))
}
fn print_violations(options: &CommandOptions, out: &mut dyn Write, report: &Report) -> io::Result<()> {
    for violation in &report.violations {
        writeln!(out, "seed {}: VIOLATION of {violation}", report.seed)?;
    }
    if !report.ok() {
        writeln!(out, "repeat it with: {}", options.again(report.seed))?;
        writeln!(out, "and see every event with: {} --trace", options.again(report.seed))?;
    }
    Ok(())
}
