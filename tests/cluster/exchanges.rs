//! What the design's "The interface" prints, and what two clients make of one key.

use crate::{
    http::Http,
    long,
    node::{Cluster, Place, addresses, dynarc, run},
    wait,
};
use serde_json::json;
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

#[test]
fn the_three_exchanges() {
    let cluster = Cluster::start("exchanges", 3);
    let key = "/v1/keys/cart:8731";
    let cart = |items: &str| json!({ "items": items }).to_string();

    // A new cart, then: value and context.
    let put = cluster.http(0).put("cart:8731", &cart("milk"), None).unwrap();
    assert_eq!(put.status, 200, "{put:?}");
    put.context();
    let read = cluster.http(1).get(key).unwrap();
    assert_eq!(read.status, 200, "{read:?}");
    assert_eq!(read.json()["value"], json!({ "items": "milk" }));
    let context = read.context();

    // The write that builds on it supersedes it.
    let put = cluster.http(2).put("cart:8731", &cart("milk, eggs"), Some(&context)).unwrap();
    assert_eq!(put.status, 200, "{put:?}");
    let read = cluster.http(0).get(key).unwrap();
    assert_eq!((read.status, &read.json()["value"]), (200, &json!({ "items": "milk, eggs" })));

    // Two writes that build on the same context are siblings.
    let context = read.context();
    for (node, items) in [(0, "milk, eggs, bread"), (1, "milk, eggs, beer")] {
        let put = cluster.http(node).put("cart:8731", &cart(items), Some(&context)).unwrap();
        assert_eq!(put.status, 200, "{put:?}");
    }
    let mut contexts = Vec::new();
    for node in 0..3 {
        let read = cluster.http(node).get(key).unwrap();
        assert_eq!(read.status, 300, "{read:?}");
        let mut siblings = read.json()["siblings"].as_array().expect("siblings").clone();
        siblings.sort_by_key(|s| s.to_string());
        assert_eq!(siblings, [json!({ "items": "milk, eggs, beer" }), json!({ "items": "milk, eggs, bread" })]);
        contexts.push(read.context());
    }

    // The application merges them.
    let put = cluster.http(1).put("cart:8731", &cart("milk, eggs, bread, beer"), Some(&contexts[2])).unwrap();
    assert_eq!(put.status, 200, "{put:?}");
    let read = cluster.http(2).get(key).unwrap();
    assert_eq!((read.status, &read.json()["value"]), (200, &json!({ "items": "milk, eggs, bread, beer" })));

    // Deleted is deleted, and its context says so.
    let headers = [("X-Version-Context", read.context())];
    let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let deleted = cluster.http(0).send("DELETE", key, &headers, b"").unwrap();
    assert_eq!(deleted.status, 200, "{deleted:?}");
    for node in 0..3 {
        let gone = cluster.http(node).get(key).unwrap();
        assert_eq!(gone.status, 404, "{gone:?}");
        assert!(gone.header("x-version-context").is_some_and(|c| c.starts_with("vc:")), "{gone:?}");
    }
}

#[test]
fn keys_and_values_are_bytes() {
    let cluster = Cluster::start("bytes", 3);
    let all: String = (0..=255u8).map(|b| format!("%{b:02X}")).collect();
    let longest = "k".repeat(1024);
    for key in ["a%2Fb", "a/b", "%00", all.as_str(), longest.as_str(), "caf%C3%A9"] {
        // Byte for byte as it was sent, spaces and digits included.
        for value in ["1e2", "\"\\u00e9 é\"", "{ \"b\":1,  \"a\" : [1.0, 12345678901234567890] }", "null", "[]"] {
            let context = cluster.http(0).get(&format!("/v1/keys/{key}")).unwrap();
            let context = context.header("x-version-context").map(str::to_string);
            assert_eq!(cluster.http(0).put(key, value, context.as_deref()).unwrap().status, 200);
            let read = cluster.http(1).get(&format!("/v1/keys/{key}")).unwrap();
            assert_eq!(read.status, 200, "{read:?}");
            assert!(read.text().contains(value), "{value} in {}", read.text());
        }
    }
    // `a%2Fb` and `a/b` are one key; raw bytes come back as they went in, of every length around the edges of pages.
    for length in [0usize, 1, 100, 1023, 1024, 4095, 4096, 4097, 100_000, 1 << 20] {
        let body: Vec<u8> = (0..length).map(|i| (i * 31 + i / 251) as u8).collect();
        let target = format!("/v1/keys/raw:{length}");
        let put = cluster.http(2).send("PUT", &target, &[("Content-Type", "image/png")], &body).unwrap();
        assert_eq!(put.status, 200, "{} {}", put.status, put.text());
        for node in 0..3 {
            let read = cluster.http(node).send("GET", &target, &[("Accept", "application/octet-stream")], b"").unwrap();
            assert_eq!(read.status, 200);
            assert!(read.body == body, "{length} bytes from node {node}");
            let json = cluster.http(node).get(&target).unwrap().json();
            assert_eq!(json["encoding"], "base64");
        }
    }
}

/// Each client reads, then each writes: the worst order. Whoever merges what it read leaves at most one value beside.
#[test]
fn two_clients_in_turns_never_see_more_than_two_siblings() {
    let cluster = Cluster::start("turns", 3);
    let mut clients = [cluster.http(0), cluster.http(1)];
    let mut most = 0;
    for turn in 0..if long() { 1_000 } else { 200 } {
        let mut contexts = Vec::new();
        for (index, client) in clients.iter_mut().enumerate() {
            let read = client.get("/v1/keys/counter").unwrap();
            let siblings = match read.status {
                404 => 0,
                200 => 1,
                300 => read.json()["siblings"].as_array().map_or(0, Vec::len),
                _ => panic!("turn {turn}: {read:?}"),
            };
            most = most.max(siblings);
            assert!(siblings <= 2, "turn {turn}: {}", read.text());
            if turn > 0 {
                assert!(read.text().contains(&format!("{turn}")), "client {index} lost turn {turn}: {}", read.text());
            }
            contexts.push(read.header("x-version-context").map(str::to_string));
        }
        for (index, client) in clients.iter_mut().enumerate() {
            let value = format!("{{\"turn\":{},\"client\":{index}}}", turn + 1);
            let put = client.put("counter", &value, contexts[index].as_deref()).unwrap();
            assert_eq!(put.status, 200, "{put:?}");
        }
    }
    assert_eq!(most, 2);
}

#[test]
fn a_node_alone_serves_by_itself_and_stops_in_order() {
    let mut cluster = Cluster::start("alone", 1);
    assert_eq!(cluster.http(0).put("k", "1", None).unwrap().status, 200);
    let ring = cluster.http(0).get("/v1/ring?key=k").unwrap();
    assert_eq!(ring.status, 200, "{}", ring.text());
    assert_eq!(ring.json()["preference_list"].as_array().map(Vec::len), Some(1));
    let metrics = cluster.http(0).get("/metrics").unwrap();
    assert!(metrics.text().contains("dynarc_"), "{}", metrics.text());
    assert_eq!(cluster.http(0).get("/healthz").unwrap().status, 200);
    let ended = cluster.nodes[0].stop();
    assert!(ended.success(), "{ended:?}\n{}", cluster.nodes[0].log_tail());
    cluster.nodes[0].start();
    cluster.nodes[0].wait_ready();
    assert_eq!(cluster.http(0).get("/v1/keys/k").unwrap().json()["value"], 1);
}

/// The first minute of the README: one command, three nodes, their URLs; Ctrl-C ends them all. Then the same command on
/// the same folder finds what was there.
#[test]
fn dev_is_a_whole_cluster_in_one_command() {
    let place = Place::new("dev");
    let IpAddr::V4(first) = addresses(3) else { panic!("an address of 127.0.0.0/8") };
    let ips: Vec<IpAddr> = (0..3).map(|i| Ipv4Addr::from(u32::from(first) + i).into()).collect();
    let (data, first) = (place.path.join("dev"), first.to_string());
    for again in [false, true] {
        let out = place.path.join("out");
        let file = fs::File::create(&out).expect("a file");
        let start = Instant::now();
        let mut dev = dynarc();
        dev.args(["dev", "--base-ip", &first, "--data"]).arg(&data);
        let mut dev = dev.stdout(file.try_clone().expect("the file twice")).stderr(file).spawn().expect("it starts");
        let said = || fs::read_to_string(&out).unwrap_or_default();
        let urls: Vec<String> = ips.iter().map(|ip| format!("http://{ip}:7700")).collect();
        wait::until(Duration::from_secs(30), "three URLs", || {
            if urls.iter().all(|url| said().contains(url)) { Ok(()) } else { Err(said()) }
        });
        eprintln!("dev is ready after {:?}", start.elapsed());
        let mut http = Http::new(ips[1]);
        if again {
            assert_eq!(http.get("/v1/keys/k").unwrap().json()["value"], 7);
        } else {
            assert_eq!(http.put("k", "7", None).unwrap().status, 200);
        }
        let (code, printed, complained) = run(&["get", "k", "--node", &first]);
        assert_eq!((code, printed.trim()), (0, "7"), "{complained}");
        assert_eq!(run(&["get", "absent", "--node", &first]).0, 4);
        let (code, printed, _) = run(&["status", "--json", "--node", &first]);
        assert_eq!(code, 0, "{printed}");
        assert_eq!(printed.matches("\"up\"").count(), 3, "{printed}");

        let pids: Vec<String> = (1..=3)
            .map(|n| fs::read_to_string(data.join(format!("n{n}/pid"))).expect("a pid").trim().to_string())
            .collect();
        let asked = Command::new("kill").args(["-INT", &dev.id().to_string()]).stdout(Stdio::null()).status();
        assert!(asked.is_ok_and(|s| s.success()));
        let ended = wait::until(Duration::from_secs(20), "dev ends", || {
            dev.try_wait().map_err(|e| e.to_string())?.ok_or_else(said)
        });
        assert!(ended.success(), "{ended:?}: {}", said());
        let alive =
            |pid: &String| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.contains("serve"));
        assert!(!pids.iter().any(alive), "a node outlives its cluster");
    }
    assert_eq!(run(&["get", "k", "--node", &first]).0, 3, "nobody is there any more");
}
