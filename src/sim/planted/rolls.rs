//! Rolls of the log spoiled on the disk, between two lives of a node.

use super::super::cluster::Cluster;
use crate::{
    engine::{
        disk::Disk,
        error::EngineError,
        wal::{
            roll,
            segment::{self, DIRECTORY},
        },
    },
    types::ShardId,
};

impl Cluster {
    /// Takes from every roll what it proves: that files must be there, and up to where each must be whole.
    pub(in crate::sim) async fn unprove_ends<D: Disk>(&self, disk: &D) -> Result<(), EngineError> {
        let names = disk.list(DIRECTORY).await?;
        let present = |id: &u64| names.iter().any(|(name, _)| segment::id_of(name) == Some(*id));
        for (name, _) in &names {
            let Some(shard) = name.strip_prefix("roll-").and_then(|number| u16::from_str_radix(number, 16).ok()) else {
                continue;
            };
            let path = roll::path(ShardId(shard));
            let Ok(Some((file, mut roll))) = roll::read(disk, &path).await else { continue };
            roll.segments.retain(|id, _| present(id));
            roll.segments.values_mut().for_each(|entry| entry.end = 0);
            roll.serial += 1;
            let copy_bytes = roll::copy_bytes(&*file)?;
            roll::write_anew(disk, &path, &roll, copy_bytes).await?;
            self.count(|c| c.planted += 1);
        }
        Ok(())
    }
}
