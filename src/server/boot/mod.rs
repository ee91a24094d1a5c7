//! From options to a running node, and back: checks, one executor a core, signals, a stop that finishes what is in
//! hand.
//!
//! When the node serves requests, one line on standard output says so (and `NOTIFY_SOCKET` is told):
//!
//! ```text
//! ready http://127.0.0.1:7700 node 5f3c9a7be012 shards 2 pid 4242
//! ```
//!
//! A node that forms a cluster says so in a line before that one.
//!
//! The process id also stands in `DIR/pid` while the node runs. SIGTERM and SIGINT stop the node in order; a second one
//! ends the process at once. SIGHUP changes nothing.

mod checks;
mod core;
pub mod doctor;
pub mod embedded;
mod error;
mod place;
mod supervisor;

pub(crate) use checks::is_in_use;
pub use error::StartError;

use self::core::{CoreOptions, CoreSockets, Phase, Progress};
use super::{
    disk::RingDisk,
    kernel::{self, PortUse},
    mesh,
    options::ServeOptions,
    peers::{PeerSelf, ask_who},
    probe::{self, SyncCall},
    ring::{Alone, Bell, Ring},
    ticker::Ticker,
};
use crate::{
    driver::{
        core::Settings,
        identity::{self, Identity, NodeWish, PortsWish},
    },
    engine::disk::lacks_room,
    limits::{self, SHARDS_MAX, SLICES_MAX, SLICES_MIN, SLICES_PER_CPU},
    types::{Address, Ports, ShardId},
};
use crossbeam_channel::{Receiver, Sender, bounded, select as choose, unbounded};
use futures_util::future::{Either, select};
use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};
use sd_notify::NotifyState;
use std::{
    collections::BTreeSet,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How often the executor looks at its timers while a task runs.
pub(super) const PREEMPT: Duration = Duration::from_micros(500);
/// How long a port that is taken is tried.
pub(crate) const BIND_PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two tries.
const BIND_PAUSE: Duration = Duration::from_millis(50);
/// How long a seed is waited for before a node starts without a word of it.
const SEED_PATIENCE: Duration = Duration::from_millis(300);

/// Runs a node until it is told to stop. Returns when everything is closed.
pub fn run(options: ServeOptions) -> Result<(), StartError> {
    let signals = supervisor::catch_signals()?;
    kernel::forbid_huge_pages();
    let open_files = kernel::raise_limits().unwrap_or(0);
    let cpus = checks::cpus(&options)?;
    checks::io_uring()?;
    checks::memory_lock(options.shards.map_or(cpus.len(), usize::from))?;
    let _lock = checks::data_directory(&options.data)?;
    let sync_call = match probe::sync_call(&options.data) {
        // No space to try: the next start will.
        Err(error) if lacks_room(&error) => SyncCall::default(),
        tried => tried.map_err(|e| StartError::Failed(format!("trying syncs in {}: {e}", options.data.display())))?,
    };
    let options = ServeOptions { sync_call, ..options };
    // A start that cannot have its ports is not counted, and costs the node no incarnation.
    let (identity, sockets) = identify(&options, cpus.len(), |reach| {
        checks::address(reach.ip, options.insecure)?;
        bind(reach, &signals)
    })?;
    let places = checks::open_files(open_files, identity.shards, options.connections_max)?;
    let options = ServeOptions { connections_max: places.clients, calls_max: places.calls, ..options };
    let node = Node::start(&options, &identity, &cpus, sockets)?;
    let outcome = node.serve(&options, &identity, &signals);
    drop(std::fs::remove_file(options.data.join("pid")));
    outcome
}

/// Where a node listens.
struct Reach {
    ip: IpAddr,
    ports: Ports,
    shards: u16,
}

/// Loads or makes the node's identity, on an executor that lives only for this. The start is counted after its ports
/// are bound.
fn identify<T>(
    options: &ServeOptions,
    cpus: usize,
    bind: impl FnOnce(&Reach) -> Result<T, StartError>,
) -> Result<(Identity, T), StartError> {
    let failed = |e: String| StartError::Failed(e);
    let copied = place::is_copy(&options.data)?;
    let executor = executor(Placement::Unbound, options, "start").make().map_err(|e| failed(e.to_string()))?;
    let options = options.clone();
    // Without it this executor, too, may park for ever with work to do: one start in a hundred on a busy machine.
    let ticker = Ticker::start().map_err(|e| failed(format!("cannot start a thread: {e}")))?;
    let pulse = ticker.pulse();
    let turns = pulse.turns();
    let work = async move {
        let ring = Ring::new().map_err(|e| failed(e.to_string()))?;
        ring.count_turns(turns);
        let driver = glommio::spawn_local(ring.clone().drive(Alone)).detach();
        let disk = RingDisk::new(ring.clone(), &options.data).map_err(|e| failed(e.to_string()))?;
        let known = identity::peek(&disk).await?;
        if let Some(reason) = known.as_ref().and_then(|known| known.members_lost.as_ref()) {
            tracing::warn!(reason, "node/members is damaged: the others are asked who there is, and it is made anew");
        }
        let usual_shards = known.as_ref().map_or(cpus.min(SHARDS_MAX) as u16, |k| k.shards);
        let shards = options.shards.unwrap_or(usual_shards);
        let usual_slices = (cpus * SLICES_PER_CPU).clamp(SLICES_MIN, SLICES_MAX) as u16;
        let ip = options.ip.or(known.as_ref().map(|k| k.ip)).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let ports = options.ports.over(known.as_ref().map(|k| k.ports).unwrap_or_default());
        let seeds = seeds(&options, ports.peer, known.is_some())?;
        if let Some(known) = &known {
            refuse_strangers(&ring, known, (ip, ports), &seeds, &options.data).await?;
        }
        let wish = NodeWish {
            ip: Some(ip),
            ports: PortsWish::from(ports),
            bootstrap: options.bootstrap,
            shards,
            slices: options.slices.unwrap_or(usual_slices.max(shards)),
            vnodes: options.vnodes,
            seeds,
            random: random(),
            copied,
        };
        let bound = bind(&Reach { ip, ports, shards })?;
        let identity = identity::open(&disk, &wish).await?;
        drop(disk);
        ring.stop();
        if let Some(Err(error)) = driver.await {
            return Err(failed(error.to_string()));
        }
        Ok((identity, bound))
    };
    executor.spawn(pulse.keep()).detach();
    let identity = executor.run(work);
    ticker.stop();
    identity
}

/// Where the node joins through. A name that cannot be found does not keep a node down that knows its members.
fn seeds(options: &ServeOptions, own_port: u16, known: bool) -> Result<Vec<SocketAddr>, StartError> {
    for reason in &options.join_unknown {
        if !known && options.join.is_empty() {
            return Err(StartError::Configuration(format!("--join: {reason}")));
        }
        tracing::warn!(reason, "a seed is left out: its name cannot be found now");
    }
    let with_port =
        |seed: &SocketAddr| SocketAddr::new(seed.ip(), if seed.port() == 0 { own_port } else { seed.port() });
    Ok(options.join.iter().map(with_port).collect())
}

/// A node with a cluster of its own does not join another one: refused before anything is written. Seeds that do not
/// answer in a moment say nothing.
async fn refuse_strangers(
    ring: &Rc<Ring>,
    known: &Identity,
    (ip, ports): (IpAddr, Ports),
    seeds: &[SocketAddr],
    data: &Path,
) -> Result<(), StartError> {
    let own = PeerSelf {
        address: Address { node: known.node, shard: ShardId(0) },
        generation: known.now.generation,
        ip,
        ports,
        cluster: known.now.cluster,
        formed: false,
    };
    let here = SocketAddr::new(ip, ports.peer);
    for &seed in seeds.iter().filter(|seed| **seed != here) {
        let asked = pin!(ask_who(ring.clone(), own.clone(), seed));
        let Either::Left((Ok(hello), _)) = select(asked, ring.pause(SEED_PATIENCE)).await else { continue };
        let member = known.members.iter().any(|m| m.id == hello.node);
        let own = known.now.cluster;
        let stranger = if own.is_none() { !known.members.is_empty() && !member } else { hello.cluster != own };
        if stranger && !hello.cluster.is_none() {
            return Err(StartError::Configuration(format!(
                "the seed {seed} is node {} of cluster {}, but the data directory {} belongs to {}: two clusters are never merged. \
                 Start it without --join to go on as before, or start on an empty directory to join that cluster",
                hello.node,
                hello.cluster,
                data.display(),
                if own.is_none() { "another one".to_owned() } else { format!("cluster {own}") },
            )));
        }
    }
    Ok(())
}

/// Random bits for what must differ between nodes and starts.
pub(super) fn random() -> u64 {
    fastrand::u64(..)
}

fn executor(placement: Placement, options: &ServeOptions, name: &str) -> LocalExecutorBuilder {
    LocalExecutorBuilder::new(placement)
        .name(name)
        .preempt_timer(PREEMPT)
        .io_memory(options.io_memory_bytes)
        .ring_depth(64)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
}

/// Binds every port of the node, so that one that is taken is known before anything starts. A port that is taken is
/// tried for a while: right after a kill the kernel still ends the connections and sockets of the life before.
fn bind(reach: &Reach, signals: &Receiver<i32>) -> Result<Vec<CoreSockets>, StartError> {
    let until = Instant::now() + BIND_PATIENCE;
    loop {
        match bind_once(reach) {
            Err(StartError::PortTaken(_)) if Instant::now() < until => {}
            bound => return bound,
        }
        if signals.recv_timeout(BIND_PAUSE).is_ok() {
            return Err(StartError::Failed("stopped while it waited for a port".into()));
        }
    }
}

fn bind_once(reach: &Reach) -> Result<Vec<CoreSockets>, StartError> {
    let listen = |port: u16, port_use| -> Result<OwnedFd, StartError> {
        let address = SocketAddr::new(reach.ip, port);
        kernel::listen(address, port_use).map_err(|e| StartError::from_bind(address, &e))
    };
    let port = |first: u16, shard: u16| {
        first.checked_add(shard).ok_or_else(|| StartError::Configuration(format!("port {first} + {shard} is no port")))
    };
    // A port shared by our cores could be shared by another process, too: first see that nobody has it.
    drop(listen(reach.ports.http, PortUse::Alone)?);
    (0..reach.shards)
        .map(|shard| {
            Ok(CoreSockets {
                http: listen(reach.ports.http, PortUse::Shared)?,
                client: listen(port(reach.ports.client, shard)?, PortUse::Alone)?,
                peer: listen(port(reach.ports.peer, shard)?, PortUse::Alone)?,
            })
        })
        .collect()
}

/// The cores and the control plane's ends to them.
struct Node {
    progress: Receiver<Progress>,
    stop: Arc<AtomicU8>,
    bells: Vec<Bell>,
    threads: Vec<thread::JoinHandle<()>>,
    /// The turns of each core.
    turns: Vec<Arc<AtomicU64>>,
    ticker: Ticker,
}

impl Node {
    fn start(
        options: &ServeOptions,
        identity: &Identity,
        cpus: &[usize],
        sockets: Vec<CoreSockets>,
    ) -> Result<Node, StartError> {
        let (sender, progress) = unbounded();
        let stop = Arc::new(AtomicU8::new(Phase::Serving as u8));
        let places = placements(options, identity.shards, cpus);
        leave_to_shards(&places);
        let ticker = Ticker::start().map_err(|e| StartError::Failed(format!("cannot start a thread: {e}")))?;
        let mut node =
            Node { progress, stop: stop.clone(), bells: Vec::new(), threads: Vec::new(), turns: Vec::new(), ticker };
        let mut bell_senders = Vec::new();
        for ((ends, sockets), (cpu, placement)) in mesh::ends(identity.shards).into_iter().zip(sockets).zip(places) {
            let shard = node.threads.len() as u16;
            let (bell_sender, bells) = bounded(1);
            bell_senders.push(bell_sender);
            let core = CoreOptions {
                identity: identity.clone(),
                shard,
                cpu,
                settings: settings(options),
                options: options.clone(),
                ends,
                sockets,
                progress: sender.clone(),
                bells,
                stop: stop.clone(),
                pulse: node.ticker.pulse(),
            };
            node.turns.push(core.pulse.turns());
            node.spawn(core, placement, options, sender.clone())?;
        }
        drop(sender);
        node.collect_bells(&bell_senders)?;
        Ok(node)
    }

    fn spawn(
        &mut self,
        core: CoreOptions,
        placement: Placement,
        options: &ServeOptions,
        progress: Sender<Progress>,
    ) -> Result<(), StartError> {
        let shard = core.shard;
        let name = format!("shard-{shard}");
        let builder = executor(placement, options, &name);
        let body = move || {
            // Told even when the core panics.
            let mut ended = core::Ended::new(shard, progress);
            ended.result = match builder.make() {
                Ok(executor) => {
                    executor.spawn(core.pulse.clone().keep()).detach();
                    executor.run(core::run(core))
                }
                Err(error) => Err(format!("cannot start an executor: {error}")),
            };
        };
        let thread = thread::Builder::new().name(name).spawn(body);
        self.threads.push(thread.map_err(|e| StartError::Failed(format!("cannot start a thread: {e}")))?);
        Ok(())
    }

    /// Each core makes its own ring; all need the bells of all.
    fn collect_bells(&mut self, senders: &[Sender<Vec<Bell>>]) -> Result<(), StartError> {
        let mut bells: Vec<Option<Bell>> = vec![None; senders.len()];
        while bells.iter().any(Option::is_none) {
            match self.progress.recv() {
                Ok(Progress::Bell(shard, bell)) => bells[usize::from(shard)] = Some(bell),
                Ok(Progress::Ended(shard, result)) => return Err(self.failed(shard, result)),
                Ok(Progress::Serving(_) | Progress::Ready | Progress::Past(..)) => {}
                Err(_) => return Err(StartError::Failed("all cores have ended".into())),
            }
        }
        self.bells = bells.into_iter().flatten().collect();
        for sender in senders {
            // A core that has gone says so by its progress.
            drop(sender.send(self.bells.clone()));
        }
        Ok(())
    }

    fn failed(&self, shard: u16, result: Result<(), String>) -> StartError {
        let reason = result.err().unwrap_or_else(|| "it ended by itself".into());
        StartError::Failed(format!("shard {shard}: {reason}"))
    }

    /// Waits for the end: a signal, or the failure of a core.
    fn serve(mut self, options: &ServeOptions, identity: &Identity, signals: &Receiver<i32>) -> Result<(), StartError> {
        let mut failure = None;
        let (mut member, mut serving, mut announced) = (false, 0, false);
        while failure.is_none() {
            if member && serving == self.threads.len() && !announced {
                announce(options, identity)?;
                supervisor::feed_watchdog(self.turns.clone())?;
                announced = true;
            }
            choose! {
                recv(signals) -> signal => {
                    if let Ok(signal) = signal {
                        tracing::info!(signal, "stopping");
                    }
                    break;
                }
                recv(self.progress) -> progress => match progress {
                    Ok(Progress::Ready) => member = true,
                    Ok(Progress::Serving(shard)) => {
                        tracing::debug!(shard, "serving");
                        serving += 1;
                        if serving == self.threads.len() {
                            // Dots are leased: what was found to be a copy is a place of its own from here on.
                            place::take(&options.data)?;
                        }
                    }
                    Ok(Progress::Bell(..) | Progress::Past(..)) => {}
                    Ok(Progress::Ended(shard, result)) => failure = Some(self.failed(shard, result)),
                    Err(_) => failure = Some(StartError::Failed("all cores have ended".into())),
                },
            }
        }
        supervisor::tell(NotifyState::Stopping);
        self.stop(options, signals, &mut failure)?;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                failure.get_or_insert_with(|| StartError::Failed("a core has panicked".into()));
            }
        }
        self.ticker.stop();
        match failure {
            None => {
                tracing::info!("stopped");
                Ok(())
            }
            Some(error) => Err(error),
        }
    }

    /// Leads all cores through the phases of a stop, until their threads have ended. A failure takes no time for
    /// clients that come late.
    fn stop(
        &self,
        options: &ServeOptions,
        signals: &Receiver<i32>,
        failure: &mut Option<StartError>,
    ) -> Result<(), StartError> {
        let mut phase = Phase::Serving;
        let (mut past, mut until) = (BTreeSet::new(), Instant::now());
        while self.threads.iter().any(|t| !t.is_finished()) {
            let now = Instant::now();
            let over = failure.is_some() || now >= until || past.len() == self.threads.len();
            let next = match phase {
                Phase::Serving => Some((Phase::Draining, options.drain)),
                Phase::Draining if over => Some((Phase::Answering, limits::STOP_ANSWERS_WITHIN)),
                Phase::Answering if over => Some((Phase::Ending, limits::STOP_ENDS_WITHIN)),
                Phase::Ending if now >= until => {
                    let late = || StartError::Failed("a core did not stop in time".into());
                    return Err(failure.take().unwrap_or_else(late));
                }
                Phase::Draining | Phase::Answering | Phase::Ending => None,
            };
            if let Some((next, limit)) = next {
                phase = next;
                past.clear();
                until = now + limit;
                self.stop.store(phase as u8, Ordering::Release);
                self.bells.iter().for_each(Bell::ring);
            }
            let wait = until.saturating_duration_since(now).min(Duration::from_millis(100));
            choose! {
                recv(signals) -> _ => {
                    return Err(StartError::Failed("stopped by a second signal".into()));
                }
                recv(self.progress) -> progress => match progress {
                    Ok(Progress::Past(shard, done)) if done == phase => {
                        past.insert(shard);
                    }
                    Ok(Progress::Ended(shard, Err(error))) => {
                        failure.get_or_insert_with(|| StartError::Failed(format!("shard {shard}: {error}")));
                    }
                    Ok(_) => {}
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                },
                default(wait) => {}
            }
        }
        Ok(())
    }
}

fn settings(options: &ServeOptions) -> Settings {
    let protocol = &options.protocol;
    Settings {
        n: protocol.n,
        r: protocol.r,
        w: protocol.w,
        sloppy: protocol.sloppy,
        durability: options.durability,
        value_bytes_max: protocol.value_bytes_max,
        gossip_interval: protocol.gossip_interval,
        suspect_after: protocol.suspect_after,
        down_after: protocol.down_after,
        request_timeout: protocol.request_timeout,
        ..Settings::default()
    }
}

/// Where each shard runs. Shards are pinned when the operator says where, or when there is one for every CPU: several
/// nodes on one machine must not all crowd onto its first CPU.
fn placements(options: &ServeOptions, shards: u16, cpus: &[usize]) -> Vec<(Option<usize>, Placement)> {
    let pinned = !options.cpus.is_empty() || usize::from(shards) == cpus.len();
    if usize::from(shards) > cpus.len() {
        tracing::warn!(shards, cpus = cpus.len(), "more shards than CPUs: they take turns, and answers take longer");
    }
    (0..usize::from(shards))
        .map(|shard| {
            let cpu = cpus[shard % cpus.len()];
            if pinned { (Some(cpu), Placement::Fixed(cpu)) } else { (None, Placement::Unbound) }
        })
        .collect()
}

/// Moves the calling thread, and those that it starts from here on (the ticker, the watchdog), to a CPU where no shard
/// is pinned, if there is one. Shards go to their own CPUs by themselves.
fn leave_to_shards(places: &[(Option<usize>, Placement)]) {
    let Some(taken) = places.iter().map(|(cpu, _)| *cpu).collect::<Option<BTreeSet<usize>>>() else { return };
    let Ok(allowed) = kernel::allowed_cpus() else { return };
    let Some(cpu) = allowed.into_iter().find(|cpu| !taken.contains(cpu)) else { return };
    if core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        tracing::info!(cpu, "threads beside the shards run here");
    }
}

/// Says that the node serves: pid file, the line on standard output, the service supervisor.
fn announce(options: &ServeOptions, identity: &Identity) -> Result<(), StartError> {
    let pid = std::process::id();
    let path = options.data.join("pid");
    match std::fs::write(&path, format!("{pid}\n")) {
        Err(error) if lacks_room(&error) || kernel::lacks_descriptors(&error) => {
            tracing::warn!(%error, "the process id could not be written");
        }
        written => written.map_err(|e| StartError::Failed(format!("{}: {e}", path.display())))?,
    }
    let http = SocketAddr::new(identity.ip, identity.ports.http);
    let mut out = std::io::stdout().lock();
    if identity.formed.is_some() {
        let join = SocketAddr::new(identity.ip, identity.ports.peer);
        let formed = writeln!(out, "formed cluster {}; others join it with --join {join}", identity.now.cluster);
        if let Err(error) = formed {
            tracing::warn!(%error, "that a cluster was formed could not be written");
        }
    }
    let line = writeln!(out, "ready http://{http} node {} shards {} pid {pid}", identity.node, identity.shards);
    // Nobody may be listening any more; the node serves all the same.
    if let Err(error) = line.and_then(|()| out.flush()) {
        tracing::warn!(%error, "the ready line could not be written");
    }
    supervisor::tell(NotifyState::Ready);
    Ok(())
}
