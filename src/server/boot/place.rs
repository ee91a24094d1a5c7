//! Whether a data directory is still the one that the node left: a copy, or a restored backup, is not.
//!
//! The file `node/place` names itself: its inode and the time of its making. Whatever copies it makes another file, in
//! which that is not true. It is made anew after each start, so that an earlier state that is put back in its place
//! says something else, too.

use super::StartError;
use crate::{engine::disk::lacks_room, server::kernel};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    time::UNIX_EPOCH,
};

const PLACE: &str = "node/place";
const IDENTITY: &str = "node/identity";

/// What a file says of itself.
fn words(file: &File) -> io::Result<String> {
    let metadata = file.metadata()?;
    // Not every file system knows when a file was made.
    let made = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok(format!("inode {} made {}\n", metadata.ino(), made.map_or(0, |time| time.as_nanos())))
}

/// Whether the directory has been used, and not by a node that left it here.
pub(super) fn is_copy(data: &Path) -> Result<bool, StartError> {
    if !data.join(IDENTITY).exists() {
        return Ok(false);
    }
    let path = data.join(PLACE);
    let read = || -> io::Result<bool> { Ok(kernel::read_small(&path)? != words(&File::open(&path)?)?.as_bytes()) };
    match read() {
        // The first start was cut short before it was made.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        known => known.map_err(|e| StartError::Failed(format!("cannot read {}: {e}", path.display()))),
    }
}

/// From now on the directory is here.
pub(super) fn take(data: &Path) -> Result<(), StartError> {
    let (beside, path) = (data.join("node/place.new"), data.join(PLACE));
    let write = || -> io::Result<()> {
        match fs::remove_file(&beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = File::options().create_new(true).write(true).open(&beside)?;
        file.write_all(words(&file)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(data.join("node"))?.sync_all()
    };
    match write() {
        // A full disk, or a machine without descriptors, must not keep a node down; its next start counts as that of a
        // copy.
        Err(e) if lacks_room(&e) || kernel::lacks_descriptors(&e) => Ok(()),
        written => written.map_err(|e| StartError::Failed(format!("cannot write {}: {e}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_and_an_earlier_state_are_told_from_the_directory_itself() {
        let root = tempfile::tempdir_in(".").expect("a directory");
        let (data, copy) = (root.path().join("a"), root.path().join("b"));
        [&data, &copy].iter().for_each(|d| fs::create_dir_all(d.join("node")).expect("a directory"));
        assert!(!is_copy(&data).expect("readable"), "new");
        fs::write(data.join(IDENTITY), "x").expect("a file");
        assert!(!is_copy(&data).expect("readable"), "its first start was cut short");
        take(&data).expect("room");
        assert!(!is_copy(&data).expect("readable"));
        for name in [IDENTITY, PLACE] {
            fs::copy(data.join(name), copy.join(name)).expect("a copy");
        }
        assert!(is_copy(&copy).expect("readable"));
        // The next start, and then the earlier state in the same file.
        take(&data).expect("room");
        assert!(!is_copy(&data).expect("readable"));
        fs::write(data.join(PLACE), fs::read(copy.join(PLACE)).expect("a file")).expect("room");
        assert!(is_copy(&data).expect("readable"));
    }
}
