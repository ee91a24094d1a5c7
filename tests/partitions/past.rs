//! Where the last write wins: what waited in the sockets of a stopped process does not win when it goes on, and a clock
//! that is wrong loses nothing.

use crate::{
    faults::number,
    firewall::Firewall,
    http::{Http, Reply},
    node::{Cluster, Node, Place},
    wait,
};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::FileExt,
    process::Command,
    time::{Duration, Instant},
};

const SECONDS_30: Duration = Duration::from_secs(30);

fn start(test: &str, count: u8, environment: impl Fn(&Place, u8) -> Vec<(String, String)>) -> Cluster {
    let place = Place::new(test);
    let address = |index: u8| IpAddr::from(Ipv4Addr::new(127, 0, 0, index + 1));
    let mut nodes = Vec::new();
    for index in 0..count {
        let seed = (index > 0).then(|| address(0));
        let mut node = Node::new(&place, &format!("n{}", index + 1), address(index), seed);
        node.environment = environment(&place, index);
        node.start();
        nodes.push(node);
    }
    let mut cluster = Cluster { nodes, place };
    cluster.wait_whole();
    let made = cluster.http(0).send("PUT", "/v1/tables/l", &[], br#"{"conflict": "last_write_wins"}"#);
    assert_eq!(made.expect("an answer").status, 200);
    wait::until(SECONDS_30, "all nodes know the table", || {
        let known = |node: &Node| node.http().get("/v1/tables/l").is_ok_and(|reply| reply.status == 200);
        if cluster.nodes.iter().all(known) { Ok(()) } else { Err("not all do".to_string()) }
    });
    cluster
}

/// The homes of a key, the first first.
fn homes(http: &mut Http, key: &str) -> Vec<String> {
    let view = http.get(&format!("/v1/ring?key={key}")).expect("an answer").json();
    let lines = view["preference_list"].as_array().expect("a list").clone();
    let homes = lines.iter().filter(|line| line["home"] == true);
    homes.map(|line| line["address"].as_str().expect("an address").to_string()).collect()
}

/// Stops the first home of some keys, writes them by way of a node that is no home of theirs and has to ask another in
/// the end, then writes them again, and lets the first home go on: the later write is what is read.
pub fn stopped() {
    Firewall::new();
    let pauses = [Duration::from_secs(7), Duration::from_millis(2_500)];
    for round in 0..number("EACH_ROUNDS", pauses.len() as u64) {
        let pause = pauses[round as usize % pauses.len()];
        let mut cluster = start("stopped", 4, |_, _| Vec::new());
        let (first, other, outside) = (0, 1, 3);
        let ips: Vec<String> = cluster.nodes.iter().map(|n| n.ip.to_string()).collect();
        let mut http = cluster.http(other);
        let fit = |http: &mut Http, key: &String| {
            let homes = homes(http, key);
            homes[0] == ips[first] && !homes.contains(&ips[outside])
        };
        let keys: Vec<String> = (0..).map(|n| format!("l:{n}")).filter(|key| fit(&mut http, key)).take(12).collect();
        for key in &keys {
            assert_eq!(http.put(key, "\"before\"", None).expect("an answer").status, 200);
        }
        cluster.nodes[first].signal("STOP");
        let began = Instant::now();
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let write = |(index, key): (usize, &String)| {
                let mut http = cluster.http(outside).once();
                let key = key.clone();
                scope.spawn(move || {
                    let reply = match index % 2 {
                        0 => http.put(&key, "\"old\"", None),
                        _ => http.send("DELETE", &format!("/v1/keys/{key}"), &[], b""),
                    };
                    reply.expect("an answer").status
                })
            };
            let writes: Vec<_> = keys.iter().enumerate().map(write).collect();
            writes.into_iter().map(|write| write.join().expect("a writer")).collect()
        });
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
        for later in 1..=3 {
            for key in &keys {
                let reply = http.put(key, &format!("\"later {later}\""), None).expect("an answer");
                assert_eq!(reply.status, 200, "{}", reply.text());
            }
        }
        wait::pause(pause.saturating_sub(began.elapsed()));
        cluster.nodes[first].signal("CONT");
        cluster.wait_whole();
        cluster.wait_no_hints();
        for node in 0..cluster.nodes.len() {
            let mut http = cluster.http(node);
            for key in &keys {
                let reply = http.get(&format!("/v1/keys/{key}?r=3")).expect("an answer");
                let text = reply.text();
                assert!(
                    reply.status == 200 && text.contains("later 3"),
                    "round {round}, {key}: {} {text}",
                    reply.status
                );
            }
        }
    }
}

const HOUR: i64 = 3_600_000_000_000;

/// Three nodes whose wall clocks can be set.
struct Clocked(Cluster);

impl Clocked {
    fn start(test: &str) -> Clocked {
        Clocked(start(test, 3, |place, index| {
            let library = place.path.join("clock.so");
            if index == 0 {
                let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/partitions/clock.c");
                let built =
                    Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
                assert!(built.expect("a C compiler").success(), "{source}");
            }
            let file = place.path.join(format!("clock{index}"));
            fs::write(&file, 0_i64.to_ne_bytes()).expect("a file");
            let pairs = [("LD_PRELOAD", library), ("CLOCK_AHEAD", file)];
            pairs.map(|(name, value)| (name.to_string(), value.to_string_lossy().into_owned())).to_vec()
        }))
    }
    /// In place and at once: the node has the file mapped.
    fn shift(&self, index: usize, ahead: i64) {
        let file = fs::OpenOptions::new().write(true).open(self.0.place.path.join(format!("clock{index}")));
        file.expect("a file").write_all_at(&ahead.to_ne_bytes(), 0).expect("written");
    }
    fn wait_off(&self, index: usize, wrong: bool) {
        wait::until(SECONDS_30, "the node knows what its clock is", || {
            let off = self.0.nodes[index].figures()["clock_off_milliseconds"].as_u64().expect("a number");
            if (off > 0) == wrong { Ok(()) } else { Err(format!("{off} ms")) }
        });
    }
    fn put(&self, node: usize, key: &str, value: &str, context: Option<&str>) -> Reply {
        self.0.http(node).put(key, &format!("\"{value}\""), context).expect("an answer")
    }
    fn all_put(&self, node: usize, value: &str) {
        for key in 0..10 {
            let reply = self.put(node, &format!("l:{key}"), value, None);
            assert_eq!(reply.status, 200, "{value} at node {node}, l:{key}: {}", reply.text());
        }
    }
    fn all_read(&self, value: &str) {
        wait::until(SECONDS_30, "all replicas hold what was acknowledged last", || {
            for node in 0..3 {
                for key in 0..10 {
                    let reply = self.0.http(node).get(&format!("/v1/keys/l:{key}?r=1")).expect("an answer");
                    if !reply.text().contains(value) {
                        return Err(format!("node {node} shows l:{key} as {}", reply.text()));
                    }
                }
            }
            Ok(())
        });
    }
}

/// A clock that is an hour ahead, mended, an hour behind, mended: what is acknowledged is read, nothing that was
/// refused is, and nothing stays broken.
pub fn clocks() {
    Firewall::new();
    let cluster = Clocked::start("clocks");
    let sides = [(HOUR, 0), (-HOUR, 2)];
    for round in 0..number("EACH_ROUNDS", sides.len() as u64) {
        let (side, who) = sides[round as usize % sides.len()];
        let other = 1;
        cluster.all_put(other, "before");
        cluster.all_read("before");
        cluster.shift(who, side);
        cluster.wait_off(who, true);
        for key in 0..10 {
            let context = cluster.0.http(who).get(&format!("/v1/keys/l:{key}")).expect("an answer").context();
            for context in [None, Some(context.as_str())] {
                let reply = cluster.put(who, &format!("l:{key}"), "wrong", context);
                let body = reply.json();
                assert_eq!((reply.status, reply.problem().as_str()), (503, "clock"), "{body}");
                assert_eq!(body["outcome"], "not_applied", "{body}");
            }
        }
        cluster.all_read("before");
        cluster.all_put(other, "meanwhile");
        cluster.all_read("meanwhile");
        cluster.shift(who, 0);
        cluster.wait_off(who, false);
        cluster.all_put(who, "mended");
        cluster.all_read("mended");
        cluster.0.wait_no_hints();
    }
}

/// A node that starts may hear a wrong clock before any other. It does not take its own for the wrong one, and so it
/// takes writes, and takes those that another sound node has stamped.
pub fn starts_beside_a_wrong_clock() {
    Firewall::new();
    let mut cluster = Clocked::start("beside");
    cluster.shift(0, HOUR);
    cluster.wait_off(0, true);
    for round in 0..number("EACH_ROUNDS", 4) {
        cluster.0.nodes[1].kill();
        cluster.0.nodes[1].start();
        cluster.0.nodes[1].wait_ready();
        for turn in 0..6 {
            for node in [1, 2] {
                cluster.all_put(node, &format!("{round}-{turn}-{node}"));
            }
            wait::pause(Duration::from_millis(250));
        }
        cluster.all_read(&format!("{round}-5-2"));
    }
}
