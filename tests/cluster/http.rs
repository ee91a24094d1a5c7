//! A small HTTP/1.1 client: one connection, kept open, made again when the server has closed it.

use serde_json::Value;
use std::{
    io::{self, BufRead, BufReader, ErrorKind, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

pub struct Http {
    address: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
    timeout: Duration,
    /// Never send a request twice.
    once: bool,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}
impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {:?} ({})", self.text(), self.status))
    }
    /// The context of an answer about a key: the header, which must agree with the body's.
    pub fn context(&self) -> String {
        let context = self.header("x-version-context").unwrap_or_else(|| panic!("no context in {self:?}")).to_string();
        assert!(context.starts_with("vc:"), "{context}");
        if self.header("content-type").is_some_and(|t| t.starts_with("application/json")) {
            assert_eq!(self.json()["context"], context.as_str(), "{self:?}");
        }
        context
    }
    /// The `code` of an error answer, if it is one.
    #[allow(dead_code)] // Not all tests that share this ask for it.
    pub fn problem_if_any(&self) -> Option<String> {
        (self.status >= 400).then(|| self.problem())
    }
    /// An error answer: its `code`, after checking its form.
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{} {}", self.status, self.text());
        let body = self.json();
        assert!(body["detail"].as_str().is_some_and(|d| !d.is_empty()), "{body}");
        assert!(matches!(body["outcome"].as_str(), Some("not_applied" | "unknown")), "{body}");
        body["code"].as_str().unwrap_or_else(|| panic!("no code in {body}")).to_string()
    }
}

impl Http {
    pub fn new(ip: IpAddr) -> Http {
        Http { address: SocketAddr::new(ip, 7700), stream: None, timeout: Duration::from_secs(20), once: false }
    }
    pub fn timeout(mut self, timeout: Duration) -> Http {
        self.timeout = timeout;
        self
    }
    /// A request whose connection ends before its answer is an error: it may have been served.
    pub fn once(mut self) -> Http {
        self.once = true;
        self
    }
    pub fn get(&mut self, target: &str) -> io::Result<Reply> {
        self.send("GET", target, &[], b"")
    }
    /// A JSON value, with the context of a read.
    pub fn put(&mut self, key: &str, value: &str, context: Option<&str>) -> io::Result<Reply> {
        let headers: Vec<_> = context.iter().map(|c| ("X-Version-Context", *c)).collect();
        self.send("PUT", &format!("/v1/keys/{key}"), &headers, format!("{{\"value\": {value}}}").as_bytes())
    }
    pub fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.address);
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        if !body.is_empty() || method == "PUT" {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        let request = [head.as_bytes(), body].concat();
        let kept = self.stream.is_some();
        match self.exchange(&request, method) {
            // The server may close an idle connection at any time; nothing of an answer had come.
            Err(e) if kept && !self.once && matches!(e.kind(), ErrorKind::NotConnected | ErrorKind::BrokenPipe) => {
                self.exchange(&request, method)
            }
            outcome => outcome,
        }
    }
    fn exchange(&mut self, request: &[u8], method: &str) -> io::Result<Reply> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => BufReader::new(self.connect()?),
        };
        // A server may answer and close before it has read all of a request that it refuses.
        let sent = stream.get_mut().write_all(request);
        let reply = match read_reply(&mut stream, method) {
            Ok(reply) => reply,
            Err(e) => return Err(sent.err().unwrap_or(e)),
        };
        if sent.is_ok() && !reply.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close")) {
            self.stream = Some(stream);
        }
        Ok(reply)
    }
    fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Reads one answer; `NotConnected` when the connection ended before its first byte.
pub fn read_reply(stream: &mut impl BufRead, method: &str) -> io::Result<Reply> {
    let broken = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_string());
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(ErrorKind::NotConnected.into());
    }
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| broken(&line))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(broken("the head ends early"));
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| broken(line))?;
        headers.push((name.trim().to_string(), value.trim().to_string()));
    }
    let mut reply = Reply { status, headers, body: Vec::new() };
    if method == "HEAD" {
        return Ok(reply);
    }
    if reply.header("transfer-encoding").is_some_and(|t| t.eq_ignore_ascii_case("chunked")) {
        loop {
            let mut size = String::new();
            stream.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).map_err(|_| broken("a chunk's size"))?;
            let start = reply.body.len();
            reply.body.resize(start + size, 0);
            stream.read_exact(&mut reply.body[start..])?;
            stream.read_line(&mut String::new())?;
            if size == 0 {
                return Ok(reply);
            }
        }
    }
    match reply.header("content-length").map(str::parse::<usize>) {
        Some(Ok(length)) => {
            reply.body.resize(length, 0);
            stream.read_exact(&mut reply.body)?;
        }
        Some(Err(_)) => return Err(broken("the length of the body")),
        None => drop(stream.read_to_end(&mut reply.body)?),
    }
    Ok(reply)
}
