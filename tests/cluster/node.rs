//! Nodes as processes: started, killed, started again, with their data on a real file system.

use crate::{http::Http, wait};
use serde_json::Value;
use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

pub const READY_WITHIN: Duration = Duration::from_secs(30);

/// A folder for one test's data, removed when the test has passed.
pub struct Place {
    pub path: PathBuf,
}
impl Place {
    pub fn new(test: &str) -> Place {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a folder for the test");
        Place { path }
    }
}
impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// An address of 127.0.0.0/8 that no other test uses, on this machine at this time.
pub fn address() -> IpAddr {
    addresses(1)
}
/// The first of so many in a row.
pub fn addresses(count: u8) -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [low, high, ..] = std::process::id().to_le_bytes();
    Ipv4Addr::new(127, 64 + (high & 63), low, NEXT.fetch_add(count, Ordering::Relaxed)).into()
}

/// The binary; it dies with the thread that started it.
pub fn dynarc() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_dynarc")]);
    command.stdin(Stdio::null()).env_remove("RUST_BACKTRACE");
    command
}

/// Runs the binary to its end: exit code, what it printed, what it complained of.
pub fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = dynarc().args(arguments).output().expect("the binary runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

pub struct Node {
    pub ip: IpAddr,
    pub data: PathBuf,
    /// What `serve` is started with the first time; afterwards the data directory knows.
    pub first: Vec<String>,
    /// Extra arguments of every start.
    pub extra: Vec<String>,
    /// Extra variables of the process.
    pub environment: Vec<(String, String)>,
    child: Option<Child>,
    log: PathBuf,
}

impl Node {
    /// Not started yet.
    pub fn new(place: &Place, name: &str, ip: IpAddr, join: Option<IpAddr>) -> Node {
        let mut first = vec!["--listen".to_string(), ip.to_string()];
        first.extend(join.map(|seed| ["--join".to_string(), seed.to_string()]).into_iter().flatten());
        let extra = ["--shards", "1"].map(String::from).to_vec();
        let data = place.path.join(name);
        Node {
            ip,
            data,
            first,
            extra,
            environment: Vec::new(),
            child: None,
            log: place.path.join(format!("{name}.log")),
        }
    }
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.ip);
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let mut command = dynarc();
        command.arg("serve").arg("--data").arg(&self.data).args(&self.extra);
        if !self.data.join("node").exists() {
            command.args(&self.first);
        }
        command.envs(self.environment.iter().cloned());
        command.stdout(log.try_clone().expect("the log twice")).stderr(log);
        self.child = Some(command.spawn().expect("the binary starts"));
    }
    /// SIGKILL, and its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a running node");
            child.wait().expect("the end of a node");
        }
    }
    /// The signal of a power cut, without waiting: for several nodes at once.
    pub fn cut(&mut self) {
        self.child.as_mut().expect("a running node").kill().expect("a running node");
    }
    /// Sends a signal by its name: `STOP`, `CONT`, ..
    pub fn signal(&self, name: &str) {
        let asked = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(asked.expect("kill runs").success(), "kill -{name}");
    }
    /// SIGTERM: it should end by itself.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        let mut child = self.child.take().expect("a running node");
        wait::until(Duration::from_secs(20), "an orderly stop", || {
            child.try_wait().map_err(|e| e.to_string())?.ok_or("it still runs".to_string())
        })
    }
    /// Whether it has been started and not ended by the test.
    #[allow(dead_code)] // The tests of partitions use it.
    pub fn started(&self) -> bool {
        self.child.is_some()
    }
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running node").id()
    }
    pub fn http(&self) -> Http {
        Http::new(self.ip)
    }
    /// Panics with the log when the process has ended.
    pub fn assert_runs(&mut self) {
        let ended = self.child.as_mut().expect("a started node").try_wait().expect("its state");
        assert!(ended.is_none(), "node {} ended: {ended:?}\n{}", self.ip, self.log_tail());
    }
    /// It ends by itself.
    #[allow(dead_code)] // The tests of disks use it, those of clusters do not.
    pub fn wait_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running node");
        wait::until(Duration::from_secs(20), "the node ends by itself", || {
            child.try_wait().map_err(|e| e.to_string())?.ok_or_else(|| format!("it still runs\n{}", self.log_tail()))
        })
    }
    pub fn wait_ready(&mut self) {
        let mut http = self.http();
        wait::until(READY_WITHIN, &format!("node {} is ready", self.ip), || {
            self.assert_runs();
            match http.get("/readyz") {
                Ok(reply) if reply.status == 200 => Ok(()),
                other => Err(format!("{other:?}\n{}", self.log_tail())),
            }
        });
    }
    /// `/v1/node`.
    pub fn figures(&self) -> Value {
        self.http().get("/v1/node").expect("a running node answers").json()
    }
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log[log.len() - log.len().min(4_000)..].to_string()
    }
}
impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- log of node {}\n{}", self.ip, self.log_tail());
        }
    }
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub place: Place,
}
impl Cluster {
    /// Started, joined and ready, one core a node.
    pub fn start(test: &str, count: usize) -> Cluster {
        Cluster::start_with_shards(test, count, 1)
    }
    pub fn start_with_shards(test: &str, count: usize, shards: u16) -> Cluster {
        let place = Place::new(test);
        let mut nodes: Vec<Node> = Vec::new();
        for index in 1..=count {
            let seed = nodes.first().map(|n| n.ip);
            let mut node = Node::new(&place, &format!("n{index}"), address(), seed);
            node.extra = vec!["--shards".to_string(), shards.to_string()];
            if index == 1 {
                // Told to: it need not listen first whether the address is known as another node's.
                node.first.push("--bootstrap".to_string());
            }
            node.start();
            nodes.push(node);
        }
        let mut cluster = Cluster { nodes, place };
        cluster.wait_whole();
        cluster
    }
    /// All nodes run and see each other up, with one ring.
    pub fn wait_whole(&mut self) {
        self.nodes.iter_mut().for_each(Node::wait_ready);
        let count = self.nodes.len();
        wait::until(READY_WITHIN, "the cluster is whole", || {
            let mut digests = Vec::new();
            for node in &mut self.nodes {
                node.assert_runs();
                let view = node.http().get("/v1/cluster").map_err(|e| e.to_string())?.json();
                let members = view["members"].as_array().cloned().unwrap_or_default();
                if members.iter().filter(|m| m["state"] == "up").count() != count || members.len() != count {
                    return Err(format!("{} sees {view}", node.ip));
                }
                digests.push(view["ring_digest"].clone());
            }
            digests.dedup();
            if digests.len() == 1 { Ok(()) } else { Err(format!("rings differ: {digests:?}")) }
        });
    }
    /// No node owes another anything.
    pub fn wait_no_hints(&self) {
        wait::until(Duration::from_secs(60), "all hints are delivered", || {
            let pending: Vec<Value> = self.nodes.iter().map(|n| n.figures()["hints_pending"].clone()).collect();
            if pending.iter().all(|p| *p == 0) { Ok(()) } else { Err(format!("hints pending: {pending:?}")) }
        });
    }
    /// All at once, as in a power cut of the process.
    pub fn kill_all(&mut self) {
        self.nodes.iter_mut().for_each(Node::cut);
        self.nodes.iter_mut().for_each(Node::kill);
    }
    pub fn start_all(&mut self) {
        self.nodes.iter_mut().for_each(Node::start);
        self.wait_whole();
    }
    pub fn http(&self, node: usize) -> Http {
        self.nodes[node].http()
    }
}
