//! What a node says of the requests that it has answered: each is counted once, in one place, whoever looks.

use crate::{
    long,
    node::{Cluster, Place, run},
    wait,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A series and its value.
fn series(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.map(|line| line.rsplit_once(' ').expect("a series and its value"));
    pairs.map(|(name, value)| (name, value.parse().expect("a number"))).collect()
}

/// What Prometheus' own tool says of it, where that is installed; `.ci/run` installs it.
fn check_by_promtool(text: &str) {
    let tool = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut tool) = tool else { return println!("metrics: NOT CHECKED: promtool is not installed") };
    tool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let said = tool.wait_with_output().expect("it ends");
    assert!(said.status.success() && said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
}

#[test]
fn each_request_is_counted_and_timed_once() {
    let cluster = Cluster::start_with_shards("metrics", 1, 2);
    let (mut http, ip) = (cluster.http(0), cluster.nodes[0].ip.to_string());
    for key in 0..20 {
        assert_eq!(http.put(&format!("k{key}"), "1", None).expect("an answer").status, 200);
        assert_eq!(http.get(&format!("/v1/keys/k{key}")).expect("an answer").status, 200);
    }
    assert_eq!(http.get("/v1/keys/k0?r=3").expect("an answer").status, 503, "more replicas than there are nodes");
    for key in 0..5 {
        assert_eq!(run(&["get", &format!("k{key}"), "--node", &ip]).0, 0);
    }
    let text = http.get("/metrics").expect("an answer").text();
    let by_shard = http.get("/metrics?shards=1").expect("an answer").text();
    check_by_promtool(&text);
    check_by_promtool(&by_shard);
    let (one, two) = (series(&text), series(&by_shard));
    let timed = |operation: &str, front: &str, outcome: &str, rest: &str, ending: &str| {
        let name = format!("dynarc_request_duration_seconds_{ending}");
        let labels = format!("operation=\"{operation}\",front=\"{front}\",outcome=\"{outcome}\"{rest}");
        *one.get(&format!("{name}{{{labels}}}")[..]).unwrap_or_else(|| panic!("no {name}{{{labels}}} in {text}"))
    };
    assert_eq!(timed("put", "http", "ok", "", "count"), 20.0);
    assert_eq!(timed("get", "http", "ok", "", "count"), 20.0);
    assert_eq!(timed("get", "client", "ok", "", "count"), 5.0);
    assert_eq!(timed("delete", "client", "ok", "", "count"), 0.0);
    assert_eq!(timed("put", "http", "ok", ",le=\"+Inf\"", "bucket"), 20.0);
    assert!(timed("put", "http", "ok", "", "sum") > 0.0);
    assert_eq!(one["dynarc_request_errors_total{code=\"quorum_unavailable\"}"], 1.0);
    // What the shards say adds up to what the node says, here and in its own figures.
    for name in ["dynarc_puts_total", "dynarc_syncs_total"] {
        let shards: f64 = (0..2).map(|shard| two[&format!("{name}{{shard=\"{shard}\"}}")[..]]).sum();
        assert_eq!(shards, one[name], "{name}");
    }
    let figures = cluster.nodes[0].figures();
    assert_eq!(figures["puts"].as_f64(), Some(one["dynarc_puts_total"]));
    let put = figures["latencies"].as_array().expect("a list").iter();
    let put = put.clone().find(|line| line["operation"] == "put" && line["front"] == "http").expect("a line of puts");
    assert_eq!((put["count"].as_u64(), put["recent"]["count"].as_u64()), (Some(20), Some(20)));
    let micros = |name: &str| put["recent"][name].as_u64().expect("a number");
    assert!(micros("p50_microseconds") > 0 && micros("p50_microseconds") <= micros("max_microseconds"), "{put}");
    // A monitor pays for each series: a node of 16 cores has no more than a small one, but for what is of a core.
    assert!(one.len() < 480, "{} series", one.len());
    let (code, out, _) = run(&["status", "--node", &ip]);
    assert!(code == 0 && out.contains("put p99") && out.contains(" ms"), "{out}");
}

const BOARD: &str = include_str!("../../tuning/grafana.json");
const RULES: &str = include_str!("../../tuning/alerts.yml");

/// A rule, or a picture, over a metric that is called otherwise would never show anything.
#[test]
fn rules_and_board_ask_for_metrics_that_there_are() {
    let cluster = Cluster::start("rules", 1);
    let text = cluster.http(0).get("/metrics").expect("an answer").text();
    let shown: BTreeSet<&str> = text.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
    let word = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    for (file, least) in [(RULES, 12), (BOARD, 25)] {
        let asked: BTreeSet<&str> = file.split(word).filter(|word| word.starts_with("dynarc_")).collect();
        assert!(asked.len() >= least, "{asked:?}");
        let missing: Vec<_> = asked.difference(&shown).collect();
        assert!(missing.is_empty(), "{missing:?} in\n{text}");
    }
}

/// A process that ends with the test.
struct Ends(Child);
impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// A real Prometheus looks at a real cluster, and every picture of the board has something to show.
#[test]
fn every_query_of_the_board_shows_something() {
    if long() {
        return println!("board: NOT RUN: the long form takes the machine for others, and the short form has it");
    }
    let cluster = Cluster::start("board", 3);
    let place = Place::new("prometheus");
    let targets: Vec<String> = cluster.nodes.iter().map(|node| format!("'{}:7700'", node.ip)).collect();
    let jobs = format!("[{{job_name: dynarc, static_configs: [{{targets: [{}]}}]}}]", targets.join(", "));
    let settings = format!("global: {{scrape_interval: 1s}}\nscrape_configs: {jobs}\n");
    fs::write(place.path.join("prometheus.yml"), settings).expect("a file");
    let address = format!("{}:9099", cluster.nodes[0].ip);
    let prometheus = Command::new("prometheus")
        .current_dir(&place.path)
        .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=error"])
        .arg(format!("--web.listen-address={address}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(prometheus) = prometheus else { return println!("board: NOT RUN: prometheus is not installed") };
    let _prometheus = Ends(prometheus);
    let board: Value = serde_json::from_str(BOARD).expect("JSON");
    let panels = board["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries: Vec<String> = targets
        .map(|target| target["expr"].as_str().expect("a query"))
        .map(|query| query.replace("$__rate_interval", "1m").replace("$instance", ".*"))
        .collect();
    assert!(queries.len() >= 30, "{queries:?}");
    let mut http = cluster.http(0);
    for query in &queries {
        wait::until(Duration::from_secs(60), query, || {
            // Other tests run beside this one, and each question is a process.
            wait::pause(Duration::from_millis(100));
            // So that there is a rate of everything.
            for (method, target) in [("PUT", "/v1/keys/k"), ("GET", "/v1/keys/k"), ("DELETE", "/v1/keys/k")] {
                let body: &[u8] = if method == "PUT" { b"{\"value\": 1}" } else { b"" };
                http.send(method, target, &[], body).map_err(|error| error.to_string())?;
            }
            http.get("/v1/keys/k?r=3&timeout_ms=1").map_err(|error| error.to_string())?;
            let asked =
                Command::new("promtool").args(["query", "instant", &format!("http://{address}"), query]).output();
            let asked = asked.map_err(|error| error.to_string())?;
            let said = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
            // A node that was not asked for anything has no percentiles.
            match asked.status.success() && said.lines().any(|line| !line.contains("NaN")) {
                // Of errors there need be none.
                true => Ok(()),
                false if query.ends_with("> 0") && asked.status.success() => Ok(()),
                false => Err(format!("{said}{}", String::from_utf8_lossy(&asked.stderr))),
            }
        });
    }
}
