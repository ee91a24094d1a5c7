//! Counters for dots, leased durably in blocks for each slice before the first of a block is used.
//!
//! A restart begins above everything leased, so that no dot is minted twice whatever was lost between mint and sync.

use crate::{limits::DOT_LEASE, protocol::ring::FixedMap, types::SliceId};

#[derive(Clone, Copy, Debug)]
struct Lease {
    next: u64,
    /// Counters below are durably leased.
    ceiling: u64,
    /// A renewal to this ceiling is being stored.
    renewing: Option<u64>,
}

/// The leases of a shard's slices.
#[derive(Clone, Default, Debug)]
pub struct Leases(FixedMap<SliceId, Lease>);

impl Leases {
    /// `first` to `ceiling` (excluded) has been leased durably for this slice.
    pub fn insert(&mut self, slice: SliceId, first: u64, ceiling: u64) {
        self.0.insert(slice, Lease { next: first.max(1), ceiling, renewing: None });
    }
    /// The first counter that has not been leased: none at or above it was ever minted.
    pub fn ceiling(&self, slice: SliceId) -> u64 {
        self.0.get(&slice).map_or(0, |l| l.ceiling)
    }
    /// The next counter of the slice, above `floor`. `None` when the lease is used up and its renewal is not durable.
    pub fn mint(&mut self, slice: SliceId, floor: u64) -> Option<u64> {
        let lease = self.0.get_mut(&slice)?;
        let counter = lease.next.max(floor.checked_add(1)?);
        if counter >= lease.ceiling {
            return None;
        }
        lease.next = counter + 1;
        Some(counter)
    }
    /// The new ceiling to store when half of the block is used.
    pub fn renewal(&mut self, slice: SliceId) -> Option<u64> {
        let lease = self.0.get_mut(&slice)?;
        if lease.renewing.is_some() || lease.ceiling.saturating_sub(lease.next) > DOT_LEASE / 2 {
            return None;
        }
        lease.renewing = lease.ceiling.checked_add(DOT_LEASE);
        lease.renewing
    }
    pub fn renewed(&mut self, slice: SliceId, durable: bool) {
        let Some(lease) = self.0.get_mut(&slice) else { return };
        if let Some(ceiling) = lease.renewing.take()
            && durable
        {
            lease.ceiling = ceiling;
        }
    }
}
