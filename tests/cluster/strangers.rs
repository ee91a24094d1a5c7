//! Nodes that are no members: they may introduce themselves, and make a node do nothing else.

use crate::{bad_input::connect, node::Cluster, wait};
use dynarc::{
    limits::{CALLS_PER_CORE, CONNECTION_BYTES_HARD, CONNECTION_BYTES_MAX, GUESTS_PER_SOURCE, MIB},
    protocol::message::{Depth, Envelope, Message, News},
    types::{Address, ClusterId, Instant, Key, Member, MemberState, NodeId, Ports, TableWord, Token},
    wire::{ConnectionPurpose, FrameEncoder, PEER_REVISION, PeerHello, encode_peer, encode_peer_hello},
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener},
    time::Duration,
};

const PEER: u16 = 9000;
/// A core that the stranger says it has.
const OTHER_CORE: u16 = 7;

fn hello(node: NodeId, ip: IpAddr, ports: Ports, cluster: ClusterId) -> Vec<u8> {
    hello_of(Address::new(node, 0), ip, ports, cluster)
}
fn hello_of(core: Address, ip: IpAddr, ports: Ports, cluster: ClusterId) -> Vec<u8> {
    let hello = PeerHello {
        revision: PEER_REVISION,
        features: 0,
        node: core.node,
        shard: core.shard,
        generation: 1,
        ip,
        ports,
        purpose: ConnectionPurpose::Messages,
        clock: None,
        cluster,
        sought: None,
    };
    encode_peer_hello(&mut FrameEncoder::new(), &hello).expect("it fits").to_bytes().to_vec()
}

#[test]
fn a_stranger_makes_a_node_call_nobody_but_itself() {
    let cluster = Cluster::start("stranger", 1);
    let node = cluster.http(0).get("/v1/node").unwrap().json();
    let node = NodeId(u64::from_str_radix(node["id"].as_str().expect("an id"), 16).expect("a number"));
    let seen = cluster.http(0).get("/v1/cluster").unwrap().json();
    let ours = ClusterId(u64::from_str_radix(seen["cluster"].as_str().expect("a cluster"), 16).expect("a number"));
    // Connections over loopback come from here.
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let (door, other) = (20_000..60_000)
        .step_by(16)
        .find_map(|port| Some((TcpListener::bind((ip, port)).ok()?, TcpListener::bind((ip, port + OTHER_CORE)).ok()?)))
        .expect("two ports");
    let ports = Ports { http: 1, client: 2, peer: door.local_addr().expect("its address").port() };
    let stranger = NodeId(0xabcdef);
    let say = |from: u16, message: Message| {
        let envelope = Envelope {
            from: Address::new(stranger, from),
            to: Address::new(node, 0),
            exchange: 1,
            deadline: Instant::ZERO + Duration::from_secs(5),
            message,
        };
        encode_peer(&mut FrameEncoder::new(), &envelope, Instant::ZERO).expect("it fits").to_bytes().to_vec()
    };
    let fetch = || {
        say(
            OTHER_CORE,
            Message::Fetch { key: Key::new("k").expect("a key"), depth: Depth::Head, word: TableWord::default() },
        )
    };
    let member = |id: NodeId, ip: IpAddr| {
        News::Member(Member {
            id,
            ip,
            ports,
            shards: 16,
            slices: 64,
            tokens: (1..65).map(|t| Token(t << 50)).collect(),
            state: MemberState::Joining,
            generation: 1,
            revision: 1,
            heartbeat: 1,
        })
    };
    // Who is not where it says it is, is not listened to.
    let mut liar = connect(&cluster, PEER);
    liar.write_all(&[hello(stranger, Ipv4Addr::new(127, 0, 0, 77).into(), ports, ours), fetch()].concat()).unwrap();
    let mut rest = Vec::new();
    let read = liar.read_to_end(&mut rest);
    assert!(read.is_ok() || read.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset), "the connection stays open");

    // What it asks is not answered; what it says of others is not believed; it may say who it is.
    let mut guest = connect(&cluster, PEER);
    let invented = NodeId(0x123456);
    let news = vec![member(invented, ip), member(stranger, ip)];
    let words = say(0, Message::GossipDelta { cluster: ours, news, wanted: Vec::new(), group: Vec::new() });
    guest.write_all(&[hello(stranger, ip, ports, ours), fetch().repeat(100), words].concat()).unwrap();
    // It is answered at its own door.
    drop(door.accept().expect("the node calls back"));
    other.set_nonblocking(true).expect("an option");
    assert!(
        other.accept().is_err_and(|e| e.kind() == ErrorKind::WouldBlock),
        "a core that only a question named was called"
    );
    wait::until(Duration::from_secs(20), "the stranger is a member", || {
        let members = cluster.http(0).get("/v1/cluster").unwrap().json()["members"].clone();
        let ids: Vec<String> = members.as_array().expect("members").iter().map(|m| m["id"].to_string()).collect();
        assert!(!ids.iter().any(|id| id.contains("123456")), "{ids:?}");
        if ids.iter().any(|id| id.contains("abcdef")) { Ok(()) } else { Err(format!("{ids:?}")) }
    });
}

#[test]
fn few_strangers_are_listened_to_at_once() {
    let mut cluster = Cluster::start("strangers", 1);
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut open = Vec::new();
    for number in 1..=200 {
        let mut stream = connect(&cluster, PEER);
        let _ = stream.write_all(&hello(NodeId(number), ip, Ports::default(), ClusterId::NONE));
        open.push(stream);
    }
    // All but a few are closed after the HELLO of the node.
    wait::until(Duration::from_secs(20), "most are closed", || {
        open.retain_mut(|stream| !is_closed(stream));
        if open.len() <= GUESTS_PER_SOURCE { Ok(()) } else { Err(format!("{} are open", open.len())) }
    });
    cluster.nodes[0].assert_runs();
}

/// Whether the other side has closed it.
fn is_closed(stream: &mut std::net::TcpStream) -> bool {
    let mut rest = Vec::new();
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

/// Whoever knows a member's name has no more places than that member needs, and what it begins to say and does not
/// finish takes no more memory than all connections may take.
#[test]
fn who_says_that_it_is_a_member_has_few_places_and_little_memory() {
    let mut cluster = Cluster::start("callers", 2);
    let figures = |cluster: &Cluster| cluster.http(0).get("/v1/node").unwrap().json();
    let member = cluster.http(1).get("/v1/node").unwrap().json()["id"].clone();
    let member = NodeId(u64::from_str_radix(member.as_str().expect("an id"), 16).expect("a number"));
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let call = |shard: u16| {
        let mut stream = connect(&cluster, PEER);
        let hello = hello_of(Address::new(member, shard), ip, Ports::default(), ClusterId::NONE);
        stream.write_all(&hello).expect("it is read");
        stream
    };
    let mut open: Vec<_> = (0..40).map(|_| call(7)).collect();
    wait::until(Duration::from_secs(20), "most are closed", || {
        open.retain_mut(|stream| !is_closed(stream));
        if open.len() <= CALLS_PER_CORE { Ok(()) } else { Err(format!("{} are open", open.len())) }
    });
    assert_eq!(open.len(), CALLS_PER_CORE, "these may stay");

    // The beginning of a frame of 50 MiB, from each of 60 cores.
    let mut begun = vec![0; 5 * MIB];
    begun[..4].copy_from_slice(&(50 * MIB as u32).to_le_bytes());
    begun[4..8].copy_from_slice(&100u32.to_le_bytes());
    begun[16..18].copy_from_slice(&35u16.to_le_bytes());
    begun[20..22].copy_from_slice(&0xd1a1u16.to_le_bytes());
    let cut_off: Vec<_> = (100..160)
        .map(|shard| {
            let mut stream = call(shard);
            // One that has had to go already does not take it all.
            drop(stream.write_all(&begun));
            stream
        })
        .collect();
    wait::until(Duration::from_secs(20), "some have gone", || {
        let seen = figures(&cluster);
        let of = |name: &str| seen[name].as_u64().expect("a number");
        assert!(of("connection_bytes") <= CONNECTION_BYTES_HARD as u64, "{seen}");
        assert!(of("resident_bytes") < 2 * CONNECTION_BYTES_HARD as u64, "{seen}");
        if of("connection_bytes") <= CONNECTION_BYTES_MAX as u64 && of("connections_given_up") > 40 {
            Ok(())
        } else {
            Err(seen.to_string())
        }
    });
    drop(cut_off);
    assert_eq!(cluster.http(0).get("/v1/cluster").unwrap().status, 200);
    cluster.nodes[0].assert_runs();
}
