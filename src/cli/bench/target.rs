//! What is driven: protocol, addresses, and which connection an operation goes to.

use super::{
    BenchError,
    dialect::{Answer, Ask, Dialect, HttpDialect, RedisDialect, Request, Verdict},
    keys,
    plan::Plan,
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
}

impl Fleet {
    /// Looks what there is at a target.
    pub fn discover(target: &Target, _any_node: bool) -> Result<Fleet, BenchError> {
        Ok(Fleet { protocol: target.protocol, endpoints: target.seeds.clone() })
    }
    pub fn name(&self) -> String {
        Target { protocol: self.protocol, seeds: self.endpoints.clone() }.name()
    }
    /// Where the nodes answer HTTP.
    pub fn http_addresses(&self, port: u16) -> Vec<SocketAddr> {
        match self.protocol {
            Protocol::Redis => vec![],
            Protocol::Http => self.endpoints.clone(),
            Protocol::Dynarc => {
                let mut hosts: Vec<_> = self.endpoints.iter().map(|e| SocketAddr::new(e.ip(), port)).collect();
                hosts.sort_unstable();
                hosts.dedup();
                hosts
            }
        }
    }
    /// Whether any of a few keys of the plan exists already.
    pub fn may_hold_keys(&self, plan: &Plan) -> Result<bool, BenchError> {
        let unreachable = |e| BenchError::Unreachable(self.name(), e);
        let mut turn = 0;
        for number in [0, plan.keys / 2, plan.keys - 1] {
            let mut key = Vec::new();
            keys::write_key(&plan.prefix, number, &mut key);
            let endpoint = self.route(&key, 0, &mut turn);
            let (mut stream, mut dialect) = self.connect(endpoint).map_err(unreachable)?;
            stream.set_nonblocking(false).map_err(unreachable)?;
            stream.set_read_timeout(Some(CONNECT_TIMEOUT)).map_err(unreachable)?;
            match ask_once(&mut stream, &mut *dialect, &key).map_err(unreachable)? {
                Verdict::Missing => {}
                Verdict::Failed { code, .. } => return Err(BenchError::Failed(format!("a first get failed: {code}"))),
                _ => return Ok(true),
            }
        }
        Ok(false)
    }
    /// The endpoint for a key: `attempt` 0 is the best, later ones are others; `turn` deals where all are alike.
    pub fn route(&self, _key: &[u8], attempt: u8, turn: &mut usize) -> usize {
        *turn = turn.wrapping_add(1);
        (*turn + usize::from(attempt)) % self.endpoints.len()
    }
    /// Connects and says hello. Blocks for a few seconds at most.
    pub fn connect(&self, endpoint: usize) -> io::Result<(TcpStream, Box<dyn Dialect>)> {
        let address = self.endpoints[endpoint];
        let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        let dialect: Box<dyn Dialect> = match self.protocol {
            Protocol::Redis => Box::new(RedisDialect::default()),
            Protocol::Http => Box::new(HttpDialect::new(address.to_string())),
            Protocol::Dynarc => return Err(io::Error::other("not yet")),
        };
        stream.set_nonblocking(true)?;
        Ok((stream, dialect))
    }
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
