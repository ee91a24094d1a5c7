//! One data directory under other numbers of shards: served at once, whatever wrote it, also after kills in the middle
//! of such a start.

use crate::{
    http::Http,
    long,
    node::{Cluster, Node},
    wait,
};
use std::{
    io::Write,
    time::{Duration, Instant},
};

const WRITERS: usize = 4;
const VALUE_BYTES: usize = 10_240;

fn value(key: usize, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; VALUE_BYTES];
    fastrand::Rng::with_seed(key as u64 * 1_000 + version).fill(&mut bytes);
    bytes
}

/// The version of every key, and the context that its next write builds on.
type Known = Vec<(u64, String)>;

/// Writes every `step`-th key once more, with several connections.
fn write(node: &Node, known: &mut Known, step: usize) {
    std::thread::scope(|scope| {
        let length = known.len().div_ceil(WRITERS);
        for (part, known) in known.chunks_mut(length).enumerate() {
            scope.spawn(move || {
                let mut http = node.http();
                for (index, (version, context)) in known.iter_mut().enumerate().step_by(step) {
                    let key = part * length + index;
                    let mut headers = vec![("Content-Type", "a/b")];
                    if *version > 0 {
                        headers.push(("X-Version-Context", &context[..]));
                    }
                    let body = value(key, *version + 1);
                    let reply = http.send("PUT", &format!("/v1/keys/s:{key}"), &headers, &body).expect("an answer");
                    assert_eq!(reply.status, 200, "{}", reply.text());
                    (*version, *context) = (*version + 1, reply.context());
                }
            });
        }
    });
}
/// Reads every `step`-th key.
fn check(node: &Node, known: &Known, step: usize, when: &str) {
    std::thread::scope(|scope| {
        let length = known.len().div_ceil(WRITERS);
        for (part, known) in known.chunks(length).enumerate() {
            scope.spawn(move || {
                let mut http: Http = node.http();
                for (index, (version, _)) in known.iter().enumerate().step_by(step) {
                    let key = part * length + index;
                    let accept = [("Accept", "application/octet-stream")];
                    let reply = http.send("GET", &format!("/v1/keys/s:{key}"), &accept, b"").expect("an answer");
                    assert_eq!(reply.status, 200, "{when}: key {key}: {}", reply.text());
                    assert!(reply.body == value(key, *version), "{when}: key {key} is not version {version}");
                }
            });
        }
    });
}

#[test]
fn a_directory_serves_under_any_number_of_shards() {
    let mut cluster = Cluster::start("slices", 1);
    let node = &mut cluster.nodes[0];
    let keys = if long() { 30_000 } else { 2_000 };
    let mut known: Known = vec![(0, String::new()); keys];
    write(node, &mut known, 1);
    let mut random = fastrand::Rng::with_seed(6);
    let lives = if long() { 24 } else { 8 };
    let mut slowest = Duration::ZERO;
    for life in 0..lives {
        if life % 3 == 0 {
            assert!(node.stop().success(), "{}", node.log_tail());
        } else {
            node.kill();
        }
        // Killed in the middle of a start, once or twice, under yet another number.
        for _ in 0..random.usize(0..3) {
            node.extra = vec!["--shards".into(), random.u32(1..=8).to_string()];
            node.start();
            wait::pause(Duration::from_millis(random.u64(0..300)));
            node.kill();
        }
        let shards = if life < 8 { [4, 1, 3, 2, 8, 1, 2, 3][life] } else { random.u32(1..=8) };
        node.extra = vec!["--shards".into(), shards.to_string()];
        let start = Instant::now();
        node.start();
        node.wait_ready();
        let ready = start.elapsed();
        let figures = node.figures();
        let figure = |name: &str| figures[name].as_u64().unwrap_or(u64::MAX);
        let written = figure("device_bytes_written");
        let works = figure("flushes") + figure("collections") > 0;
        slowest = slowest.max(ready);
        // Leases and new segments; nothing is moved before it serves. On a busy machine background work has begun by
        // then.
        let few = written < keys as u64 * VALUE_BYTES as u64 / 8;
        assert!(few || works, "life {life}: {written} bytes written at the start");
        let reported = wait::until(Duration::from_secs(20), "all shards report", || {
            let view = node.figures();
            let reported = view["shards"].as_array().map_or(0, Vec::len);
            if reported == shards as usize { Ok(view) } else { Err(format!("{reported} of {shards}: {view}")) }
        });
        assert_eq!(reported["damaged_reads"], 0, "life {life}");
        check(node, &known, if long() { 7 } else { 1 }, &format!("life {life} with {shards} shards"));
        write(node, &mut known, 10 + life);
    }
    check(node, &known, 1, "in the end");
    let megabytes = (keys * VALUE_BYTES) >> 20;
    // Past the capture of the test harness: a figure to look at, not to assert.
    let _ = writeln!(
        std::io::stderr(),
        "slices: {megabytes} MiB under 1 to 8 shards, {lives} lives: ready after {:.2} s at most",
        slowest.as_secs_f64()
    );
}
