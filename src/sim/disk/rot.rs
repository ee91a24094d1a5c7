//! A medium that rots: bits flip where they lie, writes go to another place than they were sent to, of the same file or
//! of another, or nowhere; files vanish, or lie under each other's name. What the medium should hold is remembered, so
//! that it can be put back where nobody has written since.

use super::{File, Node, PAGE, Page, Prng, State, VirtualDisk, flip_page};
use std::rc::Rc;

/// One page that is not what it should be.
pub(super) struct Rotten {
    file: File,
    page: usize,
    should: Option<Page>,
    is: Option<Page>,
}

/// A file under another name than its own.
pub(super) struct Misnamed {
    path: String,
    should: Node,
    /// Nothing: none lies there.
    is: Option<File>,
}

/// What has become of the files of a disk that nobody uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spoiled {
    Removed,
    Swapped,
    /// Its first page is another one's.
    ForeignPage,
}

fn same(left: &Option<Page>, right: &Option<Page>) -> bool {
    match (left, right) {
        (Some(left), Some(right)) => Rc::ptr_eq(left, right),
        (None, None) => true,
        _ => false,
    }
}

impl VirtualDisk {
    /// Flips one bit of some file at rest. The node's own small files are spared: a node that has lost them is another
    /// node. Says whether there was any.
    pub fn rot(&self, prng: &mut Prng) -> bool {
        let state = &mut *self.state.borrow_mut();
        let mut places = Vec::new();
        for (path, node) in &state.visible {
            let Node::File(file) = node else { continue };
            if path.starts_with("node/") || !file.borrow().pending.is_empty() {
                continue;
            }
            let durable = &file.borrow().durable;
            places.extend((0..durable.pages.len()).filter(|page| durable.pages[*page].is_some()).map(|p| (file, p)));
        }
        let Some((file, page)) = prng.pick(&places).copied() else { return false };
        let file = file.clone();
        {
            let inode = &mut *file.borrow_mut();
            let should = inode.durable.pages[page].clone();
            let is = should.as_ref().map(|page| flip_page(page, prng.below(PAGE as u64 * 8)));
            inode.durable.pages[page] = is.clone();
            inode.visible.pages[page] = is.clone();
            state.rotten.push(Rotten { file: file.clone(), page, should, is });
        }
        state.counts.bit_flips += 1;
        true
    }
    /// Spoils one file below these directories, or two of a kind, of a disk that nobody uses. Nothing when there are
    /// none.
    pub fn spoil_files(&self, prng: &mut Prng, among: &[&str]) -> Option<(Spoiled, String)> {
        let state = &mut *self.state.borrow_mut();
        // What was on its way has arrived.
        state.pending.clear();
        state.durable = state.visible.clone();
        let ours = |path: &str| among.iter().any(|directory| path.starts_with(directory));
        let kind = |path: &str| [".seg", ".sst", "MANIFEST"].iter().position(|end| path.ends_with(end));
        let files: Vec<(String, File)> = state
            .visible
            .iter()
            .filter_map(|(path, node)| match node {
                Node::File(file) if ours(path) && file.borrow().pending.is_empty() => {
                    Some((path.clone(), file.clone()))
                }
                _ => None,
            })
            .collect();
        let (path, file) = prng.pick(&files)?.clone();
        let others: Vec<_> = files.iter().filter(|(other, _)| *other != path && kind(other) == kind(&path)).collect();
        let draw = prng.below(3);
        let Some((other_path, other)) = prng.pick(&others).copied().filter(|_| draw > 0) else {
            state.visible.remove(&path);
            state.misnamed.push(Misnamed { path: path.clone(), should: Node::File(file), is: None });
            state.durable = state.visible.clone();
            return Some((Spoiled::Removed, path));
        };
        if draw == 1 {
            for (path, should, is) in [(&path, &file, other), (other_path, other, &file)] {
                state.visible.insert(path.clone(), Node::File(is.clone()));
                let should = Node::File(should.clone());
                state.misnamed.push(Misnamed { path: path.clone(), should, is: Some(is.clone()) });
            }
            state.durable = state.visible.clone();
            return Some((Spoiled::Swapped, path));
        }
        let is = other.borrow().durable.pages.first().cloned().flatten();
        let inode = &mut *file.borrow_mut();
        let should = inode.durable.pages.first().cloned().flatten();
        for content in [&mut inode.durable, &mut inode.visible] {
            if let Some(first) = content.pages.first_mut() {
                first.clone_from(&is);
            }
        }
        state.rotten.push(Rotten { file: file.clone(), page: 0, should, is });
        Some((Spoiled::ForeignPage, path))
    }
    /// The next write to a file of some length goes to another place, or nowhere. Always says yes.
    pub fn misdirect(&self, prng: &mut Prng) -> bool {
        self.state.borrow_mut().astray = Some(prng.bits());
        true
    }
    /// Whether any page is not what it should be, or the next write goes astray.
    pub fn is_rotten(&self) -> bool {
        let state = self.state.borrow();
        state.astray.is_some() || !state.rotten.is_empty() || !state.misnamed.is_empty()
    }
    /// Puts back what should be there, where nobody has written since. Gives the count of rotten pages and names.
    pub fn mend_rot(&self) -> usize {
        let state = &mut *self.state.borrow_mut();
        state.astray = None;
        let rotten = std::mem::take(&mut state.rotten);
        let misnamed = std::mem::take(&mut state.misnamed);
        let count = rotten.len() + misnamed.len();
        for Misnamed { path, should, is } in misnamed.into_iter().rev() {
            for names in [&mut state.visible, &mut state.durable] {
                let untouched = match (names.get(&path), &is) {
                    (None, None) => true,
                    (Some(Node::File(found)), Some(is)) => Rc::ptr_eq(found, is),
                    _ => false,
                };
                if untouched {
                    names.insert(path.clone(), should.clone());
                }
            }
        }
        // The latest first: an older one may lie below it.
        for Rotten { file, page, should, is } in rotten.into_iter().rev() {
            let inode = &mut *file.borrow_mut();
            for content in [&mut inode.durable, &mut inode.visible] {
                if let Some(place) = content.pages.get_mut(page)
                    && same(place, &is)
                {
                    *place = should.clone();
                }
            }
        }
        count
    }
}

impl State {
    /// Where a write of so many pages at `first` comes to: there, or if it is to go astray, somewhere else in the same
    /// file or in another, or nowhere. What lies there, and what should lie at `first`, is remembered.
    pub(super) fn lead_astray(
        &mut self,
        path_spared: bool,
        file: &File,
        first: usize,
        pages: &[Page],
    ) -> Option<(File, usize)> {
        let there = Some((file.clone(), first));
        let length = file.borrow().visible.pages.len();
        if path_spared || first + pages.len() > length || self.astray.is_none() {
            return there;
        }
        let Some(draw) = self.astray.take() else { return there };
        let (draw, kind) = (draw as usize / 3, draw % 3);
        let fits = |other: &File| other.borrow().visible.pages.len() > pages.len() && other.borrow().pending.is_empty();
        let other = self.visible.iter().filter_map(|(path, node)| match node {
            Node::File(other) if kind == 1 && !path.starts_with("node/") && !Rc::ptr_eq(other, file) => {
                Some(other.clone())
            }
            _ => None,
        });
        let others: Vec<File> = other.filter(fits).collect();
        let wrong = match others.get(draw % others.len().max(1)) {
            Some(other) => other.clone(),
            None => file.clone(),
        };
        let is_same = Rc::ptr_eq(&wrong, file);
        let room = wrong.borrow().visible.pages.len() - pages.len();
        let at = (draw >> 8) % (room + 1);
        if kind != 2 && is_same && at == first {
            return there;
        }
        for (index, page) in pages.iter().enumerate() {
            let overlaps = kind != 2 && is_same && (at..at + pages.len()).contains(&(first + index));
            if !overlaps {
                let is = file.borrow().visible.pages[first + index].clone();
                self.rotten.push(Rotten { file: file.clone(), page: first + index, should: Some(page.clone()), is });
            }
            if kind != 2 {
                let should = wrong.borrow().visible.pages[at + index].clone();
                self.rotten.push(Rotten { file: wrong.clone(), page: at + index, should, is: Some(page.clone()) });
            }
        }
        if kind == 2 {
            self.counts.vanished_writes += 1;
            return None;
        }
        self.counts.misdirected_writes += 1;
        Some((wrong, at))
    }
}
