//! The reader of a segment slides a window over it: batches that begin and end anywhere in it, and across it, come back
//! as they were written; each byte is read once; pages that cannot be read cost their own batches alone.

use dynarc::{
    engine::{
        disk::{DiskFile, Lane, PageBuffer, Sync},
        types::{Change, Stored, StoredValue, Write},
        wal::{
            format::{BatchHeader, FORMAT, LogRecord, SegmentHeader, encode_batch, record_bytes},
            reader::{BatchReader, Found},
        },
    },
    limits::{MIB, PAGE},
    sim::{executor::block_on, prng::Prng},
    types::SliceId,
};
use std::{cell::Cell, collections::BTreeSet, io, ops::Range, rc::Rc};

const INLINE_BELOW: usize = 512;

/// A file whose reads are counted, and of which some pages cannot be read.
struct Watched {
    bytes: Vec<u8>,
    unreadable: BTreeSet<usize>,
    /// Bytes that reads which went well have given.
    read: Cell<u64>,
}
impl DiskFile for Watched {
    async fn read_into(
        &self,
        offset: u64,
        mut buffer: PageBuffer,
        range: Range<usize>,
        _: Lane,
    ) -> (PageBuffer, io::Result<()>) {
        let from = offset as usize;
        let to = from + range.len();
        if self.unreadable.range(from / PAGE..to / PAGE).next().is_some() {
            buffer.as_mut_slice()[range].fill(0xA5);
            return (buffer, Err(io::Error::other("a bad page")));
        }
        self.read.set(self.read.get() + range.len() as u64);
        buffer.as_mut_slice()[range].copy_from_slice(&self.bytes[from..to]);
        (buffer, Ok(()))
    }
    async fn write(&self, _: u64, _: PageBuffer, _: Sync, _: Lane) -> (PageBuffer, io::Result<()>) {
        unreachable!("a reader writes nothing")
    }
    async fn sync(&self) -> io::Result<()> {
        unreachable!("a reader syncs nothing")
    }
    async fn allocate(&self, _: u64) -> io::Result<()> {
        unreachable!("a reader reserves nothing")
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

/// A batch as it was written. Its records have the sums of their values, and the reader checks these.
struct Written {
    header: BatchHeader,
    records: Vec<LogRecord>,
}
impl Written {
    fn range(&self) -> Range<u64> {
        self.header.offset..self.header.offset + self.header.padded()
    }
    fn records_range(&self) -> Range<u64> {
        self.header.offset..self.header.offset + u64::from(self.header.records_end)
    }
}

fn segment_header() -> SegmentHeader {
    SegmentHeader {
        format: FORMAT,
        id: 7,
        epoch: 0xE10C,
        generation: 1,
        first_sequence: 1,
        shard: 0,
        data_start: 2 * PAGE as u32,
        step: PAGE as u32,
        reused: false,
        slices: vec![SliceId(0)],
    }
}

/// Batches of one page up to several windows, until there are so many bytes; behind them the file is blank.
fn segment(prng: &mut Prng, total: usize) -> (Vec<u8>, Vec<Written>) {
    let header = segment_header();
    let (mut bytes, mut batches) = (vec![0; header.data_start as usize], Vec::new());
    let mut sequence = header.first_sequence;
    while bytes.len() < total {
        let most = *prng.pick(&[1, 3, 40, 200, 500]).expect("a choice");
        let writes: Vec<Write> = (0..prng.between(1, most))
            .map(|_| {
                let value: Vec<u8> = (0..prng.between(0, 12_000)).map(|at| (at * 31 + sequence) as u8).collect();
                sequence += 1;
                let change = Change::Put { head: b"head"[..].into(), values: [value.into()].into_iter().collect() };
                Write { slice: SliceId(0), key: format!("key {sequence}").into(), change }
            })
            .collect();
        let offset = bytes.len() as u64;
        let header = BatchHeader {
            segment: header.id,
            epoch: header.epoch,
            offset,
            first_sequence: sequence - writes.len() as u64,
            // Two batches are in flight.
            durable: batches.last().map_or(offset, |batch: &Written| batch.header.offset),
            previous: 0,
            previous_end: 0,
            allocated: 0,
            count: 0,
            length: 0,
            records_end: 0,
        };
        let needed: usize = writes.iter().map(|w| record_bytes(w, INLINE_BELOW)).map(|(a, b)| a + b).sum();
        let mut out = vec![0; (needed + 3 * PAGE).next_multiple_of(PAGE)];
        let (header, records) = encode_batch(header, &writes.iter().collect::<Vec<_>>(), INLINE_BELOW, &mut out);
        out.truncate(header.padded() as usize);
        bytes.extend(out);
        batches.push(Written { header, records });
    }
    let blank = bytes.len() + 5 * PAGE;
    bytes.resize(blank, 0);
    (bytes, batches)
}

/// Everything that the reader gives for these bytes agrees with what was written, but for what touches an unreadable
/// page. The bytes that were read.
fn check(bytes: &[u8], batches: &[Written], unreadable: &BTreeSet<usize>, note: &str) -> u64 {
    let file = Rc::new(Watched { bytes: bytes.to_vec(), unreadable: unreadable.clone(), read: Cell::new(0) });
    let header = segment_header();
    let start = u64::from(header.data_start);
    let mut reader = BatchReader::new(file.clone(), &header, start, bytes.len() as u64, Lane::Background);
    let touched = |range: Range<u64>| {
        unreadable.iter().any(|page| range.start < ((page + 1) * PAGE) as u64 && ((page * PAGE) as u64) < range.end)
    };
    for batch in batches {
        let note = format!("{note}, batch at {}", batch.header.offset);
        match block_on(reader.next()) {
            Found::Batch(found, records) => {
                assert!(!touched(batch.range()), "{note}: it cannot be whole");
                assert_eq!((found, &records), (batch.header, &batch.records), "{note}");
            }
            Found::Spoiled(found, records, lost) => {
                assert!(touched(batch.range()) && !touched(batch.records_range()), "{note}: spoiled");
                assert_eq!((found, &records), (batch.header, &batch.records), "{note}");
                let expected: Vec<_> = apart(batch).filter(|value| touched(value.clone())).collect();
                assert_eq!(lost, expected, "{note}");
            }
            Found::Damage { from, to } => {
                assert!(touched(batch.records_range()), "{note}: its records can be read");
                assert_eq!(from..to, batch.range(), "{note}");
            }
            Found::End { at } => panic!("{note}: the end is told at {at}"),
        }
    }
    assert!(matches!(block_on(reader.next()), Found::End { .. }), "{note}: something follows the last batch");
    file.read.get()
}

/// Where a batch's values are that lie apart from its records.
fn apart(batch: &Written) -> impl Iterator<Item = Range<u64>> {
    let values = batch.records.iter().flat_map(|record| match &record.stored {
        Stored::Put { values, .. } => &values[..],
        Stored::Delete => &[],
    });
    values.filter_map(|value| match value {
        StoredValue::Pointer(at) => Some(at.offset..at.offset + u64::from(at.length)),
        StoredValue::Inline(_) => None,
    })
}

#[test]
fn batches_that_straddle_windows_are_read_whole_and_once() {
    for seed in 0..8 {
        let (bytes, batches) = segment(&mut Prng::new(seed), 9 * MIB);
        let read = check(&bytes, &batches, &BTreeSet::new(), &format!("seed {seed}"));
        let data = bytes.len() as u64 - u64::from(segment_header().data_start);
        assert_eq!(read, data, "seed {seed}: bytes read again, or not at all");
        let straddling = batches.iter().filter(|b| b.range().start / MIB as u64 != (b.range().end - 1) / MIB as u64);
        assert!(straddling.count() >= 4, "seed {seed}: the batches are not what this test is about");
    }
}

#[test]
fn pages_that_cannot_be_read_cost_their_own_batches_alone() {
    let mut struck = BTreeSet::new();
    for seed in 0..40 {
        let mut prng = Prng::new(seed);
        let (bytes, batches) = segment(&mut prng, 4 * MIB);
        // Of the last two batches nothing says that they were durable.
        let hit = prng.below(batches.len() as u64 - 2) as usize;
        let pages = batches[hit].range().start as usize / PAGE..batches[hit].range().end as usize / PAGE;
        let page = prng.between(pages.start as u64, pages.end as u64 - 1) as usize;
        let page = if prng.coin() { page } else { *prng.pick(&[pages.start, pages.end - 1]).expect("a choice") };
        struck.insert(page == pages.start);
        check(&bytes, &batches, &[page].into(), &format!("seed {seed}, page {page}"));
    }
    assert_eq!(struck.len(), 2, "first pages and others");
}
