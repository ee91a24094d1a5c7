//! Whole runs against a tiny server of the Redis protocol in this process.

use super::{
    dialect::{NativeServer, RedisServer, Service},
    echo::{Echo, Stall},
    latency::Percentiles,
    plan::{BenchArgs, Pace, Plan},
    schedule::Arrivals,
    session::{Outcome, execute},
    target::{Fleet, Protocol, Target},
    workload::Kind,
};
use clap::Parser;
use std::{net::TcpListener, sync::Arc, time::Duration};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    bench: BenchArgs,
}
fn plan(words: &str) -> Plan {
    Line::try_parse_from(["bench"].into_iter().chain(words.split(' '))).unwrap().bench.plan().unwrap()
}
fn against(echo: &Echo, plan: &Plan) -> Outcome {
    let target = Target { protocol: Protocol::Redis, seeds: vec![echo.address] };
    execute(Arc::new(Fleet::discover(&target, false).unwrap()), plan).unwrap()
}

#[test]
fn what_was_loaded_is_read_back_and_checked() {
    let echo = Echo::start(Service::Redis(RedisServer::storing()), None, None).unwrap();
    let loaded = against(&echo, &plan("put --load --keys 2000 --value-bytes 300 -c 4 --in-flight 8"));
    assert_eq!((loaded.total.done, loaded.total.failures()), (2000, 0));
    assert_eq!(loaded.total.kind(Kind::Insert).unwrap().bytes, 600_000);

    let open = plan(
        "mixed --reads 0.5 --rate 4000 --keys 2000 --value-bytes 300 -c 4 --seconds 1 --warmup 0.2 --validate --threads 2",
    );
    let run = against(&echo, &open);
    assert_eq!((run.total.missing, run.total.damaged, run.total.failures()), (0, 0, 0));
    let recorded: u64 = [Kind::Get, Kind::Put].iter().map(|k| run.total.kind(*k).unwrap().latency.len()).sum();
    assert_eq!(recorded, run.total.scheduled, "every scheduled operation is in a histogram");
    assert!((3_600..=4_400).contains(&run.total.scheduled), "{}", run.total.scheduled);
}

#[test]
fn values_of_another_length_are_seen_as_damage() {
    let echo = Echo::start(Service::Redis(RedisServer::forgetful(50)), None, None).unwrap();
    let run = against(&echo, &plan("get --closed -c 2 --keys 10 --value-bytes 60 --seconds 0.2 --warmup 0 --validate"));
    assert!(run.total.done > 0 && run.total.damaged >= run.total.done);
}

#[test]
fn an_open_loop_sees_a_stall_that_service_time_hides() {
    let stall = Stall { at: Duration::from_millis(500), length: Duration::from_millis(400) };
    let echo = Echo::start(Service::Redis(RedisServer::forgetful(10)), Some(stall), None).unwrap();
    // One request in flight: all others of the stall wait behind it, unsent.
    let run = against(
        &echo,
        &plan("get --rate 1000 --arrivals uniform -c 1 --in-flight 1 --value-bytes 10 --seconds 2 --warmup 0"),
    );
    let open = Percentiles::of(&run.total.latency());
    let service = Percentiles::of(&run.service);
    // A fifth of the operations fall into the stall; the median of those waits half of it.
    assert!(open.p90_us > 100_000.0, "{open:?}");
    assert!(service.p90_us < 50_000.0, "{service:?}");
    assert_eq!(run.total.latency().len(), run.total.scheduled);
}

#[test]
fn operations_without_an_answer_fail_and_stay_in_the_histogram() {
    // Accepts connections in its backlog and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target { protocol: Protocol::Redis, seeds: vec![silent.local_addr().unwrap()] };
    let fleet = Arc::new(Fleet::discover(&target, false).unwrap());
    let run = execute(fleet, &plan("get --rate 100 --arrivals uniform -c 1 --seconds 0.3 --warmup 0 --timeout-ms 200"))
        .unwrap();
    assert_eq!(run.total.done, 0);
    assert_eq!((run.total.scheduled, run.total.failures(), run.total.latency().len()), (30, 30, 30));
    assert!(Percentiles::of(&run.total.latency()).p50_us >= 200_000.0);
}

#[test]
fn a_lost_connection_is_replaced_and_its_operations_are_tried_elsewhere() {
    let (first, second) = (
        Echo::start(Service::Redis(RedisServer::forgetful(10)), None, None).unwrap(),
        Echo::start(Service::Redis(RedisServer::forgetful(10)), None, None).unwrap(),
    );
    let target = Target { protocol: Protocol::Redis, seeds: vec![first.address, second.address] };
    let fleet = Arc::new(Fleet::discover(&target, false).unwrap());
    let plan = Plan {
        pace: Pace::Open { rate: 2_000.0, arrivals: Arrivals::Uniform },
        ..plan("get -c 4 --value-bytes 10 --seconds 1 --warmup 0")
    };
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(first);
    });
    let run = execute(fleet, &plan).unwrap();
    stopper.join().unwrap();
    assert_eq!(run.total.failures(), 0, "{:?}", run.total.failed);
    assert_eq!(run.total.latency().len(), run.total.scheduled);
}

#[test]
fn a_run_begins_with_a_node_down_but_not_with_all() {
    let echo = Echo::start(Service::Redis(RedisServer::forgetful(10)), None, None).unwrap();
    let down = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let plan = plan("get --rate 500 -c 3 --value-bytes 10 --seconds 0.3 --warmup 0");
    let run = |seeds: Vec<_>| {
        let target = Target { protocol: Protocol::Redis, seeds };
        execute(Arc::new(Fleet::discover(&target, false).unwrap()), &plan)
    };
    let outcome = run(vec![down, echo.address]).unwrap();
    assert_eq!((outcome.total.failures(), outcome.total.latency().len()), (0, outcome.total.scheduled));
    assert!(run(vec![down]).is_err());
}

#[test]
fn operations_move_from_a_node_that_says_nothing() {
    let echo = Echo::start(Service::Redis(RedisServer::forgetful(10)), None, None).unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target { protocol: Protocol::Redis, seeds: vec![silent.local_addr().unwrap(), echo.address] };
    let run = |silence: &str, timeout: &str| {
        let fleet = Arc::new(Fleet::discover(&target, false).unwrap());
        let words = "get --rate 200 -c 2 --value-bytes 10 --seconds 0.5 --warmup 0";
        let words = format!("{words} --silence-ms {silence} --timeout-ms {timeout}");
        execute(fleet, &plan(&words)).unwrap()
    };
    let moved = run("20", "5000");
    assert_eq!((moved.total.failures(), moved.total.latency().len()), (0, moved.total.scheduled));
    assert!(moved.total.retried > 0);
    assert!(run("0", "400").total.failures() > 0, "nobody is asked in its place");
}

#[test]
fn our_own_protocol_is_driven_with_ids_and_contexts() {
    let echo = Echo::start(Service::Native(NativeServer::forgetful(100)), None, None).unwrap();
    let target = Target { protocol: Protocol::Dynarc, seeds: vec![echo.address] };
    let fleet = Arc::new(Fleet::discover(&target, false).unwrap());
    let run =
        execute(fleet, &plan("ycsb-f --rate 2000 -c 3 --value-bytes 100 --seconds 0.5 --warmup 0 --keys 50")).unwrap();
    assert_eq!((run.total.failures(), run.total.latency().len()), (0, run.total.scheduled));
    let (gets, updates) = (run.total.kind(Kind::Get).unwrap(), run.total.kind(Kind::Update).unwrap());
    assert!(gets.done > 300 && updates.done > 300, "{} {}", gets.done, updates.done);
    assert_eq!((gets.bytes, updates.bytes), (gets.done * 100, updates.done * 100));
}
