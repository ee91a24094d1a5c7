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
    Example:\n  dynarc inspect wal dynarc-dev/n1\n  dynarc inspect manifest dynarc-dev/n1/slices/0000";

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
    /// A file in a data directory, or a directory: all files of the kind below it
    path: PathBuf,
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
    let mut lines = Vec::new();
    let mut print = |line: String| {
        if args.json {
            lines.push(line);
        } else {
            // When nobody reads on, what the exit code will be is still worth finding out.
            let _ = writeln!(io::stdout(), "{line}");
        }
    };
    let mut broken: Vec<Stop> = Vec::new();
    for file in args.kind.files(&args.path)? {
        broken.extend(one(args.kind, &file, &mut print).err());
    }
    if args.json {
        output::print_json(&lines)?;
    }
    match broken.len() {
        0 => Ok(()),
        1 => Err(broken.swap_remove(0)),
        many => {
            broken.iter().for_each(|stop| output::tell(format!("dynarc: {stop}")));
            Err(Stop::failed(format!("{many} files are damaged")))
        }
    }
}

fn one(kind: FileKind, file: &Path, print: &mut impl FnMut(String)) -> Result<(), Stop> {
    let (root, path) = place(kind, file)?;
    let disk = FileDisk { root };
    // Nothing in a FileDisk ever waits, so one poll runs to the end.
    let damaged = async {
        match kind {
            FileKind::Wal => inspect::wal(&disk, &path, print).await.map(|v| v.damaged),
            FileKind::Manifest => inspect::manifest(&disk, &path, print).await.map(|v| v.damaged),
            FileKind::Table => table::inspect::table(&disk, &path, print).await.map(|_| 0),
        }
    };
    match damaged.now_or_never().unwrap_or_else(|| Err(EngineError::Failed("the reader waits for nothing".into()))) {
        Ok(0) => Ok(()),
        Ok(damaged) => Err(Stop::failed(format!("{path}: {damaged} damaged places"))),
        Err(error) => Err(Stop::failed(error.to_string())),
    }
}

/// Directories below the one that is named in which files are looked for: `DIR/slices/0000`.
const DEPTH_MAX: usize = 2;
/// Files that are named when the one that was asked for is not there.
const NAMED_MAX: usize = 5;

impl FileKind {
    fn is_named(self, name: &str) -> bool {
        match self {
            FileKind::Wal => name.ends_with(".seg"),
            FileKind::Table => name.ends_with(".sst"),
            FileKind::Manifest => name == "MANIFEST",
        }
    }
    fn name(self) -> &'static str {
        match self {
            FileKind::Wal => "segments of a log (*.seg)",
            FileKind::Table => "tables (*.sst)",
            FileKind::Manifest => "manifests (MANIFEST)",
        }
    }
    /// The file itself, or all of this kind below a directory, in order.
    fn files(self, path: &Path) -> Result<Vec<PathBuf>, Stop> {
        if path.is_dir() {
            let found = self.below(path);
            let none = || Stop::failed(format!("{}: there are no {} below it", path.display(), self.name()));
            return if found.is_empty() { Err(none()) } else { Ok(found) };
        }
        match fs::metadata(path) {
            Ok(_) => Ok(vec![path.to_owned()]),
            Err(e) => Err(Stop::failed(format!("{}: {e}{}", path.display(), self.others(path)))),
        }
    }
    /// Names of files that are there, for one that is not.
    fn others(self, path: &Path) -> String {
        let near = path.ancestors().skip(1).find(|directory| directory.is_dir()).map(|near| self.below(near));
        let all = near.unwrap_or_default();
        let named: Vec<String> = all.iter().take(NAMED_MAX).map(|found| found.display().to_string()).collect();
        if named.is_empty() { String::new() } else { format!("; there are {}", named.join(", ")) }
    }
    fn below(self, root: &Path) -> Vec<PathBuf> {
        let (mut found, mut directories) = (Vec::new(), vec![(root.to_owned(), 0)]);
        while let Some((directory, depth)) = directories.pop() {
            // What cannot be read holds nothing that could be shown.
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    if depth < DEPTH_MAX {
                        directories.push((path, depth + 1));
                    }
                } else if entry.file_name().to_str().is_some_and(|name| self.is_named(name)) {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
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
    fn a_directory_stands_for_its_files_and_a_wrong_name_is_told_the_right_ones() {
        let root = tempfile::tempdir().expect("a directory");
        let slices = ["slices/0000", "slices/0001"].map(|slice| root.path().join(slice));
        for slice in &slices {
            fs::create_dir_all(slice).expect("made");
            fs::write(slice.join("MANIFEST"), "").expect("written");
        }
        let manifests = slices.map(|slice| slice.join("MANIFEST"));
        assert_eq!(FileKind::Manifest.files(root.path()), Ok(manifests.to_vec()));
        assert_eq!(FileKind::Manifest.files(&manifests[1]), Ok(vec![manifests[1].clone()]));
        let none = FileKind::Wal.files(root.path()).expect_err("no log here");
        assert!(none.line.contains("no segments of a log"), "{none}");
        let wrong = FileKind::Manifest.files(&root.path().join("slices/0007/MANIFEST")).expect_err("no such file");
        assert!(wrong.line.contains("slices/0000/MANIFEST"), "{wrong}");
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
        let args = |kind| InspectArgs { kind, path: damaged.clone(), json: false };
        for kind in [FileKind::Wal, FileKind::Table, FileKind::Manifest] {
            assert!(super::run(args(kind)).is_err_and(|stop| !stop.line.is_empty()));
        }
    }
}
