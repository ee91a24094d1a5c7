//! `inspect`: what a file of a data directory holds, with every checksum verified.
//!
//! The engine's own readers do the work, over [`FileDisk`]: ordinary blocking reads, no writes. So a file can be looked
//! at on a machine that could not run a node, and while a node runs.

use super::{Stop, output};
use crate::engine::{
    disk::{Disk, DiskFile, Lane, OpenMode, PageBuffer, Space, Sync},
    error::EngineError,
    inspect, table,
};
use clap::{Args, ValueEnum};
use futures_util::FutureExt;
use std::{
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

pub const EXAMPLE: &str = "Exit code 1 when anything is damaged.\n\n\
    Example:\n  dynarc inspect wal dynarc-dev/n1/log/0000000000000001.seg\n  dynarc inspect manifest dynarc-dev/n1/slices/0000/MANIFEST";

#[derive(Clone, Copy, ValueEnum)]
enum FileKind {
    /// A segment of the log
    #[value(alias = "segment")]
    Wal,
    /// An SSTable
    Table,
    /// The list of a slice's tables
    Manifest,
}

#[derive(Args)]
pub struct InspectArgs {
    kind: FileKind,
    /// A file in a data directory
    file: PathBuf,
    /// Print JSON: an array of lines
    #[arg(long)]
    json: bool,
}

/// Reads files below a directory with blocking calls; refuses to change anything.
struct FileDisk {
    root: PathBuf,
}
struct ReadFile(File);

fn refused<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "inspect changes nothing"))
}

impl Disk for FileDisk {
    type File = ReadFile;
    async fn open(&self, path: &str, mode: OpenMode) -> io::Result<Rc<ReadFile>> {
        match mode {
            OpenMode::Read => File::open(self.root.join(path)).map(|f| Rc::new(ReadFile(f))),
            OpenMode::Write | OpenMode::Create => refused(),
        }
    }
    async fn list(&self, directory: &str) -> io::Result<Vec<(String, u64)>> {
        let entries = match fs::read_dir(self.root.join(directory)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let line = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            let (name, meta) = (entry.file_name().to_string_lossy().into_owned(), entry.metadata()?);
            Ok(if meta.is_dir() { (name + "/", 0) } else { (name, meta.len()) })
        };
        entries.map(line).collect()
    }
    async fn create_dir(&self, _: &str) -> io::Result<()> {
        refused()
    }
    async fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        refused()
    }
    async fn remove(&self, _: &str) -> io::Result<()> {
        refused()
    }
    async fn sync_dir(&self, _: &str) -> io::Result<()> {
        refused()
    }
    fn space(&self) -> io::Result<Space> {
        refused()
    }
    async fn pause(&self, _: Duration) {}
    async fn breathe(&self) {}
}

impl DiskFile for ReadFile {
    async fn read(&self, offset: u64, bytes: usize, lane: Lane) -> io::Result<PageBuffer> {
        // Checked before the buffer is made: a damaged length asks for anything.
        if offset.saturating_add(bytes as u64) > self.len()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (buffer, result) = self.read_into(offset, PageBuffer::zeroed(bytes), 0..bytes, lane).await;
        result.map(|()| buffer)
    }
    async fn read_into(
        &self,
        offset: u64,
        mut buffer: PageBuffer,
        range: Range<usize>,
        _: Lane,
    ) -> (PageBuffer, io::Result<()>) {
        let result = self.0.read_exact_at(&mut buffer.as_mut_slice()[range], offset);
        (buffer, result)
    }
    async fn write(&self, _: u64, buffer: PageBuffer, _: Sync, _: Lane) -> (PageBuffer, io::Result<()>) {
        (buffer, refused())
    }
    async fn sync(&self) -> io::Result<()> {
        refused()
    }
    async fn allocate(&self, _: u64) -> io::Result<()> {
        refused()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.metadata().map(|m| m.len())
    }
}

pub fn run(args: InspectArgs) -> Result<(), Stop> {
    let (root, path) = place(args.kind, &args.file)?;
    let disk = FileDisk { root };
    let mut lines = Vec::new();
    let mut print = |line: String| {
        if args.json {
            lines.push(line);
        } else {
            // When nobody reads on, what the exit code will be is still worth finding out.
            let _ = writeln!(io::stdout(), "{line}");
        }
    };
    // Nothing in a FileDisk ever waits, so one poll runs to the end.
    let damaged = async {
        match args.kind {
            FileKind::Wal => inspect::wal(&disk, &path, &mut print).await.map(|v| v.damaged),
            FileKind::Manifest => inspect::manifest(&disk, &path, &mut print).await.map(|v| v.damaged),
            FileKind::Table => table::inspect::table(&disk, &path, &mut print).await.map(|_| 0),
        }
    };
    let damaged = damaged.now_or_never();
    if args.json {
        output::print_json(&lines)?;
    }
    match damaged.unwrap_or_else(|| Err(EngineError::Failed("the reader waits for nothing".into()))) {
        Ok(0) => Ok(()),
        Ok(damaged) => Err(Stop::failed(format!("{path}: {damaged} damaged places"))),
        Err(error) => Err(Stop::failed(error.to_string())),
    }
}

/// The data directory and the file's path in it: the engine's readers check that a file is where it says that it is.
fn place(kind: FileKind, file: &Path) -> Result<(PathBuf, String), Stop> {
    let file = file.canonicalize().map_err(|e| Stop::failed(format!("{}: {e}", file.display())))?;
    let depth = match kind {
        FileKind::Wal => 2,
        FileKind::Table | FileKind::Manifest => 3,
    };
    let root = file.ancestors().nth(depth).unwrap_or(Path::new("/"));
    let path = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
    Ok((root.to_owned(), path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PAGE;

    #[test]
    fn a_file_is_known_by_its_place() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("slices/0004")).expect("made");
        let file = root.path().join("slices/0004/MANIFEST");
        fs::write(&file, "").expect("written");
        let found = place(FileKind::Manifest, &file).expect("found");
        assert_eq!(found, (root.path().canonicalize().expect("real"), "slices/0004/MANIFEST".into()));
        assert!(place(FileKind::Table, &root.path().join("missing")).is_err());
    }

    #[test]
    fn reads_are_bounded_by_the_file() {
        let root = tempfile::tempdir().expect("a directory");
        fs::write(root.path().join("f"), vec![7; PAGE + 1]).expect("written");
        let disk = FileDisk { root: root.path().to_owned() };
        let run = async {
            let file = disk.open("f", OpenMode::Read).await?;
            assert_eq!(file.read(0, PAGE, Lane::Background).await?.as_slice(), [7; PAGE]);
            assert!(file.read(0, 2 * PAGE, Lane::Background).await.is_err());
            assert!(file.read(0, usize::MAX / 2, Lane::Background).await.is_err());
            assert!(disk.open("g", OpenMode::Create).await.is_err());
            io::Result::Ok(())
        };
        assert!(run.now_or_never().expect("never waits").is_ok());
        let damaged = root.path().join("f");
        let args = |kind| InspectArgs { kind, file: damaged.clone(), json: false };
        for kind in [FileKind::Wal, FileKind::Table, FileKind::Manifest] {
            assert!(super::run(args(kind)).is_err_and(|stop| !stop.line.is_empty()));
        }
    }
}
