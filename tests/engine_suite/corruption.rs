//! Bits flip and files are cut: what is read is right, or an error says so.

use crate::rig::{KEYS, Place, Rig, SLICES, Workload, key, tiny};
use dynarc::{
    engine::{
        error::EngineError,
        inspect,
        types::{Change, Record},
    },
    sim::{
        disk::VirtualDisk,
        executor::{Executor, Life, block_on},
    },
};
use std::collections::BTreeMap;

/// A directory with tables, manifests, sealed and open segments; what is current, and all that ever was.
struct Sample {
    disk: VirtualDisk,
    current: BTreeMap<Place, Record>,
    ever: BTreeMap<Place, Vec<Record>>,
}

fn sample(seed: u64, close: bool) -> Sample {
    let rig = Rig::open(VirtualDisk::new(), tiny());
    let mut work = Workload::new(seed);
    let (mut current, mut ever): (BTreeMap<_, _>, BTreeMap<Place, Vec<Record>>) = Default::default();
    for _ in 0..60 {
        let call = work.call();
        assert_eq!(rig.write(call.clone()), Some(Ok(())));
        for write in call {
            let place = (write.slice.0, write.key.to_vec());
            match write.change {
                Change::Delete => drop(current.remove(&place)),
                Change::Put { head, values } => {
                    let record = Record { head, values };
                    ever.entry(place.clone()).or_default().push(record.clone());
                    current.insert(place, record);
                }
            }
        }
    }
    rig.rest();
    let disk = if close { rig.close() } else { rig.kill() };
    Sample { disk: disk.kill(), current, ever }
}

/// Opens a spoiled copy and reads everything.
fn judge(sample: &Sample, spoiled: VirtualDisk, note: &str) -> bool {
    let executor = Executor::new();
    let rig = match Rig::try_open(spoiled, executor.clone(), tiny()) {
        Some(Ok(rig)) => rig,
        Some(Err(EngineError::Full)) | None => panic!("{note}: opening"),
        Some(Err(_)) => return true,
    };
    let mut told = !rig.engine.damage().is_empty();
    let mut wrong = Vec::new();
    for slice in 0..SLICES {
        for number in 0..KEYS {
            let place = (slice, key(number));
            match rig.get(&place) {
                Some(Ok(found)) if found.as_ref() == sample.current.get(&place) => {}
                Some(Ok(found)) => wrong.push((place, found)),
                Some(Err(EngineError::Damaged(_))) => told = true,
                other => panic!("{note}: slice {slice} key {number}: {other:?}"),
            }
        }
    }
    // Where damage was told, older records may show; never bytes that nobody wrote.
    for (place, found) in wrong {
        let ever = sample.ever.get(&place);
        assert!(told, "{note}: {place:?} is wrong and nothing was said");
        assert!(found.is_none_or(|record| ever.is_some_and(|all| all.contains(&record))), "{note}: {place:?}");
    }
    executor.kill(Life(1));
    told
}

fn files_of(sample: &Sample) -> Vec<(String, u64)> {
    let ours = |path: &str| path.starts_with("log/") || path.ends_with("MANIFEST");
    sample.disk.files().into_iter().filter(|(path, _)| ours(path)).collect()
}

#[test]
fn a_flipped_bit_is_never_served() {
    let mut told = 0;
    for (seed, close) in [(1, true), (2, false)] {
        let sample = sample(seed, close);
        for (path, length) in files_of(&sample) {
            let bytes = sample.disk.contents(&path).expect("a file");
            let mut used: Vec<u64> = (0..length).filter(|at| bytes[*at as usize] != 0).collect();
            used.extend((0..length).step_by(1021));
            // Every byte of the first pages, then samples.
            let dense = used.iter().filter(|at| **at < 400 || (4096..4300).contains(*at)).step_by(7);
            let sparse = used.iter().filter(|at| **at >= 400).step_by(331);
            for at in dense.chain(sparse) {
                let spoiled = sample.disk.fork();
                spoiled.flip_bit(&path, *at, (*at % 8) as u8);
                told += u64::from(judge(&sample, spoiled, &format!("seed {seed} {path} bit flip at {at}")));
            }
        }
    }
    assert!(told > 100, "too little damage was told: {told}");
}

#[test]
fn a_cut_file_is_told() {
    for (seed, close) in [(3, true), (4, false)] {
        let sample = sample(seed, close);
        for (path, length) in files_of(&sample) {
            let bytes = sample.disk.contents(&path).expect("a file");
            // A segment of no bytes is one that was being made when the machine stopped.
            for cut in (4096..length).step_by(4096) {
                let spoiled = sample.disk.fork();
                spoiled.replace(&path, &bytes[..cut as usize]);
                judge(&sample, spoiled, &format!("seed {seed} {path} cut at {cut}"));
            }
        }
    }
}

#[test]
fn inspection_verifies_what_is_whole_and_finds_what_is_not() {
    let sample = sample(7, true);
    for (path, _) in files_of(&sample) {
        let look = |disk: &VirtualDisk| {
            let mut lines = Vec::new();
            let mut print = |line: String| lines.push(line);
            let verified = if path.starts_with("log/") {
                block_on(inspect::wal(disk, &path, &mut print))
            } else {
                block_on(inspect::manifest(disk, &path, &mut print))
            };
            (verified, lines)
        };
        let (verified, lines) = look(&sample.disk);
        assert_eq!(verified.as_ref().map(|v| v.damaged), Ok(0), "{path}");
        assert!(lines.len() > 1, "{path}: {lines:?}");
        let bytes = sample.disk.contents(&path).expect("a file");
        let used = (4096 * 2..bytes.len()).find(|at| bytes[*at] != 0);
        if let (Some(at), true) = (used, verified.is_ok_and(|v| v.records > 0)) {
            let spoiled = sample.disk.fork();
            spoiled.flip_bit(&path, at as u64 + 30, 3);
            let (verified, lines) = look(&spoiled);
            assert!(verified.is_ok_and(|v| v.damaged > 0) || path.contains("slices"), "{path} {lines:?}");
        }
    }
}
