//! Golden conversations: the request as text above, the answer as text below.

use super::*;
use crate::{
    protocol::{
        message::{Answer, Operation, Request, Response},
        versions::{Actor, Context, Dot, Entry, Head, Siblings, VersionVector},
    },
    types::{Consistency, ErrorCode, Failure, Instant, Key, Level, Media, Outcome, Value, WriteId},
};
use bytes::Bytes;
use proptest::prelude::*;

/// Lines `METHOD target`, `Name: value` …, an empty line, the body.
fn ask(text: &str) -> Result<Request, Problem> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let (method, target) = lines.next().and_then(|l| l.split_once(' ')).expect("a request line");
    let headers: Vec<(&str, &[u8])> =
        lines.map(|l| l.split_once(": ").map(|(n, v)| (n, v.as_bytes())).expect("a header")).collect();
    match route(method, target, headers.as_slice())? {
        Routed::Key(asked) => request(*asked, Bytes::from(body.to_owned()), Instant(7), 42, &HttpLimits::default()),
        other => panic!("not about a key: {other:?}"),
    }
}
fn refused(text: &str) -> (u16, String) {
    let problem = ask(text).expect_err(text);
    assert_eq!(problem.outcome, Outcome::NotApplied, "{text}");
    (problem.status, problem.detail)
}
fn route_to(method: &str, target: &str) -> Result<Routed, Problem> {
    let none: &[(&str, &[u8])] = &[];
    route(method, target, none)
}

fn dot(counter: u64) -> Dot {
    Dot { actor: Actor::from_narrow(0xA << 16), counter }
}
fn siblings(values: &[Value]) -> Siblings {
    let mut state = Siblings::default();
    for (index, value) in values.iter().enumerate() {
        let dot = dot(index as u64 + 1);
        state.head.clock.record(dot);
        state.head.entries.push(Entry {
            dot,
            write_id: WriteId(0),
            media: value.media.clone(),
            bytes: value.bytes.len() as u32,
            checksum: value.checksum,
        });
        state.values.push(value.bytes.clone());
    }
    state
}
fn form(verb: Verb, raw: bool) -> Form {
    Form { token: Key::new("k").expect("a key").token(), verb, raw }
}
/// The reply as text, with the context shortened to `vc:…`.
fn shown(reply: &Reply) -> String {
    let mut text = format!("{}\n", reply.status);
    for (name, value) in &reply.headers {
        text += &format!("{name}: {value}\n");
    }
    text.push('\n');
    reply.body.iter().for_each(|piece| text += &String::from_utf8_lossy(piece));
    let mut shortened = String::new();
    let mut parts = text.split("vc:");
    shortened += parts.next().unwrap_or_default();
    for part in parts {
        shortened += "vc:…";
        shortened += part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    }
    shortened
}
fn answer_got(values: &[Value], raw: bool) -> String {
    shown(&key_reply(form(Verb::Get, raw), Ok(Answer::Got(siblings(values)))))
}

#[test]
fn a_get_is_read_from_path_query_and_headers() {
    let plain = ask("GET /v1/keys/cart:8731").expect("fine");
    assert_eq!(plain.key.as_bytes(), b"cart:8731");
    assert_eq!(plain.operation, Operation::Get { context: None });
    assert_eq!(plain.consistency, Consistency::default());
    assert_eq!(plain.deadline, Instant(7) + crate::limits::REQUEST_TIMEOUT);

    let tuned = ask("GET /v1/keys/k?r=2&sloppy=false&timeout_ms=250\nX-Consistency: all").expect("fine");
    assert_eq!(tuned.consistency, Consistency { level: Some(Level::Count(2)), sloppy: Some(false) });
    assert_eq!(tuned.deadline, Instant(7) + Duration::from_millis(250));
    let hint = ask("GET /v1/keys/k\nx-consistency: Quorum").expect("fine");
    assert_eq!(hint.consistency.level, Some(Level::Quorum));
    // w says nothing about a get.
    assert_eq!(ask("GET /v1/keys/k?w=3").expect("fine").consistency.level, None);
    // As a form encoder writes it.
    let encoded = ask("GET /v1/keys/k?timeout%5Fms=2%350&%73loppy=fals%65").expect("fine");
    assert_eq!((encoded.consistency.sloppy, encoded.deadline), (Some(false), Instant(7) + Duration::from_millis(250)));
}

#[test]
fn raw_bytes_are_given_to_those_who_rank_them_first() {
    let raw = |accept: &[&str]| {
        let headers: Vec<(&str, &[u8])> = accept.iter().map(|a| ("Accept", a.as_bytes())).collect();
        match route("GET", "/v1/keys/k", headers.as_slice()) {
            Ok(Routed::Key(asked)) => asked.raw,
            other => panic!("{other:?}"),
        }
    };
    let octets = "application/octet-stream";
    let wanted: &[&[&str]] = &[
        &[octets],
        &["text/html", octets],
        &["Application/Octet-Stream;q=0.5"],
        &["application/octet-stream, */*;q=0.1"],
        &["application/json;q=0.8", "application/octet-stream;q=0.9"],
        &["application/json, application/octet-stream"],
        &["*/*, application/octet-stream"],
    ];
    wanted.iter().for_each(|accept| assert!(raw(accept), "{accept:?}"));
    let unwanted: &[&[&str]] = &[
        &[],
        &["*/*"],
        &["application/*"],
        &["application/octet-stream;q=0"],
        &["application/octet-stream; q=0.5, application/json"],
        &["application/octet-stream;q=0.5", "*/*"],
        &["application/octet-stream;q=0.1, application/*;q=0.2"],
        &["application/octet-streams"],
    ];
    unwanted.iter().for_each(|accept| assert!(!raw(accept), "{accept:?}"));
}

#[test]
fn keys_hold_every_byte() {
    let all: String = (0..=255u8).map(|b| format!("%{b:02X}")).collect();
    let request = ask(&format!("GET /v1/keys/{all}")).expect("fine");
    assert_eq!(request.key.as_bytes(), (0..=255).collect::<Vec<u8>>());
    assert_eq!(ask("GET /v1/keys/src/a%2Fb+c").expect("fine").key.as_bytes(), b"src/a/b+c");
    let longest = "k".repeat(1024);
    assert_eq!(ask(&format!("GET /v1/keys/{longest}")).expect("fine").key.as_bytes().len(), 1024);
}

#[test]
fn a_put_keeps_the_value_byte_for_byte() {
    let request = ask("PUT /v1/keys/k?w=3\nX-Write-Id: ff\n\n{ \"value\" :  {\"b\": 1.0e2, \"a\":[ ] , \"b\": 1 } }")
        .expect("fine");
    let Operation::Put { context, value, write_id } = request.operation else { panic!("a put") };
    assert_eq!((context, write_id, value.media), (None, WriteId(0xff), Media::Json));
    assert_eq!(value.bytes, "{\"b\": 1.0e2, \"a\":[ ] , \"b\": 1 }");
    assert_eq!(request.consistency.level, Some(Level::Count(3)));
    for json in ["application/json", "Application/JSON; charset=utf-8", "application/x-www-form-urlencoded"] {
        let request = ask(&format!("PUT /v1/keys/k\nContent-Type: {json}\n\n{{\"value\":null}}")).expect("fine");
        let Operation::Put { value, write_id, .. } = request.operation else { panic!("a put") };
        assert_eq!((value, write_id), (Value::json("null"), WriteId(42)));
    }
}

#[test]
fn another_content_type_is_stored_as_it_is() {
    let request = ask("PUT /v1/keys/k\nContent-Type: image/png; x=1\n\n{\"value\"").expect("fine");
    let Operation::Put { value, .. } = request.operation else { panic!("a put") };
    assert_eq!(value, Value::new(Media::Raw("image/png; x=1".into()), "{\"value\""));
}

#[test]
fn the_context_travels_back() {
    let token = Key::new("k").expect("a key").token();
    let context = Context::from(VersionVector::from_dots([dot(3)]));
    let text = context.to_text(token);
    for method in ["PUT", "DELETE"] {
        let request =
            ask(&format!("{method} /v1/keys/k\nX-Version-Context: {text}\n\n{{\"value\": 1}}")).expect("fine");
        let (Operation::Put { context: read, .. } | Operation::Delete { context: read, .. }) = request.operation else {
            panic!("a write")
        };
        assert_eq!(read.as_ref(), Some(&context));
    }
    assert_eq!(refused(&format!("PUT /v1/keys/other\nX-Version-Context: {text}\n\n{{\"value\": 1}}")).0, 400);
}

#[test]
fn bad_input_is_refused_with_words() {
    let long = "k".repeat(1025);
    let wide = format!("vc:{}", "A".repeat(1 << 20));
    let cases: Vec<(String, u16, &str)> = vec![
        ("GET /v1/keys/".into(), 400, "at least 1 byte"),
        (format!("GET /v1/keys/{long}"), 400, "at most 1024 bytes, this one has 1025"),
        ("GET /v1/keys/a%".into(), 400, "bad percent encoding in the key at byte 1"),
        ("GET /v1/keys/a%2".into(), 400, "bad percent encoding"),
        ("GET /v1/keys/ab%zz".into(), 400, "at byte 2"),
        ("GET /v1/keys/a%+1".into(), 400, "bad percent encoding"),
        ("GET /v1/keys/k?rr=1".into(), 400, "unknown query parameter \"rr\""),
        ("GET /v1/keys/k?r=0".into(), 400, "r is a number from 1 to 7"),
        ("GET /v1/keys/k?r=8".into(), 400, "r is a number"),
        ("PUT /v1/keys/k?w=-1\n\n{\"value\": 1}".into(), 400, "w is a number"),
        ("PUT /v1/keys/k?w\n\n{\"value\": 1}".into(), 400, "w is a number"),
        ("GET /v1/keys/k?r=1&r=2".into(), 400, "given twice"),
        ("GET /v1/keys/k?sloppy=maybe".into(), 400, "sloppy is true or false"),
        ("GET /v1/keys/k?timeout_ms=0".into(), 400, "timeout_ms is 1 to 60000"),
        ("GET /v1/keys/k?timeout_ms=60001".into(), 400, "timeout_ms"),
        ("GET /v1/keys/k\nX-Consistency: most".into(), 400, "X-Consistency is one, quorum or all"),
        ("PUT /v1/keys/k\nX-Version-Context: A2B1\n\n{\"value\": 1}".into(), 400, "starts with \"vc:\""),
        ("PUT /v1/keys/k\nX-Version-Context: vc:A2B1\n\n{\"value\": 1}".into(), 400, "does not parse"),
        (format!("PUT /v1/keys/k\nX-Version-Context: {wide}\n\n{{\"value\": 1}}"), 400, "at most 16384 bytes"),
        ("PUT /v1/keys/k\nX-Version-Context: vc:\nX-Version-Context: vc:\n\n1".into(), 400, "given twice"),
        ("PUT /v1/keys/k\nX-Write-Id: 0\n\n{\"value\": 1}".into(), 400, "X-Write-Id"),
        ("PUT /v1/keys/k\nX-Write-Id: 12345678901234567\n\n{\"value\": 1}".into(), 400, "X-Write-Id"),
        ("PUT /v1/keys/k".into(), 400, "EOF while parsing a value at line 1 column 0"),
        ("PUT /v1/keys/k\n\n{\"value\": }".into(), 400, "at line 1 column 11"),
        ("PUT /v1/keys/k\n\n{\n \"value\": [1,\n 2}".into(), 400, "at line 3 column"),
        ("PUT /v1/keys/k\n\n{\"value\": 1} x".into(), 400, "trailing characters at line 1 column 14"),
        ("PUT /v1/keys/k\n\n{\"value\": 1, \"value\": 2}".into(), 400, "duplicate field `value`"),
        ("PUT /v1/keys/k\n\n{\"value\": 1, \"context\": 2}".into(), 400, "unknown field `context`"),
        ("PUT /v1/keys/k\n\n{}".into(), 400, "missing field `value`"),
        ("PUT /v1/keys/k\n\n[1]".into(), 400, "expected an object"),
        ("PUT /v1/keys/k\n\n\"text\"".into(), 400, "expected an object"),
        ("PUT /v1/keys/k\nContent-Type: text/\u{1}plain\n\nx".into(), 400, "Content-Type"),
        (format!("PUT /v1/keys/k\nContent-Type: {}\n\nx", "t".repeat(129)), 400, "Content-Type"),
        ("POST /v1/keys/k\n\n{\"value\": 1}".into(), 405, "no method \"POST\""),
        ("PUT /v1/keys/a#b\n\n{\"value\": 1}".into(), 400, "written %23"),
        ("DELETE /v1/keys/#".into(), 400, "written %23"),
        ("GET /v1/keys/k?r=1#x".into(), 400, "written %23"),
        ("GET /v1/keys/k?r=%".into(), 400, "in the query at byte 0"),
        ("PUT /v1/keys/k\nContent-Encoding: gzip\n\n{\"value\": 1}".into(), 415, "\"gzip\" would be lost"),
        ("PUT /v1/keys/k\nContent-Encoding: identity, br\nContent-Type: a/b\n\nx".into(), 415, "\"br\""),
        ("PUT /v1/keys/k\nContent-Range: bytes 0-3/9\nContent-Type: a/b\n\nx".into(), 400, "as a whole"),
        ("PUT /v1/keys/k\nIf-None-Match: *\n\n{\"value\": 1}".into(), 501, "if-none-match"),
        ("PUT /v1/keys/k\nIf-Match: \"a\"\n\n{\"value\": 1}".into(), 501, "if-match"),
        ("DELETE /v1/keys/k\nIf-Match: \"a\"".into(), 501, "if-match"),
        ("GET /v1/keys/k\nIf-Match: \"a\"".into(), 501, "if-match"),
        ("PUT /v1/keys/k\n\n\u{feff}{\"value\": 1}".into(), 400, "byte order mark (BOM) of UTF-8"),
        ("GET /v2/keys/k".into(), 404, "there is nothing at \"/v2/keys/k\""),
        (format!("PUT /v1/keys/k\nContent-Type: text/plain\n\n{}", "v".repeat((1 << 20) + 1)), 413, "1048576 bytes"),
        (format!("PUT /v1/keys/k\n\n{{\"value\": \"{}\"}}", "v".repeat(1 << 20)), 413, "value_bytes_max"),
    ];
    for (text, status, words) in cases {
        let (got, detail) = refused(&text);
        let start: String = text.chars().take(60).collect();
        assert_eq!(got, status, "{start}: {detail}");
        assert!(detail.contains(words), "{start}: {detail:?} does not contain {words:?}");
        assert!(detail.len() < 400, "{start}: a detail fits a few lines");
    }
}

#[test]
fn a_value_may_have_exactly_its_greatest_length_or_none() {
    let text = "v".repeat(1 << 20);
    assert!(ask(&format!("PUT /v1/keys/k\nContent-Type: text/plain\n\n{text}")).is_ok());
    assert!(ask("PUT /v1/keys/k\nContent-Type: text/plain").is_ok());
    let quoted = format!("\"{}\"", "v".repeat((1 << 20) - 2));
    assert!(ask(&format!("PUT /v1/keys/k\n\n{{\"value\": {quoted}}}")).is_ok());
}

#[test]
fn routes_and_methods() {
    assert_eq!(route_to("GET", "/v1/cluster"), Ok(Routed::Cluster));
    assert_eq!(route_to("HEAD", "/healthz"), Ok(Routed::Healthz));
    assert_eq!(route_to("GET", "/v1/ring"), Ok(Routed::Ring { key: None }));
    let plus = Key::new(&b"a b+c d"[..]).ok();
    assert_eq!(route_to("GET", "/v1/ring?key=a+b%2Bc%20d"), Ok(Routed::Ring { key: plus }));
    let key = Key::new(&b"a\0b"[..]).ok();
    assert_eq!(route_to("GET", "/v1/ring?key=a%00b"), Ok(Routed::Ring { key: key.clone() }));
    assert_eq!(route_to("GET", "/v1/repair"), Ok(Routed::Repair));
    assert_eq!(route_to("POST", "/v1/repair"), Ok(Routed::RepairNow { key: None }));
    assert_eq!(route_to("POST", "/v1/repair?key=a%00b"), Ok(Routed::RepairNow { key: key.clone() }));
    assert_eq!(route_to("PUT", "/v1/repair").expect_err("405").reply().header("allow"), Some("GET, HEAD, POST"));
    assert_eq!(route_to("GET", "/v1/ring?key=").expect_err("empty").status, 400);
    assert_eq!(route_to("GET", "/v1/ring?kee=a").expect_err("unknown").status, 400);
    assert_eq!(route_to("GET", "/v1/node?x=1").expect_err("unknown").status, 400);
    for unknown in ["/", "", "/v1", "/v1/keys", "/ui", "/v1/tablets", "/v1/cluster/", "*", "/metricsx"] {
        assert_eq!(route_to("GET", unknown).expect_err(unknown).status, 404, "{unknown}");
    }
    let wrong = route_to("DELETE", "/v1/cluster").expect_err("405").reply();
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("GET, HEAD")));
    let wrong = route_to("PATCH", "/v1/keys/k").expect_err("405").reply();
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("GET, HEAD, PUT, DELETE")));
}

#[test]
fn one_value() {
    assert_eq!(
        answer_got(&[Value::json("{\"items\": [1,  2]}")], false),
        "200\ncontent-type: application/json\nx-version-context: vc:…\n\n\
         {\"value\": {\"items\": [1,  2]}, \"context\": \"vc:…\"}\n"
    );
    assert_eq!(
        answer_got(&[Value::new(Media::octets(), &b"\xff\x00"[..])], false),
        "200\ncontent-type: application/json\nx-version-context: vc:…\n\n\
         {\"value\": \"/wA=\", \"encoding\": \"base64\", \"context\": \"vc:…\"}\n"
    );
    assert_eq!(
        answer_got(&[Value::new(Media::Raw("text/plain".into()), "hello")], true),
        "200\ncontent-type: text/plain\nx-content-type-options: nosniff\ncontent-security-policy: sandbox\nx-version-context: vc:…\n\nhello"
    );
    assert_eq!(
        answer_got(&[Value::json("1")], true),
        "200\ncontent-type: application/json\nx-content-type-options: nosniff\ncontent-security-policy: sandbox\nx-version-context: vc:…\n\n1"
    );
}

#[test]
fn siblings_come_together() {
    assert_eq!(
        answer_got(&[Value::json("{\"a\":1}"), Value::json("2")], false),
        "300\ncontent-type: application/json\nx-version-context: vc:…\n\n\
         {\"siblings\": [{\"a\":1}, 2], \"context\": \"vc:…\"}\n"
    );
    assert_eq!(
        answer_got(&[Value::json("1"), Value::new(Media::octets(), "hi")], false),
        "300\ncontent-type: application/json\nx-version-context: vc:…\n\n\
         {\"siblings\": [1, \"aGk=\"], \"encodings\": [\"json\",\"base64\"], \"context\": \"vc:…\"}\n"
    );
    let mixed = key_reply(
        form(Verb::Get, true),
        Ok(Answer::Got(siblings(&[Value::json("1"), Value::new(Media::octets(), "hi")]))),
    );
    let boundary =
        mixed.header("content-type").and_then(|c| c.strip_prefix("multipart/mixed; boundary=")).expect("one");
    let body: Vec<u8> = mixed.body.concat();
    let wanted = format!(
        "--{boundary}\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n1\r\n\
         --{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Length: 2\r\n\r\nhi\r\n--{boundary}--\r\n"
    );
    assert_eq!((mixed.status, String::from_utf8_lossy(&body).into_owned()), (300, wanted));
}

#[test]
fn a_boundary_never_occurs_in_a_value() {
    let checksums = |values: &[Value]| {
        let reply = key_reply(form(Verb::Get, true), Ok(Answer::Got(siblings(values))));
        reply.header("content-type").map(str::to_owned).unwrap_or_default()
    };
    let values = [Value::json("1"), Value::json("2")];
    let first = checksums(&values).split_once("boundary=").map(|(_, b)| b.to_owned()).expect("one");
    // The same checksums, but a body that holds the boundary.
    let mut forged = values.clone();
    forged[0].bytes = Bytes::from(format!("xx--{first}--"));
    assert!(!checksums(&forged).contains(&first));
}

#[test]
fn nothing_and_deleted_differ_by_a_context() {
    let never = key_reply(form(Verb::Get, false), Ok(Answer::Got(Siblings::default())));
    assert_eq!((never.status, never.header(CONTEXT_HEADER)), (404, None));
    let head = Head { clock: VersionVector::from_dots([dot(2)]), ..Head::default() };
    let deleted = key_reply(form(Verb::Get, false), Ok(Answer::Got(Siblings { head, values: Default::default() })));
    assert_eq!(deleted.status, 404);
    assert!(deleted.header(CONTEXT_HEADER).is_some_and(|c| c.starts_with("vc:")));
}

#[test]
fn a_write_answers_with_its_context() {
    for verb in [Verb::Put, Verb::Delete] {
        let context = Context::from(VersionVector::from_dots([dot(1)]));
        assert_eq!(
            shown(&key_reply(form(verb, false), Ok(Answer::Written(context)))),
            "200\ncontent-type: application/json\nx-version-context: vc:…\n\n{\"context\": \"vc:…\"}\n"
        );
    }
}

#[test]
fn failures_have_status_code_and_outcome() {
    let statuses = [400, 413, 409, 429, 503, 504, 507, 503, 500, 500];
    for (code, status) in ErrorCode::ALL.into_iter().zip(statuses) {
        let response: Response = Err(Failure::new(code, Outcome::Unknown, "why \"this\"").counts(1, 2));
        let reply = key_reply(form(Verb::Put, false), response);
        let body: serde_json::Value = serde_json::from_slice(&reply.body.concat()).expect("JSON");
        assert_eq!((reply.status, body["status"].as_u64()), (status, Some(u64::from(status))));
        assert_eq!((body["code"].as_str(), body["outcome"].as_str()), (Some(code.name()), Some("unknown")));
        assert_eq!(body["detail"], "why \"this\"");
        let counted = matches!(code, ErrorCode::QuorumUnavailable | ErrorCode::Deadline);
        assert_eq!(body.get("acks").is_some() && body.get("needed").is_some(), counted);
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
        assert_eq!(body["title"], phrase(status));
        let later = matches!(status, 429 | 503);
        assert_eq!(reply.header("retry-after"), later.then_some("1"));
    }
}

#[test]
fn what_a_condition_cannot_change_is_no_condition() {
    // No answer has a tag, so a list of tags lets every read go on; an encoding that changes nothing is none.
    assert!(ask("GET /v1/keys/k\nIf-None-Match: \"a\"").is_ok());
    assert!(ask("PUT /v1/keys/k\nContent-Encoding: identity\n\n{\"value\": 1}").is_ok());
    let refused = ask("PUT /v1/keys/k\nContent-Encoding: gzip\n\nx").expect_err("415").reply();
    assert_eq!(refused.header("accept-encoding"), Some("identity"));
    for method in ["PUT", "DELETE"] {
        let headers = [("if-match", &b"\"a\""[..])];
        assert_eq!(route(method, "/v1/tables/cart", &headers[..]).expect_err("501").status, 501);
    }
}

#[test]
fn the_api_description_is_json_and_names_every_route() {
    let body = openapi_reply().body.concat();
    let document: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    for path in ["/v1/tables", "/v1/cluster", "/v1/ring", "/v1/node", "/metrics", "/healthz", "/readyz"] {
        assert!(route_to("GET", path).is_ok() && document["paths"][path].is_object(), "{path}");
    }
    assert!(document["paths"]["/v1/keys/{key}"]["put"].is_object());
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn figures_add_up_and_metrics_name_each_once() {
    use views::*;
    let shard = |shard: u16, syncs: u64, oldest: u64| ShardView {
        shard,
        cpu: Some(shard),
        busy_ratio: 0.25,
        figures: Figures { syncs, compaction_backlog_seconds: oldest, ..Figures::default() },
    };
    let node =
        NodeView::new(crate::types::NodeId(9), [127, 0, 0, 1].into(), 3, 7, vec![shard(0, 2, 5), shard(1, 3, 4)]);
    assert_eq!((node.figures.syncs, node.figures.compaction_backlog_seconds), (5, 5));
    let json = serde_json::to_value(&node).expect("JSON");
    assert_eq!((json["syncs"].as_u64(), json["shards"][1]["syncs"].as_u64()), (Some(5), Some(3)));
    assert_eq!(serde_json::from_value::<NodeView>(json).expect("reads back"), node);
    let cluster = ClusterView::new(&[], 1);
    let metrics = |by_shard| Metrics { node: node.clone(), cluster: cluster.clone(), by_shard }.to_text();
    let (text, by_shard) = (metrics(false), metrics(true));
    assert!(by_shard.contains("dynarc_syncs_total{shard=\"1\"} 3\n") && text.contains("dynarc_syncs_total 5\n"));
    assert!(text.contains("# TYPE dynarc_memory_bytes gauge\n") && text.contains("\ndynarc_resident_bytes 7\n"));
    let mut types: Vec<_> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
    let count = types.len();
    types.sort();
    types.dedup();
    assert_eq!(types.len(), count);
}

#[test]
fn tables() {
    use crate::types::{Conflict, Durability, TableWish};
    let routed = |method, target| route_to(method, target).map_err(|p| (p.status, p.detail));
    for (method, verb) in [("GET", Verb::Get), ("HEAD", Verb::Get), ("PUT", Verb::Put), ("DELETE", Verb::Delete)] {
        let name = "cart".parse().expect("a name");
        assert_eq!(routed(method, "/v1/tables/cart"), Ok(Routed::Table { name, verb, create: false }));
    }
    assert_eq!(routed("GET", "/v1/tables"), Ok(Routed::Tables));
    let refusals = [
        ("POST", "/v1/tables/cart", 405),
        ("PUT", "/v1/tables", 405),
        ("GET", "/v1/tables/", 400),
        ("GET", "/v1/tables/a:b", 400),
        ("GET", "/v1/tables/%FF", 400),
        ("GET", "/v1/tables/cart?n=1", 400),
    ];
    for (method, target, status) in refusals {
        assert_eq!(routed(method, target).expect_err(target).0, status, "{target}");
    }
    let all = r#"{"n": 5, "r": 1, "w": 3, "conflict": "last_write_wins", "sloppy": false, "durability": "interval"}"#;
    let wish = TableWish {
        n: Some(5),
        r: Some(1),
        w: Some(3),
        conflict: Some(Conflict::LastWriteWins),
        sloppy: Some(false),
        durability: Some(Durability::Interval),
    };
    assert_eq!(table_wish(all.as_bytes()), Ok(wish));
    assert_eq!(table_wish(b" {} "), Ok(TableWish::default()));
    assert_eq!(table_wish(b""), Ok(TableWish::default()));
    for bad in ["[3,2,2]", "7", "{\"m\": 1}", "{\"n\": 300}", "{\"conflict\": \"none\"}", "{\"durability\": 1}", "{"] {
        assert_eq!(table_wish(bad.as_bytes()).expect_err(bad).status, 400, "{bad}");
    }
}

proptest! {
    #[test]
    fn any_key_survives_its_url(bytes in proptest::collection::vec(any::<u8>(), 1..1024)) {
        let url = views::encode_key(&bytes);
        let request = ask(&format!("GET /v1/keys/{url}")).expect("fine");
        prop_assert_eq!(request.key.as_bytes(), bytes.as_slice());
    }

    #[test]
    fn any_request_is_answered(method in "[A-Z]{1,7}|GET|PUT", target in "\\PC{0,60}|/v1/keys/\\PC{0,60}", context in "\\PC{0,40}", body in "\\PC{0,60}") {
        let headers = [("x-version-context", context.as_bytes()), ("content-type", body.as_bytes())];
        if let Ok(Routed::Key(asked)) = route(&method, &target, &headers[..])
            && let Err(problem) = request(*asked, Bytes::from(body), Instant(0), 1, &HttpLimits::default())
        {
            prop_assert!((400..500).contains(&problem.status));
        }
    }

    #[test]
    fn any_json_value_is_kept(text in "\\PC{0,40}", number in any::<f64>()) {
        let inner = serde_json::json!({"text": text, "number": number}).to_string();
        let request = ask(&format!("PUT /v1/keys/k\n\n{{\"value\": {inner}}}")).expect("fine");
        let Operation::Put { value, .. } = request.operation else { panic!("a put") };
        prop_assert_eq!(value.bytes, inner);
    }
}
