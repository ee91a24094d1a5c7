//! What no server should mind: each gets a clear typed error, and the next client notices nothing.

use crate::{
    http::{Http, read_reply},
    long,
    node::Cluster,
    wait,
};
use dynarc::{
    protocol::message::{ClientMessage, Hello, ServerMessage},
    types::Instant,
    wire::{FrameDecoder, FrameEncoder, decode_server, encode_client},
};
use std::{
    io::{BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const HTTP: u16 = 7700;
const CLIENT: u16 = 8000;
const PEER: u16 = 9000;

/// Serves as before, and has not grown.
fn assert_unharmed(cluster: &mut Cluster, after: &str) {
    cluster.nodes[0].assert_runs();
    let mut http = cluster.http(0).timeout(Duration::from_secs(5));
    let mut context = http.get("/v1/keys/health").ok().and_then(|r| r.header("x-version-context").map(String::from));
    for number in 0..3 {
        let put = http.put("health", &number.to_string(), context.as_deref());
        let put = put.unwrap_or_else(|e| panic!("after {after}: {e}"));
        assert_eq!(put.status, 200, "after {after}: {}", put.text());
        let read = http.get("/v1/keys/health").unwrap_or_else(|e| panic!("after {after}: {e}"));
        assert_eq!((read.status, &read.json()["value"]), (200, &number.into()), "after {after}");
        context = Some(read.context());
    }
    let memory = crate::footprint::resident_bytes(cluster.nodes[0].pid());
    assert!(memory < 400 << 20, "after {after}: {} MiB resident", memory >> 20);
}

#[test]
fn bad_requests_get_a_typed_error() {
    let mut cluster = Cluster::start("bad-requests", 1);
    let mut http = cluster.http(0);
    assert_eq!(http.put("k", "1", None).unwrap().status, 200);
    let context = http.get("/v1/keys/k").unwrap().context();
    let long_key = format!("/v1/keys/{}", "k".repeat(1025));
    let large = vec![b'7'; (1 << 20) + 1];
    let large_json = [b"{\"value\": \"", large.as_slice(), b"\"}"].concat();
    let deep = [b"{\"value\": ".to_vec(), vec![b'['; 100_000]].concat();
    let mut altered = context.clone().into_bytes();
    altered[9] = if altered[9] == b'A' { b'B' } else { b'A' };
    let altered = String::from_utf8(altered).unwrap();
    let octets = ("Content-Type", "application/octet-stream");
    let k = "/v1/keys/k";

    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8], u16, &'a str);
    let cases: &[Case] = &[
        ("GET", "/v1/keys/", &[], b"", 400, "bad_request"),
        ("PUT", "/v1/keys/", &[], b"{\"value\":1}", 400, "bad_request"),
        ("GET", &long_key, &[], b"", 400, "bad_request"),
        ("PUT", &long_key, &[], b"{\"value\":1}", 400, "bad_request"),
        ("DELETE", &long_key, &[], b"", 400, "bad_request"),
        ("PUT", k, &[octets], &large, 413, "too_large"),
        ("PUT", k, &[], &large_json, 413, "too_large"),
        ("GET", "/v1/keys/%", &[], b"", 400, "bad_request"),
        ("GET", "/v1/keys/a%2", &[], b"", 400, "bad_request"),
        ("GET", "/v1/keys/a%zzb", &[], b"", 400, "bad_request"),
        ("GET", "/v1/ring?key=%f", &[], b"", 400, "bad_request"),
        ("PUT", k, &[("X-Version-Context", "A2B1")], b"{\"value\":1}", 400, "bad_request"),
        ("PUT", k, &[("X-Version-Context", "vc:")], b"{\"value\":1}", 400, "bad_request"),
        ("PUT", k, &[("X-Version-Context", "vc:A2B1")], b"{\"value\":1}", 400, "bad_request"),
        ("PUT", k, &[("X-Version-Context", "vc:!\"$&/()=")], b"{\"value\":1}", 400, "bad_request"),
        ("PUT", k, &[("X-Version-Context", &altered)], b"{\"value\":1}", 400, "bad_request"),
        ("DELETE", k, &[("X-Version-Context", &altered)], b"", 400, "bad_request"),
        ("PUT", "/v1/keys/other", &[("X-Version-Context", &context)], b"{\"value\":1}", 400, "bad_request"),
        ("PUT", k, &[], b"", 400, "bad_request"),
        ("PUT", k, &[], b"{", 400, "bad_request"),
        ("PUT", k, &[], b"[1]", 400, "bad_request"),
        ("PUT", k, &[], b"{\"value\": }", 400, "bad_request"),
        ("PUT", k, &[], b"{\"value\": NaN}", 400, "bad_request"),
        ("PUT", k, &[], b"{\"value\": 1} 2", 400, "bad_request"),
        ("PUT", k, &[], b"{\"other\": 1}", 400, "bad_request"),
        ("PUT", k, &[], b"{\"value\": \"\xff\xfe\"}", 400, "bad_request"),
        ("PUT", k, &[], &deep, 400, "bad_request"),
        ("GET", "/", &[], b"", 404, "no_such_route"),
        ("GET", "/v2/keys/k", &[], b"", 404, "no_such_route"),
        ("GET", "/v1/keys", &[], b"", 404, "no_such_route"),
        ("POST", k, &[], b"{\"value\":1}", 405, "method_not_allowed"),
        ("BREW", k, &[], b"", 405, "method_not_allowed"),
        ("DELETE", "/v1/cluster", &[], b"", 405, "method_not_allowed"),
        ("GET", "/v1/keys/k?r=4", &[], b"", 400, "bad_request"),
        ("GET", "/v1/keys/k?r=0", &[], b"", 400, "bad_request"),
        ("GET", "/v1/keys/k?r=-1", &[], b"", 400, "bad_request"),
        ("GET", "/v1/keys/k?r=99999999999999999999", &[], b"", 400, "bad_request"),
        ("GET", "/v1/keys/k?r=two", &[], b"", 400, "bad_request"),
        ("PUT", "/v1/keys/k?w=4", &[], b"{\"value\":1}", 400, "bad_request"),
        ("DELETE", "/v1/keys/k?w=4", &[], b"", 400, "bad_request"),
        ("GET", "/v1/keys/k?sloppy=perhaps", &[], b"", 400, "bad_request"),
        ("GET", "/v1/keys/k?timeout_ms=0", &[], b"", 400, "bad_request"),
        ("GET", "/v1/keys/k?timeout_ms=1e9", &[], b"", 400, "bad_request"),
        ("GET", "/v1/keys/k?colour=red", &[], b"", 400, "bad_request"),
        ("GET", k, &[("X-Consistency", "most")], b"", 400, "bad_request"),
    ];
    for (method, target, headers, body, status, code) in cases {
        let shown = format!("{method} {:.60} {headers:?} {:.40}", target, String::from_utf8_lossy(body));
        let reply = http.send(method, target, headers, body).unwrap_or_else(|e| panic!("{shown}: {e}"));
        assert_eq!((reply.status, reply.problem().as_str()), (*status, *code), "{shown}: {}", reply.text());
        assert_eq!(reply.json()["outcome"], "not_applied", "{shown}");
        assert_eq!(reply.header("allow").is_some(), *status == 405, "{shown}");
    }
    // Nothing of all that was applied.
    let read = http.get(k).unwrap();
    assert_eq!((read.status, read.context()), (200, context));
    assert_unharmed(&mut cluster, "bad requests");
}

#[test]
fn heads_and_bodies_beyond_bounds_are_refused() {
    let mut cluster = Cluster::start("bad-heads", 1);
    let huge = format!("vc:{}", "A".repeat(1 << 20));
    let many: String = (0..5_000).map(|i| format!("X-Header-{i}: 1\r\n")).collect();
    let cases = [
        ("a context of 1 MB", format!("GET /v1/keys/k HTTP/1.1\r\nHost: x\r\nX-Version-Context: {huge}\r\n\r\n")),
        ("a target of 1 MB", format!("GET /v1/keys/{huge} HTTP/1.1\r\nHost: x\r\n\r\n")),
        ("5,000 headers", format!("GET /v1/keys/k HTTP/1.1\r\nHost: x\r\n{many}\r\n")),
        ("a body of 4 GB by its length", put_head("Content-Length: 4294967296")),
        ("a body of 2^64 bytes", put_head("Content-Length: 18446744073709551616")),
        ("two lengths", put_head("Content-Length: 1\r\nContent-Length: 2")),
        ("a negative length", put_head("Content-Length: -5")),
        ("a chunk of 4 GB", put_head("Transfer-Encoding: chunked") + "FFFFFFFF\r\nxxxx"),
        ("a chunk without a size", put_head("Transfer-Encoding: chunked") + "zz\r\n"),
        ("TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\u{7f}\x03\x03".to_string() + &"\x01".repeat(600)),
        ("no HTTP", "hello\r\n\r\n".to_string()),
        ("another version", "GET / HTTP/9.9\r\n\r\n".to_string()),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_string()),
        ("HTTP/0.9", "GET /v1/keys/k\r\n\r\n".to_string()),
        ("a space in the target", "GET /v1/keys/a b HTTP/1.1\r\nHost: x\r\n\r\n".to_string()),
        ("101 headers", format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(101))),
    ];
    for (what, request) in cases {
        // Good requests before it are answered, whatever comes behind them, and before it.
        let good = put_head("Content-Length: 2") + "12" + "GET /v1/keys/k HTTP/1.1\r\nHost: x\r\n\r\n";
        let mut stream = connect(&cluster, HTTP);
        // The server may have answered and closed before all was sent.
        let _ = stream.write_all((good + &request).as_bytes());
        let mut reader = BufReader::new(&stream);
        for _ in 0..2 {
            let answer =
                read_reply(&mut reader, "PUT").unwrap_or_else(|e| panic!("{what}: a good request before: {e}"));
            assert!(matches!(answer.status, 200 | 300), "{what}: {answer:?}");
        }
        let reply = read_reply(&mut reader, "PUT").unwrap_or_else(|e| panic!("{what}: no answer: {e}"));
        assert!((400..500).contains(&reply.status) || reply.status == 505, "{what}: {reply:?}");
        assert_eq!(
            (reply.problem().is_empty(), reply.json()["outcome"].as_str()),
            (false, Some("not_applied")),
            "{what}"
        );
        assert_eq!(reply.header("connection"), Some("close"), "{what}");
        let mut rest = Vec::new();
        match reader.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.is_empty(), "{what}: {rest:?}"),
            Err(e) => assert!(!timed_out(&e), "{what}: the connection stays open"),
        }
        assert_unharmed(&mut cluster, what);
    }
    let before = cluster.http(0).get("/v1/keys/gone").unwrap();
    assert_eq!(before.status, 404, "{before:?}");
    // Half a request, then gone; half a body, then gone.
    let put_gone = put_head("Content-Length: 100").replace("/k ", "/gone ") + "{\"value\":";
    for part in ["GET /v1/ke", &put_gone] {
        let mut stream = connect(&cluster, HTTP);
        stream.write_all(part.as_bytes()).unwrap();
        drop(stream);
    }
    let gone = cluster.http(0).get("/v1/keys/gone").unwrap();
    assert_eq!(gone.status, 404, "nothing was stored: {gone:?}");
    assert_unharmed(&mut cluster, "half requests");
}
fn put_head(header: &str) -> String {
    format!("PUT /v1/keys/k HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n{header}\r\n\r\n")
}

pub fn connect(cluster: &Cluster, port: u16) -> TcpStream {
    let address = SocketAddr::new(cluster.nodes[0].ip, port);
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("the port is open");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream.set_write_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream
}
fn timed_out(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// A HELLO as a client sends it.
pub fn hello() -> Vec<u8> {
    let message = ClientMessage::Hello(Hello { revision: 1, features: 0, clock: None });
    encode_client(&mut FrameEncoder::new(), 1, &message, Instant::ZERO).expect("a HELLO").to_bytes().to_vec()
}

#[test]
fn bad_frames_end_their_connection_only() {
    let mut cluster = Cluster::start("bad-frames", 1);
    let hello = hello();
    let mut random = fastrand::Rng::with_seed(4);
    let mut garbage = |count: usize| (0..count).map(|_| random.u8(..)).collect::<Vec<u8>>();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = hello.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let mut cases = vec![
        ("garbage".to_string(), garbage(100)),
        ("much garbage".into(), garbage(100_000)),
        ("zeros".into(), vec![0; 4096]),
        ("ones".into(), vec![0xff; 4096]),
        ("a claimed length of 4 GB".into(), with(0, &u32::MAX.to_le_bytes())),
        ("a claimed length of 1 GB".into(), with(0, &(1u32 << 30).to_le_bytes())),
        ("a claimed length above 4 KiB before the HELLO".into(), with(0, &5000u32.to_le_bytes())),
        ("a claimed length of 3".into(), with(0, &3u32.to_le_bytes())),
        ("a claimed flatbuffer of 4 GB".into(), with(4, &u32::MAX.to_le_bytes())),
        ("an unknown kind".into(), with(16, &999u16.to_le_bytes())),
        ("a wrong checksum".into(), with(28, &[1, 2, 3, 4])),
        ("HTTP".into(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
    ];
    cases.extend((0..hello.len()).map(|at| (format!("a flipped bit in byte {at}"), with(at, &[hello[at] ^ 4]))));
    for port in [CLIENT, PEER] {
        for (what, bytes) in &cases {
            let what = format!("{what} on port {port}");
            let mut stream = connect(&cluster, port);
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer) {
                Ok(_) => {}
                Err(e) => assert!(!timed_out(&e), "{what}: the connection stays open"),
            }
            if port == CLIENT {
                check_goodbye(&what, &answer);
            }
        }
        assert_unharmed(&mut cluster, &format!("bad frames on port {port}"));
        for cut in 0..hello.len() {
            connect(&cluster, port).write_all(&hello[..cut]).unwrap();
        }
        assert_unharmed(&mut cluster, &format!("cut frames on port {port}"));
    }
    // After a good HELLO as well.
    for (what, bytes) in &cases {
        let what = format!("{what} after a HELLO");
        let mut stream = connect(&cluster, CLIENT);
        stream.write_all(&[hello.as_slice(), bytes].concat()).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        if let Err(e) = stream.read_to_end(&mut answer) {
            assert!(!timed_out(&e), "{what}: the connection stays open");
        }
    }
    assert_unharmed(&mut cluster, "bad frames after a HELLO");
}
/// What is answered is whole frames; the last says why the connection ends.
fn check_goodbye(what: &str, answer: &[u8]) {
    let mut decoder = FrameDecoder::new();
    decoder.feed(answer);
    let mut last = None;
    while let Some(frame) = decoder.next_frame().unwrap_or_else(|e| panic!("{what}: the answer is no frame: {e}")) {
        last = Some(decode_server(&frame).unwrap_or_else(|e| panic!("{what}: the answer: {e}")).1);
    }
    match last {
        Some(ServerMessage::Goodbye { reason }) => assert!(!reason.is_empty(), "{what}"),
        // A closed connection may take its last words with it when bytes were left unread.
        None => {}
        other => panic!("{what}: answered {other:?}"),
    }
}

#[test]
fn a_refused_frame_is_told_why() {
    let cluster = Cluster::start("goodbye", 1);
    for (what, at, bytes) in [("a wrong checksum", 28, [1, 2, 3, 4]), ("4 GB", 0, [0xff; 4])] {
        let mut frame = hello();
        frame[at..at + 4].copy_from_slice(&bytes);
        let mut stream = connect(&cluster, CLIENT);
        stream.write_all(&frame).unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        assert!(!answer.is_empty(), "{what}: closed without a word ({read:?})");
        check_goodbye(what, &answer);
    }
}

#[test]
fn slow_clients_are_served_or_told_to_go() {
    let mut cluster = Cluster::start("slow", 1);
    let body = "{\"value\":12345}";
    let head = format!("PUT /v1/keys/slow HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let pace = Duration::from_millis(if long() { 1_000 } else { 20 });
    let (mut http, mut client, mut peer) =
        (connect(&cluster, HTTP), connect(&cluster, CLIENT), connect(&cluster, PEER));
    let hello = hello();
    for (number, byte) in head.bytes().enumerate() {
        // The server may close in between; what it says is read below.
        let _ = http.write_all(&[byte]);
        if let Some(byte) = hello.get(number) {
            let _ = (client.write_all(&[*byte]), peer.write_all(&[*byte]));
        }
        if number % 20 == 0 {
            assert_unharmed(&mut cluster, "a slow client");
        }
        wait::pause(pace);
    }
    let reply = read_reply(&mut BufReader::new(&http), "PUT");
    match reply {
        Ok(reply) => assert!(matches!(reply.status, 200 | 408), "{reply:?}"),
        Err(e) => assert!(!timed_out(&e), "a slow request is never answered"),
    }
    let mut first = [0; 1];
    match client.read(&mut first) {
        Ok(_) => {}
        Err(e) => assert!(!timed_out(&e), "a slow HELLO is never answered"),
    }
    assert_unharmed(&mut cluster, "slow clients");
}

#[test]
fn two_thousand_idle_connections_bother_nobody() {
    let mut cluster = Cluster::start("idle-connections", 1);
    let before = crate::footprint::resident_bytes(cluster.nodes[0].pid());
    let each = if long() { 2_000 } else { 700 };
    let mut open: Vec<TcpStream> = Vec::new();
    for number in 0..3 * each {
        open.push(connect(&cluster, [HTTP, CLIENT, PEER][number % 3]));
    }
    assert_unharmed(&mut cluster, "idle connections");
    let grown = crate::footprint::resident_bytes(cluster.nodes[0].pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "{} idle connections take {} KiB", open.len(), grown >> 10);
    // One of them wakes up.
    let mut stream = open.swap_remove(0);
    if stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").is_ok() {
        let reply = read_reply(&mut BufReader::new(&stream), "GET");
        assert!(reply.is_ok_and(|r| r.status == 200 || r.status == 408));
    }
    drop((open, stream));
    wait::until(Duration::from_secs(60), "connections are let go", || {
        let open = cluster.nodes[0].figures()["connections"].as_u64().unwrap_or(u64::MAX);
        if open <= 4 { Ok(()) } else { Err(format!("{open} open")) }
    });
    assert_unharmed(&mut cluster, "idle connections that left");
}

/// The same on one kept connection: an error does not spoil the requests behind it.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let cluster = Cluster::start("pipelined", 1);
    let mut stream = connect(&cluster, HTTP);
    let put =
        |n: usize| format!("PUT /v1/keys/p{n} HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n{{\"value\":{n}}}");
    let mut requests = String::new();
    for n in 0..9 {
        requests += &put(n);
        requests += &format!("GET /v1/keys/p{n} HTTP/1.1\r\nHost: x\r\n\r\n");
        requests += "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n";
    }
    stream.write_all(requests.as_bytes()).unwrap();
    let mut reader = BufReader::new(&stream);
    for n in 0..9 {
        assert_eq!(read_reply(&mut reader, "PUT").unwrap().status, 200);
        let read = read_reply(&mut reader, "GET").unwrap();
        assert_eq!((read.status, &read.json()["value"]), (200, &n.into()));
        assert_eq!(read_reply(&mut reader, "GET").unwrap().status, 404);
    }
    // And the connection is still good for another client library.
    let mut http = Http::new(cluster.nodes[0].ip);
    assert_eq!(http.send("HEAD", "/healthz", &[], b"").unwrap().status, 200);
}

/// An answer waits for nothing: neither for stray bytes behind its request, nor for the rest of the next one.
#[test]
fn answers_do_not_wait_for_what_follows() {
    let cluster = Cluster::start("stray-bytes", 1);
    let put = put_head("Content-Length: 2") + "12";
    let get = "GET /v1/keys/k HTTP/1.1\r\nHost: x\r\n\r\n".to_string();
    for stray in ["", "\r\n", "\r", "\n\n\n", "G", "GET /v1/keys/k HTTP/1.1\r\nHos", "PUT / HTTP/1.1\r\nHost: x\r\n"] {
        for request in [&put, &get] {
            let mut stream = connect(&cluster, HTTP);
            stream.write_all((request.clone() + stray).as_bytes()).unwrap();
            let reply = read_reply(&mut BufReader::new(&stream), "PUT");
            let reply = reply.unwrap_or_else(|e| panic!("before {stray:?}: {e}"));
            assert!(matches!(reply.status, 200 | 300), "{reply:?}");
        }
    }
    // Half a request is answered when it is closed, and so is half a body.
    for half in ["GET /v1/ke", &(put_head("Content-Length: 100") + "12")] {
        let mut stream = connect(&cluster, HTTP);
        stream.write_all((get.clone() + half).as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut reader = BufReader::new(&stream);
        assert!(matches!(read_reply(&mut reader, "GET").unwrap().status, 200 | 300));
        assert_eq!(read_reply(&mut reader, "PUT").unwrap().problem(), "bad_request");
    }
}

/// Who asks before sending a body is told at once when there is no point.
#[test]
fn a_body_that_is_bound_to_fail_is_not_asked_for() {
    let cluster = Cluster::start("expectations", 1);
    let expect = "Expect: 100-continue\r\n";
    let doomed = [
        (413, put_head(&format!("{expect}Content-Length: 99999999"))),
        (400, put_head(&format!("{expect}Content-Length: 5")).replace("/v1/keys/k", "/v1/keys/%")),
        (404, put_head(&format!("{expect}Content-Length: 5")).replace("/v1/keys/k", "/nowhere")),
        (405, put_head(&format!("{expect}Content-Length: 5")).replace("PUT", "POST")),
        (415, put_head(&format!("{expect}Content-Length: 5\r\nContent-Encoding: gzip"))),
        (501, put_head(&format!("{expect}Content-Length: 5\r\nIf-None-Match: *"))),
        (417, put_head("Expect: wonders\r\nContent-Length: 5")),
        (403, put_head(&format!("{expect}Content-Length: 5\r\nOrigin: http://evil.example"))),
        (421, put_head(&format!("{expect}Content-Length: 5")).replace("Host: x", "Host: evil.example")),
    ];
    for (status, head) in doomed {
        let mut stream = connect(&cluster, HTTP);
        stream.write_all(head.as_bytes()).unwrap();
        let reply = read_reply(&mut BufReader::new(&stream), "PUT").unwrap_or_else(|e| panic!("{head}: {e}"));
        assert_eq!((reply.status, reply.problem().is_empty()), (status, false), "{head}: {}", reply.text());
    }
    let mut stream = connect(&cluster, HTTP);
    stream.write_all(put_head(&format!("{expect}Content-Length: 5")).as_bytes()).unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").unwrap();
    assert_eq!(read_reply(&mut BufReader::new(&stream), "PUT").unwrap().status, 200);
    // A long body that nobody asked for is answered early as well, and passed over up to a bound.
    let mut stream = connect(&cluster, HTTP);
    stream.write_all(put_head("Content-Length: 8000000").as_bytes()).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    assert_eq!(read_reply(&mut reader, "PUT").unwrap().status, 413);
    stream.write_all(&vec![7; 8_000_000]).unwrap();
    stream.write_all(b"GET /v1/keys/k HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(read_reply(&mut reader, "GET").unwrap().status, 200);
}
