//! Tables over HTTP and by the command line: known on every node and core, kept over kill -9, dropped for good.

use crate::{
    node::{Cluster, Node, address, run},
    wait,
};
use serde_json::{Value, json};
use std::time::Duration;

/// What the node says of a table; `None`: there is none.
fn table(cluster: &Cluster, node: usize, name: &str) -> Option<Value> {
    let reply = cluster.http(node).get(&format!("/v1/tables/{name}")).expect("an answer");
    match reply.status {
        200 => Some(reply.json()),
        404 => {
            assert_eq!(reply.problem(), "no_such_table");
            None
        }
        other => panic!("{other}: {}", reply.text()),
    }
}
fn set(cluster: &Cluster, node: usize, name: &str, settings: &Value) -> (u16, Value) {
    let reply = cluster.http(node).send("PUT", &format!("/v1/tables/{name}"), &[], settings.to_string().as_bytes());
    let reply = reply.expect("an answer");
    (reply.status, reply.json())
}
/// Every core of every node, for each accepts connections of its own.
fn wait_all(cluster: &Cluster, name: &str, expected: Option<&Value>) {
    for node in 0..cluster.nodes.len() {
        wait::until(Duration::from_secs(20), &format!("node {node} knows of {name}"), || {
            let seen: Vec<_> = (0..8).map(|_| table(cluster, node, name)).collect();
            if seen.iter().all(|one| one.as_ref() == expected) { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    }
}
/// How many replicas a key has.
fn homes(cluster: &Cluster, key: &str) -> usize {
    let ring = cluster.http(0).get(&format!("/v1/ring?key={key}")).expect("an answer").json();
    ring["preference_list"].as_array().expect("a list").iter().filter(|r| r["home"] == true).count()
}
fn status(cluster: &Cluster, node: usize, key: &str) -> u16 {
    cluster.http(node).get(&format!("/v1/keys/{key}?r=1")).expect("an answer").status
}

#[test]
fn tables_are_everywhere_and_stay() {
    let mut cluster = Cluster::start_with_shards("tables", 3, 2);
    let cart = json!({"name": "cart", "n": 1, "r": 1, "w": 1, "conflict": "siblings", "sloppy": false,
        "durability": "interval"});
    let wish = json!({"n": 1, "r": 1, "w": 1, "sloppy": false, "durability": "interval"});
    assert_eq!(set(&cluster, 1, "cart", &wish), (200, cart.clone()));
    wait_all(&cluster, "cart", Some(&cart));
    assert_eq!((homes(&cluster, "cart:1"), homes(&cluster, "other:1"), homes(&cluster, "cart")), (1, 3, 3));
    for (settings, words) in
        [(json!({"n": 9}), "n is 1 to 7"), (json!({"w": 2}), "w is 1 to 1"), (json!({"x": 1}), "x")]
    {
        let (status, problem) = set(&cluster, 2, "cart", &settings);
        let detail = problem["detail"].as_str().expect("a detail");
        assert_eq!((status, problem["code"].as_str()), (400, Some("bad_request")), "{problem}");
        assert!(detail.contains(words), "{detail}");
    }
    let long = format!("{{{}}}", " ".repeat(10_000));
    let reply = cluster.http(0).send("PUT", "/v1/tables/cart", &[], long.as_bytes()).expect("an answer");
    assert_eq!(reply.status, 400, "{}", reply.text());

    for key in 0..40 {
        let reply = cluster.http(key % 3).put(&format!("cart:{key}"), "1", None).expect("an answer");
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    // A change is durable where it was asked for before it is answered.
    let altered = json!({"name": "cart", "n": 2, "r": 1, "w": 2, "conflict": "siblings", "sloppy": false,
        "durability": "sync"});
    assert_eq!(set(&cluster, 0, "cart", &json!({"n": 2, "w": 2, "durability": "sync"})), (200, altered.clone()));
    cluster.kill_all();
    cluster.start_all();
    wait_all(&cluster, "cart", Some(&altered));
    // What was written with one replica is there when all are asked: more of them get it by repair.
    let headers = [("X-Consistency", "all")];
    let reply = cluster.http(0).send("GET", "/v1/keys/cart:7", &headers, b"").expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text());

    // One is away while the table is dropped; the data is gone on each, and stays away.
    cluster.nodes[2].kill();
    let dropped = cluster.http(0).send("DELETE", "/v1/tables/cart", &[], b"").expect("an answer");
    assert_eq!((dropped.status, &dropped.json()["dropped"]), (200, &json!(true)), "{}", dropped.text());
    assert_eq!(cluster.http(0).send("DELETE", "/v1/tables/cart", &[], b"").expect("an answer").status, 404);
    assert_eq!(cluster.http(0).send("DELETE", "/v1/tables/default", &[], b"").expect("an answer").status, 400);
    cluster.nodes[2].start();
    cluster.wait_whole();
    wait_all(&cluster, "cart", None);
    for key in 0..40 {
        // All three are asked: a core that has not reached the node that came back yet says so.
        let (status, problem) = wait::until(Duration::from_secs(20), "all replicas are reached", || {
            let reply = cluster.http(key % 3).get(&format!("/v1/keys/cart:{key}?r=3")).expect("an answer");
            if reply.status == 503 { Err(reply.text()) } else { Ok((reply.status, reply.problem())) }
        });
        assert_eq!((status, problem.as_str()), (404, "no_such_key"), "{key}");
    }
    // Made again it is empty, and what is written then is kept, also over a restart.
    set(&cluster, 2, "cart", &json!({"n": 3, "r": 2, "w": 3}));
    let reply = cluster.http(2).put("cart:7", "\"new\"", None).expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text());
    cluster.kill_all();
    cluster.start_all();
    let reply = cluster.http(1).get("/v1/keys/cart:7?r=3").expect("an answer");
    assert_eq!((reply.status, reply.json()["value"].as_str()), (200, Some("new")));
    assert_eq!(status(&cluster, 1, "cart:8"), 404);
}

/// A core that does not own a key has none of its records to drop: it passes the request on.
#[test]
fn keys_of_a_dropped_table_are_served_by_every_core() {
    let mut cluster = Cluster::start_with_shards("dropped-cores", 1, 3);
    let table = || set(&cluster, 0, "cart", &json!({"n": 1, "r": 1, "w": 1})).0;
    assert_eq!(table(), 200);
    // Each connection lands on whichever core takes it.
    let each = |cluster: &Cluster, round: &str, expected: u16| {
        for key in 0..24 {
            let reply = cluster.http(0).get(&format!("/v1/keys/cart:{key}?timeout_ms=3000")).expect("an answer");
            assert_eq!(reply.status, expected, "{round}: {key}: {}", reply.text());
        }
    };
    let put = |cluster: &Cluster| {
        for key in 0..24 {
            let reply = cluster.http(0).put(&format!("cart:{key}"), "1", None).expect("an answer");
            assert_eq!(reply.status, 200, "{key}: {}", reply.text());
        }
    };
    put(&cluster);
    let dropped = cluster.http(0).send("DELETE", "/v1/tables/cart", &[], b"").expect("an answer");
    assert_eq!(dropped.status, 200, "{}", dropped.text());
    wait_all(&cluster, "cart", None);
    each(&cluster, "dropped", 404);
    put(&cluster);
    each(&cluster, "written as default", 200);
    assert_eq!(table(), 200);
    each(&cluster, "made again", 200);
    cluster.kill_all();
    cluster.start_all();
    each(&cluster, "started again", 200);
}

/// What it takes at once, before any gossip has reached it, is kept as the table says.
#[test]
fn a_newcomer_knows_the_tables_before_it_serves() {
    let mut cluster = Cluster::start_with_shards("tables-newcomer", 2, 2);
    let (status, made) = set(&cluster, 0, "s", &json!({"conflict": "last_write_wins"}));
    assert_eq!(status, 200, "{made}");
    wait_all(&cluster, "s", Some(&made));
    for key in 0..100 {
        assert_eq!(cluster.http(key % 2).put(&format!("s:{key}"), "1", None).expect("an answer").status, 200);
    }
    let mut newcomer = Node::new(&cluster.place, "n3", address(), Some(cluster.nodes[0].ip));
    newcomer.start();
    newcomer.wait_ready();
    for key in 0..100 {
        let reply = newcomer.http().put(&format!("s:{key}"), "2", None).expect("an answer");
        assert_eq!(reply.status, 200, "{key}: {}", reply.text());
    }
    cluster.nodes.push(newcomer);
    cluster.wait_whole();
    for key in 0..100 {
        let reply = cluster.http(key % 3).get(&format!("/v1/keys/s:{key}?r=3")).expect("an answer");
        assert_eq!((reply.status, reply.json()["value"].as_u64()), (200, Some(2)), "{key}: {}", reply.text());
    }
}

/// Whoever asked for it may have given up, and another may have changed the table since.
#[test]
fn a_change_that_waited_in_a_stopped_node_is_not_carried_out() {
    let mut cluster = Cluster::start_with_shards("tables-waited", 2, 1);
    cluster.nodes[0].kill();
    cluster.nodes[0].environment = vec![("DYNARC_REQUEST_TIMEOUT_MS".to_string(), "1000".to_string())];
    cluster.nodes[0].start();
    cluster.wait_whole();
    let settings = json!({"n": 2, "r": 1, "w": 1, "conflict": "last_write_wins"});
    assert_eq!(set(&cluster, 1, "kept", &settings).0, 200);
    wait_all(&cluster, "kept", Some(&table(&cluster, 1, "kept").expect("it was made")));

    let (made, dropped) = std::thread::scope(|scope| {
        cluster.nodes[0].signal("STOP");
        let ask = |method: &'static str, name: &str, body: &'static [u8]| {
            let mut http = cluster.http(0);
            let path = format!("/v1/tables/{name}");
            scope.spawn(move || http.send(method, &path, &[], body).expect("an answer"))
        };
        let (made, dropped) = (ask("PUT", "late", b"{\"n\": 1, \"r\": 1, \"w\": 1}"), ask("DELETE", "kept", b""));
        // Twice the time that a request may take.
        wait::pause(Duration::from_secs(2));
        cluster.nodes[0].signal("CONT");
        (made.join().expect("it is made"), dropped.join().expect("it is dropped"))
    });
    for reply in [made, dropped] {
        assert_eq!((reply.status, reply.problem()), (504, "deadline".to_string()), "{}", reply.text());
        assert_eq!(reply.json()["outcome"], "not_applied");
    }
    assert!(table(&cluster, 0, "late").is_none() && table(&cluster, 1, "kept").is_some());
    assert_eq!(set(&cluster, 0, "late", &json!({"n": 1, "r": 1, "w": 1})).0, 200, "what comes in time is done");
}

/// Keys of the table default that a table takes over are there meanwhile and afterwards, unless it has written them.
#[test]
fn a_table_gives_back_what_it_took_over() {
    let mut cluster = Cluster::start_with_shards("tables-over", 1, 1);
    let put = |cluster: &Cluster, key: &str, value: &str| {
        let reply = cluster.http(0).put(key, value, None).expect("an answer");
        assert_eq!(reply.status, 200, "{key}: {}", reply.text());
    };
    (0..20).for_each(|key| put(&cluster, &format!("cart:{key}"), "1"));
    let make = || {
        let body = b"{\"n\": 1, \"r\": 1, \"w\": 1}";
        cluster.http(0).send("PUT", "/v1/tables/cart?create=true", &[], body).expect("an answer")
    };
    let made = make();
    assert_eq!((made.status, &made.json()["takes_over"]["default_keys"]), (200, &json!(20)), "{}", made.text());
    let again = make();
    assert_eq!((again.status, again.problem()), (409, "table_exists".to_string()));
    let (exit, _, words) = run(&["table", "create", "cart", "--node", &cluster.nodes[0].ip.to_string()]);
    assert!(exit == 1 && words.contains("there is a table of this name already"), "{exit}: {words}");
    let there = |cluster: &Cluster, keys: std::ops::Range<usize>| {
        keys.filter(|key| status(cluster, 0, &format!("cart:{key}")) == 200).count()
    };
    assert_eq!(there(&cluster, 0..20), 20);
    (0..5).for_each(|key| put(&cluster, &format!("cart:{key}"), "2"));
    (20..30).for_each(|key| put(&cluster, &format!("cart:{key}"), "2"));
    let dropped = cluster.http(0).send("DELETE", "/v1/tables/cart", &[], b"").expect("an answer");
    let counts = json!({"name": "cart", "dropped": true, "table_keys": 15, "default_keys": 15, "all_counted": true});
    assert_eq!((dropped.status, dropped.json()), (200, counts));
    for round in ["dropped", "started again"] {
        assert_eq!([there(&cluster, 0..5), there(&cluster, 5..20), there(&cluster, 20..30)], [0, 15, 0], "{round}");
        cluster.kill_all();
        cluster.start_all();
    }
}

#[test]
fn the_last_write_wins() {
    let mut cluster = Cluster::start("last-write", 3);
    let (status, made) = set(&cluster, 0, "s", &json!({"conflict": "last_write_wins", "r": 1, "w": 3, "n": 3}));
    assert_eq!((status, made["conflict"].as_str()), (200, Some("last_write_wins")));
    wait_all(&cluster, "s", Some(&made));
    let (status, refused) = set(&cluster, 1, "s", &json!({"conflict": "siblings"}));
    assert_eq!((status, refused["code"].as_str()), (400, Some("bad_request")));
    let mut written = 0;
    for round in 0..3 {
        // Blind writes by clients of all nodes: the last one is there alone, on every replica.
        for node in [0, 1, 2, 2, 0, 1] {
            written += 1;
            for key in 0..10 {
                let reply = cluster.http(node).put(&format!("s:{key}"), &written.to_string(), None).expect("an answer");
                assert_eq!(reply.status, 200, "{}", reply.text());
            }
        }
        let value = |key: usize, node: usize| {
            let reply = cluster.http(node).get(&format!("/v1/keys/s:{key}")).expect("an answer");
            assert_eq!(reply.status, 200, "{}", reply.text());
            reply.json()["value"].clone()
        };
        for node in 0..3 {
            (0..10).for_each(|key| assert_eq!(value(key, node), json!(written), "round {round}"));
        }
        let deleted = cluster.http(round).send("DELETE", "/v1/keys/s:0", &[], b"").expect("an answer");
        assert_eq!(deleted.status, 200);
        let gone = cluster.http((round + 1) % 3).get("/v1/keys/s:0").expect("an answer");
        assert_eq!(gone.status, 404);
        assert!(gone.header("x-version-context").is_some());
        cluster.kill_all();
        cluster.start_all();
    }
    assert!(cluster.nodes.iter().all(|node| node.figures()["stamps_refused"] == 0));
}

#[test]
fn tables_by_the_command_line() {
    let cluster = Cluster::start("table-commands", 1);
    let node = cluster.nodes[0].ip.to_string();
    let table = |arguments: &[&str]| run(&[&["table"], arguments, &["--node", &node]].concat());
    let said = |(code, out, complaint): (i32, String, String)| {
        assert_eq!(code, 0, "{complaint}");
        out
    };
    assert!(said(table(&["list"])).contains("default"));
    let made = said(table(&["create", "cart", "--n", "3", "--w", "1", "--sloppy", "false", "--json"]));
    let made: Value = serde_json::from_str(&made).expect("JSON");
    assert_eq!((&made["n"], &made["r"], &made["w"], &made["sloppy"]), (&json!(3), &json!(2), &json!(1), &json!(false)));
    assert_eq!(table(&["create", "cart"]).0, 1);
    assert_eq!(table(&["alter", "user", "--n", "1"]).0, 4);
    assert_eq!(table(&["alter", "cart", "--r", "4"]).0, 1);
    assert!(said(table(&["alter", "cart", "--r", "3", "--durability", "interval"])).contains("interval"));
    let list: Value = serde_json::from_str(&said(table(&["list", "--json"]))).expect("JSON");
    let names: Vec<_> = list["tables"].as_array().expect("a list").iter().map(|t| t["name"].clone()).collect();
    assert_eq!(names, ["cart", "default"]);
    assert_eq!(said(table(&["drop", "cart"])), "cart is dropped\n");
    assert_eq!(table(&["drop", "cart"]).0, 4);
    assert_eq!(table(&["create", "a:b"]).0, 2);
}
