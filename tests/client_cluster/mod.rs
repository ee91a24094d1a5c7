//! A small cluster of threads on loopback that speaks the client protocol: one store that all its servers share, and
//! servers that can be told to misbehave.

use bytes::Bytes;
use dynarc::{
    limits::{FRAME_BYTES_MAX, VALUE_BYTES_MAX},
    protocol::{message::*, ring::Ring, versions::*},
    types::*,
    wire::*,
};
use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

/// How a server treats the requests that reach it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    Normal,
    /// Answers with this failure without doing anything.
    Failing(ErrorCode),
    /// Does nothing and says nothing.
    Silent,
    /// Does the work, then closes the connection instead of answering.
    BreaksAfterWork,
    /// Answers with bytes that are no frame.
    Garbage,
    Goodbye,
}

#[derive(Default)]
struct Store {
    keys: HashMap<Key, Siblings>,
    events: u64,
}
impl Store {
    fn work(&mut self, request: &Request) -> Answer {
        let state = self.keys.entry(request.key.clone()).or_default();
        match &request.operation {
            Operation::Get { .. } => return Answer::Got(state.clone()),
            Operation::Put { value, write_id, context } => {
                if !state.head.knows_write(*write_id) {
                    self.events += 1;
                    let entry = Entry {
                        dot: Dot { actor: Actor::from_narrow(1), counter: self.events },
                        write_id: *write_id,
                        media: value.media.clone(),
                        bytes: value.bytes.len() as u32,
                        checksum: value.checksum,
                    };
                    let merged = state.head.put(&context.clone().unwrap_or_default(), entry);
                    let pick = |p: &Pick| match p.side {
                        Side::Left => state.values[p.index].clone(),
                        Side::Right => value.bytes.clone(),
                    };
                    let values = merged.picks.iter().map(pick).collect();
                    *state = Siblings { head: merged.head, values };
                }
            }
            Operation::Delete { context, .. } => {
                let seen = context.clone().unwrap_or_else(|| state.head.clock.clone().into());
                let merged = state.head.delete(&seen);
                let values = merged.picks.iter().map(|p| state.values[p.index].clone()).collect();
                *state = Siblings { head: merged.head, values };
            }
        }
        Answer::Written(Context::from(state.head.clock.clone()))
    }
}

struct ServerState {
    member: Member,
    manner: Manner,
    stopped: bool,
    streams: Vec<TcpStream>,
    asked: Vec<Key>,
    connections: usize,
}
#[derive(Clone)]
pub struct Server(Arc<Mutex<ServerState>>);

#[derive(Clone, Default)]
pub struct Cluster {
    store: Arc<Mutex<Store>>,
    servers: Arc<Mutex<Vec<Server>>>,
}

impl Cluster {
    pub fn new(servers: usize) -> Cluster {
        let cluster = Cluster::default();
        (0..servers).for_each(|_| cluster.add());
        cluster
    }
    /// One more member, with one core, at a port of its own.
    pub fn add(&self) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let id = self.servers.lock().expect("lock").len() as u64 + 1;
        let mut random = fastrand::Rng::with_seed(id);
        let mut tokens: Vec<Token> = (0..64).map(|_| Token(random.u64(..))).collect();
        tokens.sort();
        let member = Member {
            id: NodeId(id),
            ip: [127, 0, 0, 1].into(),
            ports: Ports { http: 0, client: port, peer: 0 },
            shards: 1,
            slices: 64,
            tokens: tokens.into(),
            state: MemberState::Up,
            generation: 1,
            revision: 1,
            heartbeat: 1,
        };
        let server = Server(Arc::new(Mutex::new(ServerState {
            member,
            manner: Manner::Normal,
            stopped: false,
            streams: Vec::new(),
            asked: Vec::new(),
            connections: 0,
        })));
        self.servers.lock().expect("lock").push(server.clone());
        let cluster = self.clone();
        std::thread::spawn(move || cluster.accept(&listener, &server));
    }
    pub fn server(&self, index: usize) -> Server {
        self.servers.lock().expect("lock")[index].clone()
    }
    pub fn members(&self) -> Vec<Member> {
        self.servers.lock().expect("lock").iter().map(|s| s.0.lock().expect("lock").member.clone()).collect()
    }
    pub fn ring(&self) -> Ring {
        Ring::new(&self.members())
    }
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.members().iter().map(|m| SocketAddr::new(m.ip, m.ports.client)).collect()
    }
    /// What is stored, whoever asks.
    pub fn stored(&self, key: &str) -> Siblings {
        let key = Key::new(key.to_owned()).expect("a key");
        self.store.lock().expect("lock").keys.get(&key).cloned().unwrap_or_default()
    }

    fn accept(&self, listener: &TcpListener, server: &Server) {
        for stream in listener.incoming().flatten() {
            let mut state = server.0.lock().expect("lock");
            if state.stopped {
                return;
            }
            state.connections += 1;
            state.streams.push(stream.try_clone().expect("a socket"));
            let (cluster, server) = (self.clone(), server.clone());
            std::thread::spawn(move || cluster.serve(stream, &server));
        }
    }
    /// One connection, until either side ends it.
    fn serve(&self, mut stream: TcpStream, server: &Server) -> Option<()> {
        let (mut decoder, mut encoder) = (FrameDecoder::new(), FrameEncoder::new());
        let mut received = vec![0; 100_000];
        loop {
            let count = stream.read(&mut received).ok().filter(|n| *n > 0)?;
            decoder.feed(&received[..count]);
            while let Some(frame) = decoder.next_frame().ok()? {
                let (id, message) = decode_client(&frame, Instant::ZERO).ok()?;
                decoder.set_limit(FRAME_BYTES_MAX);
                if let Some(answer) = self.answer(&message, server) {
                    let bytes = answer.ok().map_or(Bytes::from_static(&[0xff; 64]), |answer| {
                        encode_server(&mut encoder, id, &answer).expect("within limits").to_bytes()
                    });
                    stream.write_all(&bytes).ok()?;
                } else if server.0.lock().expect("lock").manner == Manner::BreaksAfterWork {
                    return stream.shutdown(Shutdown::Both).ok();
                }
            }
        }
    }
    /// `None`: says nothing. `Err`: garbage.
    fn answer(&self, message: &ClientMessage, server: &Server) -> Option<Result<ServerMessage, ()>> {
        let ring_digest = self.ring().digest();
        let mut state = server.0.lock().expect("lock");
        Some(Ok(match message {
            ClientMessage::Hello(_) => ServerMessage::Welcome(Welcome {
                revision: 1,
                features: 0,
                address: Address { node: state.member.id, shard: ShardId(0) },
                value_bytes_max: VALUE_BYTES_MAX as u32,
                frame_bytes_max: FRAME_BYTES_MAX as u32,
                ring_digest,
            }),
            ClientMessage::Ring => {
                drop(state);
                ServerMessage::Ring { members: self.members(), digest: ring_digest }
            }
            ClientMessage::Request(request) => {
                state.asked.push(request.key.clone());
                match state.manner {
                    Manner::Silent => return None,
                    Manner::Garbage => return Some(Err(())),
                    Manner::Goodbye => ServerMessage::Goodbye { reason: "stopping".to_owned() },
                    Manner::Failing(code) => {
                        let response = Err(Failure::new(code, Outcome::NotApplied, "as told"));
                        ServerMessage::Response { response, ring_digest }
                    }
                    Manner::Normal | Manner::BreaksAfterWork => {
                        let response = Ok(self.store.lock().expect("lock").work(request));
                        if state.manner == Manner::BreaksAfterWork {
                            return None;
                        }
                        ServerMessage::Response { response, ring_digest }
                    }
                }
            }
        }))
    }
}

impl Server {
    pub fn behave(&self, manner: Manner) {
        self.0.lock().expect("lock").manner = manner;
    }
    /// As if its process had been killed: connections reset, the port closed.
    pub fn kill(&self) {
        let mut state = self.0.lock().expect("lock");
        state.stopped = true;
        let address = SocketAddr::new(state.member.ip, state.member.ports.client);
        state.streams.drain(..).for_each(|s| _ = s.shutdown(Shutdown::Both));
        drop(state);
        // Wakes the listener, which sees that it is to stop and closes the port.
        while TcpStream::connect(address).is_ok() {}
    }
    pub fn id(&self) -> NodeId {
        self.0.lock().expect("lock").member.id
    }
    /// Keys of the requests that reached it.
    pub fn asked(&self) -> Vec<Key> {
        self.0.lock().expect("lock").asked.clone()
    }
    pub fn connections(&self) -> usize {
        self.0.lock().expect("lock").connections
    }
}
