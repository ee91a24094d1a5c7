//! What a node says of itself: the figures of all its cores, asked for when somebody wants them.
//!
//! The core that answers asks the others over the mesh and waits a moment; nothing is published in between, so an idle
//! node does nothing. A core that does not answer in time is shown as it was last known.

use super::{
    clock,
    disk::RingDisk,
    kernel,
    latency::{Latencies, Report},
    mesh::Parcel,
    world::ServerWorld,
};
use crate::{
    driver::core::Handle,
    http::views::{Figures, KeyRingView, NodeView, ReplicaLine, ShardView},
    types::{Instant, Key, MemberView, ShardId},
};
use futures_util::future::select;
use std::{
    cell::{Cell, RefCell},
    fs::File,
    future::poll_fn,
    net::IpAddr,
    os::fd::OwnedFd,
    path::Path,
    pin::pin,
    task::{Poll, Waker},
    time::Duration,
};

/// How long the other cores may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// The shortest time that a busy ratio is taken over.
const WINDOW: Duration = Duration::from_secs(1);

/// One core's memory of the other cores' figures.
pub struct Reports {
    ip: IpAddr,
    /// The directory of the data; `None` when it cannot be opened, and its room is shown as 0.
    data: Option<OwnedFd>,
    started: Instant,
    /// The CPU that this core is pinned to.
    cpu: Option<u16>,
    /// What each shard has said last, by its number.
    known: RefCell<Vec<Option<Report>>>,
    /// Reports still to come of the round under way.
    missing: Cell<usize>,
    wakers: RefCell<Vec<Waker>>,
    busy: Cell<Busy>,
}

/// Start of the window that the busy ratio is taken over, and the ratio of the window before.
#[derive(Clone, Copy, Default)]
struct Busy {
    since: Instant,
    cpu_time: Duration,
    ratio: f64,
}

impl Reports {
    pub fn new(ip: IpAddr, data: &Path, cpu: Option<usize>, shards: u16) -> Reports {
        Reports {
            ip,
            data: File::open(data).ok().map(OwnedFd::from),
            started: clock::now(),
            cpu: cpu.and_then(|c| u16::try_from(c).ok()),
            known: RefCell::new((0..shards).map(|_| None).collect()),
            missing: Cell::new(0),
            wakers: RefCell::default(),
            busy: Cell::new(Busy { since: clock::now(), cpu_time: kernel::thread_cpu_time(), ratio: 0.0 }),
        }
    }

    /// What this core says of itself.
    pub fn report(&self, world: &ServerWorld) -> Report {
        Report { view: self.own(world), latencies: world.replies.latencies.borrow_mut().snapshot() }
    }
    fn own(&self, world: &ServerWorld) -> ShardView {
        let figures = world.handle.get().map_or_else(Figures::default, |handle| figures(handle, world));
        ShardView { shard: world.address.shard.0, cpu: self.cpu, busy_ratio: self.busy_ratio(), figures }
    }

    fn busy_ratio(&self) -> f64 {
        let (now, cpu_time) = (clock::now(), kernel::thread_cpu_time());
        let busy = self.busy.get();
        let elapsed = now.since(busy.since);
        if elapsed < WINDOW {
            return busy.ratio;
        }
        let ratio = (cpu_time.saturating_sub(busy.cpu_time).as_secs_f64() / elapsed.as_secs_f64()).clamp(0.0, 1.0);
        self.busy.set(Busy { since: now, cpu_time, ratio });
        ratio
    }

    /// Another core's answer.
    pub fn take(&self, report: Report) {
        self.keep(report);
        self.missing.set(self.missing.get().saturating_sub(1));
        if self.missing.get() == 0 {
            self.wakers.borrow_mut().drain(..).for_each(Waker::wake);
        }
    }

    fn keep(&self, report: Report) {
        if let Some(known) = self.known.borrow_mut().get_mut(usize::from(report.view.shard)) {
            *known = Some(report);
        }
    }

    /// The node as a whole. Those who ask at the same time share a round.
    pub async fn node(&self, world: &ServerWorld) -> NodeView {
        let others: Vec<ShardId> = world.mesh.others().collect();
        if self.missing.get() == 0 && !others.is_empty() {
            self.missing.set(others.len());
            for shard in others {
                world.mesh.send(shard, Parcel::ReportWanted { from: world.address.shard });
            }
            world.ring.nudge();
        }
        let complete = poll_fn(|cx| {
            if self.missing.get() == 0 {
                return Poll::Ready(());
            }
            self.wakers.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        });
        select(pin!(complete), world.ring.pause(PATIENCE)).await;
        // A core that was late is not waited for again by this round.
        self.missing.set(0);
        self.keep(self.report(world));
        let known = self.known.borrow();
        let mut latencies = Latencies::default();
        known.iter().flatten().for_each(|report| latencies.add(&report.latencies));
        let errors = latencies.errors().map(|(code, count)| (code.to_owned(), count)).collect();
        let shards = known.iter().flatten().map(|report| report.view).collect();
        let uptime = clock::now().since(self.started).as_secs();
        let (bytes, free) = self.data.as_ref().and_then(|data| kernel::file_system_bytes(data).ok()).unwrap_or((0, 0));
        NodeView::new(world.address.node, self.ip, uptime, kernel::resident_bytes(), shards)
            .on_disk(bytes, free)
            .of_requests(latencies.views(), errors)
    }
}

fn figures(handle: &Handle<ServerWorld, RingDisk>, world: &ServerWorld) -> Figures {
    let stats = handle.stats();
    let (engine, shard, traffic) = (stats.engine, stats.shard, world.traffic.get());
    let backlog = world.backlog.backlog();
    Figures {
        hints_pending: shard.hints_pending,
        hints_pending_bytes: shard.hints_pending_bytes,
        compaction_backlog_bytes: engine.compaction_backlog_bytes,
        compaction_backlog_seconds: backlog.compaction_seconds,
        collection_backlog_bytes: engine.collection_backlog_bytes,
        collection_backlog_seconds: backlog.collection_seconds,
        backlog_alert: u64::from(backlog.alert),
        memory_bytes: engine.memory_bytes,
        value_cache_bytes: engine.value_cache_bytes,
        block_cache_bytes: engine.block_cache_bytes,
        syncs: engine.syncs,
        durable_writes: engine.durable_writes,
        gets: shard.requests.gets,
        puts: shard.requests.puts,
        deletes: shard.requests.deletes,
        failures: shard.requests.failures,
        overloaded: shard.requests.overloads,
        forwarded: shard.requests.forwards,
        requests_in_flight: shard.in_flight,
        read_repairs: shard.requests.read_repairs,
        read_hedges: shard.requests.hedges,
        hints_stored: shard.hints_stored,
        hints_delivered: shard.hints_delivered,
        hints_delivered_bytes: shard.hints_delivered_bytes,
        hints_dropped: shard.hints_dropped,
        stamps_refused: shard.stamps_refused,
        clock_off_milliseconds: shard.clock_off_millis.unsigned_abs(),
        clock_refusals: shard.clock_refusals,
        ranges_marked: shard.ranges_marked,
        ranges_swept: shard.ranges_swept,
        repair_oldest_arc_seconds: shard.repair.oldest.as_secs(),
        repair_arcs: shard.repair.arcs,
        repair_arcs_late: shard.repair.late,
        repair_arcs_waiting: shard.repair.waiting,
        repair_leaves_differed: shard.repair.leaves_differed,
        repair_values_sent: shard.repair.values_sent,
        repair_bytes: shard.repair.bytes,
        slices_doubted: shard.repair.slices_doubted,
        records_rebuilt: shard.records_rebuilt,
        rebuilds_refused: shard.rebuilds_refused,
        identity_alarms: shard.identity_alarms,
        incarnation: shard.greatest_incarnation,
        clocks_long: shard.clocks_long,
        peer_silences: shard.silences,
        peer_dampings: shard.dampings,
        passed_on: shard.requests.passed_on,
        disk_stalled: u64::from(shard.disk_stalled),
        disk_stalls: shard.disk_stalls,
        connections: traffic.connections,
        http_requests_begun: world.begun.get() as u64,
        connections_given_up: world.watches.given_up() + world.callers.given_up(),
        connection_bytes: world.watches.bytes() as u64,
        http_requests: traffic.http_requests,
        client_requests: traffic.client_requests,
        peer_messages_sent: traffic.peer_messages_sent,
        peer_messages_received: traffic.peer_messages_received,
        messages_dropped: traffic.messages_dropped + world.mesh.dropped(),
        messages_unread: traffic.messages_unread,
        user_bytes_written: engine.user_bytes_written,
        device_bytes_written: engine.device_bytes_written,
        device_reads: engine.device_reads,
        memtable_bytes: engine.memtable_bytes,
        tables: engine.tables,
        table_bytes: engine.table_bytes,
        segments: engine.segments,
        segment_bytes: engine.segment_bytes,
        segment_live_bytes: engine.segment_live_bytes,
        flushes: engine.flushes,
        compactions: engine.compactions,
        collections: engine.collections,
        damaged_reads: engine.damaged_reads,
        damaged_places: engine.damaged_places,
        read_only: engine.read_only,
    }
}

/// Where a key lives: every node of its walk in order, the first N at home.
pub fn key_ring(handle: &Handle<ServerWorld, RingDisk>, key: &Key) -> KeyRingView {
    let (ring, members) = (handle.ring(), handle.members());
    let n = usize::from(handle.tables().of(key.as_bytes()).n);
    let token = key.token();
    let mut lines = Vec::new();
    for (place, node) in ring.walk(token, ring.node_count()).into_iter().enumerate() {
        let (Some(placement), Some(member)) = (ring.placement(node), members.iter().find(|m| m.0.id == node)) else {
            continue;
        };
        let slice = placement.slice_of(token);
        lines.push(ReplicaLine {
            node: node.to_string(),
            address: member.0.ip,
            core: placement.shard_of(slice).0,
            slice: slice.0,
            home: place < n,
            state: MemberView::name(member.1).to_owned(),
        });
    }
    KeyRingView::new(key, lines, ring.digest())
}
