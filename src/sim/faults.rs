//! The fault schedule: one task for each kind of fault, each with its own stream of randomness, at the rates of the
//! plan. At most [`FaultPlan::down_max`] nodes are down at once, but for a power cut, which takes all.

use super::{
    cluster::{Cluster, End},
    coverage::Blow,
    disk::Hang,
    disk::Spoiled,
    executor::Life,
    links::Route,
    plan::FaultPlan,
    planted::Planted,
    prng::Prng,
};
use crate::{limits::KIB, protocol::message::Lane};
use std::{cell::Cell, future::Future, rc::Rc, time::Duration};

/// How long a node that stops in good order serves on, at most.
const DRAIN_MAX: Duration = Duration::from_secs(4);

/// The schedule of a run.
pub struct Faults {
    cluster: Rc<Cluster>,
    plan: FaultPlan,
    stop: Cell<bool>,
}

impl Faults {
    /// Starts the schedule; it runs until [`Faults::heal`].
    pub fn start(cluster: &Rc<Cluster>) -> Rc<Faults> {
        let plan = cluster.plan.faults;
        let faults = Rc::new(Faults { cluster: cluster.clone(), plan, stop: Cell::new(false) });
        cluster.network.borrow_mut().set_calm(false);
        faults.every("kills", plan.kill_every, |f, p| f.take_down(p, End::Kill));
        faults.every("power losses", plan.power_loss_every, |f, p| f.take_down(p, End::PowerLoss));
        faults.every("power cuts", plan.power_cut_every, Faults::power_cut);
        faults.every("stops", plan.stop_every, Faults::stop);
        faults.every("pauses", plan.pause_every, Faults::pause);
        faults.every("cuts", plan.cut_every, Faults::cut);
        faults.every("link cuts", plan.link_cut_every, Faults::cut_link);
        faults.every("clogs", plan.clog_every, Faults::clog);
        faults.every("slow disks", plan.slow_disk_every, Faults::slow_disk);
        faults.every("disk errors", plan.disk_error_every, Faults::disk_error);
        faults.every("full disks", plan.full_disk_every, Faults::full_disk);
        faults.every("hanging disks", plan.hang_disk_every, Faults::hang_disk);
        faults.every("clock steps", plan.clock_step_every, Faults::clock_step);
        faults.every("rot", plan.rot_every, Faults::rot);
        faults.every("wipes", plan.wipe_every, Faults::wipe);
        faults.every("backups", plan.restore_every / 2, Faults::back_up);
        faults.every("restores", plan.restore_every, Faults::restore);
        if cluster.outsider().is_some() {
            faults.every("outsider", cluster.plan.duration / 5, |f, _| f.bring_the_outsider());
        }
        // Whoever died by itself is started again by its keeper.
        faults.every("keeper", Duration::from_secs(3), |f, _| f.start_the_failed());
        faults
    }
    /// Ends all faults and undoes them: from now on every node runs and every message arrives.
    pub fn heal(&self) {
        self.stop.set(true);
        self.cluster.note(30, 0, || "all faults end".to_string());
        self.cluster.mend_network();
        for node in 0..self.cluster.node_count() {
            self.cluster.disk(node).cancel_stop();
            self.cluster.spoil_disk(node, 0.0);
            self.cluster.limit_disk(node, None);
            self.cluster.hang_disk(node, None);
            self.cluster.mend_medium(node);
            self.cluster.mend_clock(node);
            self.cluster.slow_disk(node, 1);
            self.cluster.resume(node);
            self.cluster.start(node);
        }
    }
    fn every<F: Future<Output = ()> + 'static>(
        self: &Rc<Self>,
        name: &'static str,
        mean: Duration,
        fault: impl Fn(Rc<Faults>, Prng) -> F + 'static,
    ) {
        if mean.is_zero() {
            return;
        }
        let (faults, mut prng) = (self.clone(), Prng::stream(self.cluster.plan.seed, name));
        self.cluster.executor.spawn(Life::OUTSIDE, async move {
            loop {
                faults.cluster.executor.sleep(prng.exponential(mean)).await;
                if faults.stop.get() {
                    return;
                }
                fault(faults.clone(), prng.fork()).await;
            }
        });
    }
    async fn lasting(&self, prng: &mut Prng) {
        let time = prng.exponential(self.plan.lasting);
        self.cluster.executor.sleep(time).await;
    }
    fn pick_running(&self, prng: &mut Prng) -> Option<usize> {
        let running: Vec<usize> = (0..self.cluster.node_count()).filter(|n| self.cluster.listening(*n)).collect();
        prng.pick(&running).copied()
    }
    fn down(&self) -> usize {
        (0..self.cluster.node_count()).filter(|n| !self.cluster.listening(*n) || self.cluster.paused(*n)).count()
    }

    async fn take_down(self: Rc<Self>, mut prng: Prng, end: End) {
        if self.down() >= self.plan.down_max {
            return;
        }
        let Some(node) = self.pick_running(&mut prng) else { return };
        if prng.chance(0.3) {
            self.cluster.end(node, end);
            return self.restart_later(node, &mut prng);
        }
        // Most crashes strike in the middle of a write: that is where the damage is.
        let faults = self.clone();
        self.cluster.end_in_write(node, end, move || faults.restart_later(node, &mut prng));
    }
    fn restart_later(self: &Rc<Self>, node: usize, prng: &mut Prng) {
        let wait = prng.exponential(self.plan.lasting);
        let mut spoiler = (self.plan.unsound == Some(node)).then(|| prng.fork());
        let faults = self.clone();
        self.cluster.executor.spawn(Life::OUTSIDE, async move {
            faults.cluster.executor.sleep(wait).await;
            if !faults.stop.get() {
                if let Some(prng) = &mut spoiler {
                    faults.spoil_files(node, prng);
                }
                faults.cluster.start(node);
            }
        });
    }
    /// Before a start of the unsound node, files of its disk may have vanished, or lie under each other's name.
    fn spoil_files(&self, node: usize, prng: &mut Prng) {
        if self.cluster.running(node) || !prng.chance(self.plan.spoilt_files) {
            return;
        }
        let all: &[&str] = &["log/", "slices/"];
        let among = if self.cluster.planted(Planted::UnprovenEnds) { &all[..1] } else { all };
        let Some((what, path)) = self.cluster.disk(node).spoil_files(prng, among) else { return };
        self.cluster.note(42, node as u64, || format!("node {node}: {path} is {what:?}"));
        self.cluster.count(|c| match what {
            Spoiled::Removed => c.removed_files += 1,
            Spoiled::Swapped => c.swapped_files += 1,
            Spoiled::ForeignPage => c.foreign_pages += 1,
        });
    }
    /// Stops a node in good order, mostly after a while in which the others know. Now and then the machine loses its
    /// power right after.
    async fn stop(self: Rc<Self>, mut prng: Prng) {
        if self.down() >= self.plan.down_max {
            return;
        }
        let Some(node) = self.pick_running(&mut prng) else { return };
        let life = self.cluster.life(node);
        if prng.chance(0.7) {
            self.cluster.drain(node);
            self.cluster.executor.sleep(prng.duration(Duration::ZERO, DRAIN_MAX)).await;
            // Meanwhile another fault may have ended it, or all faults are over.
            if self.cluster.life(node) != life || !self.cluster.listening(node) || self.stop.get() {
                return;
            }
        }
        self.cluster.stop(node);
        while self.cluster.lives(node, life) {
            self.cluster.executor.sleep(Duration::from_millis(50)).await;
        }
        // Another fault may have ended it, and sees to its return.
        if self.cluster.life(node) == life && !self.cluster.failed_by_itself(node) {
            if prng.chance(0.3) {
                self.cluster.darken(node);
            }
            self.restart_later(node, &mut prng);
        }
    }
    async fn power_cut(self: Rc<Self>, mut prng: Prng) {
        let Some(first) = self.pick_running(&mut prng) else { return };
        let faults = self.clone();
        self.cluster.end_in_write(first, End::PowerLoss, move || {
            faults.cluster.count(|c| c.power_cuts += 1);
            for node in 0..faults.cluster.node_count() {
                faults.cluster.end(node, End::PowerLoss);
            }
            for node in 0..faults.cluster.node_count() {
                faults.restart_later(node, &mut prng);
            }
        });
    }
    async fn pause(self: Rc<Self>, mut prng: Prng) {
        if self.down() >= self.plan.down_max {
            return;
        }
        let Some(node) = self.pick_running(&mut prng) else { return };
        let life = self.cluster.life(node);
        self.cluster.pause(node);
        self.lasting(&mut prng).await;
        if self.cluster.lives(node, life) {
            self.cluster.resume(node);
        }
    }
    async fn cut(self: Rc<Self>, mut prng: Prng) {
        let nodes = self.cluster.node_count();
        let alone = prng.index(nodes);
        // One node from all others, one pair, or two halves.
        let others: Vec<usize> = (0..nodes).filter(|n| *n != alone).collect();
        let pairs: Vec<(usize, usize)> = match prng.below(3) {
            0 => others.iter().map(|o| (alone, *o)).collect(),
            1 => prng.pick(&others).map(|o| (alone, *o)).into_iter().collect(),
            _ => {
                let half = prng.bits();
                let side = |n: usize| half >> n & 1;
                (0..nodes).flat_map(|a| (0..a).map(move |b| (a, b))).filter(|(a, b)| side(*a) != side(*b)).collect()
            }
        };
        let one_way = prng.chance(0.3);
        self.cluster.count(|c| if one_way { c.cuts_one_way += 1 } else { c.cuts_two_way += 1 });
        pairs.iter().for_each(|(a, _)| self.cluster.cover(Blow::CutOff, *a));
        self.set_cuts(&pairs, one_way, true);
        self.lasting(&mut prng).await;
        if !self.stop.get() {
            self.set_cuts(&pairs, one_way, false);
        }
    }
    fn set_cuts(&self, pairs: &[(usize, usize)], one_way: bool, cut: bool) {
        if cut {
            let links = pairs.len() as u64 * if one_way { 1 } else { 2 };
            self.cluster.count(|c| c.links_cut += links);
        }
        for (a, b) in pairs {
            self.cluster.cut(*a, *b, cut);
            if !one_way {
                self.cluster.cut(*b, *a, cut);
            }
        }
    }
    /// One connection, between one core and another, by one lane.
    async fn cut_link(self: Rc<Self>, mut prng: Prng) {
        let nodes = self.cluster.node_count();
        let (from, to) = (prng.index(nodes), prng.index(nodes));
        if from == to {
            return;
        }
        let core = |prng: &mut Prng, node| prng.below(u64::from(self.cluster.shard_count(node))) as u16;
        let (from_shard, to_shard) = (core(&mut prng, from), core(&mut prng, to));
        let lane = if prng.chance(0.7) { Lane::Short } else { Lane::Long };
        let route = Route { from, from_shard, to, to_shard, lane };
        self.cluster.count(|c| c.lone_cuts += 1);
        self.cluster.cut_link(route, true);
        self.lasting(&mut prng).await;
        if !self.stop.get() {
            self.cluster.cut_link(route, false);
        }
    }
    async fn clog(self: Rc<Self>, mut prng: Prng) {
        let nodes = self.cluster.node_count();
        let (from, to) = (prng.index(nodes), prng.index(nodes));
        if from == to {
            return;
        }
        let until = self.cluster.executor.now() + prng.duration(Duration::from_millis(100), Duration::from_secs(4));
        self.cluster.count(|c| c.clogs += 1);
        self.cluster.cover(Blow::Clog, from);
        self.cluster.clog(from, to, until);
    }
    async fn slow_disk(self: Rc<Self>, mut prng: Prng) {
        let node = prng.index(self.cluster.node_count());
        self.cluster.count(|c| c.slow_disks += 1);
        self.cluster.slow_disk(node, prng.between(5, 200) as u32);
        self.lasting(&mut prng).await;
        self.cluster.slow_disk(node, 1);
    }
    async fn disk_error(self: Rc<Self>, mut prng: Prng) {
        if self.down() >= self.plan.down_max {
            return;
        }
        let Some(node) = self.pick_running(&mut prng) else { return };
        self.cluster.count(|c| c.disk_errors += 1);
        self.cluster.spoil_disk(node, 0.3);
        self.lasting(&mut prng).await;
        self.cluster.spoil_disk(node, 0.0);
    }
    async fn full_disk(self: Rc<Self>, mut prng: Prng) {
        let Some(node) = self.pick_running(&mut prng) else { return };
        self.cluster.count(|c| c.full_disks += 1);
        self.cluster.limit_disk(node, Some(prng.below(512 * KIB as u64)));
        self.lasting(&mut prng).await;
        self.cluster.limit_disk(node, None);
    }
    async fn hang_disk(self: Rc<Self>, mut prng: Prng) {
        let Some(node) = self.pick_running(&mut prng) else { return };
        self.cluster.count(|c| c.hung_disks += 1);
        // A frozen file system still reads.
        self.cluster.hang_disk(node, Some(if prng.coin() { Hang::Writes } else { Hang::All }));
        self.lasting(&mut prng).await;
        self.cluster.hang_disk(node, None);
    }
    async fn clock_step(self: Rc<Self>, mut prng: Prng) {
        let any = prng.index(self.cluster.node_count());
        let node = self.plan.wild_clock.filter(|_| prng.coin()).unwrap_or(any);
        self.cluster.step_clock(node);
    }
    /// Spoils what is stored. Only the unsound node's medium loses what it held: see [`FaultPlan::unsound`].
    async fn rot(self: Rc<Self>, _: Prng) {
        if let Some(node) = self.plan.unsound {
            self.cluster.rot_disk(node);
        }
    }
    /// A fickle node comes back with an empty disk that still bears its name: see [`FaultPlan::fickle`].
    async fn wipe(self: Rc<Self>, prng: Prng) {
        self.lose_disk(prng, Blow::Wipe);
    }
    async fn back_up(self: Rc<Self>, _: Prng) {
        // Whether it runs or not.
        self.plan.fickle.iter().for_each(|node| self.cluster.back_up(node));
    }
    /// A fickle node comes back as it was at the last backup.
    async fn restore(self: Rc<Self>, prng: Prng) {
        self.lose_disk(prng, Blow::Restore);
    }
    fn lose_disk(self: &Rc<Self>, mut prng: Prng, blow: Blow) {
        let fickle: Vec<usize> = self.plan.fickle.iter().filter(|node| self.cluster.listening(*node)).collect();
        let Some(node) = prng.pick(&fickle).copied() else { return };
        if self.down() >= self.plan.down_max || (blow == Blow::Restore && !self.cluster.has_backup(node)) {
            return;
        }
        self.cluster.cover(blow, node);
        self.cluster.end(node, if prng.coin() { End::Kill } else { End::PowerLoss });
        if blow == Blow::Wipe {
            self.cluster.wipe_disk(node);
        } else {
            self.cluster.restore_disk(node);
        }
        self.restart_later(node, &mut prng);
    }
    async fn bring_the_outsider(self: Rc<Self>) {
        self.cluster.start_outsider();
    }
    async fn start_the_failed(self: Rc<Self>) {
        for node in 0..self.cluster.node_count() {
            if self.cluster.failed_by_itself(node) {
                self.cluster.start(node);
            }
        }
    }
}
