//! The little HTTP that the command line needs: one request over one connection, bounded in time and bytes.

use super::{Exit, Stop};
use crate::{server::config::environment, types::Ports};
use serde::de::DeserializeOwned;
use std::{
    fmt,
    io::{Read, Write},
    net::{IpAddr, TcpStream, ToSocketAddrs},
    time::Duration,
};

/// Bytes of an answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a cluster is reached.
#[derive(clap::Args, Clone, Debug)]
pub struct Reach {
    /// A node of the cluster; several with commas between are tried in turn [env: DYNARC_NODE]
    #[arg(long = "node", value_name = "HOST[:HTTP_PORT]", default_value = usual_node())]
    #[arg(value_delimiter = ',', value_parser = parse_host)]
    pub nodes: Vec<Host>,
}

/// The node that is asked when the command line names none.
fn usual_node() -> String {
    environment("DYNARC_NODE").unwrap_or_else(|| "127.0.0.1".into())
}

/// A node's HTTP address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    pub name: String,
    pub port: u16,
}
impl Host {
    pub fn new(ip: IpAddr, port: u16) -> Host {
        Host { name: ip.to_string(), port }
    }
}
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

fn parse_host(text: &str) -> Result<Host, String> {
    let usual = Ports::default().http;
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(Host::new(ip, usual));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().map_err(|_| format!("{port:?} is no port"))?),
        None => (text, usual),
    };
    let name = name.trim_matches(['[', ']']);
    if name.is_empty() { Err("a host has a name".into()) } else { Ok(Host { name: name.into(), port }) }
}

/// An HTTP answer.
pub struct Fetched {
    pub status: u16,
    pub body: Vec<u8>,
}

/// GETs `path` from one node.
pub fn get(host: &Host, path: &str) -> Result<Fetched, Stop> {
    get_within(host, path, CONNECT_TIMEOUT, ANSWER_TIMEOUT)
}

pub fn get_within(host: &Host, path: &str, connect: Duration, answer: Duration) -> Result<Fetched, Stop> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    send(host, &request, connect, answer)
}

/// Changes or drops a table: a PUT with a JSON body, or a DELETE.
pub fn change(host: &Host, method: &str, path: &str, body: &str) -> Result<Fetched, Stop> {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{length}\r\n{body}");
    send(host, &request, CONNECT_TIMEOUT, ANSWER_TIMEOUT)
}

/// PUTs a JSON body, with the context of a read.
pub fn put(host: &Host, path: &str, context: Option<&str>, body: &str) -> Result<Fetched, Stop> {
    let context = context.map_or(String::new(), |context| format!("X-Version-Context: {context}\r\n"));
    let head =
        format!("PUT {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n");
    let request = format!("{head}{context}Content-Length: {}\r\n\r\n{body}", body.len());
    send(host, &request, CONNECT_TIMEOUT, ANSWER_TIMEOUT)
}

fn send(host: &Host, request: &str, connect: Duration, answer: Duration) -> Result<Fetched, Stop> {
    exchange(host, request, connect, answer).map_err(|e| {
        let how = "is it running? `dynarc dev` starts a cluster here, --node HOST names another";
        Stop::new(Exit::Unreachable, format!("{host} is not reachable: {e}; {how}"))
    })
}

fn exchange(host: &Host, request: &str, connect: Duration, answer: Duration) -> std::io::Result<Fetched> {
    let mut last = std::io::Error::other("the name has no address");
    for address in (host.name.as_str(), host.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, connect) {
            Ok(stream) => return ask(stream, request, answer),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn ask(mut stream: TcpStream, request: &str, answer: Duration) -> std::io::Result<Fetched> {
    stream.set_read_timeout(Some(answer))?;
    stream.set_write_timeout(Some(answer))?;
    stream.set_nodelay(true)?;
    stream.write_all(request.as_bytes())?;
    let mut all = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut all)?;
    parse(all).ok_or_else(|| std::io::Error::other("the answer is not HTTP as Dynarc speaks it"))
}

/// Splits head from body. The body is what `content-length` says; fewer bytes are an answer cut short.
fn parse(all: Vec<u8>) -> Option<Fetched> {
    let end = all.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&all[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let length = lines.filter_map(|l| l.split_once(':')).find(|(n, _)| n.eq_ignore_ascii_case("content-length"));
    let length: usize = length?.1.trim().parse().ok()?;
    let body = all.get(end + 4..(end + 4).checked_add(length)?)?.to_vec();
    Some(Fetched { status, body })
}

/// GETs a view from the first node that answers; gives that node as well.
pub fn view<T: DeserializeOwned>(nodes: &[Host], path: &str) -> Result<(Host, T), Stop> {
    let mut last = Stop::new(Exit::Usage, "no node is named");
    for host in nodes {
        match get(host, path).and_then(|fetched| read(host, fetched)) {
            Ok(view) => return Ok((host.clone(), view)),
            Err(stop) => last = stop,
        }
    }
    Err(last)
}

pub fn read<T: DeserializeOwned>(host: &Host, fetched: Fetched) -> Result<T, Stop> {
    if fetched.status != 200 {
        let problem: serde_json::Value = serde_json::from_slice(&fetched.body).unwrap_or_default();
        let detail = problem["detail"].as_str().unwrap_or("no detail").to_owned();
        let exit = if fetched.status == 503 { Exit::Degraded } else { Exit::Failed };
        return Err(Stop::new(exit, format!("{host} answers {}: {detail}", fetched.status)));
    }
    serde_json::from_slice(&fetched.body).map_err(|e| Stop::failed(format!("{host} answers something else: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let read = |text: &str| parse_host(text).map(|h| h.to_string());
        assert_eq!(read("127.0.0.2").as_deref(), Ok("127.0.0.2:7700"));
        assert_eq!(read("db1:80").as_deref(), Ok("db1:80"));
        assert_eq!(read("::1").as_deref(), Ok("[::1]:7700"));
        assert_eq!(read("[::1]:9").as_deref(), Ok("[::1]:9"));
        assert!(read("db1:port").is_err() && read("").is_err() && read(":80").is_err());
    }

    #[test]
    fn answers() {
        let read = |text: &str| parse(text.as_bytes().to_vec()).map(|f| (f.status, f.body));
        assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), Some((200, b"hi".to_vec())));
        for broken in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 2",
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\nhi",
        ] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }
}
