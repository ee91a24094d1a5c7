//! Method, target and headers -> what is asked.
//!
//! The key is all of the path behind `/v1/keys/`, percent-decoded: a `/` in it may be written as it is or as `%2F`.

use super::{
    CONSISTENCY_HEADER, CONTEXT_HEADER, Headers, HttpLimits, Problem, WRITE_ID_HEADER,
    admit::{check_conditions, check_write},
    media::{self, BodyKind},
    problem::shown,
};
use crate::{
    limits::{KIB, REPLICAS_MAX, REQUEST_TIMEOUT_MAX},
    protocol::versions::Context,
    types::{Consistency, Key, Level, TableName, Token, WriteId},
};
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verb {
    Get,
    Put,
    Delete,
}

/// What a request is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Routed {
    Key(Box<KeyRequest>),
    Tables,
    /// One table; a PUT's body says what of it is to change.
    Table {
        name: TableName,
        verb: Verb,
        /// A PUT makes the table, or is refused where there is one.
        create: bool,
    },
    Cluster,
    /// One key's preference list, or the ring as a whole.
    Ring {
        key: Option<Key>,
    },
    Node,
    Repair,
    /// What of a key, or of all there is, is compared soon.
    RepairNow {
        key: Option<Key>,
    },
    Metrics {
        /// A series for each shard instead of one for the node.
        by_shard: bool,
    },
    Healthz,
    Readyz,
    OpenApi,
}

/// A get, put or delete, but for the body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyRequest {
    pub key: Key,
    pub verb: Verb,
    pub consistency: Consistency,
    /// `None`: the server's default.
    pub timeout: Option<Duration>,
    pub context: Option<Context>,
    pub write_id: Option<WriteId>,
    pub body: BodyKind,
    /// The answer is to be the value's bytes, not JSON.
    pub raw: bool,
}

/// What is kept of a request until its answer is rendered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Form {
    pub token: Token,
    pub verb: Verb,
    pub raw: bool,
}

impl KeyRequest {
    pub fn form(&self) -> Form {
        Form { token: self.key.token(), verb: self.verb, raw: self.raw }
    }
    /// Bytes of a body that need be read: a longer one holds a value beyond its limit (or 4 KiB of white space).
    pub fn body_bytes_max(&self, limits: &HttpLimits) -> usize {
        match (self.verb, &self.body) {
            (Verb::Put, BodyKind::Raw(_)) => limits.value_bytes_max,
            (Verb::Put, BodyKind::Envelope) => limits.value_bytes_max + 4 * KIB,
            (Verb::Get | Verb::Delete, _) => 4 * KIB,
        }
    }
}

/// Finds out what is asked. `target` is the path with its query, as it stood in the request line. HEAD is a GET whose
/// body the server leaves out.
pub fn route<H: Headers + ?Sized>(method: &str, target: &str, headers: &H) -> Result<Routed, Problem> {
    if let Some(at) = target.find('#') {
        let detail = format!("the target has a # at byte {at}: in a key it is written %23, and a fragment is not sent");
        return Err(Problem::bad_request(detail));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if let Some(key) = path.strip_prefix("/v1/keys/") {
        return route_key(method, key, query, headers).map(|k| Routed::Key(Box::new(k)));
    }
    if let Some(name) = path.strip_prefix("/v1/tables/") {
        return route_table(method, name, query, headers);
    }
    if path == "/v1/repair" && method == "POST" {
        return Ok(Routed::RepairNow { key: ring_key(query)? });
    }
    let routed = match path {
        "/v1/tables" => Routed::Tables,
        "/v1/repair" => Routed::Repair,
        "/v1/cluster" => Routed::Cluster,
        "/v1/ring" => Routed::Ring { key: None },
        "/v1/node" => Routed::Node,
        "/metrics" => Routed::Metrics { by_shard: false },
        "/healthz" => Routed::Healthz,
        "/readyz" => Routed::Readyz,
        "/openapi.json" => Routed::OpenApi,
        _ => return Err(Problem::not_found(format!("there is nothing at {}; see /openapi.json", shown(path)))),
    };
    if !matches!(method, "GET" | "HEAD") {
        let allowed = if routed == Routed::Repair { "GET, HEAD, POST" } else { "GET, HEAD" };
        return Err(Problem::method_not_allowed(method, allowed));
    }
    if let Routed::Ring { .. } = routed {
        return Ok(Routed::Ring { key: ring_key(query)? });
    }
    if let Routed::Metrics { .. } = routed {
        return Ok(Routed::Metrics { by_shard: by_shard(query)? });
    }
    no_parameters(query)?;
    Ok(routed)
}

fn route_key<H: Headers + ?Sized>(method: &str, key: &str, query: &str, headers: &H) -> Result<KeyRequest, Problem> {
    let verb = parse_verb(method)?;
    check_verb(verb, headers)?;
    let key = parse_key(key)?;
    let asked = Parameters::parse(query)?;
    let header_level = single(headers, CONSISTENCY_HEADER)?.map(parse_consistency).transpose()?;
    let count = if verb == Verb::Get { asked.r } else { asked.w };
    let context = match single(headers, CONTEXT_HEADER)? {
        Some(text) => Some(Context::from_text(text.trim_ascii(), key.token()).map_err(|e| {
            Problem::bad_request(format!(
                "X-Version-Context: {e}; send back the context of a read of this key as it is"
            ))
        })?),
        None => None,
    };
    Ok(KeyRequest {
        verb,
        consistency: Consistency { level: count.map(Level::Count).or(header_level), sloppy: asked.sloppy },
        timeout: asked.timeout,
        context,
        write_id: single(headers, WRITE_ID_HEADER)?.map(parse_write_id).transpose()?,
        body: if verb == Verb::Put { media::body_kind(single(headers, "content-type")?)? } else { BodyKind::Envelope },
        raw: media::accepts_raw(headers),
        key,
    })
}

fn route_table<H: Headers + ?Sized>(method: &str, name: &str, query: &str, headers: &H) -> Result<Routed, Problem> {
    let verb = parse_verb(method)?;
    check_verb(verb, headers)?;
    let mut create = false;
    for parameter in parameters(query) {
        let (parameter, value) = parameter?;
        create = match (&parameter[..], &value[..], verb) {
            (b"create", b"true", Verb::Put) => true,
            (b"create", b"false", Verb::Put) => false,
            (b"create", _, Verb::Put) => return Err(Problem::bad_request("create is true or false")),
            _ => return Err(unknown_parameter(&parameter, if verb == Verb::Put { "create" } else { "none" })),
        };
    }
    let name = String::from_utf8(percent_decode(name, "the name")?).unwrap_or_default();
    let name = name.parse().map_err(|e: crate::types::TableError| Problem::bad_request(e.to_string()))?;
    Ok(Routed::Table { name, verb, create })
}

fn parse_verb(method: &str) -> Result<Verb, Problem> {
    match method {
        "GET" | "HEAD" => Ok(Verb::Get),
        "PUT" => Ok(Verb::Put),
        "DELETE" => Ok(Verb::Delete),
        _ => Err(Problem::method_not_allowed(method, "GET, HEAD, PUT, DELETE")),
    }
}

fn check_verb<H: Headers + ?Sized>(verb: Verb, headers: &H) -> Result<(), Problem> {
    match verb {
        // A list of tags that are not the answer's lets a read go on, and no answer has a tag.
        Verb::Get => check_conditions(headers, &["if-match"]),
        Verb::Put | Verb::Delete => check_write(headers),
    }
}

fn ring_key(query: &str) -> Result<Option<Key>, Problem> {
    let mut key = None;
    for parameter in parameters(query) {
        let (name, value) = parameter?;
        match name.as_slice() {
            b"key" if key.is_none() => key = Some(new_key(value)?),
            b"key" => return Err(twice("key")),
            _ => return Err(unknown_parameter(&name, "key")),
        }
    }
    Ok(key)
}

fn parse_key(encoded: &str) -> Result<Key, Problem> {
    new_key(percent_decode(encoded, "the key")?)
}
fn new_key(bytes: Vec<u8>) -> Result<Key, Problem> {
    Key::new(bytes).map_err(|e| Problem::bad_request(e.to_string()))
}

/// The query parameters of a request about a key.
#[derive(Default)]
struct Parameters {
    r: Option<u8>,
    w: Option<u8>,
    sloppy: Option<bool>,
    timeout: Option<Duration>,
}
impl Parameters {
    fn parse(query: &str) -> Result<Parameters, Problem> {
        let mut all = Parameters::default();
        for parameter in parameters(query) {
            let (name, value) = parameter?;
            let value = &String::from_utf8_lossy(&value);
            let repeated = match name.as_slice() {
                b"r" => all.r.replace(parse_count("r", value)?).is_some(),
                b"w" => all.w.replace(parse_count("w", value)?).is_some(),
                b"sloppy" => all.sloppy.replace(parse_flag("sloppy", value)?).is_some(),
                b"timeout_ms" => all.timeout.replace(parse_timeout(value)?).is_some(),
                _ => return Err(unknown_parameter(&name, "r, w, sloppy and timeout_ms")),
            };
            if repeated {
                return Err(twice(&String::from_utf8_lossy(&name)));
            }
        }
        Ok(all)
    }
}

/// Names and values, decoded as a form is: a `+` is a space, `%XX` any byte.
fn parameters(query: &str) -> impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), Problem>> {
    let decode = |text: &str| percent_decode(&text.replace('+', " "), "the query");
    let pairs = query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")));
    pairs.map(move |(name, value)| Ok((decode(name)?, decode(value)?)))
}
fn no_parameters(query: &str) -> Result<(), Problem> {
    match parameters(query).next() {
        None => Ok(()),
        Some(parameter) => Err(unknown_parameter(&parameter?.0, "none")),
    }
}
/// Whether `/metrics` tells the shards apart: `shards=1`.
fn by_shard(query: &str) -> Result<bool, Problem> {
    let mut given = None;
    for parameter in parameters(query) {
        let (name, value) = parameter?;
        match (&name[..], &value[..]) {
            (b"shards", _) if given.is_some() => return Err(twice("shards")),
            (b"shards", b"0") => given = Some(false),
            (b"shards", b"1") => given = Some(true),
            (b"shards", _) => return Err(Problem::bad_request("shards is 0 or 1")),
            _ => return Err(unknown_parameter(&name, "shards")),
        }
    }
    Ok(given.unwrap_or(false))
}
fn unknown_parameter(name: &[u8], known: &str) -> Problem {
    let name = shown(&String::from_utf8_lossy(name));
    Problem::bad_request(format!("unknown query parameter {name}; this route has {known}"))
}
fn twice(name: &str) -> Problem {
    Problem::bad_request(format!("query parameter {name:?} is given twice"))
}
fn parse_count(name: &str, value: &str) -> Result<u8, Problem> {
    value.parse().ok().filter(|c| (1..=REPLICAS_MAX).contains(&usize::from(*c))).ok_or_else(|| {
        Problem::bad_request(format!("{name} is a number from 1 to {REPLICAS_MAX}, not {}", shown(value)))
    })
}
fn parse_flag(name: &str, value: &str) -> Result<bool, Problem> {
    value.parse().map_err(|_| Problem::bad_request(format!("{name} is true or false, not {}", shown(value))))
}
fn parse_timeout(value: &str) -> Result<Duration, Problem> {
    let longest = REQUEST_TIMEOUT_MAX.as_millis() as u64;
    let parsed = value.parse().ok().filter(|ms| (1..=longest).contains(ms)).map(Duration::from_millis);
    parsed.ok_or_else(|| Problem::bad_request(format!("timeout_ms is 1 to {longest}, not {}", shown(value))))
}
fn parse_consistency(value: &[u8]) -> Result<Level, Problem> {
    match value.trim_ascii().to_ascii_lowercase().as_slice() {
        b"one" => Ok(Level::One),
        b"quorum" => Ok(Level::Quorum),
        b"all" => Ok(Level::All),
        other => {
            let other = shown(&String::from_utf8_lossy(other));
            Err(Problem::bad_request(format!("X-Consistency is one, quorum or all, not {other}")))
        }
    }
}
fn parse_write_id(value: &[u8]) -> Result<WriteId, Problem> {
    let digits = std::str::from_utf8(value.trim_ascii()).unwrap_or_default();
    let hexadecimal = (1..=16).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let number = u64::from_str_radix(digits, 16).ok().filter(|n| hexadecimal && *n != 0);
    number.map(WriteId).ok_or_else(|| Problem::bad_request("X-Write-Id is 1 to 16 hexadecimal digits, not all zero"))
}

/// A header that may stand in a request once.
fn single<'a, H: Headers + ?Sized>(headers: &'a H, name: &str) -> Result<Option<&'a [u8]>, Problem> {
    if headers.value(name, 1).is_some() {
        return Err(Problem::bad_request(format!("the header {name} is given twice")));
    }
    Ok(headers.value(name, 0))
}

/// `%XX` -> byte; every other byte stands for itself. A `%` without two hexadecimal digits is refused. `what` the text
/// is.
fn percent_decode(text: &str, what: &str) -> Result<Vec<u8>, Problem> {
    let digit = |b: Option<&u8>| b.and_then(|b| (*b as char).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let (Some(high), Some(low)) = (digit(tail.first()), digit(tail.get(1))) else {
            let at = text.len() - tail.len() - 1;
            let detail = format!("bad percent encoding in {what} at byte {at}: % stands before two hexadecimal digits");
            return Err(Problem::bad_request(detail));
        };
        decoded.push((high << 4 | low) as u8);
        rest = &tail[2..];
    }
    Ok(decoded)
}
