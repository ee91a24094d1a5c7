//! An ext4 file system on a loop device: mounted, unmounted, shut down.

use crate::wait;
use std::{
    fs::{self, File},
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// How the file system ends when its power is cut (linux/ext4: EXT4_IOC_SHUTDOWN).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Shutdown {
    /// Everything written so far is synced first.
    Whole = 0,
    /// The journal is written first, files' bytes are not.
    Journal = 1,
    /// What the journal has not committed is lost.
    Nothing = 2,
}

pub struct Volume {
    /// What the loop device lies on.
    backing: PathBuf,
    pub path: PathBuf,
    mounted: bool,
}

/// Runs a tool of the system; panics with what it says when it fails.
pub fn tool(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(name).args(arguments).output().unwrap_or_else(|e| panic!("{name}: {e}"));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} {arguments:?}: {} {said}", output.status);
    said
}

impl Volume {
    /// Makes a file system on this file (of so many bytes, if it has to be made) and mounts it at `path`.
    pub fn new(backing: &Path, path: &Path, bytes: Option<u64>) -> Volume {
        if let Some(bytes) = bytes {
            File::create(backing).and_then(|file| file.set_len(bytes)).expect("an image");
        }
        let shown = backing.to_str().expect("text");
        tool("mkfs.ext4", &["-q", "-F", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", shown]);
        fs::create_dir_all(path).expect("a place to mount at");
        let mut volume = Volume { backing: backing.into(), path: path.into(), mounted: false };
        volume.mount();
        volume
    }
    pub fn mount(&mut self) {
        assert!(!self.mounted);
        let (backing, path) = (self.backing.to_str().expect("text"), self.path.to_str().expect("text"));
        // The loop device goes with the mount.
        tool("mount", &["-o", "loop,noatime", "-t", "ext4", backing, path]);
        self.mounted = true;
    }
    /// Waits for whoever still holds it: a killed process is not gone at once.
    pub fn unmount(&mut self) {
        assert!(self.mounted);
        let path = self.path.to_str().expect("text").to_string();
        wait::until(Duration::from_secs(20), "the volume is unmounted", || {
            let output = Command::new("umount").arg(&path).output().map_err(|e| e.to_string())?;
            if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
        });
        self.mounted = false;
    }
    /// As if its power were cut: nothing is written any more, every access fails.
    pub fn shut_down(&self, how: Shutdown) {
        const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
        let flags = how as u32;
        let file = File::open(&self.path).expect("a mounted volume");
        // Safety: the kernel reads four bytes of a local variable.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const flags) };
        assert_eq!(result, 0, "EXT4_IOC_SHUTDOWN: {}", std::io::Error::last_os_error());
    }
    /// The file system itself is sound: what a test finds wrong is not its doing. Unmounted.
    pub fn check(&self) {
        assert!(!self.mounted);
        tool("e2fsck", &["-f", "-n", self.backing.to_str().expect("text")]);
    }
    /// Another program takes all the space that is left.
    pub fn take_all(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        let mut file = File::create(&path).expect("a file");
        for bytes in [1 << 20, 64 << 10, 4 << 10] {
            let block = vec![7; bytes];
            while file.write_all(&block).and_then(|()| file.sync_data()).is_ok() {}
        }
        path
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        }
    }
}
