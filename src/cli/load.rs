//! `load`: every file below a directory becomes a key, its relative path; `--verify` compares them with what is stored.
//!
//! Many requests are in flight: a few threads, each with a pipeline to all cores of the cluster. A file is stored as a
//! successor of what its key holds (read, then put with that context), so that a second load replaces instead of piling
//! up siblings, and a file that is already there is left alone. What fails in a way that may pass is tried again from
//! the read on, so a node that is killed meanwhile costs time, not files.

use super::{
    Stop,
    fetch::Reach,
    keys::ConsistencyName,
    output,
    store::{Held, Seeds, Trouble},
};
use crate::{
    client::{ClientError, Got, Options, Pipeline, Ticket},
    limits::{KEY_BYTES_MAX, REPLICAS_MAX},
    protocol::{
        message::{Answer, Operation},
        ring::FixedMap,
        versions::Context,
    },
    types::{ErrorCode, Key, Level, Media, Value, WriteId},
};
use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    collections::VecDeque,
    fs,
    io::{self, IsTerminal},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

pub const EXAMPLE: &str = "Symbolic links are not followed. What cannot be read, files larger than the server takes and paths longer\n\
    than 1,024 bytes are named, and the rest is stored. Exit code 1 unless every file is stored or, with --verify,\n\
    equal.\n\n\
    Example:\n  dynarc load src\n  dynarc load --verify src";

/// One request, its repetitions by the client included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one file is tried again before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before a file that failed is tried again, when there is nothing else to do.
const PAUSE: Duration = Duration::from_millis(50);
/// Threads that read files and drive a pipeline.
const THREADS: usize = 2;
/// Files that are named when they are skipped, failed or different; the rest is counted.
const NAMED_MAX: usize = 20;

#[derive(Args)]
pub struct LoadArgs {
    directory: PathBuf,
    /// Read everything back and compare
    #[arg(long)]
    verify: bool,
    /// Requests in flight
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    in_flight: u16,
    /// Replicas that must answer; default: the table's setting
    #[arg(long, value_enum, value_name = "LEVEL")]
    consistency: Option<ConsistencyName>,
    /// Replicas that must acknowledge a write
    #[arg(long, value_name = "N", conflicts_with = "consistency")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=REPLICAS_MAX as i64))]
    w: Option<u8>,
    /// Put before each key
    #[arg(long, default_value = "", value_name = "TEXT")]
    prefix: String,
    #[command(flatten)]
    reach: Reach,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A file to be stored or compared.
struct Item {
    path: PathBuf,
    key: Vec<u8>,
    bytes: u64,
}

#[derive(Default)]
struct Walked {
    items: Vec<Item>,
    bytes: u64,
    /// Neither files nor directories.
    others: u64,
    /// Directories and entries that could not be read, and why.
    unread: Vec<String>,
}

/// What became of the files, as all threads together count it.
#[derive(Default)]
struct Tally {
    /// Stored, or found equal.
    done: u64,
    bytes: u64,
    /// Found equal before they were stored.
    unchanged: u64,
    skipped: u64,
    different: u64,
    failed: u64,
    /// Requests that were sent again.
    retried: u64,
    named: Vec<String>,
}
impl Tally {
    fn name(&mut self, item: &Item, what: &str) {
        if self.named.len() < NAMED_MAX {
            self.named.push(format!("{}: {what}", output::key(&item.key)));
        }
    }
}

/// What became of one file.
enum Fate {
    Stored,
    Unchanged,
    Equal,
    Skipped(String),
    Different(String),
    Failed(String),
}

pub fn run(args: LoadArgs) -> Result<(), Stop> {
    let walked = walk(&args.directory, args.prefix.as_bytes())?;
    let seeds = Seeds::find(&args.reach)?;
    let bar = progress(walked.bytes);
    let started = Instant::now();
    let tally = work(&args, &seeds, &walked, &bar)?;
    let elapsed = started.elapsed();
    bar.finish_and_clear();
    for line in walked.unread.iter().take(NAMED_MAX).chain(&tally.named) {
        output::tell(format!("dynarc: {line}"));
    }
    report(&args, &walked, &tally, elapsed)?;
    let (missed, all) = (tally.failed + tally.different + tally.skipped, walked.items.len());
    let unread = match walked.unread.len() {
        0 => String::new(),
        count => format!("{count} directories or entries could not be read"),
    };
    let files = match missed {
        0 => String::new(),
        _ if args.verify => format!("{missed} of {all} files are not as stored"),
        _ => format!("{missed} of {all} files were not stored"),
    };
    match (unread.is_empty(), files.is_empty()) {
        (true, true) => Ok(()),
        (false, false) => Err(Stop::failed(format!("{files}; {unread}"))),
        _ => Err(Stop::failed(files + &unread)),
    }
}

/// All regular files below a directory, in the order of their keys. What cannot be read below it is noted, and the rest
/// goes on; the directory itself must be readable.
fn walk(root: &Path, prefix: &[u8]) -> Result<Walked, Stop> {
    let words = |path: &Path, e: io::Error| format!("{}: {e}", path.display());
    let mut walked = Walked::default();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if directory == root => return Err(Stop::failed(words(root, e))),
            Err(e) => {
                walked.unread.push(words(&directory, e));
                continue;
            }
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))) {
                Ok((path, meta)) if meta.is_dir() => directories.push(path),
                Ok((path, meta)) if meta.is_file() => {
                    let relative = path.strip_prefix(root).unwrap_or(&path).as_os_str().as_bytes();
                    let key = [prefix, relative].concat();
                    walked.bytes += meta.len();
                    walked.items.push(Item { path, key, bytes: meta.len() });
                }
                Ok(_) => walked.others += 1,
                Err(e) => walked.unread.push(words(&directory, e)),
            }
        }
    }
    walked.items.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(walked)
}

/// A bar on standard error, when somebody looks at it.
fn progress(bytes: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr_with_hz(10));
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg} eta {eta}");
    style.map_or(bar.clone(), |style| bar.with_style(style))
}

fn work(args: &LoadArgs, seeds: &Seeds, walked: &Walked, bar: &ProgressBar) -> Result<Tally, Stop> {
    let next = AtomicUsize::new(0);
    let total = Mutex::new(Tally::default());
    // A poisoned lock means that another thread died; its panic is reported by the scope.
    let settled = |item: &Item, fate: Fate, retried: u64| {
        bar.inc(item.bytes);
        let mut tally = total.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        tally.retried += retried;
        count(&mut tally, item, fate);
    };
    let value_bytes_max = seeds.value_bytes_max()?;
    let threads = THREADS.min(usize::from(args.in_flight));
    let mut hands = Vec::new();
    for _ in 0..threads {
        let pipeline = seeds.pipeline()?;
        let window = usize::from(args.in_flight).div_ceil(threads);
        hands.push(Hand {
            args,
            items: &walked.items,
            next: &next,
            window,
            value_bytes_max,
            pipeline,
            works: FixedMap::default(),
            again: VecDeque::new(),
        });
    }
    std::thread::scope(|scope| {
        for mut hand in hands {
            scope.spawn(move || hand.run(&settled));
        }
    });
    Ok(total.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

fn count(tally: &mut Tally, item: &Item, fate: Fate) {
    match fate {
        Fate::Stored | Fate::Equal | Fate::Unchanged => {
            tally.done += 1;
            tally.bytes += item.bytes;
            tally.unchanged += u64::from(matches!(fate, Fate::Unchanged));
        }
        Fate::Skipped(why) => {
            tally.skipped += 1;
            tally.name(item, &format!("skipped, {why}"));
        }
        Fate::Different(how) => {
            tally.different += 1;
            tally.name(item, &how);
        }
        Fate::Failed(why) => {
            tally.failed += 1;
            tally.name(item, &why);
        }
    }
}

/// One of the threads that do the work: it keeps `window` files under way.
struct Hand<'a> {
    args: &'a LoadArgs,
    items: &'a [Item],
    next: &'a AtomicUsize,
    window: usize,
    value_bytes_max: u64,
    pipeline: Pipeline,
    works: FixedMap<Ticket, Work>,
    /// Failed in a way that may pass.
    again: VecDeque<Work>,
}

/// A file under way: first its key is read, then, unless it is only compared or equal already, written.
struct Work {
    index: usize,
    key: Key,
    bytes: Bytes,
    until: Instant,
    retried: u64,
}

impl Hand<'_> {
    fn run(&mut self, settled: &impl Fn(&Item, Fate, u64)) {
        loop {
            while self.works.len() < self.window && self.again.is_empty() {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = self.items.get(index) else { break };
                match read(item, self.value_bytes_max) {
                    Ok((key, bytes)) => {
                        let until = Instant::now() + PATIENCE;
                        self.ask(Work { index, key, bytes, until, retried: 0 });
                    }
                    Err(fate) => settled(item, fate, 0),
                }
            }
            match self.pipeline.next() {
                Some((ticket, result)) => {
                    if let Some(work) = self.works.remove(&ticket) {
                        self.advance(work, result, settled);
                    }
                }
                None if self.again.is_empty() => return,
                None => {
                    std::thread::sleep(PAUSE);
                    std::mem::take(&mut self.again).into_iter().for_each(|work| self.ask(work));
                }
            }
        }
    }
    fn ask(&mut self, work: Work) {
        let mut options = Options::default().timeout(REQUEST_TIMEOUT);
        options.consistency.level = self.args.consistency.map(Level::from);
        let ticket = self.pipeline.submit(work.key.clone(), Operation::Get { context: None }, &options);
        self.works.insert(ticket, work);
    }
    /// Stores the file as the successor of what its key holds.
    fn write(&mut self, work: Work, held: Held) {
        let level = self.args.w.map(Level::Count).or(self.args.consistency.map(Level::from));
        let mut options = Options::default().timeout(REQUEST_TIMEOUT);
        options.consistency.level = level;
        let context = (held.context != Context::default()).then_some(held.context);
        let value = Value::new(Media::octets(), work.bytes.clone());
        let operation = Operation::Put { context, value, write_id: WriteId(0) };
        let ticket = self.pipeline.submit(work.key.clone(), operation, &options);
        self.works.insert(ticket, work);
    }
    fn advance(&mut self, mut work: Work, result: Result<Answer, ClientError>, settled: &impl Fn(&Item, Fate, u64)) {
        let fate = match result.map_err(Trouble::from) {
            Ok(Answer::Written(_)) => Fate::Stored,
            Ok(Answer::Got(siblings)) => {
                let Got { siblings: values, context } = siblings.into();
                let held = Held { values, context };
                if self.args.verify {
                    difference(&held, &work.bytes).map_or(Fate::Equal, Fate::Different)
                } else if matches!(held.values.as_slice(), [value] if value.bytes == work.bytes) {
                    Fate::Unchanged
                } else {
                    return self.write(work, held);
                }
            }
            Err(trouble) if trouble.may_pass() && Instant::now() < work.until => {
                work.retried += 1;
                return self.again.push_back(work);
            }
            Err(trouble) if trouble.code == Some(ErrorCode::TooLarge) => Fate::Skipped(trouble.stop.line),
            Err(trouble) => Fate::Failed(trouble.stop.line),
        };
        settled(&self.items[work.index], fate, work.retried);
    }
}

/// The file's key and bytes, or why there are none.
fn read(item: &Item, value_bytes_max: u64) -> Result<(Key, Bytes), Fate> {
    if item.key.len() > KEY_BYTES_MAX {
        return Err(Fate::Skipped(format!("its path has {} bytes, a key has at most {KEY_BYTES_MAX}", item.key.len())));
    }
    if item.bytes > value_bytes_max {
        let (bytes, limit) = (output::grouped(item.bytes), output::grouped(value_bytes_max));
        return Err(Fate::Skipped(format!("{bytes} bytes, a value has at most {limit} here (value_bytes_max)")));
    }
    let key = Key::new(item.key.clone()).map_err(|e| Fate::Skipped(e.to_string()))?;
    let bytes = fs::read(&item.path).map_err(|e| Fate::Failed(format!("{}: {e}", item.path.display())))?;
    Ok((key, bytes.into()))
}

/// How what is stored differs from the file. Concurrent values that are all equal to it are no difference: one write
/// that arrived twice.
fn difference(held: &Held, bytes: &[u8]) -> Option<String> {
    match held.values.as_slice() {
        [] => Some("is not stored".into()),
        values if values.iter().all(|v| v.bytes == bytes) => None,
        [value] => {
            let at =
                value.bytes.iter().zip(bytes).position(|(a, b)| a != b).unwrap_or(bytes.len().min(value.bytes.len()));
            Some(format!("differs at byte {at}: {} bytes stored, {} in the file", value.bytes.len(), bytes.len()))
        }
        many => Some(format!("has {} concurrent values", many.len())),
    }
}

fn report(args: &LoadArgs, walked: &Walked, tally: &Tally, elapsed: Duration) -> Result<(), Stop> {
    let seconds = elapsed.as_secs_f64().max(1e-9);
    let megabytes = tally.bytes as f64 / 1e6 / seconds;
    if args.json {
        return output::print_json(&serde_json::json!({
            "verified": args.verify, "files": tally.done, "bytes": tally.bytes, "seconds": seconds,
            "megabytes_per_second": megabytes, "files_per_second": tally.done as f64 / seconds,
            "unchanged": tally.unchanged, "skipped": tally.skipped, "different": tally.different,
            "failed": tally.failed, "retried": tally.retried, "not_files": walked.others, "unread": walked.unread.len(),
        }));
    }
    let verb = if args.verify { "verified" } else { "loaded" };
    let mut text = format!(
        "{verb} {} files, {} in {seconds:.1} s: {megabytes:.1} MB/s, {} files/s\n",
        output::grouped(tally.done),
        output::bytes(tally.bytes),
        output::grouped((tally.done as f64 / seconds) as u64),
    );
    let others = [
        (tally.unchanged, "were stored already"),
        (tally.skipped, "skipped"),
        (tally.different, "differ"),
        (tally.failed, "failed"),
        (tally.retried, "requests sent again"),
        (walked.others, "neither files nor directories"),
    ];
    for (count, what) in others.into_iter().filter(|(count, _)| *count != 0) {
        text += &format!("  {} {what}\n", output::grouped(count));
    }
    output::print(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_keys_in_order() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("a/b")).expect("made");
        for (name, bytes) in [("a/b/two", 2), ("a/one", 1), ("zero", 0)] {
            fs::write(root.path().join(name), vec![7; bytes]).expect("written");
        }
        std::os::unix::fs::symlink("zero", root.path().join("link")).expect("linked");
        let walked = walk(root.path(), b"p/").expect("walked");
        let keys: Vec<_> = walked.items.iter().map(|i| (output::key(&i.key), i.bytes)).collect();
        assert_eq!(keys, [("p/a/b/two".into(), 2), ("p/a/one".into(), 1), ("p/zero".into(), 0)]);
        assert_eq!((walked.bytes, walked.others), (3, 1));
        assert!(walk(&root.path().join("missing"), b"").is_err());
    }

    #[test]
    fn differences_are_named() {
        let held = |values: &[&'static str]| Held {
            values: values.iter().map(|v| Value::new(Media::octets(), *v)).collect(),
            context: Context::default(),
        };
        assert_eq!(difference(&held(&["abc"]), b"abc"), None);
        assert_eq!(difference(&held(&[]), b"").as_deref(), Some("is not stored"));
        assert_eq!(difference(&held(&["a", "a"]), b"a"), None);
        assert_eq!(difference(&held(&["a", "b"]), b"a").as_deref(), Some("has 2 concurrent values"));
        let told = difference(&held(&["abX"]), b"abcd");
        assert_eq!(told.as_deref(), Some("differs at byte 2: 3 bytes stored, 4 in the file"));
        assert!(difference(&held(&["ab"]), b"abcd").is_some_and(|d| d.starts_with("differs at byte 2")));
    }
}
