//! Streams on engines that block: a thread for each worker.

use crate::{
    Fallible,
    records::{self, Records},
    work::{Action, Looks, Outcome, Progress, Work, histogram},
};
use bytes::Bytes;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

/// What a peer can do, from any thread.
pub trait Peer: Sync {
    fn put(&self, key: &[u8], record: &[u8], durable: bool) -> Fallible<()>;
    /// Bytes of the record.
    fn get(&self, key: &[u8]) -> Fallible<Option<usize>>;
    /// Whether background work waits or runs.
    fn backlogged(&self) -> bool;
}

pub fn run(peer: &impl Peer, records: &Records, work: &Work) -> Fallible<Vec<Outcome>> {
    let start = Instant::now();
    let crews: Vec<Progress> = work.streams.iter().map(|s| Progress::new(s, work.limit, start)).collect();
    let (looks, over) = (Looks::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        let labours: Vec<_> = crews
            .iter()
            .map(|crew| -> Vec<_> {
                (0..crew.stream.workers).map(|_| scope.spawn(move || labour(peer, records, crew))).collect()
            })
            .collect();
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                looks.note(peer.backlogged());
                thread::sleep(Looks::PAUSE);
            }
        });
        let mut outcomes = Vec::new();
        for (crew, labours) in crews.iter().zip(labours) {
            let mut latency = histogram();
            for labour in labours {
                let ended = labour.join().map_err(|_| "a worker has panicked".to_string());
                match ended.flatten() {
                    Ok(own) => latency.add(own).expect("bounds are equal"),
                    Err(error) => {
                        crews.iter().for_each(Progress::stop);
                        over.store(true, Ordering::Relaxed);
                        return Err(error.into());
                    }
                }
            }
            outcomes.push((crew, latency));
        }
        over.store(true, Ordering::Relaxed);
        Ok(outcomes.into_iter().map(|(crew, latency)| crew.outcome(latency, looks.share())).collect())
    })
}

fn labour(peer: &impl Peer, records: &Records, crew: &Progress) -> Result<hdrhistogram::Histogram<u64>, String> {
    let mut latency = histogram();
    let text = |error: Box<dyn std::error::Error>| error.to_string();
    while let Some(step) = crew.next() {
        let mut begun = Instant::now();
        if let Some(due) = step.due {
            if due > begun {
                thread::sleep(due - begun);
            }
            begun = due;
        }
        let key = records::key(step.key);
        match crew.stream.action {
            Action::Put { version, durable } => {
                let record: Bytes = records.record(step.key, version);
                peer.put(&key, &record, durable).map_err(text)?;
            }
            Action::Get => {
                let bytes = peer.get(&key).map_err(text)?.unwrap_or(0);
                if bytes != records.record_bytes() {
                    return Err(format!("key {} has {bytes} bytes", step.key));
                }
            }
        }
        let now = Instant::now();
        crew.acknowledged(now);
        latency.saturating_record((now.saturating_duration_since(begun).as_nanos() as u64).max(1));
    }
    Ok(latency)
}
