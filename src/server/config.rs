//! Settings: what they are called, what they mean, and how flag, environment, file and default are put together.
//!
//! [`SETTINGS`] is the only list: flags, `DYNARC_*` variables, keys of the TOML file, `config print` and the checks all
//! come from it. Precedence: flag > environment > file > default. Every value keeps where it came from, so that an
//! error or `config print` can say so. A setting without a default is one that the data directory remembers, or that
//! the machine decides.

use super::options::{ProtocolOptions, ServeOptions};
use crate::{
    driver::identity::PortsWish,
    engine::types::Durability,
    limits::{self, GIB, KIB, MIB},
};
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

/// One setting. Names carry their unit; a flag is the name with `-` for `_`.
pub struct Setting {
    pub name: &'static str,
    /// What it means, one line.
    pub doc: &'static str,
    pub kind: Kind,
    /// The value, as text, where none is given; empty: the data directory remembers it, or the machine decides.
    pub default: &'static str,
}

/// What a value looks like, with its bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Path,
    Ip,
    /// Addresses with an optional port, separated by commas (in TOML: an array).
    Peers,
    /// CPU numbers and ranges: `0-3,6` (in TOML: text or an array).
    Cpus,
    Switch,
    /// A whole number.
    Number {
        min: u64,
        max: u64,
    },
    /// Bytes: a whole number, or one with KiB, MiB or GiB.
    Bytes {
        min: u64,
        max: u64,
    },
    Log,
    Durability,
}

const fn number(min: u64, max: u64) -> Kind {
    Kind::Number { min, max }
}
const fn bytes(min: usize, max: usize) -> Kind {
    Kind::Bytes { min: min as u64, max: max as u64 }
}
const fn setting(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Setting {
    Setting { name, doc, kind, default }
}
const REPLICAS: Kind = number(1, limits::REPLICAS_MAX as u64);
const PORT: Kind = number(1, 65_535);

/// Every setting. At most 25: each one is a question that an operator has to be able to answer.
pub const SETTINGS: &[Setting] = &[
    setting("data", Kind::Path, "", "Directory of the node; made at the first start"),
    setting(
        "listen",
        Kind::Ip,
        "",
        "Address to bind, also the source of connections to peers; at the first start 127.0.0.1, then as before",
    ),
    setting("http_port", PORT, "", "HTTP port, shared by all cores; at the first start 7700, then as before"),
    setting(
        "client_port",
        PORT,
        "",
        "Client protocol: port of core 0, core k has this + k; at the first start 8000, then as before",
    ),
    setting(
        "peer_port",
        PORT,
        "",
        "Peer protocol: port of core 0, core k has this + k; at the first start 9000, then as before",
    ),
    setting("join", Kind::Peers, "", "Members to join through, ADDR[:PEER_PORT],..; needed at the first start only"),
    setting(
        "shards",
        number(1, limits::SHARDS_MAX as u64),
        "",
        "Shards to run; at the first start one a CPU, then as before",
    ),
    setting(
        "cpus",
        Kind::Cpus,
        "",
        "CPUs to pin shards to, in turn, such as 0-3,6; all that the process may use if not given",
    ),
    setting("vnodes", number(1, limits::VNODES_MAX as u64), "256", "Positions on the ring of a new node"),
    setting("insecure", Kind::Switch, "false", "Serve an address that is not loopback without TLS"),
    setting("n", REPLICAS, "3", "Replicas of a key"),
    setting("r", REPLICAS, "2", "Replicas that answer a read"),
    setting("w", REPLICAS, "2", "Replicas that acknowledge a write"),
    setting("sloppy", Kind::Switch, "true", "Fallback replicas stand in for absent ones"),
    setting(
        "durability",
        Kind::Durability,
        "sync",
        "When a replica acknowledges a write: sync, after it is synced; interval, before, at most 10 ms",
    ),
    setting("value_bytes_max", bytes(1, limits::VALUE_BYTES_CEILING), "1MiB", "Largest value"),
    setting("request_timeout_ms", number(1, 60_000), "5000", "Deadline of a request that names none"),
    setting("gossip_interval_ms", number(10, 60_000), "1000", "Pause between gossip rounds"),
    setting("suspect_after_ms", number(50, 600_000), "5000", "Silence after which a member is routed around"),
    setting(
        "drain_ms",
        number(0, limits::DRAIN_MAX.as_millis() as u64),
        "5000",
        "How long a stopping node answers those who come late, with 503; less when nobody is connected",
    ),
    setting("memtable_bytes", bytes(MIB, 4 * GIB), "32MiB", "Memory of a core for writes not yet in tables"),
    setting("block_cache_bytes", bytes(0, 64 * GIB), "32MiB", "Memory of a core for table blocks"),
    setting("value_cache_bytes", bytes(0, 64 * GIB), "64MiB", "Memory of a core for values"),
    setting(
        "spin_before_park_us",
        number(0, 10_000),
        "0",
        "How long an idle core looks for work before it sleeps; 0 where cores are shared",
    ),
    setting("log", Kind::Log, "info", "Least severe lines to log: error, warn, info, debug or trace"),
];
const _: () = assert!(SETTINGS.len() <= 25);

pub fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.name == name)
}
impl Setting {
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }
    pub fn variable(&self) -> String {
        format!("DYNARC_{}", self.name.to_uppercase())
    }
    /// Words for the bounds, empty when there are none.
    pub fn bounds(&self) -> String {
        match self.kind {
            Kind::Number { min, max } => format!("{min} to {max}"),
            Kind::Bytes { min, max } => format!("{} to {}", bytes_text(min), bytes_text(max)),
            _ => String::new(),
        }
    }
}

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    Flag,
    Environment,
    /// Line and column, 1-based.
    File {
        path: PathBuf,
        line: usize,
        column: usize,
    },
    Default,
}

/// What is wrong with a configuration, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    pub place: String,
    pub reason: String,
}
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}
impl std::error::Error for ConfigError {}

/// One setting's effective value: its text (checked, in its shortest form) and its origin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Effective {
    pub text: String,
    pub origin: Origin,
}
impl Effective {
    fn place(&self, setting: &Setting) -> String {
        place(setting, &self.origin)
    }
}

fn place(setting: &Setting, origin: &Origin) -> String {
    match origin {
        Origin::Flag => format!("--{}", setting.flag()),
        Origin::Environment => setting.variable(),
        Origin::File { path, line, column } => format!("{}:{line}:{column}: {}", path.display(), setting.name),
        Origin::Default => setting.name.to_owned(),
    }
}

/// All settings with their effective values, in the order of [`SETTINGS`].
#[derive(Clone, Debug)]
pub struct Effectives(Vec<Effective>);

/// Texts by setting, from flags.
pub type Flags = BTreeMap<&'static str, String>;

/// The text of a variable of this process's environment, if it is given. An empty one is not: whoever composes an
/// environment often has no other way to leave a variable out.
pub fn environment(name: &str) -> Option<String> {
    // A text that is no UTF-8 fails the checks of its setting by name instead of being passed over.
    let text = std::env::var_os(name)?.to_string_lossy().into_owned();
    (!text.is_empty() && !speaks_of_a_service(name, &text)).then_some(text)
}

/// Whether an orchestrator has made the variable for a service whose name begins with `dynarc`: it tells containers
/// where the service is (`DYNARC_SERVICE_HOST`, `DYNARC_PORT_7700_TCP_ADDR`, and
/// `DYNARC_CLIENT_PORT=tcp://10.0.0.7:8000` for one named `dynarc-client`), and says nothing of this node.
pub fn speaks_of_a_service(name: &str, text: &str) -> bool {
    let of_a_port = name.split_once("_PORT_").is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()));
    let place = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme));
    name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || of_a_port || place
}

/// Puts flags, environment and file together. `environment` looks a variable up.
pub fn resolve(
    flags: &Flags,
    environment: impl Fn(&str) -> Option<String>,
    file: Option<(&Path, &str)>,
) -> Result<Effectives, ConfigError> {
    let in_file = match file {
        Some((path, text)) => read_file(path, text)?,
        None => BTreeMap::new(),
    };
    let mut all = Vec::with_capacity(SETTINGS.len());
    for setting in SETTINGS {
        let (text, origin) = if let Some(text) = flags.get(setting.name) {
            (text.clone(), Origin::Flag)
        } else if let Some(text) = environment(&setting.variable()) {
            (text, Origin::Environment)
        } else if let Some((text, origin)) = in_file.get(setting.name) {
            (text.clone(), origin.clone())
        } else {
            (setting.default.to_owned(), Origin::Default)
        };
        let text = if text.is_empty() && origin == Origin::Default {
            text
        } else {
            normal(setting, &text).map_err(|reason| ConfigError { place: place(setting, &origin), reason })?
        };
        all.push(Effective { text, origin });
    }
    let all = Effectives(all);
    all.check_together()?;
    Ok(all)
}

/// Checks a file by itself; gives the number of settings in it.
pub fn check_file(path: &Path, text: &str) -> Result<usize, ConfigError> {
    let in_file = read_file(path, text)?;
    resolve(&Flags::new(), |_| None, Some((path, text)))?;
    Ok(in_file.len())
}

type InFile = BTreeMap<&'static str, (String, Origin)>;

fn read_file(path: &Path, text: &str) -> Result<InFile, ConfigError> {
    let at = |offset: usize| {
        let before = &text.as_bytes()[..offset.min(text.len())];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let column = before.len() - before.iter().rposition(|b| *b == b'\n').map_or(0, |p| p + 1) + 1;
        (line, column)
    };
    let error = |offset: usize, reason: String| {
        let (line, column) = at(offset);
        ConfigError { place: format!("{}:{line}:{column}", path.display()), reason }
    };
    let table = toml::de::DeTable::parse(text)
        .map_err(|e| error(e.span().map_or(0, |s| s.start), e.message().replace('\n', ", ")))?;
    let mut found = InFile::new();
    for (key, value) in table.get_ref() {
        let name: &str = key.get_ref();
        let Some(setting) = find(name) else {
            return Err(error(key.span().start, unknown(name)));
        };
        let text = toml_text(setting, value.get_ref()).map_err(|reason| error(value.span().start, reason))?;
        let (line, column) = at(value.span().start);
        found.insert(setting.name, (text, Origin::File { path: path.to_owned(), line, column }));
    }
    Ok(found)
}

fn unknown(name: &str) -> String {
    let nearest = SETTINGS.iter().map(|s| (strsim::levenshtein(name, s.name), s.name)).min();
    match nearest {
        Some((distance, close)) if distance <= 1 + name.len() / 4 => {
            format!("unknown setting {name:?}; did you mean {close:?}?")
        }
        _ => format!("unknown setting {name:?}; `dynarc config print` lists them all"),
    }
}

/// A TOML value as the text that a flag would have.
fn toml_text(setting: &Setting, value: &toml::de::DeValue) -> Result<String, String> {
    use toml::de::DeValue;
    let wanted = match setting.kind {
        Kind::Switch => "true or false",
        Kind::Number { .. } => "a whole number",
        Kind::Bytes { .. } => "a number of bytes, or text such as \"64MiB\"",
        Kind::Peers | Kind::Cpus => "text or an array",
        Kind::Path | Kind::Ip | Kind::Log | Kind::Durability => "text",
    };
    let refused = || Err(format!("{} is {wanted}, not {}", setting.name, value.type_str()));
    match (setting.kind, value) {
        (Kind::Switch, DeValue::Boolean(b)) => Ok(b.to_string()),
        (Kind::Number { .. } | Kind::Bytes { .. }, DeValue::Integer(i)) if i.radix() == 10 => Ok(i.as_str().to_owned()),
        (Kind::Cpus, DeValue::Integer(i)) if i.radix() == 10 => Ok(i.as_str().to_owned()),
        (Kind::Switch | Kind::Number { .. }, _) => refused(),
        (_, DeValue::String(text)) => Ok(text.to_string()),
        (Kind::Peers | Kind::Cpus, DeValue::Array(items)) => {
            let texts = items.iter().map(|item| match item.get_ref() {
                DeValue::String(text) => Ok(text.to_string()),
                DeValue::Integer(i) if setting.kind == Kind::Cpus => Ok(i.as_str().to_owned()),
                _ => refused(),
            });
            Ok(texts.collect::<Result<Vec<_>, _>>()?.join(","))
        }
        _ => refused(),
    }
}

/// Checks a value and brings it into its usual form.
fn normal(setting: &Setting, text: &str) -> Result<String, String> {
    let text = text.trim();
    match setting.kind {
        Kind::Path if text.is_empty() => Err("a path is not empty".into()),
        Kind::Path => Ok(text.to_owned()),
        Kind::Ip => text.parse::<IpAddr>().map(|ip| ip.to_string()).map_err(|_| format!("{text:?} is no IP address")),
        Kind::Peers => peers(text).map(|_| text.to_owned()),
        Kind::Cpus => cpus(text).map(|_| text.to_owned()),
        Kind::Switch => {
            text.parse::<bool>().map(|b| b.to_string()).map_err(|_| format!("{text:?} is not true or false"))
        }
        Kind::Number { min, max } => {
            let number: u64 = text.replace('_', "").parse().map_err(|_| format!("{text:?} is no whole number"))?;
            in_bounds(number, min, max, setting).map(|n| n.to_string())
        }
        Kind::Bytes { min, max } => in_bounds(parse_bytes(text)?, min, max, setting).map(bytes_text),
        Kind::Log => one_of(text, &["error", "warn", "info", "debug", "trace"]),
        Kind::Durability => one_of(text, &["sync", "interval"]),
    }
}
fn one_of(text: &str, words: &[&str]) -> Result<String, String> {
    let found = words.iter().find(|word| text.eq_ignore_ascii_case(word)).map(|word| (*word).to_owned());
    let (last, others) = words.split_last().unwrap_or((&"", &[]));
    found.ok_or_else(|| format!("{text:?} is not {} or {last}", others.join(", ")))
}
fn in_bounds(number: u64, min: u64, max: u64, setting: &Setting) -> Result<u64, String> {
    if (min..=max).contains(&number) { Ok(number) } else { Err(format!("{number} is not {}", setting.bounds())) }
}

const UNITS: [(&str, u64); 3] = [("GiB", GIB as u64), ("MiB", MIB as u64), ("KiB", KIB as u64)];

/// `1048576`, `1_048_576`, `1024KiB` or `1MiB`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = UNITS.iter().find_map(|(u, n)| text.strip_suffix(u).map(|d| (d, *n))).unwrap_or((text, 1));
    let number = digits.trim().replace('_', "").parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    number.ok_or_else(|| format!("{text:?} is no number of bytes; write 1048576, 1024KiB or 1MiB"))
}
fn bytes_text(bytes: u64) -> String {
    let fits = UNITS.iter().find(|(_, unit)| bytes != 0 && bytes.is_multiple_of(*unit));
    fits.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// Where a member is said to be: an address or a host's name, which may have no address now.
enum PeerPlace {
    At(IpAddr, Option<u16>),
    Named(String, Option<u16>),
}
impl PeerPlace {
    fn resolve(self, default_port: u16) -> Result<SocketAddr, String> {
        let (name, port) = match self {
            PeerPlace::At(ip, port) => return Ok(SocketAddr::new(ip, port.unwrap_or(default_port))),
            PeerPlace::Named(name, port) => (name, port.unwrap_or(default_port)),
        };
        let found = (name.as_str(), port).to_socket_addrs().map_err(|e| format!("{name:?}: {e}"))?.next();
        found.ok_or_else(|| format!("{name:?} has no address"))
    }
}
/// `ADDR[:PORT],..`: addresses or host names.
fn peers(text: &str) -> Result<Vec<PeerPlace>, String> {
    let one = |item: &str| {
        if let Ok(address) = item.parse::<SocketAddr>() {
            return Ok(PeerPlace::At(address.ip(), Some(address.port())));
        }
        if let Ok(ip) = item.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(PeerPlace::At(ip, None));
        }
        let (name, port) = item.split_once(':').map_or((item, None), |(name, port)| (name, Some(port)));
        let port =
            port.map(|port| port.parse::<u16>().ok().filter(|port| *port > 0)).map_or(Some(None), |p| p.map(Some));
        let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match port {
            Some(port) if !name.is_empty() && name.chars().all(letters) => Ok(PeerPlace::Named(name.to_owned(), port)),
            _ => Err(format!("{item:?} is no address, nor a name with a port")),
        }
    };
    text.split(',').map(str::trim).filter(|i| !i.is_empty()).map(one).collect()
}

/// `0-3,6`: at most one entry for each of [`limits::SHARDS_MAX`] CPUs.
fn cpus(text: &str) -> Result<Vec<usize>, String> {
    let refused = |item: &str| format!("{item:?} is no CPU number or range such as 0-3");
    let mut all = Vec::new();
    for item in text.split(',').map(str::trim).filter(|i| !i.is_empty()) {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let parse = |n: &str| n.trim().parse::<usize>().ok().filter(|n| *n < 4096).ok_or_else(|| refused(item));
        let (first, last) = (parse(first)?, parse(last)?);
        if first > last {
            return Err(refused(item));
        }
        all.extend(first..=last);
    }
    if all.len() > limits::SHARDS_MAX { Err(format!("more than {} CPUs", limits::SHARDS_MAX)) } else { Ok(all) }
}

impl Effectives {
    pub fn iter(&self) -> impl Iterator<Item = (&'static Setting, &Effective)> {
        SETTINGS.iter().zip(&self.0)
    }
    fn get(&self, name: &str) -> &Effective {
        // Every caller names a setting of the list; the test `every_setting_reaches_its_option` sees to it.
        let index = SETTINGS.iter().position(|s| s.name == name).unwrap_or_default();
        &self.0[index]
    }
    fn number(&self, name: &str) -> u64 {
        let text = &self.get(name).text;
        text.parse().or_else(|_| parse_bytes(text)).unwrap_or_default()
    }
    fn given<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name).text.parse().ok()
    }
    fn switch(&self, name: &str) -> bool {
        self.get(name).text == "true"
    }
    fn millis(&self, name: &str) -> Duration {
        Duration::from_millis(self.number(name))
    }
    fn check_together(&self) -> Result<(), ConfigError> {
        let at_most = |low: &str, high: &str| {
            if self.number(low) <= self.number(high) {
                return Ok(());
            }
            let blamed = if self.get(low).origin == Origin::Default { high } else { low };
            let place = find(blamed).map(|s| self.get(blamed).place(s)).unwrap_or_default();
            let reason = format!("{low} is {}, more than {high}, which is {}", self.number(low), self.number(high));
            Err(ConfigError { place, reason })
        };
        at_most("r", "n")?;
        at_most("w", "n")?;
        at_most("gossip_interval_ms", "suspect_after_ms")
    }
    /// The least severe lines to log.
    pub fn log(&self) -> &str {
        &self.get("log").text
    }
    /// What the server is started with. Fails when no data directory is given.
    pub fn options(&self) -> Result<ServeOptions, ConfigError> {
        let error = |name: &str, reason: String| ConfigError {
            place: find(name).map(|s| self.get(name).place(s)).unwrap_or_default(),
            reason,
        };
        let data = &self.get("data").text;
        if data.is_empty() {
            return Err(error("data", "no data directory: give --data DIR".into()));
        }
        let mut options = ServeOptions::new(data);
        options.ip = self.given("listen");
        options.ports = PortsWish {
            http: self.given("http_port"),
            client: self.given("client_port"),
            peer: self.given("peer_port"),
        };
        let peers = peers(&self.get("join").text).map_err(|reason| error("join", reason))?;
        for peer in peers {
            match peer.resolve(options.ports.peer.unwrap_or(0)) {
                Ok(address) => options.join.push(address),
                Err(reason) => options.join_unknown.push(reason),
            }
        }
        options.shards = self.given("shards");
        options.cpus = cpus(&self.get("cpus").text).map_err(|reason| error("cpus", reason))?;
        options.vnodes = self.number("vnodes") as usize;
        options.insecure = self.switch("insecure");
        options.protocol = ProtocolOptions {
            n: self.number("n") as u8,
            r: self.number("r") as u8,
            w: self.number("w") as u8,
            sloppy: self.switch("sloppy"),
            value_bytes_max: self.number("value_bytes_max") as usize,
            request_timeout: self.millis("request_timeout_ms"),
            gossip_interval: self.millis("gossip_interval_ms"),
            suspect_after: self.millis("suspect_after_ms"),
            down_after: self.millis("suspect_after_ms") * limits::DOWN_AFTER_SUSPICIONS,
        };
        options.durability = match self.get("durability").text.as_str() {
            "interval" => Durability::Interval,
            _ => Durability::Sync,
        };
        options.engine.memtable_bytes = self.number("memtable_bytes") as usize;
        options.engine.block_cache_bytes = self.number("block_cache_bytes") as usize;
        options.engine.value_cache_bytes = self.number("value_cache_bytes") as usize;
        options.drain = self.millis("drain_ms");
        options.spin_before_park = Duration::from_micros(self.number("spin_before_park_us"));
        Ok(options)
    }
    /// The effective values as a TOML file, each with its origin.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for (setting, effective) in self.iter() {
            let bounds = setting.bounds();
            let bounds = if bounds.is_empty() { bounds } else { format!(" ({bounds})") };
            text += &format!("# {}{bounds}. From: {}\n", setting.doc, effective.origin_text(setting));
            text += &match effective.text.as_str() {
                "" => format!("# {} =\n\n", setting.name),
                value => format!("{} = {}\n\n", setting.name, toml_value(setting.kind, value)),
            };
        }
        text
    }
}
impl Effective {
    pub fn origin_text(&self, setting: &Setting) -> String {
        match &self.origin {
            Origin::Flag => format!("flag --{}", setting.flag()),
            Origin::Environment => format!("environment {}", setting.variable()),
            Origin::File { path, line, .. } => format!("{}:{line}", path.display()),
            Origin::Default => "default".into(),
        }
    }
}

/// A checked value as TOML.
pub fn toml_value(kind: Kind, text: &str) -> String {
    match kind {
        Kind::Switch | Kind::Number { .. } => text.to_owned(),
        Kind::Bytes { .. } if text.bytes().all(|b| b.is_ascii_digit()) => text.to_owned(),
        _ => toml::Value::String(text.to_owned()).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Ports;

    fn flags(pairs: &[(&'static str, &str)]) -> Flags {
        pairs.iter().map(|(n, v)| (*n, v.to_string())).collect()
    }
    fn from_file(text: &str) -> Result<Effectives, String> {
        resolve(&Flags::new(), |_| None, Some((Path::new("d.toml"), text))).map_err(|e| e.to_string())
    }

    #[test]
    fn flag_wins_over_environment_over_file_over_default() {
        let file = "n = 4\nr = 3\nw = 2\nvnodes = 7\n";
        let environment = |name: &str| match name {
            "DYNARC_N" => Some("5".to_owned()),
            "DYNARC_R" => Some("4".to_owned()),
            _ => None,
        };
        let all = resolve(&flags(&[("n", "6"), ("data", "/d")]), environment, Some((Path::new("d.toml"), file)));
        let all = all.expect("fine");
        let origins: Vec<_> = ["n", "r", "vnodes", "sloppy"].map(|n| all.get(n).origin.clone()).into();
        let place = Origin::File { path: "d.toml".into(), line: 4, column: 10 };
        assert_eq!(origins, [Origin::Flag, Origin::Environment, place, Origin::Default]);
        let options = all.options().expect("fine");
        assert_eq!((options.protocol.n, options.protocol.r, options.protocol.w, options.vnodes), (6, 4, 2, 7));
    }

    #[test]
    fn defaults_are_those_of_the_server() {
        let all = resolve(&flags(&[("data", "/d")]), |_| None, None).expect("fine");
        let expected = ServeOptions::new("/d");
        assert_eq!(format!("{:?}", all.options().expect("fine")), format!("{expected:?}"));
    }

    #[test]
    fn every_setting_reaches_its_option() {
        let given = [
            ("data", "/x"),
            ("listen", "127.0.0.9"),
            ("http_port", "1"),
            ("client_port", "2"),
            ("peer_port", "3"),
            ("join", "127.0.0.1,127.0.0.2:99,[::1]:7"),
            ("shards", "4"),
            ("cpus", "0-2,5"),
            ("vnodes", "17"),
            ("insecure", "true"),
            ("n", "5"),
            ("r", "1"),
            ("w", "4"),
            ("sloppy", "false"),
            ("durability", "Interval"),
            ("value_bytes_max", "2MiB"),
            ("request_timeout_ms", "11"),
            ("gossip_interval_ms", "12"),
            ("suspect_after_ms", "130"),
            ("drain_ms", "14"),
            ("memtable_bytes", "3MiB"),
            ("block_cache_bytes", "1_000"),
            ("value_cache_bytes", "2GiB"),
            ("spin_before_park_us", "18"),
            ("log", "WARN"),
        ];
        assert_eq!(given.len(), SETTINGS.len());
        let all = resolve(&flags(&given), |_| None, None).expect("fine");
        let o = all.options().expect("fine");
        assert_eq!((o.data.to_str(), o.ip), (Some("/x"), "127.0.0.9".parse().ok()));
        assert_eq!(o.ports, Ports { http: 1, client: 2, peer: 3 }.into());
        let join: Vec<SocketAddr> = ["127.0.0.1:3", "127.0.0.2:99", "[::1]:7"].iter().flat_map(|a| a.parse()).collect();
        assert_eq!((o.join, o.shards, o.cpus), (join, Some(4), vec![0, 1, 2, 5]));
        assert_eq!((o.vnodes, o.insecure, o.spin_before_park), (17, true, Duration::from_micros(18)));
        let p = o.protocol;
        assert_eq!((p.n, p.r, p.w, p.sloppy, p.value_bytes_max), (5, 1, 4, false, 2 << 20));
        let times = [p.request_timeout, p.gossip_interval, p.suspect_after, p.down_after].map(|d| d.as_millis());
        assert_eq!(times, [11, 12, 130, 780]);
        assert_eq!(o.drain, Duration::from_millis(14));
        assert_eq!(o.durability, Durability::Interval);
        let e = o.engine;
        assert_eq!((e.memtable_bytes, e.block_cache_bytes, e.value_cache_bytes), (3 << 20, 1000, 2 << 30));
        assert_eq!(all.log(), "warn");
    }

    #[test]
    fn bad_files_are_refused_with_line_and_column() {
        let cases = [
            ("n = 3\nlisen = \"127.0.0.1\"\n", "d.toml:2:1: unknown setting \"lisen\"; did you mean \"listen\"?"),
            ("[table]\nn = 3\n", "d.toml:1:2: unknown setting \"table\""),
            ("n = \"3\"\n", "d.toml:1:5: n is a whole number, not string"),
            ("\n  sloppy = 1\n", "d.toml:2:12: sloppy is true or false, not integer"),
            ("n = 3\nn = 4\n", "d.toml:2:1: "),
            ("n = \n", "d.toml:1:"),
            ("vnodes = 0\n", "d.toml:1:10: vnodes: 0 is not 1 to 4096"),
            ("vnodes = -1\n", "\"-1\" is no whole number"),
            ("value_bytes_max = \"1GB\"\n", "no number of bytes"),
            ("value_bytes_max = \"1GiB\"\n", "1073741824 is not 1 to 4MiB"),
            ("listen = \"localhost:1\"\n", "no IP address"),
            ("cpus = \"3-1\"\n", "no CPU number"),
            ("join = [1]\n", "join is text or an array"),
            ("w = 4\n", "d.toml:1:5: w: w is 4, more than n, which is 3"),
            ("n = 1\n", "d.toml:1:5: n: r is 2, more than n, which is 1"),
            ("gossip_interval_ms = 40000\n", "more than suspect_after_ms"),
            ("log = \"loud\"\n", "not error, warn"),
        ];
        for (text, words) in cases {
            let error = from_file(text).expect_err(text);
            assert!(error.contains(words), "{text:?}: {error:?} lacks {words:?}");
        }
    }

    #[test]
    fn bad_flags_and_variables_are_named() {
        let error = resolve(&flags(&[("http_port", "70000")]), |_| None, None).expect_err("too high");
        assert_eq!(error.to_string(), "--http-port: 70000 is not 1 to 65535");
        let environment = |name: &str| (name == "DYNARC_SHARDS").then(|| "many".to_owned());
        let error = resolve(&Flags::new(), environment, None).expect_err("no number");
        assert_eq!(error.to_string(), "DYNARC_SHARDS: \"many\" is no whole number");
        let error = resolve(&flags(&[("join", "no where:1")]), |_| None, None).expect_err("no name");
        assert_eq!(error.to_string(), "--join: \"no where:1\" is no address, nor a name with a port");
        let unknown = resolve(&flags(&[("data", "/d"), ("join", "127.0.0.1,nowhere.invalid:9")]), |_| None, None);
        let options = unknown.expect("well formed").options().expect("a name without an address is no error");
        assert_eq!((options.join.len(), options.join_unknown.len(), options.join[0].port()), (1, 1, 0));
        let error = resolve(&Flags::new(), |_| None, None).expect("fine").options().expect_err("no data");
        assert!(error.to_string().contains("--data DIR"));
    }

    #[test]
    fn variables_of_a_service_are_not_settings() {
        for (name, text) in [
            ("DYNARC_SERVICE_HOST", "10.0.0.7"),
            ("DYNARC_SERVICE_PORT_HTTP", "7700"),
            ("DYNARC_PORT_7700_TCP_PROTO", "tcp"),
            ("DYNARC_PORT", "tcp://10.0.0.7:7700"),
            ("DYNARC_CLIENT_PORT", "tcp://10.0.0.7:8000"),
        ] {
            assert!(speaks_of_a_service(name, text), "{name}");
        }
        for (name, text) in [("DYNARC_CLIENT_PORT", "8000"), ("DYNARC_LISTEN", "127.0.0.1"), ("DYNARC_N", "3")] {
            assert!(!speaks_of_a_service(name, text), "{name}");
        }
    }

    #[test]
    fn what_is_printed_reads_back() {
        let all =
            resolve(&flags(&[("data", "/with \"quotes\""), ("n", "5"), ("value_bytes_max", "4096")]), |_| None, None);
        let all = all.expect("fine");
        let text = all.to_toml();
        assert!(text.contains("From: flag --value-bytes-max\nvalue_bytes_max = \"4KiB\""), "{text}");
        let again = from_file(&text).expect("reads back");
        let texts = |all: &Effectives| all.iter().map(|(_, e)| e.text.clone()).collect::<Vec<_>>();
        assert_eq!(texts(&again), texts(&all));
        assert_eq!(check_file(Path::new("d.toml"), "n = 5\n"), Ok(1));
    }

    #[test]
    fn names_carry_their_unit() {
        for setting in SETTINGS {
            let unit = match setting.kind {
                Kind::Bytes { .. } => setting.name.contains("bytes"),
                _ => true,
            };
            assert!(unit && !setting.doc.ends_with('.'), "{}", setting.name);
        }
    }
}
