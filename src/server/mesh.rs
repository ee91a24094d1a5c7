//! Between the cores of one node: a queue from each core to each other, one writer and one reader, without a lock.
//!
//! Messages are the frames that would go over a socket, their values shared instead of copied. A core looks into its
//! queues once a turn of its ring; a writer rings the bell of a reader that sleeps. When a queue is full, what follows
//! waits on the writer's side, up to a bound in bytes; beyond it messages are dropped and counted.

use super::{
    latency::Report,
    ring::{Bell, Company},
};
use crate::{
    limits::{MESH_QUEUE_MESSAGES, PEER_QUEUE_BYTES_MAX},
    types::{Key, ShardId},
    wire::Pieces,
};
use glommio::channels::spsc_queue::{self, Consumer, Producer};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

/// What one core says to another.
pub enum Parcel {
    /// A protocol message.
    Frame(Pieces),
    /// Tell me your figures.
    ReportWanted {
        from: ShardId,
    },
    Report(Box<Report>),
    /// What of a key, or of all there is, is compared soon.
    Repair {
        key: Option<Key>,
    },
}

impl Parcel {
    fn bytes(&self) -> usize {
        match self {
            Parcel::Frame(pieces) => pieces.bytes(),
            Parcel::ReportWanted { .. } => 0,
            Parcel::Report(_) => size_of::<Report>(),
            Parcel::Repair { key } => key.as_ref().map_or(0, |key| key.as_bytes().len()),
        }
    }
}

/// One core's ends of all queues, made before the cores start.
pub struct MeshEnds {
    shard: ShardId,
    to: Vec<Option<Producer<Parcel>>>,
    from: Vec<Consumer<Parcel>>,
}

/// The queues between `shards` cores: the ends of core k at place k.
pub fn ends(shards: u16) -> Vec<MeshEnds> {
    let mut all: Vec<MeshEnds> =
        (0..shards).map(|k| MeshEnds { shard: ShardId(k), to: Vec::new(), from: Vec::new() }).collect();
    for writer in 0..usize::from(shards) {
        for reader in 0..usize::from(shards) {
            if writer == reader {
                all[writer].to.push(None);
                continue;
            }
            let (producer, consumer) = spsc_queue::make(MESH_QUEUE_MESSAGES);
            all[writer].to.push(Some(producer));
            all[reader].from.push(consumer);
        }
    }
    all
}

struct Outgoing {
    producer: Producer<Parcel>,
    bell: Bell,
    /// What found the queue full, in order.
    overflow: RefCell<VecDeque<Parcel>>,
    overflow_bytes: Cell<usize>,
    /// Something was put into the queue since the bell was last rung.
    touched: Cell<bool>,
}

/// One core's side of the mesh.
pub struct Mesh {
    pub shard: ShardId,
    to: Vec<Option<Outgoing>>,
    from: Vec<Consumer<Parcel>>,
    /// Queues with overflow or an unrung bell may exist.
    busy: Cell<bool>,
    dropped: Cell<u64>,
}

impl Mesh {
    /// `bells`: of all cores, by shard.
    pub fn new(ends: MeshEnds, bells: &[Bell]) -> Rc<Mesh> {
        let outgoing = |(k, producer): (usize, Option<Producer<Parcel>>)| {
            producer.map(|producer| Outgoing {
                producer,
                bell: bells[k].clone(),
                overflow: RefCell::default(),
                overflow_bytes: Cell::new(0),
                touched: Cell::new(false),
            })
        };
        Rc::new(Mesh {
            shard: ends.shard,
            to: ends.to.into_iter().enumerate().map(outgoing).collect(),
            from: ends.from,
            busy: Cell::new(false),
            dropped: Cell::new(0),
        })
    }

    /// Messages that were dropped because a queue and its overflow were full.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Other cores of this node.
    pub fn others(&self) -> impl Iterator<Item = ShardId> {
        self.to.iter().enumerate().filter(|(_, to)| to.is_some()).map(|(k, _)| ShardId(k as u16))
    }

    /// Puts a parcel on its way. Bells are rung once a turn ([`Mesh::flush`]).
    pub fn send(&self, to: ShardId, parcel: Parcel) {
        let Some(Some(outgoing)) = self.to.get(usize::from(to.0)) else {
            self.dropped.set(self.dropped.get() + 1);
            return;
        };
        self.busy.set(true);
        let mut overflow = outgoing.overflow.borrow_mut();
        let parcel = if overflow.is_empty() {
            outgoing.touched.set(true);
            match outgoing.producer.try_push(parcel) {
                None => return,
                Some(back) => back,
            }
        } else {
            parcel
        };
        let bytes = outgoing.overflow_bytes.get() + parcel.bytes();
        if bytes > PEER_QUEUE_BYTES_MAX {
            self.dropped.set(self.dropped.get() + 1);
            return;
        }
        outgoing.overflow_bytes.set(bytes);
        overflow.push_back(parcel);
    }

    /// Moves overflow into the queues as far as it goes, and rings the bells of those who got something.
    pub fn flush(&self) {
        if !self.busy.replace(false) {
            return;
        }
        for outgoing in self.to.iter().flatten() {
            let mut overflow = outgoing.overflow.borrow_mut();
            while let Some(parcel) = overflow.pop_front() {
                let bytes = parcel.bytes();
                if let Some(back) = outgoing.producer.try_push(parcel) {
                    overflow.push_front(back);
                    self.busy.set(true);
                    break;
                }
                outgoing.touched.set(true);
                outgoing.overflow_bytes.set(outgoing.overflow_bytes.get() - bytes);
            }
            if outgoing.touched.replace(false) {
                outgoing.bell.ring();
            }
        }
    }

    /// The next parcel from any core.
    pub fn take(&self) -> Option<Parcel> {
        self.from.iter().find_map(Consumer::try_pop)
    }
}

/// The mesh and its receiver as the ring's company.
pub struct MeshTurn<F> {
    pub mesh: Rc<Mesh>,
    /// Takes one parcel in.
    pub receive: F,
    /// A parcel that was found when the core was about to sleep.
    pub held: RefCell<Option<Parcel>>,
}

/// Parcels that one turn takes in.
const PARCELS_PER_TURN: usize = 256;

impl<F: Fn(Option<Parcel>)> Company for MeshTurn<F> {
    fn turn(&self) -> usize {
        // `None` tells the receiver that a turn has passed.
        (self.receive)(None);
        let mut came = 0;
        while came < PARCELS_PER_TURN {
            let held = self.held.borrow_mut().take();
            let Some(parcel) = held.or_else(|| self.mesh.take()) else { break };
            came += 1;
            (self.receive)(Some(parcel));
        }
        self.mesh.flush();
        came
    }
    fn quiet(&self) -> bool {
        // What was sent since the turn must not wait for the next one.
        self.mesh.flush();
        let mut held = self.held.borrow_mut();
        if held.is_none() {
            *held = self.mesh.take();
        }
        held.is_none() && !self.mesh.busy.get()
    }
}
