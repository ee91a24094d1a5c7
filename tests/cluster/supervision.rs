//! What surrounds a node: a service supervisor, signals, a log that nobody reads, few descriptors, a port of the life
//! before.

use crate::{
    http::Http,
    node::{Place, READY_WITHIN, address, dynarc},
    wait,
};
use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A node that is killed when the test ends.
struct Served {
    ip: IpAddr,
    child: Child,
}
impl Served {
    /// Starts a node; `prepare` changes how.
    fn start(place: &Place, ip: IpAddr, prepare: impl FnOnce(&mut Command)) -> Served {
        let mut command = dynarc();
        command.arg("serve").arg("--data").arg(place.path.join("n")).args(["--listen", &ip.to_string()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        prepare(&mut command);
        Served { ip, child: command.spawn().expect("the binary starts") }
    }
    fn http(&self) -> Http {
        Http::new(self.ip)
    }
    fn wait_ready(&mut self) {
        wait::until(READY_WITHIN, "the node is ready", || {
            assert_eq!(self.child.try_wait().expect("its state"), None, "the node has ended");
            match self.http().get("/readyz") {
                Ok(reply) if reply.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
    fn signal(&self, name: &str) {
        let asked = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(asked.expect("kill runs").success(), "kill -{name}");
    }
    /// Its exit code.
    fn end(&mut self) -> Option<i32> {
        wait::until(Duration::from_secs(20), "the node ends", || {
            self.child.try_wait().map_err(|e| e.to_string())?.ok_or("it still runs".to_string())
        })
        .code()
    }
}
impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a supervisor is told until `wanted` has been told so often.
fn told(socket: &UnixDatagram, wanted: &str, times: usize) {
    let (mut buffer, mut seen) = ([0; 4096], 0);
    while seen < times {
        let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("no {wanted}: {e}"));
        seen += usize::from(String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == wanted));
    }
}

#[test]
fn a_supervisor_is_told_of_readiness_of_cores_that_turn_and_of_the_stop() {
    let place = Place::new("supervisor");
    let path = place.path.join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(READY_WITHIN)).expect("set");
    let mut node = Served::start(&place, address(), |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "2000000").args(["--shards", "2"]);
    });
    told(&socket, "READY=1", 1);
    told(&socket, "WATCHDOG=1", 3);
    node.signal("HUP");
    node.signal("USR1");
    told(&socket, "WATCHDOG=1", 3);
    assert_eq!(node.http().get("/readyz").expect("it lives").status, 200);
    node.signal("TERM");
    told(&socket, "STOPPING=1", 1);
    assert_eq!(node.end(), Some(0));
}

#[test]
fn a_log_that_takes_nothing_ends_no_node() {
    let place = Place::new("deaf-log");
    // More shards than CPUs are worth a warning at the start.
    let mut node = Served::start(&place, address(), |command| {
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        command.stderr(full).args(["--shards", "9"]);
    });
    node.wait_ready();
    node.signal("TERM");
    assert_eq!(node.end(), Some(0));
}

#[test]
fn connections_leave_the_storage_its_descriptors() {
    let place = Place::new("descriptors");
    let mut node = Served::start(&place, address(), |command| {
        command.args(["--shards", "1", "--memtable-bytes", "1MiB"]);
    });
    node.wait_ready();
    node.signal("TERM");
    assert_eq!(node.end(), Some(0));
    // The same again with few descriptors.
    let mut limited = Command::new("prlimit");
    limited.args(["--nofile=256:256", env!("CARGO_BIN_EXE_dynarc"), "serve", "--shards", "1"]);
    limited.args(["--memtable-bytes", "1MiB", "--data"]).arg(place.path.join("n"));
    limited.stdout(Stdio::null()).stderr(Stdio::null());
    let mut node = Served { ip: node.ip, child: limited.spawn().expect("prlimit runs") };
    node.wait_ready();
    let mut http = node.http();
    assert_eq!(http.get("/healthz").expect("an answer").status, 200);
    let port = SocketAddr::new(node.ip, 7700);
    let crowd: Vec<TcpStream> = (0..400).map_while(|_| TcpStream::connect(port).ok()).collect();
    assert!(crowd.len() > 200, "{} connections", crowd.len());
    let value = vec![7; 200_000];
    for index in 0..60 {
        let reply =
            http.send("PUT", &format!("/v1/keys/k{index}"), &[("content-type", "a/b")], &value).expect("an answer");
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    drop(crowd);
    assert_eq!(node.child.try_wait().expect("its state"), None, "it lives");
}

#[test]
fn a_port_of_the_life_before_is_waited_for() {
    let place = Place::new("port-waited");
    let ip = address();
    let taken = TcpListener::bind((ip, 7700)).expect("a free port");
    let mut node = Served::start(&place, ip, |command| {
        command.args(["--shards", "1"]);
    });
    wait::until(READY_WITHIN, "the start has come to its ports", || {
        if place.path.join("n").exists() { Ok(()) } else { Err("no data directory yet".into()) }
    });
    drop(taken);
    node.wait_ready();
}

/// Where a thread of a process may run, as the kernel says it.
fn allowed_of(pid: u32, thread: &str) -> Option<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a running process");
    let named = |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == thread);
    let task = tasks.flatten().map(|task| task.path()).find(named)?;
    let status = fs::read_to_string(task.join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).map(|list| list.trim().to_owned())
}

#[test]
fn what_runs_beside_the_shards_leaves_them_their_cpus() {
    let place = Place::new("pinned");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut node = Served::start(&place, address(), |command| {
        command.args(["--shards", "1", "--cpus", "0"]);
    });
    node.wait_ready();
    assert_eq!(allowed_of(node.child.id(), "shard-0").as_deref(), Some("0"));
    let ticker = allowed_of(node.child.id(), "ticker").expect("a ticker");
    assert_eq!(ticker == "0", cpus == 1, "the ticker runs on {ticker}, of {cpus} CPUs");
}

#[test]
fn a_seed_that_is_no_member_is_named() {
    let place = Place::new("seed-named");
    let log = place.path.join("log");
    let ip = address();
    let mut node = Served::start(&place, ip, |command| {
        let file = File::create(&log).expect("a log file");
        // Nobody listens on the first, and the second is the HTTP port of this node itself.
        command.args(["--shards", "1", "--join", &format!("{ip}:1,{ip}:7700")]).stderr(file);
    });
    wait::until(Duration::from_secs(20), "the log names both seeds", || {
        let said = fs::read_to_string(&log).unwrap_or_default();
        let of = |words: &str| said.lines().any(|line| line.contains("cannot join") && line.contains(words));
        if of(&format!("{ip}:1 ")) && of(&format!("{ip}:7700 ")) { Ok(()) } else { Err(said) }
    });
    let reply = node.http().get("/readyz").expect("an answer");
    assert_eq!(reply.status, 503, "{}", reply.text());
    node.signal("TERM");
    assert_eq!(node.end(), Some(0));
}
