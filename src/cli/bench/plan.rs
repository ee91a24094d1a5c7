//! The arguments, and the plan of one run that they make.

use super::{
    BenchError,
    keys::Distribution,
    schedule::Arrivals,
    target::Protocol,
    workload::{Mix, WorkloadName},
};
use std::{path::PathBuf, time::Duration};

pub const EXAMPLES: &str = "Examples:
  dynarc bench put --load --keys 100000 --value-bytes 10240      write every key once
  dynarc bench ycsb-b --rate 20000 --seconds 30                  open loop, 20,000 operations a second
  dynarc bench get --closed -c 32 --protocol redis --target 127.0.0.1:6379
  dynarc bench put --compare dynarc://127.0.0.1 redis://127.0.0.1:6379 --closed -c 32
  dynarc bench get --sweep 1000..200000 --bound-ms 1             highest rate with p99 under 1 ms
  dynarc bench get --null --rate 100000                          the generator itself";

/// Measures latency and throughput: open loop, HDR histograms, several protocols.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    /// put, get, mixed, ycsb-a, ycsb-b, ycsb-c, ycsb-d or ycsb-f
    #[arg(default_value = "mixed")]
    pub workload: WorkloadName,
    /// HOST[:PORT],... or PROTOCOL://HOST[:PORT],...
    #[arg(long, visible_alias = "node", default_value = "127.0.0.1")]
    pub target: String,
    /// What the target speaks
    #[arg(long, value_enum, default_value_t = Protocol::Dynarc)]
    pub protocol: Protocol,
    /// Operations a second (open loop)
    #[arg(long, default_value_t = 1000.0, conflicts_with = "closed")]
    pub rate: f64,
    /// How arrivals are spread
    #[arg(long, value_enum, default_value_t = Arrivals::Poisson)]
    pub arrivals: Arrivals,
    /// Closed loop: a new operation when one is answered. Measures service time, not what users wait
    #[arg(long)]
    pub closed: bool,
    /// Connections, spread over nodes and cores (at least one each)
    #[arg(short = 'c', long, default_value_t = 32)]
    pub connections: usize,
    /// Requests in flight on one connection [default: 1 with --closed, --load or http, else 64]
    #[arg(long)]
    pub in_flight: Option<usize>,
    /// Share of gets in `mixed`
    #[arg(long, default_value_t = 0.8)]
    pub reads: f64,
    /// Distribution of keys, in place of the workload's own
    #[arg(long, value_enum)]
    pub distribution: Option<Distribution>,
    /// Keys that exist
    #[arg(long, default_value_t = 10_000)]
    pub keys: u64,
    /// Text before the number of a key
    #[arg(long, default_value = "bench:")]
    pub prefix: String,
    /// Bytes of a value; they do not compress
    #[arg(long, default_value_t = 1024)]
    pub value_bytes: usize,
    /// Only the load phase: write every key once, as fast as the connections allow, then stop
    #[arg(long)]
    pub load: bool,
    /// Check the contents of every value read
    #[arg(long)]
    pub validate: bool,
    /// Measured time
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Time before it that is not measured
    #[arg(long, default_value_t = 2.0)]
    pub warmup: f64,
    /// An operation without an answer for so long has failed
    #[arg(long, default_value_t = 5000)]
    pub timeout_ms: u64,
    /// From a node that says nothing at all for so long, operations move to others; 0: never
    #[arg(long, default_value_t = 100)]
    pub silence_ms: u64,
    /// How often an operation is tried, on other nodes if there are any
    #[arg(long, default_value_t = 3)]
    pub attempts: u8,
    /// Threads of the generator
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// CPUs to pin the generator's threads to
    #[arg(long, value_delimiter = ',')]
    pub pin: Vec<usize>,
    /// Poll without sleeping: less wake-up time in the latencies, a whole CPU for each thread
    #[arg(long)]
    pub spin: bool,
    /// Send each request to a core that does not own its key
    #[arg(long)]
    pub any_node: bool,
    /// HTTP port of the nodes, for `GET /v1/node`; 0: do not ask
    #[arg(long, default_value_t = 7700)]
    pub http_port: u16,
    /// Seed of keys, kinds and arrivals
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
    /// Write a line for each second
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Directory of the data, if local: its file system is reported
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Two targets by turns (ABAB...), and the ratio B to A with a 95 % interval
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["sweep", "null", "stall_test"])]
    pub compare: Option<Vec<String>>,
    /// Pairs of --compare
    #[arg(long, default_value_t = 5)]
    pub pairs: usize,
    /// Rates from FROM to TO, each 1.5 times the last: the highest valid one with p99 under the bound
    #[arg(long, value_name = "FROM..TO", conflicts_with_all = ["null", "stall_test", "closed"])]
    pub sweep: Option<String>,
    /// Bound of p99 for --sweep
    #[arg(long, default_value_t = 1.0)]
    pub bound_ms: f64,
    /// Measure the generator itself, against an echo in this process
    #[arg(long)]
    pub null: bool,
    /// Inject a stall of one second into the echo and check that p99.9 sees it
    #[arg(long, conflicts_with = "closed")]
    pub stall_test: bool,
    /// Run a command at a time of the run and mark it: --at '10s kill -9 1234'
    #[arg(long, value_name = "TIME COMMAND")]
    pub at: Vec<String>,
}

/// What keeps the operations coming.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Pace {
    Open { rate: f64, arrivals: Arrivals },
    Closed { outstanding: usize },
}

/// A command at a time of the run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    pub at: Duration,
    pub command: String,
}

/// One run. Durations are of the whole run, counts of all threads together.
#[derive(Clone, Debug)]
pub struct Plan {
    pub pace: Pace,
    pub load: bool,
    pub mix: Mix,
    pub keys: u64,
    pub prefix: String,
    pub value_bytes: usize,
    pub validate: bool,
    /// Keys may exist that this process has not read: a put of one without a context is made an update, because a
    /// writer that has not read makes a sibling.
    pub learn: bool,
    pub connections: usize,
    pub in_flight: usize,
    pub threads: usize,
    pub pin: Vec<usize>,
    pub spin: bool,
    pub warmup: Duration,
    pub measure: Duration,
    pub timeout: Duration,
    pub silence: Duration,
    pub attempts: u8,
    pub seed: u64,
    pub faults: Vec<Fault>,
}

const THREADS_MAX: usize = 64;
const CONNECTIONS_MAX: usize = 20_000;

impl BenchArgs {
    /// Checks the arguments and makes the plan of a run.
    pub fn plan(&self) -> Result<Plan, BenchError> {
        let usage = |text: &str| Err(BenchError::Usage(text.into()));
        if !(self.rate.is_finite() && self.rate > 0.0 && self.rate <= 1e9) {
            return usage("--rate is a number above 0");
        }
        if !(0.0..=1.0).contains(&self.reads) {
            return usage("--reads is a share: 0 to 1");
        }
        if !(self.seconds >= 0.1 && self.seconds <= 1e6 && self.warmup >= 0.0 && self.warmup <= 1e6) {
            return usage("--seconds is at least 0.1, --warmup at least 0");
        }
        if !(1..=THREADS_MAX).contains(&self.threads) || !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            return usage("--threads is 1 to 64, --connections 1 to 20000");
        }
        if self.keys == 0 || self.prefix.len() > 900 || self.value_bytes > crate::limits::VALUE_BYTES_CEILING {
            return usage("--keys is at least 1, --prefix at most 900 bytes, --value-bytes at most 4 MiB");
        }
        if self.attempts == 0 || self.in_flight == Some(0) || self.pairs < 2 {
            return usage("--attempts and --in-flight are at least 1, --pairs at least 2");
        }
        let closed = self.closed || self.load;
        let in_flight = self.in_flight.unwrap_or(if closed || self.protocol == Protocol::Http { 1 } else { 64 });
        let pace = match closed {
            true => Pace::Closed { outstanding: self.connections * in_flight },
            false => Pace::Open { rate: self.rate, arrivals: self.arrivals },
        };
        Ok(Plan {
            pace,
            load: self.load,
            mix: Mix::of(self.workload, self.reads, self.distribution),
            keys: self.keys,
            prefix: self.prefix.clone(),
            value_bytes: self.value_bytes,
            validate: self.validate,
            learn: false,
            connections: self.connections,
            in_flight,
            threads: self.threads,
            pin: self.pin.clone(),
            spin: self.spin,
            warmup: if self.load { Duration::ZERO } else { Duration::from_secs_f64(self.warmup) },
            measure: if self.load { Duration::from_secs(1_000_000) } else { Duration::from_secs_f64(self.seconds) },
            timeout: Duration::from_millis(self.timeout_ms.max(1)),
            silence: if self.silence_ms == 0 { Duration::MAX } else { Duration::from_millis(self.silence_ms) },
            attempts: self.attempts,
            seed: self.seed,
            faults: self.at.iter().map(|text| parse_fault(text)).collect::<Result<_, _>>()?,
        })
    }
}

/// `10s kill -9 1234`, `500ms true`.
fn parse_fault(text: &str) -> Result<Fault, BenchError> {
    let wrong = || BenchError::Usage(format!("--at {text:?}: expected a time like 10s or 500ms and a command"));
    let (time, command) = text.trim().split_once(' ').ok_or_else(wrong)?;
    let seconds = match (time.strip_suffix("ms"), time.strip_suffix('s')) {
        (Some(ms), _) => ms.parse::<f64>().map(|n| n / 1e3),
        (None, Some(s)) => s.parse(),
        (None, None) => time.parse(),
    };
    let seconds = seconds.ok().filter(|s| (0.0..1e6).contains(s)).ok_or_else(wrong)?;
    Ok(Fault { at: Duration::from_secs_f64(seconds), command: command.trim().to_owned() })
}

/// `1000..64000` as the rates of a sweep: each 1.5 times the last, the end included.
pub fn parse_sweep(text: &str) -> Result<Vec<f64>, BenchError> {
    let wrong = || BenchError::Usage(format!("--sweep {text:?}: expected FROM..TO, like 1000..64000"));
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let (from, to): (f64, f64) = (from.parse().map_err(|_| wrong())?, to.parse().map_err(|_| wrong())?);
    if !(from >= 1.0 && to >= from && to <= 1e9) {
        return Err(wrong());
    }
    let mut rates: Vec<f64> =
        std::iter::successors(Some(from), |r| Some((r * 1.5).round())).take_while(|r| *r < to).collect();
    rates.push(to);
    Ok(rates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArgs,
    }
    fn args(words: &[&str]) -> BenchArgs {
        Line::try_parse_from([&["bench"], words].concat()).unwrap().bench
    }

    #[test]
    fn open_loop_is_the_default_and_closed_counts_connections() {
        let open = args(&["put", "--rate", "5000"]).plan().unwrap();
        assert_eq!(open.pace, Pace::Open { rate: 5000.0, arrivals: Arrivals::Poisson });
        let closed = args(&["put", "--closed", "-c", "8", "--in-flight", "4"]).plan().unwrap();
        assert_eq!(closed.pace, Pace::Closed { outstanding: 32 });
    }
    #[test]
    fn arguments_that_make_no_sense_are_refused() {
        for words in [
            &["--rate", "0"][..],
            &["--rate", "nan"],
            &["--reads", "1.5"],
            &["--seconds", "0"],
            &["--threads", "0"],
            &["--value-bytes", "99999999"],
            &["--at", "kill"],
            &["--at", "xs true"],
        ] {
            assert!(matches!(args(words).plan(), Err(BenchError::Usage(_))), "{words:?}");
        }
        assert!(Line::try_parse_from(["bench", "ycsb-e"]).is_err());
    }
    #[test]
    fn faults_and_sweeps_are_parsed() {
        let plan = args(&["--at", "10s kill -9 1", "--at", "500ms true"]).plan().unwrap();
        assert_eq!(plan.faults[0], Fault { at: Duration::from_secs(10), command: "kill -9 1".into() });
        assert_eq!(plan.faults[1].at, Duration::from_millis(500));
        assert_eq!(parse_sweep("1000..3000").unwrap(), [1000.0, 1500.0, 2250.0, 3000.0]);
        assert!(parse_sweep("5..1").is_err() && parse_sweep("x").is_err());
    }
}
