//! Leases spoiled on the disk, between two lives of a core.

use super::super::{cluster::Cluster, executor::Life};
use crate::{
    driver::identity::Identity,
    engine::{
        Engine, Opened,
        disk::Disk,
        error::EngineError,
        types::{Change, Durability, EngineOptions, Want, Write},
    },
    protocol::{
        replica::{LeaseRecord, keys},
        ring::Placement,
    },
    types::ShardId,
};
use std::rc::Rc;

/// How many dots a lease that was left in good order is too small.
const SHORT_BY: u64 = 3;

impl Cluster {
    /// Lets the leases that a stop in good order has left begin too early.
    pub(in crate::sim) async fn shorten_leases<D: Disk>(
        &self,
        process: Life,
        disk: Rc<D>,
        shard: ShardId,
        (identity, options): (&Identity, EngineOptions),
    ) -> Result<(), EngineError> {
        let slices = Placement::new(&identity.tokens, identity.slices, identity.shards).slices_of(shard);
        let Opened { engine, background } = Engine::open(disk, shard, &slices, options).await?;
        background.into_iter().for_each(|(_, task)| self.executor.spawn_boxed(process, task));
        let mut writes = Vec::new();
        for slice in slices {
            let Ok(Some(record)) = engine.get(slice, &keys::lease_key(), Want::Head).await else { continue };
            let Some(lease) = keys::parse_lease(&record.head).filter(|lease| lease.clean) else { continue };
            let short = LeaseRecord { ceiling: lease.ceiling.saturating_sub(SHORT_BY).max(1), ..lease };
            self.count(|c| c.planted += 1);
            let change = Change::Put { head: keys::lease_head(short), values: Default::default() };
            writes.push(Write { slice, key: keys::lease_key(), change });
        }
        engine.write(writes, Durability::Sync).await?;
        engine.close().await
    }
}
