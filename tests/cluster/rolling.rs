//! Nodes are stopped in good order while clients work: what is in hand is finished, who comes late is sent elsewhere,
//! and behind a load balancer nobody notices that the whole cluster is restarted node by node.

use crate::{
    http::{Http, read_reply},
    long,
    node::Cluster,
    wait,
};
use std::{
    io::{BufReader, ErrorKind, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

#[test]
fn a_stop_finishes_what_is_in_hand_and_sends_late_comers_elsewhere() {
    let mut cluster = Cluster::start_with_shards("drain", 3, 2);
    // The test takes its time; the drain ends when it has closed its connections.
    let mut node = cluster.nodes.remove(0);
    assert!(node.stop().success());
    node.extra.extend(["--drain-ms", "60000"].map(String::from));
    node.start();
    cluster.nodes.insert(0, node);
    cluster.wait_whole();
    let (ip, port) = (cluster.nodes[0].ip, SocketAddr::new(cluster.nodes[0].ip, 7700));
    // The head of a request, and half of its body.
    let mut begun = TcpStream::connect(port).expect("the node listens");
    begun.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let head = format!("PUT /v1/keys/begun HTTP/1.1\r\nHost: {port}\r\nContent-Length: 13\r\n\r\n{{\"value\"");
    begun.write_all(head.as_bytes()).expect("sent");
    let mut http = cluster.http(0);
    wait::until(Duration::from_secs(10), "the head has been read", || {
        let figures = http.get("/v1/node").map_err(|e| e.to_string())?.json();
        // This request, and that one.
        if figures["http_requests_begun"].as_u64() == Some(2) { Ok(()) } else { Err(figures.to_string()) }
    });
    cluster.nodes[0].signal("TERM");
    wait::until(Duration::from_secs(10), "the node says that it stops", || {
        let reply = Http::new(ip).get("/readyz").map_err(|e| e.to_string())?;
        if reply.status == 503 && reply.text().contains("stopping") { Ok(()) } else { Err(format!("{reply:?}")) }
    });
    // The others know that before it is gone, and do not take it for lost.
    for other in &cluster.nodes[1..] {
        wait::until(Duration::from_secs(10), "the others know", || {
            let log = other.log_tail();
            if log.contains("a member is stopping") { Ok(()) } else { Err(log) }
        });
    }
    let late = http.put("late", "1", None).expect("an answer");
    assert_eq!((late.status, late.problem().as_str()), (503, "not_ready"), "{}", late.text());
    assert!(late.header("retry-after").is_some() && late.header("connection") == Some("close"), "{late:?}");
    assert_eq!(Http::new(ip).get("/healthz").expect("it lives").status, 200);
    begun.write_all(b": 12}").expect("the rest");
    let mut begun = BufReader::new(begun);
    let reply = read_reply(&mut begun, "PUT").expect("an answer");
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")), "{}", reply.text());
    drop((begun, http));
    assert!(cluster.nodes[0].wait_end().success());
    assert_eq!(cluster.http(1).get("/v1/keys/begun").expect("an answer").json()["value"], 12);
    assert_eq!(cluster.http(1).get("/v1/keys/late").expect("an answer").status, 404);
}

/// What a load balancer knows of the nodes behind it.
struct Balancer {
    nodes: Vec<(IpAddr, AtomicBool)>,
    turn: AtomicUsize,
    over: AtomicBool,
}
impl Balancer {
    /// Asks every node whether it is ready, as often as load balancers are set to.
    fn check(&self) {
        while !self.over.load(Ordering::Relaxed) {
            for (ip, ready) in &self.nodes {
                let reply = Http::new(*ip).timeout(Duration::from_secs(1)).get("/readyz");
                ready.store(reply.is_ok_and(|reply| reply.status == 200), Ordering::Relaxed);
            }
            wait::pause(Duration::from_millis(200));
        }
    }
    /// One request: the next node that is taken for ready, or any that it has not been sent to. Another one is tried
    /// where nobody listens, where the answer is 503, and where a kept connection was closed before the first byte of
    /// an answer, as load balancers do; who answers 503 is not taken for ready until the next check.
    fn send(&self, pool: &mut [Http], method: &str, target: &str, body: &[u8]) -> Result<(), String> {
        let (mut last, mut tried) = (String::new(), Vec::new());
        while tried.len() < pool.len() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let places = || (0..pool.len()).map(|step| (turn + step) % pool.len()).filter(|at| !tried.contains(at));
            let ready = |index: &usize| self.nodes[*index].1.load(Ordering::Relaxed);
            let index = places().find(ready).or_else(|| places().next()).expect("one is left");
            tried.push(index);
            match pool[index].send(method, target, &[], body) {
                Ok(reply) if reply.status == 200 || (method == "GET" && reply.status == 404) => return Ok(()),
                Ok(reply) if reply.status == 503 => {
                    self.nodes[index].1.store(false, Ordering::Relaxed);
                    last += &reply.text();
                }
                Ok(reply) => return Err(format!("{} {}", reply.status, reply.text())),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => last += &error.to_string(),
                Err(error) => return Err(format!("{method} {target} at {}: {error}", self.nodes[index].0)),
            }
        }
        Err(last)
    }
}

#[test]
fn a_rolling_restart_behind_a_load_balancer_fails_nothing() {
    let mut cluster = Cluster::start("rolling", 3);
    let nodes: Vec<(IpAddr, AtomicBool)> = cluster.nodes.iter().map(|n| (n.ip, AtomicBool::new(true))).collect();
    let balancer = Balancer { nodes, turn: AtomicUsize::new(0), over: AtomicBool::new(false) };
    let (served, rounds) = (AtomicUsize::new(0), if long() { 4 } else { 1 });
    let failures: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|client| {
                let (balancer, served) = (&balancer, &served);
                scope.spawn(move || {
                    let mut pool: Vec<Http> = balancer.nodes.iter().map(|(ip, _)| Http::new(*ip)).collect();
                    let (mut failures, mut step) = (Vec::new(), 0);
                    while !balancer.over.load(Ordering::Relaxed) {
                        step += 1;
                        // Half of what such clients could do.
                        wait::pause(Duration::from_millis(2));
                        let target = format!("/v1/keys/c{client}-{}", step % 50);
                        let method = if step % 2 == 0 { "GET" } else { "DELETE" };
                        let method = if step % 4 == 1 { "PUT" } else { method };
                        let body: &[u8] = if method == "PUT" { b"{\"value\": 7}" } else { b"" };
                        match balancer.send(&mut pool, method, &target, body) {
                            Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
                            Err(failure) => failures.push(failure),
                        }
                    }
                    failures
                })
            })
            .collect();
        scope.spawn(|| balancer.check());
        // The clients end also when the test fails.
        let restarted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..rounds {
                for index in 0..3 {
                    let before = served.load(Ordering::Relaxed);
                    wait::until(Duration::from_secs(30), "the clients work", || {
                        let now = served.load(Ordering::Relaxed) - before;
                        if now > 300 { Ok(()) } else { Err(format!("{now} requests")) }
                    });
                    let status = cluster.nodes[index].stop();
                    assert!(status.success(), "round {round}: {status:?}");
                    cluster.nodes[index].start();
                    cluster.wait_whole();
                }
            }
        }));
        balancer.over.store(true, Ordering::Relaxed);
        let failures = clients.into_iter().flat_map(|c| c.join().expect("a client")).collect();
        restarted.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        failures
    });
    let served = served.load(Ordering::Relaxed);
    assert!(failures.is_empty(), "{} of {served} failed: {:?}", failures.len(), &failures[..failures.len().min(5)]);
}
