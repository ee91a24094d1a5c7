//! A core without a node: an executor pinned like a shard's, its ring, and engines opened on directories, their
//! background work hosted as `serve` hosts it. No ports, no ring of members, no identity: for programs that want the
//! engine alone, and for measurements of it.
//!
//! Nothing guards the directory here: it must not be that of a running node, nor be open twice.

use super::core::{self, Urgency};
use crate::{
    engine::{Engine, error::EngineError, types::EngineOptions},
    server::{
        disk::RingDisk,
        options::ServeOptions,
        probe,
        ring::{Alone, Ring},
        ticker::Ticker,
    },
    types::{ShardId, SliceId},
};
use glommio::{Placement, TaskQueueHandle};
use std::{future::Future, io, path::Path, rc::Rc, time::Duration};

/// What a body of [`run`] has at hand. Cheap to clone; never leaves its core.
#[derive(Clone)]
pub struct EmbeddedCore {
    ring: Rc<Ring>,
    compaction: TaskQueueHandle,
    urgency: Rc<Urgency>,
}

impl EmbeddedCore {
    /// A directory, which must exist, as this core sees it. The first time the faster call of its drive for syncs is
    /// tried, up to a second long, and remembered in the directory.
    pub fn disk(&self, path: &Path) -> io::Result<RingDisk> {
        Ok(RingDisk::new(self.ring.clone(), path)?.syncing_by(probe::sync_call(path)?))
    }

    /// Opens the engine of these slices and hosts its background work until [`Engine::close`] or a failure. The part of
    /// the core that background work gets follows the backlog of the first engine opened.
    pub async fn open(
        &self,
        disk: Rc<RingDisk>,
        slices: &[SliceId],
        options: EngineOptions,
    ) -> Result<Engine<RingDisk>, EngineError> {
        let opened = Engine::open(disk.clone(), ShardId(0), slices, options).await?;
        core::host(&self.ring, self.compaction, opened.background).map_err(EngineError::Failed)?;
        self.ring.spawn(self.urgency.clone().follow(self.ring.clone(), opened.engine.clone(), disk));
        Ok(opened.engine)
    }

    /// Runs a task beside the others of this core.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.ring.spawn(task);
    }

    /// Ready after `duration`, a little later rather than earlier.
    pub async fn pause(&self, duration: Duration) {
        self.ring.pause(duration).await;
    }
}

/// Runs `body` on the calling thread as the only work of a core, pinned to `cpu` if there is one, until it ends.
/// Engines that it opened should be closed by then: what is in flight is abandoned. An error means that the kernel
/// allows no executor or no ring, or that the ring has failed.
pub fn run<F, T>(cpu: Option<usize>, body: impl FnOnce(EmbeddedCore) -> F + 'static) -> Result<T, String>
where
    F: Future<Output = T> + 'static,
    T: 'static,
{
    let placement = cpu.map_or(Placement::Unbound, Placement::Fixed);
    let options = ServeOptions::new("");
    let ticker = Ticker::start().map_err(core::text)?;
    let pulse = ticker.pulse();
    let turns = pulse.turns();
    let executor = super::executor(placement, &options, "embedded").make().map_err(core::text)?;
    executor.spawn(pulse.keep()).detach();
    let result = executor.run(async move {
        let (serving, compaction, urgency) = core::queues();
        let life = async move {
            let ring = Ring::new().map_err(core::text)?;
            ring.count_turns(turns);
            let driving = glommio::spawn_local(ring.clone().drive(Alone)).detach();
            let (ended, result) = glommio::channels::local_channel::new_bounded(1);
            let embedded = EmbeddedCore { ring: ring.clone(), compaction, urgency };
            let body = body(embedded);
            let stopper = ring.clone();
            ring.spawn(async move {
                // Nobody listens when the ring has failed.
                drop(ended.try_send(body.await));
                stopper.stop();
            });
            if let Some(Err(error)) = driving.await {
                return Err(core::text(error));
            }
            result.recv().await.ok_or_else(|| "the ring has stopped before its body ended".to_string())
        };
        glommio::spawn_local_into(life, serving).map_err(core::text)?.await
    });
    ticker.stop();
    result
}
