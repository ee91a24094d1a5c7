//! Connections that take more than their share: of memory, of places. Nobody else notices.

use crate::{
    bad_input::{connect, hello},
    node::Cluster,
    wait,
};
use dynarc::{
    limits::{CONNECTION_BYTES_HARD, CONNECTION_BYTES_MAX, KIB, MIB},
    protocol::message::{ClientMessage, Operation, Request, Response, ServerMessage},
    types::{Consistency, ErrorCode, Instant, Key, Value, WriteId},
    wire::{FrameDecoder, FrameEncoder, decode_server, encode_client},
};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

const HTTP: u16 = 7700;
const CLIENT: u16 = 8000;

/// A put, as a client sends it.
fn put(key: &str, value: Value) -> Vec<u8> {
    request(key, Operation::Put { context: None, value, write_id: WriteId(1) })
}
fn get(key: &str) -> Vec<u8> {
    request(key, Operation::Get { context: None })
}
fn request(key: &str, operation: Operation) -> Vec<u8> {
    let key = Key::new(key.to_owned()).expect("a key");
    let deadline = Instant::ZERO + Duration::from_secs(5);
    let request = Request { key, operation, consistency: Consistency::default(), deadline };
    let frame = encode_client(&mut FrameEncoder::new(), 2, &ClientMessage::Request(request), Instant::ZERO);
    frame.expect("it fits a frame").to_bytes().to_vec()
}

/// The next answer to a request.
fn response(stream: &mut TcpStream, decoder: &mut FrameDecoder) -> Response {
    let mut buffer = vec![0; 64 * KIB];
    loop {
        while let Some(frame) = decoder.next_frame().expect("frames") {
            if let (_, ServerMessage::Response { response, .. }) = decode_server(&frame).expect("sound") {
                return response;
            }
        }
        let bytes = stream.read(&mut buffer).expect("an answer");
        assert!(bytes > 0, "closed without an answer");
        decoder.feed(&buffer[..bytes]);
    }
}

#[test]
fn what_is_said_to_be_json_is_json() {
    let cluster = Cluster::start("json", 1);
    let mut stream = connect(&cluster, CLIENT);
    let mut decoder = FrameDecoder::new();
    decoder.set_limit(8 * MIB);
    stream.write_all(&hello()).unwrap();
    for no_json in ["{nope", "1, \"context\": \"x\"", ""] {
        stream.write_all(&put("j", Value::json(no_json))).unwrap();
        let failure = response(&mut stream, &mut decoder).expect_err(no_json);
        assert_eq!(failure.code, ErrorCode::BadRequest, "{no_json}: {failure}");
    }
    assert_eq!(cluster.http(0).get("/v1/keys/j").unwrap().status, 404, "nothing of that is stored");
    // The connection is as good as before.
    stream.write_all(&put("j", Value::json("[1]"))).unwrap();
    assert!(response(&mut stream, &mut decoder).is_ok());
    assert_eq!(cluster.http(0).get("/v1/keys/j").unwrap().json()["value"], serde_json::json!([1]));
}

/// What the node says it holds for its connections is within its bound; others are served.
fn assert_bounded(cluster: &Cluster) -> u64 {
    let figures = cluster.nodes[0].figures();
    let held = figures["connection_bytes"].as_u64().expect("a figure");
    assert!(held <= CONNECTION_BYTES_HARD as u64, "{held} bytes held");
    let put = cluster.http(0).put("other", "1", None).expect("an answer");
    assert!(matches!(put.status, 200 | 409), "{}", put.text());
    figures["connections_given_up"].as_u64().expect("a figure")
}

#[test]
fn unfinished_frames_and_bodies_share_one_budget() {
    let mut cluster = Cluster::start("unfinished", 1);
    let (value, count) = (4 * MIB - 64 * KIB, CONNECTION_BYTES_HARD / (4 * MIB) + 8);
    let frame = put("k", Value::json(vec![b'1'; value]));
    let body =
        format!("PUT /v1/keys/k HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nContent-Length: {}\r\n\r\n", MIB - 1);
    let mut open = Vec::new();
    for number in 0..count {
        let mut stream = connect(&cluster, CLIENT);
        stream.write_all(&hello()).unwrap();
        // All but the last byte. Who is given up does not take the rest.
        let _ = stream.write_all(&frame[..frame.len() - 1]);
        let mut web = connect(&cluster, HTTP);
        let _ = web.write_all(&[body.as_bytes(), &vec![b'1'; MIB - 2]].concat());
        open.push((stream, web));
        if number % 16 == 0 {
            assert_bounded(&cluster);
        }
    }
    wait::until(Duration::from_secs(30), "the held up ones are given up", || {
        let given_up = assert_bounded(&cluster);
        let held = cluster.nodes[0].figures()["connection_bytes"].as_u64().unwrap_or(u64::MAX);
        if given_up > 0 && held <= CONNECTION_BYTES_MAX as u64 { Ok(()) } else { Err(format!("{given_up} {held}")) }
    });
    drop(open);
    wait::until(Duration::from_secs(30), "nothing is held any more", || {
        let held = cluster.nodes[0].figures()["connection_bytes"].as_u64().unwrap_or(u64::MAX);
        // The one that asks has its own answer on its way.
        if held < 64 * KIB as u64 { Ok(()) } else { Err(format!("{held} bytes held")) }
    });
    let resident = crate::footprint::resident_bytes(cluster.nodes[0].pid());
    assert!(resident < 300 << 20, "{} MiB resident", resident >> 20);
    cluster.nodes[0].assert_runs();
}

#[test]
fn answers_that_nobody_reads_share_it_too() {
    let cluster = Cluster::start("unread", 1);
    let octets = ("Content-Type", "application/octet-stream");
    let stored = cluster.http(0).send("PUT", "/v1/keys/large", &[octets], &vec![b'7'; MIB]).unwrap();
    assert_eq!(stored.status, 200, "{}", stored.text());
    // Each asks for much at once and reads nothing.
    let ask = get("large").repeat(120);
    let mut open = Vec::new();
    let mut given_up = 0;
    while given_up == 0 && open.len() < 16 {
        let mut stream = connect(&cluster, CLIENT);
        stream.write_all(&[hello(), ask.clone()].concat()).unwrap();
        open.push(stream);
        given_up = assert_bounded(&cluster);
    }
    wait::until(Duration::from_secs(30), "some are given up", || {
        if assert_bounded(&cluster) > 0 { Ok(()) } else { Err("none".into()) }
    });
    let resident = crate::footprint::resident_bytes(cluster.nodes[0].pid());
    assert!(resident < 400 << 20, "{} MiB resident", resident >> 20);
}
