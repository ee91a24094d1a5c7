//! Nodes die: in the middle of a load, all at once, again and again. What was acknowledged stays.

use crate::{
    http::Http,
    long,
    node::{Cluster, dynarc, run},
    wait,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Real files: sources of the crates that this one is built from, at most so many bytes of them.
fn copy_sources(to: &Path, bytes_max: u64) -> usize {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|h| h.join(".cargo"))).unwrap_or_default();
    let registry = home.join("registry/src");
    let from = if registry.is_dir() { registry } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("src") };
    let (mut pending, mut files, mut bytes) = (vec![from.clone()], 0, 0);
    while let Some(folder) = pending.pop() {
        let mut entries: Vec<_> = fs::read_dir(folder).expect("sources").flatten().map(|e| e.path()).collect();
        entries.sort();
        for path in entries {
            let length = path.metadata().map_or(0, |m| m.len());
            if path.is_dir() {
                pending.push(path);
            } else if path.is_file() && length <= 1 << 20 && bytes + length <= bytes_max {
                let target = to.join(path.strip_prefix(&from).expect("below"));
                fs::create_dir_all(target.parent().expect("a folder")).expect("a folder");
                fs::copy(&path, target).expect("a copy");
                (files, bytes) = (files + 1, bytes + length);
            }
        }
    }
    assert!(files > 20, "only {files} files below {}", from.display());
    files
}

#[test]
fn a_load_of_real_files_survives_the_loss_of_a_node() {
    let mut cluster = Cluster::start("load", 3);
    let folder = cluster.place.path.join("files");
    let files = copy_sources(&folder, if long() { 400 << 20 } else { 40 << 20 });
    let (folder, seed) = (folder.to_string_lossy().into_owned(), cluster.nodes[0].ip.to_string());

    let log = cluster.place.path.join("load.log");
    let out = fs::File::create(&log).expect("a log file");
    let mut load = dynarc();
    load.args(["load", &folder, "--node", &seed]).stdout(out.try_clone().expect("the log twice")).stderr(out);
    let mut load = load.spawn().expect("the load starts");
    wait::until(Duration::from_secs(120), "a third of the load is done", || {
        let written: u64 = cluster.nodes.iter().filter_map(|n| n.figures()["puts"].as_u64()).sum();
        if written * 3 >= files as u64 { Ok(()) } else { Err(format!("{written} of {files} files")) }
    });
    cluster.nodes[1].kill();
    assert!(load.try_wait().expect("its state").is_none(), "the load was over before the node was killed");
    let ended = wait::until(Duration::from_secs(240), "the load ends", || {
        load.try_wait().map_err(|e| e.to_string())?.ok_or_else(|| fs::read_to_string(&log).unwrap_or_default())
    });
    let said = fs::read_to_string(&log).unwrap_or_default();
    assert!(ended.success(), "{ended:?}: {said}");

    let verify = |when: &str| {
        let (code, out, err) = run(&["load", "--verify", &folder, "--node", &seed]);
        assert_eq!(code, 0, "{when}: {out}\n{err}");
    };
    verify("with one node down");
    cluster.nodes[1].start();
    cluster.wait_whole();
    cluster.wait_no_hints();
    cluster.nodes[2].kill();
    verify("with the first back and another down");
}

/// What was acknowledged, by key.
type Acknowledged = Mutex<BTreeMap<String, String>>;

/// Writes keys of its own until told to stop, and notes what was acknowledged.
fn write_until(stop: &AtomicBool, mut http: Http, name: &str, count: &AtomicUsize, acknowledged: &Acknowledged) {
    let mut random = fastrand::Rng::with_seed(name.len() as u64 * 7919 + u64::from(name.as_bytes()[name.len() - 1]));
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("{name}:{number}");
        let value = format!("\"{number}:{}\"", "x".repeat(random.usize(0..6_000)));
        match http.put(&key, &value, None) {
            Ok(reply) if reply.status == 200 => {
                acknowledged.lock().expect("no writer panicked").insert(key, value);
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(reply) => assert!(matches!(reply.status, 429 | 503 | 504), "{reply:?}"),
            Err(_) => wait::pause(Duration::from_millis(2)),
        }
    }
}

fn assert_all_there(cluster: &Cluster, written: &BTreeMap<String, String>, when: &str) {
    let written: Vec<_> = written.iter().collect();
    std::thread::scope(|scope| {
        for (index, part) in written.chunks(written.len() / 4 + 1).enumerate() {
            let mut http = cluster.http(index % cluster.nodes.len());
            scope.spawn(move || {
                for (key, value) in part {
                    let read = http.get(&format!("/v1/keys/{key}")).unwrap_or_else(|e| panic!("{when}: {key}: {e}"));
                    assert_eq!(read.status, 200, "{when}: {key}: {}", read.text());
                    let expected: Value = serde_json::from_str(value).expect("values are JSON");
                    assert!(read.json()["value"] == expected, "{when}: {key} has another value");
                }
            });
        }
    });
}

#[test]
fn every_acknowledged_write_survives_the_death_of_all() {
    let mut cluster = Cluster::start("all-die", 3);
    let mut everything = BTreeMap::new();
    let rounds = if long() { 20 } else { 3 };
    for round in 0..rounds {
        let acknowledged = Acknowledged::default();
        let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for writer in 0..9 {
                let http = cluster.http(writer % 3).timeout(Duration::from_secs(3));
                let (stop, count, acknowledged) = (&stop, &count, &acknowledged);
                scope.spawn(move || write_until(stop, http, &format!("r{round}w{writer}"), count, acknowledged));
            }
            wait::until(Duration::from_secs(60), "writes are acknowledged", || {
                let count = count.load(Ordering::Relaxed);
                if count >= 500 + round * 37 { Ok(()) } else { Err(format!("{count} writes")) }
            });
            cluster.kill_all();
            stop.store(true, Ordering::Relaxed);
        });
        cluster.start_all();
        let acknowledged = acknowledged.into_inner().expect("no writer panicked");
        assert_all_there(&cluster, &acknowledged, &format!("round {round}"));
        everything.extend(acknowledged);
    }
    assert_all_there(&cluster, &everything, "after all rounds");
}

#[test]
fn a_node_that_was_away_catches_up() {
    let mut cluster = Cluster::start("away", 3);
    cluster.nodes[2].kill();
    let mut written = BTreeMap::new();
    let mut clients = [cluster.http(0), cluster.http(1)];
    for number in 0..300 {
        let (key, value) = (format!("away:{number}"), format!("\"{}\"", "y".repeat(number * 13)));
        let put = clients[number % 2].put(&key, &value, None).unwrap();
        assert_eq!(put.status, 200, "{put:?}");
        written.insert(key, value);
    }
    cluster.nodes[2].start();
    cluster.wait_whole();
    cluster.wait_no_hints();
    // Alone, it knows everything.
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    let mut http = cluster.http(2);
    for (key, value) in &written {
        let read = http.get(&format!("/v1/keys/{key}?r=1")).unwrap();
        assert_eq!(read.status, 200, "{key}: {}", read.text());
        assert_eq!(read.json()["value"].to_string(), *value);
    }
    // But it is no quorum, and says so.
    let put = http.put("away:0?sloppy=false&timeout_ms=1500", "1", None).unwrap();
    assert!(matches!(put.status, 503 | 504), "{put:?}");
    assert!(matches!(put.problem().as_str(), "quorum_unavailable" | "deadline"), "{}", put.text());
    assert_eq!(put.json()["needed"], 2);
}

/// Clients add elements to sets, with a read and a merge before each write, while a node comes and goes. No element
/// whose write was acknowledged is missing in the end.
#[test]
fn sets_lose_nothing_while_a_node_comes_and_goes() {
    let mut cluster = Cluster::start("sets", 3);
    let added: Vec<Mutex<BTreeSet<u64>>> = (0..8).map(|_| Mutex::default()).collect();
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for client in 0..4u64 {
            let (added, stop, count) = (&added, &stop, &count);
            let mut http = cluster.http((client % 2) as usize);
            scope.spawn(move || {
                for number in 0..1_000_000u64 {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (set, element) = ((number % 8) as usize, client * 1_000_000 + number);
                    if add(&mut http, set, element) {
                        added[set].lock().expect("no client panicked").insert(element);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let more = |enough: usize| {
            let goal = count.load(Ordering::Relaxed) + enough;
            wait::until(Duration::from_secs(60), "clients go on", || {
                let count = count.load(Ordering::Relaxed);
                if count >= goal { Ok(()) } else { Err(format!("{count} of {goal} writes")) }
            });
        };
        for _ in 0..if long() { 10 } else { 3 } {
            more(60);
            cluster.nodes[2].kill();
            more(60);
            cluster.nodes[2].start();
            cluster.nodes[2].wait_ready();
        }
        more(60);
        stop.store(true, Ordering::Relaxed);
    });
    cluster.wait_whole();
    cluster.wait_no_hints();
    for (set, added) in added.iter().enumerate() {
        let added = added.lock().expect("no client panicked");
        for node in 0..3 {
            let (found, _) = read_set(&mut cluster.http(node), set).expect("a whole cluster answers");
            let lost: Vec<_> = added.difference(&found).collect();
            assert!(lost.is_empty(), "set {set}, node {node}: {} of {} lost: {lost:?}", lost.len(), added.len());
        }
    }
}

/// All elements of all siblings, and the context to build on.
fn read_set(http: &mut Http, set: usize) -> Option<(BTreeSet<u64>, Option<String>)> {
    let read = http.get(&format!("/v1/keys/set:{set}")).ok()?;
    let values = match read.status {
        404 => vec![],
        200 => vec![read.json()["value"].clone()],
        300 => read.json()["siblings"].as_array()?.clone(),
        429 | 503 | 504 => return None,
        _ => panic!("{read:?}"),
    };
    let elements = values.iter().flat_map(|v| v.as_array().into_iter().flatten()).filter_map(Value::as_u64).collect();
    Some((elements, read.header("x-version-context").map(str::to_string)))
}
/// Whether it was acknowledged.
fn add(http: &mut Http, set: usize, element: u64) -> bool {
    let Some((mut elements, context)) = read_set(http, set) else { return false };
    elements.insert(element);
    let value = format!("{elements:?}").replace('{', "[").replace('}', "]");
    http.put(&format!("set:{set}"), &value, context.as_deref()).is_ok_and(|reply| reply.status == 200)
}

#[test]
fn a_node_restarts_with_another_number_of_shards() {
    let mut cluster = Cluster::start("reshard", 1);
    let mut written = BTreeMap::new();
    for shards in ["3", "2", "5", "1"] {
        for number in 0..200 {
            let (key, value) = (format!("{shards}:{number}"), format!("\"{}\"", "z".repeat(number * 20)));
            assert_eq!(cluster.http(0).put(&key, &value, None).unwrap().status, 200);
            written.insert(key, value);
        }
        cluster.nodes[0].kill();
        cluster.nodes[0].extra = vec!["--shards".into(), shards.into()];
        cluster.start_all();
        wait::until(Duration::from_secs(20), "all shards report", || {
            let view = cluster.nodes[0].figures();
            let reported = view["shards"].as_array().map_or(0, Vec::len).to_string();
            if reported == shards { Ok(()) } else { Err(format!("{reported} of {shards}: {view}")) }
        });
        assert_all_there(&cluster, &written, &format!("with {shards} shards"));
    }
}
