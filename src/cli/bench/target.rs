//! What is driven: protocol, addresses, and which connection an operation goes to.

use super::{
    BenchError,
    dialect::{Answer, Ask, Dialect, HttpDialect, NativeDialect, RedisDialect, Request, Verdict},
    keys,
    plan::Plan,
};
use crate::{
    limits::{REPLICAS_MAX, REQUEST_TIMEOUT},
    protocol::ring::{FixedMap, Ring, owns},
    types::{Address, Member, Token},
};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::Duration,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Our client protocol: knows the ring, goes to the core that owns the key
    Dynarc,
    /// Our HTTP interface
    Http,
    /// Redis
    Redis,
}
impl Protocol {
    fn port(self) -> u16 {
        match self {
            Protocol::Dynarc => 8000,
            Protocol::Http => 7700,
            Protocol::Redis => 6379,
        }
    }
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Dynarc => "dynarc",
            Protocol::Http => "http",
            Protocol::Redis => "redis",
        }
    }
    /// Whether its writes build on contexts.
    pub fn has_contexts(self) -> bool {
        self != Protocol::Redis
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A protocol and the addresses that were named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub protocol: Protocol,
    pub seeds: Vec<SocketAddr>,
}
impl Target {
    /// `HOST[:PORT],...`, with `PROTOCOL://` before it or in the protocol given.
    pub fn parse(text: &str, protocol: Protocol) -> Result<Target, BenchError> {
        let (protocol, hosts) = match text.split_once("://") {
            None => (protocol, text),
            Some(("dynarc", rest)) => (Protocol::Dynarc, rest),
            Some(("http", rest)) => (Protocol::Http, rest),
            Some(("redis", rest)) => (Protocol::Redis, rest),
            Some((other, _)) => return Err(BenchError::Usage(format!("unknown protocol {other:?}"))),
        };
        let mut seeds = Vec::new();
        for host in hosts.split(',').map(|h| h.trim().trim_end_matches('/')).filter(|h| !h.is_empty()) {
            // A host without a port fails to resolve, then gets the protocol's own.
            let resolved = host.to_socket_addrs().or_else(|_| (host, protocol.port()).to_socket_addrs());
            let resolved = resolved.map_err(|e| BenchError::Usage(format!("{host:?} is no address: {e}")))?;
            seeds.extend(resolved.take(1));
        }
        match seeds.is_empty() {
            true => Err(BenchError::Usage("no target".into())),
            false => Ok(Target { protocol, seeds }),
        }
    }
    pub fn name(&self) -> String {
        let hosts: Vec<String> = self.seeds.iter().map(SocketAddr::to_string).collect();
        format!("{}://{}", self.protocol.name(), hosts.join(","))
    }
}

/// The places that connections go to, and which of them serves a key.
pub struct Fleet {
    pub protocol: Protocol,
    pub endpoints: Vec<SocketAddr>,
    routing: Option<Routing>,
}
/// What our own protocol tells of the ring.
struct Routing {
    ring: Ring,
    /// The endpoint of each core.
    endpoints: FixedMap<Address, usize>,
    nodes: Vec<Member>,
    /// Operations go to a core that does not own the key, on purpose.
    astray: bool,
}

impl Fleet {
    /// Looks what there is at a target: with our own protocol, all cores of all nodes of its ring.
    pub fn discover(target: &Target, any_node: bool) -> Result<Fleet, BenchError> {
        let mut fleet = Fleet { protocol: target.protocol, endpoints: target.seeds.clone(), routing: None };
        if target.protocol != Protocol::Dynarc {
            return Ok(fleet);
        }
        let unreachable = |e| BenchError::Unreachable(target.name(), e);
        let mut members = Err(io::ErrorKind::NotFound.into());
        for seed in &target.seeds {
            members = fetch_members(*seed);
            if members.is_ok() {
                break;
            }
        }
        let mut members = members.map_err(unreachable)?;
        members.retain(|m| owns(m.state));
        members.sort_by_key(|m| (m.ip, m.id));
        // A lone server without a ring (the echo) is an endpoint like any.
        if !members.is_empty() {
            fleet.learn(members, any_node);
        }
        Ok(fleet)
    }
    fn learn(&mut self, members: Vec<Member>, astray: bool) {
        let mut endpoints = FixedMap::default();
        self.endpoints.clear();
        for member in &members {
            for shard in 0..member.shards {
                endpoints.insert(Address::new(member.id, shard), self.endpoints.len());
                self.endpoints.push(SocketAddr::new(member.ip, member.ports.client.saturating_add(shard)));
            }
        }
        self.routing = Some(Routing { ring: Ring::new(&members), endpoints, nodes: members, astray });
    }
    pub fn name(&self) -> String {
        Target { protocol: self.protocol, seeds: self.endpoints.clone() }.name()
    }
    /// Where the nodes answer HTTP; `port` where that is not known.
    pub fn http_addresses(&self, port: u16) -> Vec<SocketAddr> {
        match (&self.routing, self.protocol) {
            (Some(routing), _) => routing.nodes.iter().map(|m| SocketAddr::new(m.ip, m.ports.http)).collect(),
            (None, Protocol::Redis) => vec![],
            (None, Protocol::Http) => self.endpoints.clone(),
            (None, Protocol::Dynarc) => self.endpoints.iter().map(|e| SocketAddr::new(e.ip(), port)).collect(),
        }
    }
    /// Whether any of a few keys of the plan exists already.
    pub fn may_hold_keys(&self, plan: &Plan) -> Result<bool, BenchError> {
        let unreachable = |e| BenchError::Unreachable(self.name(), e);
        let mut turn = 0;
        for number in [0, plan.keys / 2, plan.keys - 1] {
            let mut key = Vec::new();
            keys::write_key(&plan.prefix, number, &mut key);
            // A node may be down: its keys have other replicas.
            let mut connected = Err(io::ErrorKind::NotConnected.into());
            for attempt in 0..REPLICAS_MAX as u8 {
                connected = self.connect(self.route(&key, attempt, &mut turn));
                if connected.is_ok() {
                    break;
                }
            }
            let (mut stream, mut dialect) = connected.map_err(unreachable)?;
            stream.set_nonblocking(false).map_err(unreachable)?;
            match ask_once(&mut stream, &mut *dialect, &key).map_err(unreachable)? {
                Verdict::Missing => {}
                Verdict::Failed { code, .. } => return Err(BenchError::Failed(format!("a first get failed: {code}"))),
                _ => return Ok(true),
            }
        }
        Ok(false)
    }
    /// The endpoint for a key: `attempt` 0 is the best, later ones are others; `turn` deals where all are alike.
    pub fn route(&self, key: &[u8], attempt: u8, turn: &mut usize) -> usize {
        *turn = turn.wrapping_add(1);
        let dealt = (*turn + usize::from(attempt)) % self.endpoints.len();
        let Some(routing) = &self.routing else { return dealt };
        let token = Token(xxhash_rust::xxh3::xxh3_64(key));
        if routing.astray {
            let owners: Vec<usize> = routing.owners(token, REPLICAS_MAX).collect();
            let strangers = (0..self.endpoints.len()).map(|step| (dealt + step) % self.endpoints.len());
            return strangers.into_iter().find(|e| !owners.contains(e)).unwrap_or(dealt);
        }
        routing.owners(token, usize::from(attempt) + 1).last().unwrap_or(dealt)
    }
    /// Connects and says hello. Blocks for a few seconds at most.
    pub fn connect(&self, endpoint: usize) -> io::Result<(TcpStream, Box<dyn Dialect>)> {
        let address = self.endpoints[endpoint];
        let mut stream = open(address)?;
        let dialect: Box<dyn Dialect> = match self.protocol {
            Protocol::Redis => Box::new(RedisDialect::default()),
            Protocol::Http => Box::new(HttpDialect::new(address.to_string())),
            Protocol::Dynarc => Box::new(NativeDialect::greet(&mut stream, REQUEST_TIMEOUT)?),
        };
        stream.set_nonblocking(true)?;
        Ok((stream, dialect))
    }
}

impl Routing {
    /// The endpoints of the cores that own a token, the first replica first; at most `count`.
    fn owners(&self, token: Token, count: usize) -> impl Iterator<Item = usize> {
        let nodes = self.ring.walk(token, count);
        nodes.into_iter().filter_map(move |n| self.endpoints.get(&self.ring.address(n, token)?).copied())
    }
}

fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    Ok(stream)
}
fn fetch_members(seed: SocketAddr) -> io::Result<Vec<Member>> {
    let mut stream = open(seed)?;
    NativeDialect::greet(&mut stream, REQUEST_TIMEOUT)?.members(&mut stream)
}

/// One get on a connection of its own, blocking.
fn ask_once(stream: &mut TcpStream, dialect: &mut dyn Dialect, key: &[u8]) -> io::Result<Verdict> {
    let mut bytes = Vec::new();
    dialect.request(Request { id: 0, key, ask: Ask::Get }, &mut bytes);
    stream.write_all(&bytes)?;
    let (mut input, mut piece, mut verdict) = (Vec::new(), vec![0; 64 << 10], None);
    while verdict.is_none() {
        let got = stream.read(&mut piece)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        input.extend_from_slice(&piece[..got]);
        let last = &mut |answer: Answer<'_>| verdict = Some(answer.verdict);
        let taken = dialect.answers(&input, last).map_err(io::Error::other)?;
        input.drain(..taken);
    }
    verdict.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_their_protocols_port() {
        let target = Target::parse("127.0.0.1,127.0.0.2:99", Protocol::Redis).unwrap();
        assert_eq!(target.seeds, ["127.0.0.1:6379".parse().unwrap(), "127.0.0.2:99".parse().unwrap()]);
        let target = Target::parse("http://127.0.0.1/", Protocol::Redis).unwrap();
        assert_eq!((target.protocol, target.name()), (Protocol::Http, "http://127.0.0.1:7700".to_owned()));
        assert!(Target::parse("ftp://x", Protocol::Redis).is_err());
        assert!(Target::parse(",", Protocol::Redis).is_err());
    }
}
