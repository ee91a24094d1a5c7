//! What clients wrote, what they were told, and what may therefore be read.
//!
//! Every key belongs to one writer, which builds on the context of its last answer: a read gives one value or none. A
//! value says what it is: its bytes follow from key and version.

use crate::{http::Http, wait};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// The version that is there, or nothing.
type Version = Option<u64>;

#[derive(Clone, Default)]
struct Entry {
    sure: Version,
    /// Writes whose answer never came, or said `unknown`.
    perhaps: BTreeSet<Version>,
    /// Refused as `not_applied`: must never be read.
    refused: BTreeSet<u64>,
    context: Option<String>,
    next: u64,
}

/// Bytes of the values that are written, by kind.
#[derive(Clone, Copy)]
pub struct Sizes(pub fn(&mut fastrand::Rng) -> usize);
/// Small ones, some of 10 KB, a few of 100 KB.
pub const MIXED: Sizes = Sizes(|random| match random.u32(0..20) {
    0..=9 => random.usize(0..600),
    10..=12 => random.usize(600..4_000),
    13..=18 => random.usize(9_000..11_000),
    _ => random.usize(90_000..110_000),
});
/// 10 KB each.
pub const TEN_KB: Sizes = Sizes(|_| 10_240);

/// Keys of one writer.
struct Page {
    writer: usize,
    entries: Vec<Entry>,
    random: fastrand::Rng,
}

pub struct Ledger {
    pages: Vec<Mutex<Page>>,
    sizes: Sizes,
    pub acknowledged: AtomicU64,
    pub refused: AtomicU64,
}

/// What a call came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    Done,
    /// The code of a `not_applied` problem.
    Refused(String),
    Unknown(String),
}

fn name(writer: usize, key: usize) -> String {
    format!("w{writer}:{key}")
}
fn value(sizes: Sizes, writer: usize, key: usize, version: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed((writer as u64) << 48 | (key as u64) << 32 | version);
    let mut bytes = format!("{} version {version};", name(writer, key)).into_bytes();
    let begin = bytes.len();
    bytes.resize(begin + (sizes.0)(&mut random), 0);
    random.fill(&mut bytes[begin..]);
    bytes
}

impl Ledger {
    pub fn new(writers: usize, keys: usize, sizes: Sizes, seed: u64) -> Ledger {
        let page = |writer| {
            let random = fastrand::Rng::with_seed(seed ^ (writer as u64) << 32);
            Mutex::new(Page { writer, entries: vec![Entry::default(); keys], random })
        };
        let (acknowledged, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        Ledger { pages: (0..writers).map(page).collect(), sizes, acknowledged, refused }
    }
    fn page(&self, writer: usize) -> std::sync::MutexGuard<'_, Page> {
        self.pages[writer].lock().expect("no client panicked")
    }
    pub fn writers(&self) -> usize {
        self.pages.len()
    }

    /// Puts, deletes and reads keys of this writer until told to stop, or until the node is gone.
    pub fn write_until(&self, writer: usize, ip: IpAddr, stop: &AtomicBool) {
        let mut http = Http::new(ip).once();
        while !stop.load(Ordering::Relaxed) {
            let mut page = self.page(writer);
            let count = page.entries.len();
            let key = page.random.usize(0..count);
            if !page.entries[key].perhaps.is_empty() {
                // Open until it has been read after the next start.
                if page.entries.iter().all(|e| !e.perhaps.is_empty()) {
                    return;
                }
                continue;
            }
            let told = match page.random.u32(0..20) {
                0..=1 => {
                    self.check(&page, &mut http, key, "under load");
                    continue;
                }
                2..=4 => self.delete(&mut page, &mut http, key),
                _ => self.put(&mut page, &mut http, key),
            };
            if matches!(told, Told::Unknown(_)) && wait::reachable(ip).is_err() {
                return;
            }
        }
    }
    /// Puts keys of the writer that have no value, in order, until the first refusal, which is given.
    pub fn fill(&self, writer: usize, http: &mut Http) -> Option<Told> {
        let mut page = self.page(writer);
        let empty: Vec<_> = (0..page.entries.len()).filter(|key| page.entries[*key].sure.is_none()).collect();
        empty.into_iter().map(|key| self.put(&mut page, http, key)).find(|told| *told != Told::Done)
    }
    pub fn put_one(&self, writer: usize, key: usize, http: &mut Http) -> Told {
        self.put(&mut self.page(writer), http, key)
    }
    /// Keys that have a value.
    pub fn count(&self) -> usize {
        (0..self.writers()).map(|w| self.page(w).entries.iter().filter(|e| e.sure.is_some()).count()).sum()
    }
    /// Deletes every key of the writer that has a value and that `which` says.
    pub fn delete_some(&self, writer: usize, http: &mut Http, which: impl Fn(usize) -> bool) -> usize {
        let mut page = self.page(writer);
        let mut deleted = 0;
        for key in (0..page.entries.len()).filter(|key| which(*key)) {
            if page.entries[key].sure.is_some() {
                let told = self.delete(&mut page, http, key);
                assert_eq!(told, Told::Done, "deleting {}, the {deleted}th", name(writer, key));
                deleted += 1;
            }
        }
        deleted
    }

    fn put(&self, page: &mut Page, http: &mut Http, key: usize) -> Told {
        let entry = &mut page.entries[key];
        entry.next += 1;
        let version = entry.next;
        let body = value(self.sizes, page.writer, key, version);
        self.send(page, http, key, "PUT", &body, Some(version))
    }
    fn delete(&self, page: &mut Page, http: &mut Http, key: usize) -> Told {
        self.send(page, http, key, "DELETE", b"", None)
    }
    fn send(&self, page: &mut Page, http: &mut Http, key: usize, method: &str, body: &[u8], version: Version) -> Told {
        let target = format!("/v1/keys/{}", name(page.writer, key));
        let entry = &mut page.entries[key];
        let mut headers = vec![("Content-Type", "application/octet-stream")];
        headers.extend(entry.context.as_deref().map(|c| ("X-Version-Context", c)));
        let told = match http.send(method, &target, &headers, body) {
            Ok(reply) if reply.status == 200 => {
                entry.context = Some(reply.context());
                Told::Done
            }
            Ok(reply) => {
                let code = reply.problem();
                if reply.json()["outcome"] == "not_applied" { Told::Refused(code) } else { Told::Unknown(reply.text()) }
            }
            Err(error) => Told::Unknown(error.to_string()),
        };
        match &told {
            Told::Done => {
                entry.sure = version;
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Told::Refused(_) => {
                entry.refused.extend(version);
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
            Told::Unknown(_) => drop(entry.perhaps.insert(version)),
        }
        told
    }

    /// Reads a key. A node that is gone, or does not know, proves nothing; anything else must be as it may be.
    fn check(&self, page: &Page, http: &mut Http, key: usize, when: &str) -> Option<(Version, Option<String>)> {
        let (name, entry) = (name(page.writer, key), &page.entries[key]);
        let accept = [("Accept", "application/octet-stream")];
        let reply = http.send("GET", &format!("/v1/keys/{name}"), &accept, b"").ok()?;
        let found = match reply.status {
            200 => Some(version_of(&reply.body).unwrap_or_else(|| panic!("{when}: {name} is no value of ours"))),
            404 => None,
            500 | 503 | 504 => return None,
            status => panic!("{when}: {name}: {status}: {}", reply.text()),
        };
        if let Some(version) = found {
            assert!(!entry.refused.contains(&version), "{when}: {name}: version {version} was refused as not applied");
            let expected = value(self.sizes, page.writer, key, version);
            assert!(reply.body == expected, "{when}: {name}: the bytes of version {version} are wrong");
        }
        assert!(
            found == entry.sure || entry.perhaps.contains(&found),
            "{when}: {name} is {found:?}; acknowledged is {:?}, perhaps {:?}",
            entry.sure,
            entry.perhaps
        );
        Some((found, reply.header("x-version-context").map(str::to_string)))
    }
    /// Reads everything; what was open is what is found from now on. Every read must be answered.
    pub fn verify(&self, ip: IpAddr, when: &str) {
        std::thread::scope(|scope| {
            for writer in 0..self.pages.len() {
                scope.spawn(move || {
                    let mut http = Http::new(ip);
                    let mut page = self.page(writer);
                    for key in 0..page.entries.len() {
                        let Some((found, context)) = self.check(&page, &mut http, key, when) else {
                            panic!("{when}: {} cannot be read", name(writer, key));
                        };
                        let entry = &mut page.entries[key];
                        entry.sure = found;
                        entry.perhaps.clear();
                        entry.context = context;
                    }
                });
            }
        });
    }
}

fn version_of(body: &[u8]) -> Version {
    let head = body.split(|b| *b == b';').next()?;
    std::str::from_utf8(head).ok()?.rsplit(' ').next()?.parse().ok()
}

/// One of the node's figures.
pub fn figure(figures: &Value, name: &str) -> u64 {
    figures[name].as_u64().unwrap_or_else(|| panic!("no {name} in {figures}"))
}

/// Runs every writer while `meanwhile` runs; then they are told to stop.
pub fn under_load<T>(ledger: &Ledger, ip: IpAddr, meanwhile: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..ledger.writers() {
            let stop = &stop;
            scope.spawn(move || ledger.write_until(writer, ip, stop));
        }
        let result = meanwhile();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// Waits until so many more writes have been acknowledged.
pub fn wait_for_more(ledger: &Ledger, more: u64) {
    let goal = ledger.acknowledged.load(Ordering::Relaxed) + more;
    wait::until(Duration::from_secs(60), "writes are acknowledged", || {
        let count = ledger.acknowledged.load(Ordering::Relaxed);
        if count >= goal { Ok(()) } else { Err(format!("{count} of {goal}")) }
    });
}
