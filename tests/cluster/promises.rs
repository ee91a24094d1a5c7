//! What is promised when little is left: two of three nodes down, and sixteen writers who never read.

use crate::{long, node::Cluster, wait};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// W=2 cannot be had with one node of three, and is refused in time with the counts; W=1 can, and what it accepted is
/// everywhere when the others are back.
#[test]
fn one_node_of_three_accepts_what_it_can() {
    let mut cluster = Cluster::start("last", 3);
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    let mut http = cluster.http(0);
    for key in 0..50 {
        let start = Instant::now();
        let refused = http.put(&format!("last:{key}?w=2&timeout_ms=2000"), "\"two\"", None).expect("it runs");
        assert!(start.elapsed() < Duration::from_millis(2_500), "the deadline passed: {:?}", start.elapsed());
        assert_eq!((refused.status, refused.problem().as_str()), (503, "quorum_unavailable"), "{}", refused.text());
        let counts = refused.json();
        assert!(counts["needed"] == 2 && counts["acks"].as_u64().is_some_and(|acks| acks < 2), "{counts}");
        let accepted = http.put(&format!("last:{key}?w=1"), &format!("\"one{key}\""), None).expect("it runs");
        assert_eq!(accepted.status, 200, "{}", accepted.text());
    }
    cluster.nodes[1].start();
    cluster.nodes[2].start();
    cluster.wait_whole();
    cluster.wait_no_hints();
    for node in 0..3 {
        let mut http = cluster.http(node);
        for key in 0..50 {
            let read = http.get(&format!("/v1/keys/last:{key}?r=1")).expect("it runs");
            assert!(read.text().contains(&format!("\"one{key}\"")), "node {node}, key {key}: {}", read.text());
        }
    }
}

/// Sixteen writers put without a context to one key: each value is concurrent with all others. All are kept up to the
/// cap, and beyond it refused with 409, without a trace in memory.
#[test]
fn sixteen_blind_writers_reach_the_cap_and_no_further() {
    const SIBLINGS_MAX: usize = dynarc::limits::SIBLINGS_MAX;
    let cluster = Cluster::start("blind", 3);
    let (accepted, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let memory = || -> u64 { cluster.nodes.iter().filter_map(|n| n.figures()["resident_bytes"].as_u64()).sum() };
    let until = Duration::from_secs(if long() { 60 } else { 6 });
    let mut full = None;
    std::thread::scope(|scope| {
        for writer in 0..16 {
            let (cluster, accepted, refused) = (&cluster, &accepted, &refused);
            scope.spawn(move || {
                let (mut http, start) = (cluster.http(writer % 3), Instant::now());
                let value = format!("\"{}\"", "b".repeat(500 + writer));
                while start.elapsed() < until {
                    let put = http.put("blind", &value, None).expect("it runs");
                    match (put.status, put.problem_if_any().as_deref()) {
                        (200, _) => accepted.fetch_add(1, Ordering::Relaxed),
                        (409, Some("sibling_limit")) => refused.fetch_add(1, Ordering::Relaxed),
                        other => panic!("{other:?}: {}", put.text()),
                    };
                }
            });
        }
        wait::until(Duration::from_secs(30), "the cap is reached", || {
            let count = refused.load(Ordering::Relaxed);
            if count > 100 { Ok(()) } else { Err(format!("{count} refused")) }
        });
        full = Some(memory());
    });
    let (before, after) = (full.expect("the cap was reached"), memory());
    let read = cluster.http(0).get("/v1/keys/blind?r=3").expect("it runs");
    assert_eq!(read.status, 300);
    let siblings = read.json()["siblings"].as_array().map_or(0, Vec::len);
    let accepted = accepted.load(Ordering::Relaxed) as usize;
    // Each coordinator looks at what it knows: those of three nodes at the same time may go beyond together.
    assert!(siblings >= SIBLINGS_MAX.min(accepted) && siblings <= SIBLINGS_MAX + 16, "{siblings} of {accepted}");
    assert!(siblings <= accepted, "{siblings} siblings of {accepted} writes");
    // A refused write leaves nothing: what grows a little is the allocator's and the caches' business.
    assert!(after < before + (48 << 20), "memory grew from {before} to {after} while all was refused");
}
