//! What would begin anew, or could not be read again, ends in an error before. Segments and sequences of one life are
//! tested beside the log.

use crate::rig::{Rig, Workload, tiny};
use bytes::Bytes;
use dynarc::{
    engine::{
        disk::Disk,
        error::EngineError,
        manifest::{Change, Manifest},
        table::TableMeta,
        types::ENGINE_KEY_BYTES_MAX,
        wal::segment::{self, GENERATIONS},
    },
    limits::{MIB, PAGE},
    sim::{
        disk::VirtualDisk,
        executor::{Executor, block_on},
    },
    types::SliceId,
};

#[test]
fn a_directory_has_so_many_lives_and_no_more() {
    let disk = VirtualDisk::new();
    let last = GENERATIONS - GENERATIONS / 16 - 1;
    disk.make(&segment::path((last - 1) << 40 | 1 << 16), &[1; PAGE]);
    let rig = Rig::open(disk, tiny());
    assert_eq!(rig.write(Workload::new(1).call()), Some(Ok(())));
    match Rig::try_open(rig.kill(), Executor::new(), tiny()) {
        Some(Err(EngineError::Failed(why))) => assert!(why.contains("foreign file"), "{why}"),
        other => panic!("{:?}", other.map(|opened| opened.err())),
    }
}

#[test]
fn a_manifest_that_could_not_be_read_again_is_not_written() {
    const SLICE: SliceId = SliceId(1);
    let table = |id: u64| TableMeta {
        id,
        slice: SLICE,
        level: 1,
        smallest: Bytes::from(vec![1; ENGINE_KEY_BYTES_MAX]),
        largest: Bytes::from(vec![2; ENGINE_KEY_BYTES_MAX]),
        entries: 3,
        deletes: 1,
        bytes: 4096,
        max_sequence: 99,
        value_bytes: 30_000,
    };
    let disk = VirtualDisk::new();
    for directory in ["slices", "slices/0001"] {
        block_on(disk.create_dir(directory)).expect("no faults");
    }
    let mut manifest = Manifest::<VirtualDisk>::empty(SLICE);
    let added = (8 * MIB / ENGINE_KEY_BYTES_MAX) as u64;
    let mut why = None;
    for first in (1..).step_by(added as usize).take(16) {
        let change = Change {
            added: (first..first + added).map(table).collect(),
            removed: Vec::new(),
            flushed_sequence: first,
            next_table: first + added,
            gained: Default::default(),
            lost: Default::default(),
        };
        match block_on(manifest.plan(&change).write(&disk)) {
            Ok((written, bytes)) => manifest.adopt(written, bytes),
            Err(error) => {
                why = Some(error);
                break;
            }
        }
    }
    assert!(matches!(&why, Some(EngineError::Failed(why)) if why.contains("too many tables")), "{why:?}");
    let again = block_on(Manifest::load(&disk, SLICE)).expect("the one before is there");
    assert!(again.state.tables.len() as u64 >= added);
    assert_eq!(again.state.tables.len(), manifest.state.tables.len());
}
