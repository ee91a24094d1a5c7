//! The disk's two faces towards the engine: the directory tree and its open files.

use super::*;
use crate::limits::PROOF_PAUSE;
use std::ops::Range;

impl Disk for VirtualDisk {
    type File = VirtualFile;

    async fn open(&self, path: &str, mode: OpenMode) -> io::Result<Rc<VirtualFile>> {
        let path = clean(path);
        let begun = self.begin(Access::Open, 0).await;
        let found = match self.state.borrow().visible.get(&path) {
            Some(Node::File(file)) => Some(file.clone()),
            Some(Node::Directory) => return Err(io::Error::new(io::ErrorKind::IsADirectory, path)),
            None => None,
        };
        let failed = begun.error();
        let mut created = None;
        let inode = match (mode, found) {
            (OpenMode::Create, Some(_)) => Err(io::Error::new(io::ErrorKind::AlreadyExists, path.clone())),
            (OpenMode::Read | OpenMode::Write, None) => Err(not_found(&path)),
            (OpenMode::Read | OpenMode::Write, Some(file)) => Ok(file),
            (OpenMode::Create, None) => {
                let mut state = self.state.borrow_mut();
                let parent = parent(&path);
                if !parent.is_empty() && !matches!(state.visible.get(parent), Some(Node::Directory)) {
                    Err(not_found(parent))
                } else {
                    let file = File::default();
                    if failed.is_ok() {
                        let change = NameChange::Add { path: path.clone(), node: Node::File(file.clone()) };
                        created = Some(state.change_name(change));
                    }
                    Ok(file)
                }
            }
        };
        self.end(&begun).await;
        failed?;
        if let Some(number) = created {
            self.state.borrow_mut().complete_name(number);
        }
        let (writable, spared) = (mode != OpenMode::Read, path.starts_with("node/"));
        Ok(Rc::new(VirtualFile { disk: self.clone(), inode: inode?, writable, spared }))
    }

    async fn list(&self, directory: &str) -> io::Result<Vec<(String, u64)>> {
        let begun = self.begin(Access::List, 0).await;
        let prefix = match clean(directory) {
            root if root.is_empty() => root,
            directory => directory + "/",
        };
        let mut found = Vec::new();
        for (path, node) in self.state.borrow().visible.range(prefix.clone()..) {
            let Some(name) = path.strip_prefix(&prefix) else { break };
            match node {
                _ if name.contains('/') => {}
                Node::Directory => found.push((format!("{name}/"), 0)),
                Node::File(file) => found.push((name.to_string(), file.borrow().visible.length)),
            }
        }
        self.end(&begun).await;
        begun.error().map(|()| found)
    }

    async fn create_dir(&self, directory: &str) -> io::Result<()> {
        let directory = clean(directory);
        let ends = directory.match_indices('/').map(|(at, _)| at).chain([directory.len()]);
        for path in ends.map(|end| directory[..end].to_string()).filter(|p| !p.is_empty()).collect::<Vec<_>>() {
            match self.state.borrow().visible.get(&path) {
                Some(Node::Directory) => continue,
                Some(Node::File(_)) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, path)),
                None => {}
            }
            self.change_name(|_| Ok(NameChange::Add { path, node: Node::Directory })).await?;
        }
        Ok(())
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (clean(from), clean(to));
        self.change_name(|state| match state.visible.get(&from) {
            Some(node @ Node::File(_)) => Ok(NameChange::Rename { node: node.clone(), from, to }),
            Some(Node::Directory) => Err(io::Error::new(io::ErrorKind::IsADirectory, from)),
            None => Err(not_found(&from)),
        })
        .await
    }

    async fn remove(&self, path: &str) -> io::Result<()> {
        let path = clean(path);
        self.change_name(|state| match state.visible.get(&path) {
            Some(Node::File(_)) => Ok(NameChange::Remove { path }),
            Some(Node::Directory) => Err(io::Error::new(io::ErrorKind::IsADirectory, path)),
            None => Err(not_found(&path)),
        })
        .await
    }

    async fn sync_dir(&self, directory: &str) -> io::Result<()> {
        let directory = clean(directory);
        let begun = self.begin(Access::SyncDir, 0).await;
        let covers = |p: &PendingName| p.completed && p.change.directory() == directory;
        let covered: Vec<u64> = self.state.borrow().pending.iter().filter(|p| covers(p)).map(|p| p.number).collect();
        self.end(&begun).await;
        begun.error()?;
        if self.lies(Lie::SkippedSync, 1.0) {
            return Ok(());
        }
        let state = &mut *self.state.borrow_mut();
        for pending in state.pending.extract_if(.., |p| covered.contains(&p.number)) {
            pending.change.apply(&mut state.durable);
        }
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.state.borrow();
        let total = state.capacity.unwrap_or(1 << 40);
        Ok(Space { total, available: total.saturating_sub(state.used()) })
    }

    /// Without a clock nothing takes time: a short pause is over at once, and a long one never.
    async fn pause(&self, duration: Duration) {
        let clock = self.state.borrow().clock.as_ref().map(|(executor, _)| executor.clone());
        match clock {
            Some(executor) => executor.sleep(duration).await,
            None if duration < PROOF_PAUSE => executor::yield_now().await,
            None => future::pending().await,
        }
    }

    async fn breathe(&self) {
        executor::yield_now().await;
    }
}

/// An open file of a [`VirtualDisk`].
pub struct VirtualFile {
    disk: VirtualDisk,
    inode: File,
    writable: bool,
    /// Its writes never go astray: the node's own small files.
    spared: bool,
}

fn check_aligned(offset: u64, bytes: u64) -> io::Result<()> {
    if offset.is_multiple_of(PAGE_BYTES) && bytes.is_multiple_of(PAGE_BYTES) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("not whole pages: {bytes} at {offset}")))
}

impl VirtualFile {
    /// Enters the pages into the file, pending; gives the file that they came to. An erroneous or short write enters
    /// some.
    fn submit_write(&self, offset: u64, bytes: &[u8], kept_pages: usize) -> Option<(u64, File)> {
        if kept_pages == 0 {
            return None;
        }
        let page = |chunk: &[u8]| {
            let mut page = [0; PAGE];
            page.copy_from_slice(chunk);
            Rc::new(page)
        };
        let pages: Vec<Page> = bytes.chunks_exact(PAGE).take(kept_pages).map(page).collect();
        let state = &mut *self.disk.state.borrow_mut();
        let (file, first) = state.lead_astray(self.spared, &self.inode, (offset / PAGE_BYTES) as usize, &pages)?;
        let number = state.number();
        file.borrow_mut().add(number, Change::Write { first, pages: pages.into_iter().map(Some).collect() });
        Some((number, file))
    }
    /// How many pages of a write reach the file, and what its caller is told.
    fn write_fate(&self, begun: &Begun, end: u64, pages: usize) -> (usize, io::Result<()>) {
        let growth = end.saturating_sub(self.inode.borrow().visible.length);
        if begun.fault != Some(Fault::Stop) && !self.disk.state.borrow().fits(growth) {
            return (0, Err(no_space(self.disk.state.borrow().lie, begun.io)));
        }
        match begun.error() {
            Err(e) if begun.fault == Some(Fault::NoSpace) => (0, Err(e)),
            Err(e) => (pages / 2, Err(e)),
            Ok(()) if pages > 1 && self.disk.lies(Lie::UnreportedShortWrite, 0.02) => (pages / 2, Ok(())),
            Ok(()) => (pages, Ok(())),
        }
    }
}

impl VirtualFile {
    /// Reads whole pages from `offset` on.
    async fn read_pages(&self, offset: u64, into: &mut [u8], lane: Lane) -> io::Result<()> {
        let bytes = into.len();
        check_aligned(offset, bytes as u64)?;
        let begun = self.disk.begin(Access::Read(lane), bytes).await;
        self.disk.end(&begun).await;
        begun.error()?;
        if begun.fault == Some(Fault::BitFlip) && bytes > 0 {
            let state = &mut *self.disk.state.borrow_mut();
            state.counts.bit_flips += 1;
            let at = state.prng.as_mut().map_or(0, |p| p.below(bytes as u64 * 8));
            flip(&mut self.inode.borrow_mut(), offset + at / 8, (at % 8) as u8);
        }
        let inode = self.inode.borrow();
        if offset + bytes as u64 > inode.visible.length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{bytes} at {offset}")));
        }
        let first = (offset / PAGE_BYTES) as usize;
        for (index, chunk) in into.chunks_exact_mut(PAGE).enumerate() {
            match &inode.visible.pages[first + index] {
                Some(page) => chunk.copy_from_slice(&page[..]),
                None => chunk.fill(0),
            }
        }
        Ok(())
    }
}

impl DiskFile for VirtualFile {
    async fn read_into(
        &self,
        offset: u64,
        mut buffer: PageBuffer,
        range: Range<usize>,
        lane: Lane,
    ) -> (PageBuffer, io::Result<()>) {
        let result = self.read_pages(offset, &mut buffer.as_mut_slice()[range], lane).await;
        (buffer, result)
    }

    async fn write(&self, offset: u64, buffer: PageBuffer, sync: Sync, lane: Lane) -> (PageBuffer, io::Result<()>) {
        let bytes = buffer.len();
        if let Err(e) = check_aligned(offset, bytes as u64) {
            return (buffer, Err(e));
        }
        if !self.writable {
            return (buffer, Err(io::Error::new(io::ErrorKind::PermissionDenied, "opened for reading")));
        }
        let access = if sync == Sync::Data { Access::WriteDurable(lane) } else { Access::Write(lane) };
        let begun = self.disk.begin(access, bytes).await;
        let (kept_pages, result) = self.write_fate(&begun, offset + bytes as u64, bytes / PAGE);
        let submitted = self.submit_write(offset, buffer.as_slice(), kept_pages);
        self.disk.end(&begun).await;
        if let Some((number, file)) = submitted {
            let mut inode = file.borrow_mut();
            inode.complete(number);
            if sync == Sync::Data && result.is_ok() && !self.disk.lies(Lie::SkippedSync, 1.0) {
                inode.persist(number);
            }
        }
        (buffer, result)
    }

    async fn sync(&self) -> io::Result<()> {
        let begun = self.disk.begin(Access::Sync, 0).await;
        let covered = self.inode.borrow().completed();
        self.disk.end(&begun).await;
        begun.error()?;
        if !self.disk.lies(Lie::SkippedSync, 1.0) {
            self.inode.borrow_mut().persist_all(&covered);
        }
        Ok(())
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        check_aligned(0, bytes)?;
        let begun = self.disk.begin(Access::Allocate, 0).await;
        let growth = bytes.saturating_sub(self.inode.borrow().visible.length);
        let fits = self.disk.state.borrow().fits(growth);
        let number = if fits && begun.error().is_ok() {
            let number = self.disk.state.borrow_mut().number();
            self.inode.borrow_mut().add(number, Change::Length(bytes));
            number
        } else {
            0
        };
        self.disk.end(&begun).await;
        begun.error()?;
        self.inode.borrow_mut().complete(number);
        if fits { Ok(()) } else { Err(no_space(self.disk.state.borrow().lie, begun.io)) }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.inode.borrow().visible.length)
    }
}
