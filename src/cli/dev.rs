//! `dev`: a whole cluster on this machine, one process a node.
//!
//! Each node is a child that runs `serve` on a directory of its own. What the child is to be is written into
//! `dynarc.toml` in that directory, so that a node that was killed can be started again by hand with nothing but
//! `dynarc serve --data DIR/n2`. Children are in process groups of their own: Ctrl-C reaches only this process, which
//! stops them in good order. However this process ends, its children end with it.

use super::{
    Exit, Stop,
    demo::START_AGAIN,
    fetch::{self, Host},
    output, serve,
    settings::{FILE, SettingFlags},
};
use crate::{
    http::views::ClusterView,
    server::{
        boot::{BIND_PATIENCE, is_in_use},
        config::{self, Flags},
        host,
        kernel::{self, PortUse},
    },
    types::Ports,
};
use clap::Args;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

pub const EXAMPLE: &str = "A node that is killed stays down; start it again with: dynarc serve --data dynarc-dev/n2\n\n\
    Example:\n  dynarc dev\n  dynarc dev --nodes 5 --shards 2 --data /tmp/five";

/// What a node prints goes to this file in its directory; the node itself keeps its process id in `pid`.
const LOG: &str = "server.log";
/// A node that is not ready after so long is a failure.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Nodes are killed when they have not ended so long after they were asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(20);
/// Bytes of a failed node's log that are looked at for its last words.
const LOG_TAIL_BYTES: u64 = 4096;

#[derive(Args)]
pub struct DevArgs {
    /// Nodes, on 127.0.0.1, 127.0.0.2, ..
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    nodes: u32,
    /// Shards of each node; default: CPUs of this machine over nodes, at least 1
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=256))]
    shards: Option<u16>,
    /// Directory of the cluster: data in DIR/n1, DIR/n2, .., with each node's pid and server.log
    #[arg(long, default_value = "dynarc-dev", value_name = "DIR")]
    data: PathBuf,
    /// Address of the first node
    #[arg(long, hide = true, default_value = "127.0.0.1")]
    base_ip: Ipv4Addr,
    #[command(flatten)]
    settings: SettingFlags<true>,
}

/// One node of the cluster.
struct Node {
    name: String,
    ip: IpAddr,
    directory: PathBuf,
    child: Child,
    /// How it ended, once that is known.
    ended: Option<ExitStatus>,
}

pub fn run(args: DevArgs) -> Result<(), Stop> {
    let stop = StopSignals::listen()?;
    serve::raise_limits();
    let plan = Plan::new(&args)?;
    plan.refuse_what_is_taken()?;
    let mut cluster = Cluster { nodes: Vec::new(), ports: plan.ports };
    let ran = cluster.start(&plan).and_then(|()| {
        cluster.wait_ready(&stop)?;
        if stop.count() == 0 {
            output::print(cluster.greeting(&plan))?;
        }
        cluster.watch(&stop)
    });
    cluster.stop(&stop);
    ran
}

/// Ctrl-C and SIGTERM, counted.
struct StopSignals {
    asked: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
}
impl StopSignals {
    fn listen() -> Result<StopSignals, Stop> {
        let signals = StopSignals { asked: Arc::default(), count: Arc::default() };
        let failed = |e: std::io::Error| Stop::failed(format!("signals cannot be received: {e}"));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
            signal_hook::flag::register(signal, signals.asked.clone()).map_err(failed)?;
        }
        Ok(signals)
    }
    /// How often a stop has been asked for.
    fn count(&self) -> usize {
        if self.asked.swap(false, Ordering::Relaxed) {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        self.count.load(Ordering::Relaxed)
    }
}

/// What is to be started.
struct Plan {
    ips: Vec<IpAddr>,
    shards: u16,
    cpus: Vec<usize>,
    ports: Ports,
    data: PathBuf,
    settings: Flags,
}
impl Plan {
    fn new(args: &DevArgs) -> Result<Plan, Stop> {
        let first = u32::from(args.base_ip);
        if first % 256 + args.nodes > 255 {
            return Err(Stop::new(Exit::Usage, format!("{} nodes do not fit behind {}", args.nodes, args.base_ip)));
        }
        let ips = (0..args.nodes).map(|i| IpAddr::V4(Ipv4Addr::from(first + i))).collect();
        let cpus = kernel::allowed_cpus().map_err(|e| Stop::failed(format!("the CPUs cannot be listed: {e}")))?;
        let each = (cpus.len() / args.nodes as usize).clamp(1, crate::limits::SHARDS_MAX) as u16;
        let mut settings = args.settings.0.clone();
        settings.insert("data", String::from("."));
        // Flags and environment are checked here once, not in each child's log.
        let effective = config::resolve(&settings, config::environment, None)?;
        let ports = effective.options()?.ports.over(Ports::default());
        settings.remove("data");
        // The environment of this command holds for its nodes too, and must when one is started again by hand.
        Ok(Plan { ips, shards: args.shards.unwrap_or(each), cpus, ports, data: args.data.clone(), settings })
    }
    /// Fails when any of the directories or ports is in use: nothing is written then, and nobody is started who would
    /// join another cluster's nodes at these addresses.
    fn refuse_what_is_taken(&self) -> Result<(), Stop> {
        for index in 0..self.ips.len() {
            let directory = self.directory_of(index);
            let at = |e: std::io::Error| Stop::failed(format!("{}: {e}", directory.display()));
            if is_in_use(&directory).map_err(at)? {
                let text =
                    "is in use by a running node: stop that cluster first, or give another --data and other ports";
                return Err(Stop::failed(format!("{} {text}", directory.display())));
            }
        }
        // Right after a kill the kernel still ends the sockets of the cluster before.
        let until = Instant::now() + BIND_PATIENCE;
        for ip in &self.ips {
            let Ports { http, client, peer } = self.ports;
            let each = (0..self.shards).flat_map(|k| [client.saturating_add(k), peer.saturating_add(k)]);
            for port in each.chain([http]) {
                let address = SocketAddr::new(*ip, port);
                while let Err(error) = kernel::listen(address, PortUse::Alone) {
                    if error.kind() != io::ErrorKind::AddrInUse || Instant::now() >= until {
                        let text = "a node of this cluster could not listen there, and nothing was started";
                        return Err(Stop::failed(format!("{address}: {error}; {text}")));
                    }
                    std::thread::sleep(POLL);
                }
            }
        }
        Ok(())
    }
    fn directory_of(&self, index: usize) -> PathBuf {
        self.data.join(format!("n{}", index + 1))
    }
    /// CPUs for the `index`-th node: nodes side by side, wrapping around when there are fewer CPUs than shards.
    fn cpus_of(&self, index: usize) -> String {
        let shards = usize::from(self.shards);
        let all = (0..shards).filter_map(|k| self.cpus.get((index * shards + k) % self.cpus.len().max(1)));
        all.map(usize::to_string).collect::<Vec<_>>().join(",")
    }
    fn file_of(&self, index: usize) -> String {
        let mut flags = self.settings.clone();
        let others = self.ips.iter().enumerate().filter(|(i, _)| *i != index);
        let join: Vec<_> = others.map(|(_, ip)| format!("{ip}:{}", self.ports.peer)).collect();
        flags.insert("listen", self.ips[index].to_string());
        flags.insert("join", join.join(","));
        flags.insert("shards", self.shards.to_string());
        flags.insert("cpus", self.cpus_of(index));
        // Said outright: the directory may remember others from an earlier run.
        let Ports { http, client, peer } = self.ports;
        for (name, port) in [("http_port", http), ("client_port", client), ("peer_port", peer)] {
            flags.insert(name, port.to_string());
        }
        let mut text = String::from("# Written by `dynarc dev` at each start.\n");
        for (name, value) in flags.iter().filter(|(_, v)| !v.is_empty()) {
            if let Some(setting) = config::find(name) {
                text += &format!("{name} = {}\n", config::toml_value(setting.kind, value));
            }
        }
        text
    }
}

struct Cluster {
    nodes: Vec<Node>,
    ports: Ports,
}

impl Cluster {
    fn start(&mut self, plan: &Plan) -> Result<(), Stop> {
        for (index, ip) in plan.ips.iter().enumerate() {
            let name = format!("n{}", index + 1);
            let directory = plan.directory_of(index);
            let at = |e: std::io::Error| Stop::failed(format!("{}: {e}", directory.display()));
            fs::create_dir_all(&directory).map_err(at)?;
            fs::write(directory.join(FILE), plan.file_of(index)).map_err(at)?;
            let log = OpenOptions::new().create(true).append(true).open(directory.join(LOG)).map_err(at)?;
            let child = spawn(&directory, log).map_err(at)?;
            self.nodes.push(Node { name, ip: *ip, directory, child, ended: None });
        }
        Ok(())
    }

    /// Waits until every node serves and sees all others up.
    fn wait_ready(&mut self, stop: &StopSignals) -> Result<(), Stop> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let mut waiting: Vec<usize> = (0..self.nodes.len()).collect();
        while !waiting.is_empty() && stop.count() == 0 {
            let count = self.nodes.len();
            let port = self.ports.http;
            waiting.retain(|&index| {
                let node = &self.nodes[index];
                !(node.runs_here() && sees_all(&Host::new(node.ip, port), count))
            });
            if let Some(node) = self.nodes.iter_mut().find_map(Node::newly_ended) {
                let configuration = node.ended.and_then(|s| s.code()) == Some(Exit::Configuration as i32);
                let exit = if configuration { Exit::Configuration } else { Exit::Failed };
                return Err(Stop::new(
                    exit,
                    format!("{} ended before it was ready, {}", node.label(), node.last_words()),
                ));
            }
            if Instant::now() > deadline {
                let node = &self.nodes[waiting[0]];
                let seconds = READY_TIMEOUT.as_secs();
                return Err(Stop::failed(format!(
                    "{} is not ready after {seconds} s, {}",
                    node.label(),
                    node.last_words()
                )));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Reports nodes that end, until a stop is asked for.
    fn watch(&mut self, stop: &StopSignals) -> Result<(), Stop> {
        while stop.count() == 0 {
            for node in &mut self.nodes {
                node.start_again()?;
                if let Some(node) = node.newly_ended() {
                    let again = format!("start it again with: dynarc serve --data {}", node.directory.display());
                    output::tell(format!("dynarc: {} ended ({}); {again}", node.label(), node.ending()));
                }
            }
            if self.nodes.iter().all(|n| n.ended.is_some()) {
                return Err(Stop::failed("no node is left"));
            }
            std::thread::sleep(POLL * 3);
        }
        Ok(())
    }

    /// Asks all nodes to stop; kills those that take too long, or all when a stop is asked for again.
    fn stop(&mut self, stop: &StopSignals) {
        let before = stop.count();
        for node in self.nodes.iter_mut().filter(|n| n.ended.is_none()) {
            if let Err(e) = host::terminate(node.child.id()) {
                output::tell(format!("dynarc: {} cannot be asked to stop: {e}", node.label()));
            }
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.nodes.iter_mut().any(|n| n.running()) {
            if Instant::now() > deadline || stop.count() > before {
                self.nodes.iter_mut().filter(|n| n.ended.is_none()).for_each(Node::kill);
                break;
            }
            std::thread::sleep(POLL);
        }
    }

    fn greeting(&self, plan: &Plan) -> String {
        let (count, shards) = (self.nodes.len(), plan.shards);
        let plural = |n: usize, word: &str| if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") };
        let mut text = format!(
            "Dynarc {}: {} of {} up, data in {}\n\n",
            env!("CARGO_PKG_VERSION"),
            plural(count, "node"),
            plural(usize::from(shards), "shard"),
            plan.data.display()
        );
        for node in &self.nodes {
            text += &format!("  {}  http://{}:{}  pid {}\n", node.name, node.ip, self.ports.http, node.child.id());
        }
        let url =
            |index: usize| format!("http://{}:{}/v1/keys/cart:8731", self.nodes[index % count].ip, self.ports.http);
        let reach = match (self.nodes[0].ip, self.ports.http) {
            (ip, 7700) if ip == IpAddr::V4(Ipv4Addr::LOCALHOST) => String::new(),
            (ip, 7700) => format!(" --node {ip}"),
            (ip, port) => format!(" --node {ip}:{port}"),
        };
        let put = |items: &str| format!("-d '{{\"value\": {{\"items\": [{items}]}}}}'\n");
        text += "\nThe first minute:\n\n";
        text += &format!("  curl -X PUT {} {}", url(0), put("\"tea\""));
        text += &format!("  curl {}\n", url(1));
        text += &format!("  curl -X PUT {} -H 'X-Version-Context: CONTEXT' {}", url(2), put("\"tea\", \"jam\""));
        text += &format!("  dynarc status{reach}\n\n");
        text += "CONTEXT is what the read returned. Two puts that build on the same context are both kept: the next read\n\
                 returns both (300), and a put with that read's context replaces both.\n";
        text += "\nCtrl-C stops all.\n";
        text
    }
}

fn spawn(directory: &Path, log: File) -> std::io::Result<Child> {
    let errors = log.try_clone()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve").arg("--data").arg(directory).arg("--parent").arg(std::process::id().to_string());
    // What these say is in the node's file; in the environment they would speak for all nodes.
    for name in ["DYNARC_DATA", "DYNARC_LISTEN", "DYNARC_JOIN", "DYNARC_SHARDS", "DYNARC_CPUS", "DYNARC_CONFIG"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0).spawn()
}

/// Whether the node is ready and sees `count` members up.
fn sees_all(host: &Host, count: usize) -> bool {
    let ask = |path: &str| fetch::get_within(host, path, Duration::from_millis(200), Duration::from_secs(2));
    let ready = ask("/readyz").is_ok_and(|fetched| fetched.status == 200);
    let cluster = |fetched| fetch::read::<ClusterView>(host, fetched);
    ready
        && ask("/v1/cluster")
            .and_then(cluster)
            .is_ok_and(|view| view.members.iter().filter(|m| m.state == "up").count() >= count)
}

impl Node {
    fn label(&self) -> String {
        format!("{} ({}, pid {})", self.name, self.ip, self.child.id())
    }
    /// Whether it is this very child that serves its directory, and so its address: another cluster may have both.
    fn runs_here(&self) -> bool {
        let noted = fs::read_to_string(self.directory.join("pid")).unwrap_or_default();
        noted.trim() == self.child.id().to_string()
    }
    fn running(&mut self) -> bool {
        self.newly_ended();
        self.ended.is_none()
    }
    /// The node, when it has ended since it was last looked at.
    fn newly_ended(&mut self) -> Option<&Node> {
        if self.ended.is_some() {
            return None;
        }
        self.ended = self.child.try_wait().ok().flatten();
        self.ended.map(|_| &*self)
    }
    /// Starts the node again when it has ended and its directory asks for that, as `dynarc demo` does.
    fn start_again(&mut self) -> Result<(), Stop> {
        let asked = self.directory.join(START_AGAIN);
        if self.ended.is_none() || !asked.exists() {
            return Ok(());
        }
        let at = |e: std::io::Error| Stop::failed(format!("{}: {e}", self.directory.display()));
        fs::remove_file(&asked).map_err(at)?;
        let log = OpenOptions::new().create(true).append(true).open(self.directory.join(LOG)).map_err(at)?;
        self.child = spawn(&self.directory, log).map_err(at)?;
        self.ended = None;
        output::tell(format!("dynarc: {} is started again", self.label()));
        Ok(())
    }
    fn kill(&mut self) {
        // Already gone is as good as killed.
        let _ = self.child.kill();
        self.ended = self.child.wait().ok();
    }
    fn ending(&self) -> String {
        match self.ended {
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("killed by signal {signal}"),
                (None, None) => status.to_string(),
            },
            None => "still running".into(),
        }
    }
    /// Where its log is, and the last line of it.
    fn last_words(&self) -> String {
        let path = self.directory.join(LOG);
        let line = tail(&path).unwrap_or_default();
        format!("its log {} ends with: {line}", path.display())
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default().trim().to_owned())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.iter_mut().filter(|n| n.ended.is_none()).for_each(Node::kill);
        // What is still in a buffer belongs on the terminal before the prompt does.
        let _ = std::io::stdout().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(nodes: u32, shards: u16, cpus: usize) -> Plan {
        Plan {
            ips: (1..=nodes).map(|i| IpAddr::V4(Ipv4Addr::new(127, 0, 9, i as u8))).collect(),
            shards,
            cpus: (0..cpus).collect(),
            ports: Ports::default(),
            data: "d".into(),
            settings: Flags::from([("n", "2".to_owned()), ("w", "1".to_owned())]),
        }
    }

    #[test]
    fn nodes_are_spread_over_cpus() {
        let on = |plan: &Plan| (0..plan.ips.len()).map(|i| plan.cpus_of(i)).collect::<Vec<_>>();
        assert_eq!(on(&plan(3, 1, 2)), ["0", "1", "0"]);
        assert_eq!(on(&plan(2, 2, 8)), ["0,1", "2,3"]);
        assert_eq!(on(&plan(2, 3, 2)), ["0,1,0", "1,0,1"]);
        assert_eq!(on(&plan(2, 1, 0)), ["", ""]);
    }

    #[test]
    fn a_node_is_described_by_its_file() {
        let text = plan(3, 1, 2).file_of(1);
        let found = config::resolve(&Flags::from([("data", "d".into())]), |_| None, Some((Path::new(FILE), &text)));
        let options = found.expect("reads back").options().expect("whole");
        let join: Vec<_> = options.join.iter().map(|a| a.to_string()).collect();
        assert_eq!(join, ["127.0.9.1:9000", "127.0.9.3:9000"]);
        assert_eq!((options.ip, options.shards, options.cpus), ("127.0.9.2".parse().ok(), Some(1), vec![1]));
        assert_eq!((options.protocol.n, options.protocol.w, options.ports), (2, 1, Ports::default().into()));
    }
}
