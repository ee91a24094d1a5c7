//! The client library against servers that die, stay silent, refuse and lie.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "real sockets and threads")]

mod client_cluster;

use client_cluster::{Cluster, Manner};
use dynarc::{client::*, protocol::message::*, types::*};
use std::time::Duration;

fn key(text: &str) -> Key {
    Key::new(text.to_owned()).expect("a key")
}
fn short() -> Options {
    Options::default().timeout(Duration::from_millis(600))
}
/// A key whose first owner is this server.
fn key_owned_by(cluster: &Cluster, index: usize) -> String {
    let (ring, id) = (cluster.ring(), cluster.server(index).id());
    let mut names = (0..).map(|i| format!("key {i}"));
    names.find(|n| ring.walk(key(n).token(), 1)[0] == id).expect("every node owns some")
}

#[test]
fn clients_may_move_between_threads() {
    fn is_send<T: Send>() {}
    is_send::<Client>();
    is_send::<Pipeline>();
    is_send::<Connection>();
}

#[test]
fn values_contexts_and_siblings_come_back() {
    let cluster = Cluster::new(3);
    let mut client = Client::connect(&cluster.addresses()).expect("a cluster");
    assert_eq!(client.get("k").expect("answered").siblings, []);
    let first = client.put("k", Value::json("1"), &Options::default()).expect("written");
    let left = client.put("k", Value::json("2"), &Options::default().context(first.clone())).expect("written");
    assert_eq!(client.get("k").expect("answered"), Got { siblings: vec![Value::json("2")], context: left });
    client
        .put("k", Value::new(Media::octets(), vec![9; 300_000]), &Options::default().context(first))
        .expect("written");
    let got = client.get("k").expect("answered");
    assert_eq!(got.siblings, [Value::json("2"), Value::new(Media::octets(), vec![9; 300_000])]);
    client.delete("k", &Options::default().context(got.context)).expect("deleted");
    assert_eq!(client.get("k").expect("answered").siblings, []);
    assert!(matches!(client.get(""), Err(ClientError::Key(_))));
    assert!(matches!(client.get(vec![1; 1025]), Err(ClientError::Key(_))));
}

#[test]
fn update_merges_what_is_there() {
    let cluster = Cluster::new(2);
    let mut client = Client::connect(&cluster.addresses()).expect("a cluster");
    client.put("k", Value::json("1"), &Options::default()).expect("written");
    client.put("k", Value::json("2"), &Options::default()).expect("written");
    let sum = |values: &[Value]| {
        let numbers = values.iter().map(|v| String::from_utf8_lossy(&v.bytes).parse::<u32>().expect("a number"));
        Value::json(numbers.sum::<u32>().to_string())
    };
    let (value, context) = client.update("k", sum, &Options::default()).expect("written");
    assert_eq!(value, Value::json("3"));
    assert_eq!(client.get("k").expect("answered"), Got { siblings: vec![Value::json("3")], context });
}

#[test]
fn requests_go_to_an_owning_core_over_one_connection_each() {
    let cluster = Cluster::new(3);
    let mut client = Client::connect(&cluster.addresses()[..1]).expect("a cluster");
    for i in 0..60 {
        client.get(format!("key {i}")).expect("answered");
    }
    for index in 0..3 {
        let server = cluster.server(index);
        let asked = server.asked();
        assert!(!asked.is_empty());
        assert!(asked.iter().all(|k| cluster.ring().walk(k.token(), 1)[0] == server.id()));
        assert_eq!(server.connections(), 1);
    }
}

#[test]
fn a_new_member_is_learnt_from_an_answer() {
    let cluster = Cluster::new(1);
    let mut client = Client::connect(&cluster.addresses()).expect("a cluster");
    client.get("k").expect("answered");
    cluster.add();
    let name = key_owned_by(&cluster, 1);
    let begun = std::time::Instant::now();
    while cluster.server(1).asked().is_empty() {
        client.get(name.clone()).expect("answered");
        assert!(begun.elapsed() < Duration::from_secs(20), "the ring is not fetched");
    }
}

#[test]
fn no_request_fails_when_a_server_dies() {
    let cluster = Cluster::new(3);
    let mut client = Client::connect(&cluster.addresses()).expect("a cluster");
    for i in 0..300 {
        if i == 100 {
            cluster.server(1).kill();
        }
        client.put(format!("key {i}"), Value::json(i.to_string()), &Options::default()).expect("written");
    }
    for i in 0..300 {
        assert_eq!(client.get(format!("key {i}")).expect("answered").siblings, [Value::json(i.to_string())]);
    }
}

#[test]
fn a_write_sent_twice_is_one_event() {
    let cluster = Cluster::new(2);
    let mut client = Client::connect(&cluster.addresses()).expect("a cluster");
    let name = key_owned_by(&cluster, 0);
    cluster.server(0).behave(Manner::BreaksAfterWork);
    client.put(name.clone(), Value::json("1"), &Options::default()).expect("written");
    assert_eq!(cluster.server(0).asked(), [key(&name)], "it did arrive twice");
    assert_eq!(cluster.server(1).asked(), [key(&name)]);
    assert_eq!(cluster.stored(&name).values.len(), 1);
}

#[test]
fn setbacks_are_tried_again_elsewhere() {
    for manner in [
        Manner::Silent,
        Manner::Garbage,
        Manner::Goodbye,
        Manner::Failing(ErrorCode::NotReady),
        Manner::Failing(ErrorCode::Overloaded),
    ] {
        let cluster = Cluster::new(2);
        let mut client = Client::connect(&cluster.addresses()).expect("a cluster");
        let name = key_owned_by(&cluster, 0);
        cluster.server(0).behave(manner);
        let written = client.put(name.clone(), Value::json("1"), &Options::default());
        assert!(written.is_ok(), "{manner:?}: {written:?}");
        assert_eq!((cluster.server(0).asked().len(), cluster.server(1).asked().len()), (1, 1), "{manner:?}");
    }
}

#[test]
fn failures_that_no_retry_mends_are_passed_on() {
    let cluster = Cluster::new(2);
    let mut client = Client::connect(&cluster.addresses()).expect("a cluster");
    for code in [ErrorCode::QuorumUnavailable, ErrorCode::DiskFull, ErrorCode::SiblingLimit, ErrorCode::BadRequest] {
        (0..2).for_each(|index| cluster.server(index).behave(Manner::Failing(code)));
        let asked = cluster.server(0).asked().len() + cluster.server(1).asked().len();
        match client.put("k", Value::json("1"), &Options::default()) {
            Err(ClientError::Failure(failure)) => assert_eq!(failure.code, code),
            other => panic!("{other:?}"),
        }
        assert_eq!(cluster.server(0).asked().len() + cluster.server(1).asked().len(), asked + 1);
    }
}

#[test]
fn errors_say_whether_a_write_may_have_happened() {
    let cluster = Cluster::new(2);
    let mut client = Client::connect(&cluster.addresses()).expect("a cluster");
    let name = key_owned_by(&cluster, 0);
    (0..2).for_each(|index| cluster.server(index).behave(Manner::Failing(ErrorCode::NotReady)));
    let error = client.put(name.clone(), Value::json("1"), &short()).expect_err("nobody is ready");
    assert!(matches!(&error, ClientError::Failure(f) if f.code == ErrorCode::NotReady), "{error}");
    assert_eq!(error.outcome(), Outcome::NotApplied);

    cluster.server(0).behave(Manner::BreaksAfterWork);
    let error = client.put(name.clone(), Value::json("1"), &short()).expect_err("nobody answers well");
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");

    (0..2).for_each(|index| cluster.server(index).behave(Manner::Silent));
    let error = client.put(name.clone(), Value::json("1"), &short()).expect_err("nobody answers");
    assert_eq!(error, ClientError::Timeout { outcome: Outcome::Unknown });
    let error = client.get_with(name.clone(), &short()).expect_err("nobody answers");
    assert_eq!(error, ClientError::Timeout { outcome: Outcome::NotApplied });

    (0..2).for_each(|index| cluster.server(index).kill());
    let begun = std::time::Instant::now();
    client.get_with(name.clone(), &short()).expect_err("nobody is there");
    let error = client.put(name, Value::json("1"), &short()).expect_err("nobody is there");
    assert!(matches!(error, ClientError::Unreachable { outcome: Outcome::NotApplied, .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "the deadlines are kept");
    assert!(matches!(Client::connect(&cluster.addresses()), Err(ClientError::Unreachable { .. })));
    assert!(matches!(Client::connect(&["nonsense"]), Err(ClientError::Address(_))));
}

#[test]
fn a_pipeline_loads_through_the_death_of_a_server() {
    let cluster = Cluster::new(3);
    let mut pipeline = Pipeline::connect(&cluster.addresses()).expect("a cluster");
    let put = |i: usize| Operation::Put {
        context: None,
        value: Value::json(format!("\"{}\"", "x".repeat(i % 5000))),
        write_id: WriteId(0),
    };
    let (count, mut next, mut done) = (3_000, 0, 0);
    while done < count {
        while next < count && pipeline.in_flight() < 200 {
            pipeline.submit(key(&format!("key {next}")), put(next), &Options::default());
            next += 1;
        }
        let (ticket, result) = pipeline.next().expect("some are in flight");
        assert!(result.is_ok(), "{ticket:?}: {result:?}");
        done += 1;
        if done == 1_000 {
            cluster.server(2).kill();
        }
    }
    assert!(pipeline.next().is_none());
    for i in 0..count {
        assert_eq!(cluster.stored(&format!("key {i}")).values.len(), 1, "each written once");
    }
}

#[test]
fn a_connection_carries_many_requests_at_once() {
    let cluster = Cluster::new(1);
    let mut connection = Connection::connect(cluster.addresses()[0], Duration::from_secs(5)).expect("a server");
    assert_eq!(connection.welcome().map(|w| w.address.node), Some(NodeId(1)));
    let deadline = connection.now() + Duration::from_secs(20);
    let mut expected = std::collections::HashMap::new();
    for i in 0..500 {
        let value = Value::new(Media::octets(), vec![i as u8; 4_000]);
        let operation = Operation::Put { context: None, value, write_id: WriteId(i + 1) };
        let consistency = Consistency::default();
        let request = Request { key: key(&i.to_string()), operation, consistency, deadline };
        expected.insert(connection.send(&request).expect("queued"), i);
    }
    while !expected.is_empty() {
        match connection.recv(deadline).expect("a sound connection") {
            Some(Event::Response { id, response, .. }) => {
                assert!(expected.remove(&id).is_some());
                assert!(response.is_ok());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(connection.in_flight(), 0);
    let (members, digest) = connection.ring(Duration::from_secs(5)).expect("answered");
    assert_eq!((members, digest), (cluster.members(), cluster.ring().digest()));
}

#[test]
fn a_connection_says_what_expires() {
    let cluster = Cluster::new(1);
    cluster.server(0).behave(Manner::Silent);
    let mut connection = Connection::connect(cluster.addresses()[0], Duration::from_secs(5)).expect("a server");
    let deadline = connection.now() + Duration::from_millis(20);
    let request = Request {
        key: key("k"),
        operation: Operation::Get { context: None },
        consistency: Consistency::default(),
        deadline,
    };
    let id = connection.send(&request).expect("queued");
    let until = connection.now() + Duration::from_secs(20);
    assert_eq!(connection.recv(until), Ok(Some(Event::Expired { id })));
    assert!(connection.now() >= deadline);
}
