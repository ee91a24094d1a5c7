//! What survives a crash, planned faults, and time.

use super::*;
use crate::engine::disk::lacks_room;
use crate::sim::executor::block_on;

fn page(byte: u8) -> PageBuffer {
    let mut buffer = PageBuffer::zeroed(PAGE);
    buffer.as_mut_slice().fill(byte);
    buffer
}
async fn write(file: &VirtualFile, index: u64, byte: u8, sync: Sync) -> io::Result<()> {
    file.write(index * PAGE_BYTES, page(byte), sync, Lane::Log).await.1
}
/// First byte of each page.
fn bytes(disk: &VirtualDisk, path: &str) -> Vec<u8> {
    disk.contents(path).unwrap().iter().step_by(PAGE).copied().collect()
}

#[test]
fn a_crash_keeps_what_was_synced_and_only_that_for_sure() {
    let disk = VirtualDisk::new();
    block_on(async {
        let file = disk.open("a", OpenMode::Create).await.unwrap();
        write(&file, 0, 1, Sync::None).await.unwrap();
        write(&file, 1, 2, Sync::Data).await.unwrap();
        write(&file, 2, 3, Sync::None).await.unwrap();
        disk.sync_dir("").await.unwrap();
        assert_eq!(bytes(&disk, "a"), [1, 2, 3]);
    });
    let lost = disk.fork().crash_with(&mut Prng::new(1), |_| Keep::Nothing);
    assert_eq!(bytes(&lost, "a"), [0, 2]);
    let kept = disk.fork().crash_with(&mut Prng::new(1), |_| Keep::All);
    assert_eq!(bytes(&kept, "a"), [1, 2, 3]);
    assert_eq!(disk.pending(), 2);
    block_on(async {
        disk.open("a", OpenMode::Write).await.unwrap().sync().await.unwrap();
    });
    let synced = disk.crash_with(&mut Prng::new(1), |_| Keep::Nothing);
    assert_eq!(bytes(&synced, "a"), [1, 2, 3]);
}

#[test]
fn an_older_pending_write_never_overwrites_a_durable_one() {
    let disk = VirtualDisk::new();
    block_on(async {
        let file = disk.open("a", OpenMode::Create).await.unwrap();
        disk.sync_dir("").await.unwrap();
        write(&file, 0, 1, Sync::None).await.unwrap();
        write(&file, 0, 2, Sync::Data).await.unwrap();
    });
    assert_eq!(bytes(&disk.crash_with(&mut Prng::new(1), |_| Keep::All), "a"), [2]);
}

#[test]
fn names_need_a_sync_of_their_directory() {
    let disk = VirtualDisk::new();
    block_on(async {
        disk.create_dir("d/e").await.unwrap();
        disk.sync_dir("d").await.unwrap();
        disk.sync_dir("").await.unwrap();
        let file = disk.open("d/e/x", OpenMode::Create).await.unwrap();
        write(&file, 0, 1, Sync::Data).await.unwrap();
        disk.sync_dir("d/e").await.unwrap();
        disk.rename("d/e/x", "d/e/y").await.unwrap();
        assert_eq!(disk.list("d").await.unwrap(), [("e/".to_string(), 0)]);
        assert_eq!(disk.list("d/e").await.unwrap(), [("y".to_string(), PAGE_BYTES)]);
        assert_eq!(disk.list("missing").await.unwrap(), []);
    });
    let old = disk.fork().crash_with(&mut Prng::new(1), |_| Keep::Nothing);
    assert_eq!(old.files(), [("d/e/x".to_string(), PAGE_BYTES)]);
    block_on(disk.sync_dir("d/e")).unwrap();
    let new = disk.crash_with(&mut Prng::new(1), |_| Keep::Nothing);
    assert_eq!(new.files(), [("d/e/y".to_string(), PAGE_BYTES)]);
}

#[test]
fn writes_tear_at_sectors() {
    let disk = VirtualDisk::new();
    block_on(async {
        let file = disk.open("a", OpenMode::Create).await.unwrap();
        disk.sync_dir("").await.unwrap();
        write(&file, 0, 7, Sync::None).await.unwrap();
    });
    let torn = disk.crash_with(&mut Prng::new(3), |_| Keep::Sectors);
    let content = torn.contents("a").unwrap();
    let sectors: Vec<bool> = content.chunks(SECTOR).map(|s| s.iter().all(|b| *b == 7)).collect();
    assert!(content.chunks(SECTOR).all(|s| s.iter().all(|b| *b == s[0])));
    assert!(sectors.contains(&true) && sectors.contains(&false), "{sectors:?}");
    assert_eq!(torn.counts().torn_writes, 1);
}

#[test]
fn a_stopped_machine_answers_nothing_until_its_next_life() {
    let disk = VirtualDisk::new();
    let file = block_on(disk.open("a", OpenMode::Create)).unwrap();
    block_on(disk.sync_dir("")).unwrap();
    disk.plan(disk.ios() + 1, Fault::Stop);
    block_on(write(&file, 0, 1, Sync::Data)).unwrap();
    let executor = Executor::new();
    assert!(executor.try_block_on(write(&file, 1, 2, Sync::Data)).is_none());
    assert!(disk.stopped() && executor.try_block_on(file.sync()).is_none());
    let next = disk.crash_with(&mut Prng::new(1), |_| Keep::All);
    assert!(executor.try_block_on(file.sync()).is_none(), "a handle of the former life");
    let again = block_on(next.open("a", OpenMode::Write)).unwrap();
    assert_eq!(bytes(&next, "a"), [1, 2]);
    block_on(write(&again, 2, 3, Sync::Data)).unwrap();
}

#[test]
fn planned_faults_space_and_flips() {
    let disk = VirtualDisk::new();
    let file = block_on(disk.open("a", OpenMode::Create)).unwrap();
    disk.plan(disk.ios(), Fault::Error);
    assert!(block_on(write(&file, 0, 1, Sync::Data)).is_err());
    disk.plan(disk.ios(), Fault::ShortWrite);
    let two = PageBuffer::zeroed(2 * PAGE);
    assert_eq!(block_on(file.write(0, two, Sync::Data, Lane::Log)).1.unwrap_err().kind(), io::ErrorKind::WriteZero);
    assert_eq!(file.len().unwrap(), PAGE_BYTES);
    disk.set_capacity(Some(2 * PAGE_BYTES));
    block_on(write(&file, 1, 1, Sync::Data)).unwrap();
    assert!(lacks_room(&block_on(write(&file, 2, 1, Sync::Data)).unwrap_err()));
    assert_eq!(disk.space().unwrap(), Space { total: 2 * PAGE_BYTES, available: 0 });
    assert_eq!(
        block_on(file.read(PAGE_BYTES, 2 * PAGE, Lane::Log)).err().unwrap().kind(),
        io::ErrorKind::UnexpectedEof
    );
    disk.flip_bit("a", PAGE_BYTES, 1);
    assert_eq!(bytes(&disk, "a"), [0, 3]);
    let before = disk.snapshot();
    block_on(write(&file, 0, 9, Sync::Data)).unwrap();
    assert_eq!(bytes(&disk.restore(&before), "a"), [0, 3]);
    block_on(disk.reopen().create_dir("node")).unwrap();
    block_on(disk.reopen().open("node/name", OpenMode::Create)).unwrap();
    assert_eq!(disk.wipe("node").files(), [("node/name".to_string(), 0)]);
    assert_eq!(disk.wipe("").files(), []);
}

#[test]
fn latency_is_virtual() {
    let (disk, executor) = (VirtualDisk::new(), Executor::new());
    disk.set_clock(&executor, |access, _| match access {
        Access::WriteDurable(_) => Duration::from_millis(3),
        _ => Duration::ZERO,
    });
    let start = executor.now();
    executor.block_on(async {
        let file = disk.open("a", OpenMode::Create).await.unwrap();
        write(&file, 0, 1, Sync::Data).await.unwrap();
    });
    assert_eq!(executor.now().since(start), Duration::from_millis(3));
}
