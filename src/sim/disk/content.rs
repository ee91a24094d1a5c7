//! What a file holds: as it is seen, as it is durable, and the changes between the two.

use super::{DiskCounts, Keep, PAGE, PAGE_BYTES, SECTOR};
use crate::sim::prng::Prng;
use std::rc::Rc;

pub type Page = Rc<[u8; PAGE]>;

#[derive(Clone, Default)]
pub struct Content {
    /// `None` reads as zeros.
    pub pages: Vec<Option<Page>>,
    pub length: u64,
}
impl Content {
    pub fn set_length(&mut self, bytes: u64) {
        self.length = bytes;
        self.pages.resize((bytes / PAGE_BYTES) as usize, None);
    }
    pub fn extend(&mut self, bytes: u64) {
        if bytes > self.length {
            self.set_length(bytes);
        }
    }
    pub fn page_mut(&mut self, page: usize) -> &mut [u8; PAGE] {
        self.extend((page as u64 + 1) * PAGE_BYTES);
        Rc::make_mut(self.pages[page].get_or_insert_with(|| Rc::new([0; PAGE])))
    }
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length as usize];
        for (index, page) in self.pages.iter().enumerate() {
            if let Some(page) = page {
                bytes[index * PAGE..(index + 1) * PAGE].copy_from_slice(&page[..]);
            }
        }
        bytes
    }
    pub fn from_slice(bytes: &[u8]) -> Content {
        let mut content = Content::default();
        for (index, chunk) in bytes.chunks(PAGE).enumerate() {
            content.page_mut(index)[..chunk.len()].copy_from_slice(chunk);
        }
        content
    }
}

#[derive(Clone)]
pub enum Change {
    /// Pages from the index `first` on; `None` has been overwritten by a durable write since.
    Write {
        first: usize,
        pages: Vec<Option<Page>>,
    },
    Length(u64),
}
#[derive(Clone)]
pub struct Pending {
    pub number: u64,
    pub change: Change,
    /// The call has returned: the next sync covers it.
    pub completed: bool,
}

#[derive(Clone, Default)]
pub struct Inode {
    pub visible: Content,
    pub durable: Content,
    pub pending: Vec<Pending>,
}
impl Inode {
    pub fn apply(content: &mut Content, change: &Change) {
        match change {
            Change::Length(bytes) => content.set_length(*bytes),
            Change::Write { first, pages } => {
                content.extend((first + pages.len()) as u64 * PAGE_BYTES);
                for (index, page) in pages.iter().enumerate() {
                    if page.is_some() {
                        content.pages[first + index] = page.clone();
                    }
                }
            }
        }
    }
    pub fn add(&mut self, number: u64, change: Change) {
        Inode::apply(&mut self.visible, &change);
        self.pending.push(Pending { number, change, completed: false });
    }
    pub fn complete(&mut self, number: u64) {
        if let Some(pending) = self.pending.iter_mut().find(|p| p.number == number) {
            pending.completed = true;
        }
    }
    /// Makes exactly this write durable; older pending writes of the same pages are over.
    pub fn persist(&mut self, number: u64) {
        let Some(at) = self.pending.iter().position(|p| p.number == number) else { return };
        let written = self.pending.remove(at);
        Inode::apply(&mut self.durable, &written.change);
        let Change::Write { first, pages } = &written.change else { return };
        let end = (first + pages.len()) as u64 * PAGE_BYTES;
        self.pending.retain_mut(|older| match &mut older.change {
            _ if older.number > number => true,
            Change::Length(bytes) => *bytes >= end,
            Change::Write { first: start, pages: old } => {
                for (index, page) in old.iter_mut().enumerate() {
                    if (*first..first + pages.len()).contains(&(*start + index)) {
                        *page = None;
                    }
                }
                true
            }
        });
    }
    /// Numbers of the changes that a sync which begins now covers.
    pub fn completed(&self) -> Vec<u64> {
        self.pending.iter().filter(|p| p.completed).map(|p| p.number).collect()
    }
    pub fn persist_all(&mut self, numbers: &[u64]) {
        let durable = &mut self.durable;
        self.pending.retain(|pending| {
            let covered = numbers.contains(&pending.number);
            if covered {
                Inode::apply(durable, &pending.change);
            }
            !covered
        });
    }
    pub fn crash(&mut self, prng: &mut Prng, counts: &mut DiskCounts, mut decide: impl FnMut() -> Keep) {
        for pending in std::mem::take(&mut self.pending) {
            match (decide(), &pending.change) {
                (Keep::Nothing, _) => counts.lost_writes += 1,
                (Keep::All, change) => Inode::apply(&mut self.durable, change),
                (Keep::Pages | Keep::Sectors, Change::Length(bytes)) => {
                    if prng.coin() {
                        self.durable.set_length(*bytes);
                    }
                }
                (keep, Change::Write { first, pages }) => {
                    counts.torn_writes += 1;
                    let unit = if keep == Keep::Pages { PAGE } else { SECTOR };
                    for (index, page) in pages.iter().enumerate() {
                        let Some(page) = page else { continue };
                        for from in (0..PAGE).step_by(unit).filter(|_| prng.coin()) {
                            let target = self.durable.page_mut(first + index);
                            target[from..from + unit].copy_from_slice(&page[from..from + unit]);
                        }
                    }
                }
            }
        }
        self.visible = self.durable.clone();
    }
}

pub fn flip(inode: &mut Inode, offset: u64, bit: u8) {
    let (page, at) = ((offset / PAGE_BYTES) as usize, (offset % PAGE_BYTES) as usize);
    if offset < inode.visible.length {
        inode.visible.page_mut(page)[at] ^= 1 << (bit % 8);
    }
    if offset < inode.durable.length {
        inode.durable.page_mut(page)[at] ^= 1 << (bit % 8);
    }
    for pending in &mut inode.pending {
        if let Change::Write { first, pages } = &mut pending.change
            && let Some(Some(page)) = page.checked_sub(*first).and_then(|i| pages.get_mut(i))
        {
            Rc::make_mut(page)[at] ^= 1 << (bit % 8);
        }
    }
}

/// A copy of a page with one bit flipped.
pub fn flip_page(page: &Page, bit: u64) -> Page {
    let mut flipped = **page;
    flipped[(bit / 8) as usize % PAGE] ^= 1 << (bit % 8);
    Rc::new(flipped)
}
