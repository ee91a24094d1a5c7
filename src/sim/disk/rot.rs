//! A medium that rots: bits flip where they lie, and writes go to another place than they were sent to. What the medium
//! should hold is remembered, so that it can be put back where nobody has written since.

use super::{File, Node, PAGE, Page, Prng, State, VirtualDisk, flip_page};
use std::rc::Rc;

/// One page that is not what it should be.
pub(super) struct Rotten {
    file: File,
    page: usize,
    should: Option<Page>,
    is: Option<Page>,
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
    /// The next write to a file of some length goes to another place in it. Always says yes.
    pub fn misdirect(&self, prng: &mut Prng) -> bool {
        self.state.borrow_mut().astray = Some(prng.bits());
        true
    }
    /// Whether any page is not what it should be, or the next write goes astray.
    pub fn is_rotten(&self) -> bool {
        let state = self.state.borrow();
        state.astray.is_some() || !state.rotten.is_empty()
    }
    /// Puts back what should be there, where nobody has written since. Gives the count of rotten pages.
    pub fn mend_rot(&self) -> usize {
        let mut state = self.state.borrow_mut();
        state.astray = None;
        let rotten = std::mem::take(&mut state.rotten);
        let count = rotten.len();
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
    /// Where a write of so many pages at `first` goes that is to go astray: somewhere else in the same file. What lies
    /// there, and what should lie at `first`, is remembered.
    pub(super) fn lead_astray(&mut self, path_spared: bool, file: &File, first: usize, pages: &[Page]) -> usize {
        let inode = file.borrow();
        let length = inode.visible.pages.len();
        let room = length.saturating_sub(pages.len());
        if path_spared || room < 1 || first + pages.len() > length || self.astray.is_none() {
            return first;
        }
        let Some(draw) = self.astray.take() else { return first };
        let wrong = draw as usize % (room + 1);
        if wrong == first {
            return first;
        }
        self.counts.misdirected_writes += 1;
        for (index, page) in pages.iter().enumerate() {
            let overlaps = (wrong..wrong + pages.len()).contains(&(first + index));
            if !overlaps {
                let is = inode.visible.pages[first + index].clone();
                let should = Some(page.clone());
                self.rotten.push(Rotten { file: file.clone(), page: first + index, should, is });
            }
            let should = inode.visible.pages[wrong + index].clone();
            self.rotten.push(Rotten { file: file.clone(), page: wrong + index, should, is: Some(page.clone()) });
        }
        wrong
    }
}
