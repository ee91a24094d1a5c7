//! What a call of `dynarc bench` does: one run, or several that are compared.

use super::{
    BenchError, compare,
    dialect::{NativeServer, RedisServer, Service},
    drive::{End, Told, Worker},
    echo::{Echo, Stall},
    environment::{self, CpuTime, Environment},
    interrupt,
    latency::{Percentiles, Tally, histogram, merge},
    plan::{BenchArgs, Fault, Plan, parse_sweep},
    report::{self, Report, Surroundings, time},
    target::{Fleet, Protocol, Target},
    values::ValuePool,
};
use crate::cli::output;
use hdrhistogram::Histogram;
use std::{
    io::IsTerminal,
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

/// What a run's threads saw, merged.
pub struct Outcome {
    pub total: Tally,
    /// What happened in each second since the start, warm-up included.
    pub seconds: Vec<Tally>,
    pub service: Histogram<u64>,
    pub lateness: Histogram<u64>,
    pub measured_seconds: f64,
    pub wall_seconds: f64,
    pub cpu_seconds: f64,
    pub overflowed: bool,
    /// Seconds after which Ctrl-C ended the run.
    pub interrupted: Option<f64>,
    pub fatal: Vec<String>,
    pub marks: Vec<Mark>,
}
/// A command that was run in the middle.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Mark {
    pub at_seconds: f64,
    pub command: String,
    pub result: String,
}

/// True when everything that was run is valid.
pub fn run(args: &BenchArgs) -> Result<bool, BenchError> {
    environment::check_data(args.data.as_deref())?;
    interrupt::listen()?;
    let plan = args.plan()?;
    if args.stall_test {
        return stall_test(args, plan);
    }
    if args.null {
        let (echo, target) = start_echo(args, &plan, None)?;
        let report = measure(args, plan, &target)?;
        drop(echo);
        print(args, &report)?;
        return Ok(report.valid);
    }
    if let Some(names) = &args.compare {
        let targets = [Target::parse(&names[0], args.protocol)?, Target::parse(&names[1], args.protocol)?];
        return compare_targets(args, &plan, &targets);
    }
    let target = Target::parse(&args.target, args.protocol)?;
    if let Some(text) = &args.sweep {
        return sweep(args, &plan, &target, &parse_sweep(text)?);
    }
    let report = measure(args, plan, &target)?;
    print(args, &report)?;
    Ok(report.valid)
}

/// The echo that speaks what was asked for; pinned to the CPU named after those of the generator's threads.
fn start_echo(args: &BenchArgs, plan: &Plan, stall: Option<Stall>) -> Result<(Echo, Target), BenchError> {
    let (protocol, service) = match args.protocol {
        Protocol::Dynarc => (Protocol::Dynarc, Service::Native(NativeServer::forgetful(plan.value_bytes))),
        Protocol::Redis => (Protocol::Redis, Service::Redis(RedisServer::forgetful(plan.value_bytes))),
        Protocol::Http => return Err(BenchError::Usage("the echo speaks dynarc and redis".into())),
    };
    let pin = plan.pin.get(plan.threads).copied();
    let echo = Echo::start(service, stall, pin).map_err(|e| BenchError::Io("echo", e))?;
    let target = Target { protocol, seeds: vec![echo.address] };
    Ok((echo, target))
}

fn print(args: &BenchArgs, report: &Report) -> Result<(), BenchError> {
    if args.json { print_json(report) } else { print_text(report.text()) }
}
fn print_text(text: String) -> Result<(), BenchError> {
    output::print(text).map_err(|stop| BenchError::Failed(stop.line))
}
fn print_json(value: &impl serde::Serialize) -> Result<(), BenchError> {
    output::print_json(value).map_err(|stop| BenchError::Failed(stop.line))
}

/// One run with its surroundings read before and after it.
fn measure(args: &BenchArgs, mut plan: Plan, target: &Target) -> Result<Report, BenchError> {
    let fleet = Arc::new(Fleet::discover(target, args.any_node)?);
    let echo = args.null || args.stall_test;
    let writes = plan.load || plan.mix.writes();
    plan.learn = !echo && target.protocol.has_contexts() && writes && fleet.may_hold_keys(&plan)?;
    let nodes: Vec<SocketAddr> = match args.http_port {
        0 => vec![],
        _ if echo => vec![],
        port => fleet.http_addresses(port),
    };
    let environment = Environment::read(args.data.as_deref());
    let (cpu, log, started) = (CpuTime::read(), environment::log_counts(&nodes), Instant::now());
    let outcome = execute(fleet.clone(), &plan)?;
    let wall_seconds = started.elapsed().as_secs_f64();
    let around = Surroundings {
        target: fleet.name(),
        any_node: args.any_node,
        environment,
        cpu: (cpu, CpuTime::read()),
        log: environment::log_growth(&log, &environment::log_counts(&nodes)),
        caches: environment::cache_bytes(&nodes),
        wall_seconds,
    };
    if let Some(path) = &args.csv {
        let file = std::fs::File::create(path).map_err(|e| BenchError::Io("--csv", e))?;
        let mut out = std::io::BufWriter::new(file);
        report::write_csv(&mut out, &outcome.seconds, plan.warmup.as_secs_f64(), &outcome.marks)
            .and_then(|()| std::io::Write::flush(&mut out))
            .map_err(|e| BenchError::Io("--csv", e))?;
    }
    Ok(Report::new(&plan, &outcome, &around))
}

/// Runs the plan's threads to their end.
pub fn execute(fleet: Arc<Fleet>, plan: &Plan) -> Result<Outcome, BenchError> {
    let (plan, pool) = (Arc::new(plan.clone()), Arc::new(ValuePool::new(plan.value_bytes)));
    let (told, telling) = mpsc::channel();
    let mut workers = Vec::new();
    for thread in 0..plan.threads {
        let worker = Worker::connect(fleet.clone(), plan.clone(), pool.clone(), thread, told.clone());
        workers.push(worker.map_err(|e| BenchError::Unreachable(fleet.name(), e))?);
    }
    drop(told);
    let start = Instant::now() + Duration::from_millis(10);
    let mut threads = Vec::new();
    for (index, worker) in workers.into_iter().enumerate() {
        let pin = plan.pin.get(index).copied();
        let named = std::thread::Builder::new().name(format!("bench-{index}"));
        let thread = named.spawn(move || {
            if let Some(cpu) = pin
                && !core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
            {
                output::tell(format!("dynarc bench: cannot pin to CPU {cpu}"));
            }
            worker.run(start);
        });
        threads.push(thread.map_err(|e| BenchError::Io("thread", e))?);
    }
    let (marked, marks) = mpsc::channel();
    for fault in plan.faults.clone() {
        let marked = marked.clone();
        std::thread::spawn(move || marked.send(strike(&fault, start)));
    }
    let mut outcome = listen(&plan, &telling, start);
    for thread in threads {
        if thread.join().is_err() {
            outcome.fatal.push("it panicked".into());
        }
    }
    outcome.marks = marks.try_iter().collect();
    Ok(outcome)
}

/// Waits for a fault's time and runs its command.
fn strike(fault: &Fault, start: Instant) -> Mark {
    std::thread::sleep((start + fault.at).saturating_duration_since(Instant::now()));
    let at_seconds = start.elapsed().as_secs_f64();
    let result = match std::process::Command::new("sh").args(["-c", &fault.command]).status() {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    Mark { at_seconds, command: fault.command.clone(), result }
}

/// Merges what the threads tell, and shows it as it comes.
fn listen(plan: &Plan, telling: &mpsc::Receiver<Told>, start: Instant) -> Outcome {
    let mut outcome = Outcome {
        total: Tally::default(),
        seconds: Vec::new(),
        service: histogram(),
        lateness: histogram(),
        measured_seconds: plan.measure.as_secs_f64(),
        wall_seconds: 0.0,
        cpu_seconds: 0.0,
        overflowed: false,
        interrupted: None,
        fatal: Vec::new(),
        marks: Vec::new(),
    };
    let (mut progress, mut ended_ns) = (Progress::new(), 0);
    for told in telling.iter() {
        match told {
            Told::Second { second, tally } => {
                let second = second as usize;
                if outcome.seconds.len() <= second {
                    outcome.seconds.resize_with(second + 1, Tally::default);
                }
                outcome.seconds[second].add(&tally);
                outcome.total.add(&tally);
                progress.show(plan, second, &outcome.seconds[second], &outcome.total);
            }
            Told::End(end) => {
                let End { service, lateness, ended_ns: ended, cpu_ns, overflowed, fatal } = *end;
                outcome.cpu_seconds += cpu_ns as f64 / 1e9;
                merge(&mut outcome.service, &service);
                merge(&mut outcome.lateness, &lateness);
                ended_ns = ended_ns.max(ended);
                outcome.overflowed |= overflowed;
                outcome.fatal.extend(fatal);
            }
        }
    }
    progress.clear();
    outcome.wall_seconds = start.elapsed().as_secs_f64();
    if interrupt::came() {
        outcome.interrupted = Some(outcome.wall_seconds);
        let measured = outcome.wall_seconds - plan.warmup.as_secs_f64();
        outcome.measured_seconds = outcome.measured_seconds.min(measured.max(1e-9));
    }
    if plan.load {
        outcome.measured_seconds = (ended_ns as f64 / 1e9).max(1e-9);
    }
    outcome
}

/// A line on the terminal that is written over each second; nothing when stderr is no terminal.
struct Progress {
    terminal: bool,
}
impl Progress {
    fn new() -> Progress {
        Progress { terminal: std::io::stderr().is_terminal() }
    }
    fn show(&mut self, plan: &Plan, second: usize, tally: &Tally, total: &Tally) {
        if !self.terminal {
            return;
        }
        let p = Percentiles::of(&tally.latency());
        let ended = tally.latency().len();
        let phase = match plan.load {
            true => format!("loading {} of {}", total.done, plan.keys),
            false if (second as f64) < plan.warmup.as_secs_f64() => "warm-up".into(),
            false => format!("{} s", second + 1),
        };
        output::tell_in_place(format!(
            "\r\x1b[K{phase}  {ended}/s  p50 {}  p99 {}  max {}  failed {}",
            time(p.p50_us),
            time(p.p99_us),
            time(p.max_us),
            total.failures()
        ));
    }
    fn clear(&mut self) {
        if self.terminal {
            output::tell_in_place("\r\x1b[K");
        }
    }
}

/// A pause of one second in the middle: an open loop must see it in p99.9, service time must not.
fn stall_test(args: &BenchArgs, mut plan: Plan) -> Result<bool, BenchError> {
    plan.load = false;
    let stall = Stall { at: plan.warmup + plan.measure / 2, length: Duration::from_secs(1) };
    let (echo, target) = start_echo(args, &plan, Some(stall))?;
    let report = measure(args, plan, &target)?;
    drop(echo);
    print(args, &report)?;
    let (open, service) = (report.all.p999_us, report.service.p999_us);
    let seen = open >= 800_000.0;
    let verdict = if seen { "seen" } else { "NOT SEEN" };
    output::tell(format!(
        "a stall of 1 s: p99.9 from the schedule {}, from sending {}: {verdict}",
        time(open),
        time(service)
    ));
    Ok(seen)
}

#[derive(serde::Serialize)]
struct Comparison {
    a: String,
    b: String,
    operations_per_second: Option<compare::Ratio>,
    p50: Option<compare::Ratio>,
    p99: Option<compare::Ratio>,
    p999: Option<compare::Ratio>,
    reports: Vec<Report>,
}

fn compare_targets(args: &BenchArgs, plan: &Plan, targets: &[Target; 2]) -> Result<bool, BenchError> {
    let mut reports: Vec<Report> = Vec::new();
    for pair in 0..args.pairs {
        for target in targets {
            if interrupt::came() && !reports.is_empty() {
                continue;
            }
            let report = measure(args, plan.clone(), target)?;
            let (p, rate) = (report.all, report.operations_per_second);
            let verdict = report.objections.join("; ");
            output::tell(format!(
                "pair {}  {:32} {rate:>9.0}/s  p50 {}  p99 {}  {verdict}",
                pair + 1,
                report.target,
                time(p.p50_us),
                time(p.p99_us)
            ));
            reports.push(report);
        }
    }
    let of = |read: fn(&Report) -> f64| {
        let pairs: Vec<(f64, f64)> = reports.chunks_exact(2).map(|p| (read(&p[0]), read(&p[1]))).collect();
        compare::ratio(&pairs)
    };
    let comparison = Comparison {
        a: targets[0].name(),
        b: targets[1].name(),
        operations_per_second: of(|r| r.operations_per_second),
        p50: of(|r| r.all.p50_us),
        p99: of(|r| r.all.p99_us),
        p999: of(|r| r.all.p999_us),
        reports,
    };
    let valid = comparison.reports.iter().all(|r| r.valid);
    if args.json {
        print_json(&comparison)?;
    } else {
        let (a, b) = (&comparison.a, &comparison.b);
        let mut text = format!("B = {b} over A = {a}, {} pairs, 95 % intervals\n", args.pairs);
        let rows = [
            ("operations/s", comparison.operations_per_second),
            ("p50", comparison.p50),
            ("p99", comparison.p99),
            ("p99.9", comparison.p999),
        ];
        for (name, ratio) in rows {
            match ratio {
                Some(r) => text += &format!("  {name:<13} {:.3}  ({:.3} to {:.3})\n", r.ratio, r.low, r.high),
                None => text += &format!("  {name:<13} no ratio: a run had nothing\n"),
            }
        }
        if !valid {
            text += "INVALID: at least one run is not valid\n";
        }
        print_text(text)?;
    }
    Ok(valid)
}

/// Rising rates until one is not valid or too slow; the headline is the highest that was good.
fn sweep(args: &BenchArgs, plan: &Plan, target: &Target, rates: &[f64]) -> Result<bool, BenchError> {
    let (mut reports, mut best): (Vec<Report>, Option<f64>) = (Vec::new(), None);
    for &rate in rates {
        let step = BenchArgs { rate, ..args.clone() };
        let report = measure(&step, Plan { pace: step.plan()?.pace, ..plan.clone() }, target)?;
        let good = report.valid && report.all.p99_us <= args.bound_ms * 1e3;
        let p = report.all;
        let achieved = report.achieved.unwrap_or(0.0) * 100.0;
        output::tell(format!(
            "{rate:>9.0}/s  achieved {achieved:>6.2} %  p50 {:>8}  p99 {:>8}  p99.9 {:>8}  generator idle {:.0} %",
            time(p.p50_us),
            time(p.p99_us),
            time(p.p999_us),
            report.generator.idle * 100.0
        ));
        let hopeless = !report.valid || interrupt::came();
        reports.push(report);
        best = if good { Some(rate) } else { best };
        if hopeless {
            break;
        }
    }
    if args.json {
        print_json(&reports)?;
    }
    match best {
        Some(rate) => output::tell(format!("highest rate with p99 within {} ms: {rate:.0}/s", args.bound_ms)),
        None => output::tell(format!("no rate had its p99 within {} ms", args.bound_ms)),
    }
    Ok(best.is_some())
}
