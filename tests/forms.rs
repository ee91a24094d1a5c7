//! The forms of heads, contexts and leases: what earlier versions wrote is read, what they can read is still written
//! so, and what they cannot hold has a form of its own.

use dynarc::{
    limits::{
        CLOCK_BYTES_MAX, CLOCK_ENTRIES_MAX, CONTEXT_DOTS_MAX, CONTEXT_TEXT_BYTES_MAX, INCARNATION_MAX, KIB,
        MERGED_CLOCK_BYTES_MAX, MERGED_CLOCK_ENTRIES_MAX, NARROW_CLOCK_ENTRIES_MAX,
    },
    protocol::{
        replica::{
            LeaseRecord,
            keys::{HintHead, HintKind, lease_head, parse_lease},
        },
        versions::{Actor, Context, ContextError, Dot, Entry, Head, HeadError, Superseded, VersionVector},
    },
    types::{Media, NodeId, Token, WriteId},
};

const TOKEN: Token = Token(0x1122_3344_5566_7788);

fn dot(node: u64, incarnation: u64, counter: u64) -> Dot {
    Dot { actor: Actor::new(NodeId(node), incarnation), counter }
}
fn clock(dots: impl IntoIterator<Item = Dot>) -> VersionVector {
    VersionVector::from_dots(dots)
}
fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digit).collect()
}

/// Written by version 0.1.0.
const HEAD: &str = "01030002000101000a00000000000700000000000000ffff0a0000000000020000000000000003000b0000000000000000\
    0000010000ffff0a00000000000200000000000000050000000000000004000000efbeadde0003000b00000000000900000000000000060000\
    0000000000000000000000000009696d6167652f706e6701000a000000000006000000000000004d00000000000000";
const CONTEXT: &str = "vc:AYh3ZlUCAAEBAAoAAAAAAAcAAAAAAAAA__8LAAAAAAACAAAAAAAAAP__CwAAAAAACQAAAAAAAABzIPsm";
const LEASE: &str = "ffff0105001000000000000c00000000000000";

fn head() -> Head {
    let first =
        Entry { dot: dot(0xa, 65_535, 2), write_id: WriteId(5), media: Media::Json, bytes: 4, checksum: 0xdead_beef };
    let media = Media::raw("image/png").expect("printable");
    let second = Entry { dot: dot(0xb, 3, 9), write_id: WriteId(6), media, bytes: 0, checksum: 0 };
    Head {
        clock: clock([dot(0xa, 1, 7), dot(0xa, 65_535, 2), dot(0xb, 3, 1 << 40)]),
        entries: [first, second].into_iter().collect(),
        life: 0,
        recent: [Superseded { dot: dot(0xa, 1, 6), write_id: WriteId(77), checksum: None }].into_iter().collect(),
    }
}

#[test]
fn what_earlier_versions_wrote_is_read_and_still_written() {
    assert_eq!(Head::decode(&bytes(HEAD)), Ok(head()));
    assert_eq!(head().encode(), bytes(HEAD));
    let parked = HintHead { stamp: 99, kind: HintKind::Parked(head()) };
    let parked_bytes = [&bytes("026300000000000000")[..], &bytes(HEAD)].concat();
    assert_eq!(HintHead::decode(&parked_bytes), Ok(parked.clone()));
    assert_eq!(parked.encode(), parked_bytes);
    let context = Context {
        clock: clock([dot(0xa, 1, 7), dot(0xb, 65_535, 2)]),
        dots: [dot(0xb, 65_535, 9)].into_iter().collect(),
    };
    assert_eq!(Context::from_text(CONTEXT.as_bytes(), TOKEN), Ok(context.clone()));
    assert_eq!(context.to_text(TOKEN), CONTEXT);
    let lease = LeaseRecord { incarnation: 65_535, clean: true, far: false, ceiling: 1 << 20 | 5, start: 12 };
    assert_eq!(parse_lease(&bytes(LEASE)), Some(lease));
    assert_eq!(lease_head(lease), bytes(LEASE));
}

#[test]
fn wide_incarnations_have_forms_of_their_own() {
    for incarnation in [65_536, 1 << 40, INCARNATION_MAX] {
        let wide = dot(0xa, incarnation, 3);
        let mut in_clock = head();
        in_clock.clock.record(wide);
        let recent = [Superseded { dot: wide, write_id: WriteId(1), checksum: None }].into_iter().collect();
        for head in [in_clock, Head { recent, ..head() }] {
            assert_eq!((head.encode()[0], Head::decode(&head.encode())), (2, Ok(head)));
        }
        let beside = Context { dots: [wide].into_iter().collect(), ..Context::from(head().clock) };
        for context in [Context::from(clock([wide, dot(0xa, 1, 1)])), beside] {
            assert!(!context.fits_narrow_fields());
            assert_eq!(Context::from_text(context.to_text(TOKEN).as_bytes(), TOKEN), Ok(context.clone()));
            assert_eq!(Context::from_block(&context.to_block()), Ok(context));
        }
        for (clean, far) in [(false, false), (true, false), (false, true), (true, true)] {
            let lease = LeaseRecord { incarnation, clean, far, ceiling: 9, start: u64::MAX };
            assert_eq!(parse_lease(&lease_head(lease)), Some(lease));
            let lease = LeaseRecord { incarnation: 7, ..lease };
            assert_eq!(parse_lease(&lease_head(lease)), Some(lease));
        }
    }
    let beyond = LeaseRecord { incarnation: INCARNATION_MAX + 1, clean: true, far: true, ceiling: 9, start: 1 };
    for head in [&lease_head(beyond)[..], b"", &[1; 16], &[2, 1, 5], &bytes(LEASE)[..18], &[9; 26]] {
        assert_eq!(parse_lease(head), None);
    }
}

/// riak_core#613: clocks that grow with each life. They still do, by a few bytes; lives in which a key was written once
/// by none.
#[test]
fn many_lives_take_little_space() {
    let once = Context::from(clock((1..=2_000).map(|life| dot(0xa, life, 1))));
    assert!(once.to_text(TOKEN).len() < 60, "{}", once.to_text(TOKEN));
    let often = Context::from(clock((1..=1_000).map(|life| dot(0xa, life, life * 7_919 % 2_000_000))));
    assert!(often.to_text(TOKEN).len() < 8 * KIB, "{}", often.to_text(TOKEN).len());
    assert!(often.clock.within(CLOCK_ENTRIES_MAX, CLOCK_BYTES_MAX));
    for context in [once, often] {
        assert_eq!(Context::from_text(context.to_text(TOKEN).as_bytes(), TOKEN), Ok(context.clone()));
        let head = Head { clock: context.clock, ..Head::default() };
        assert_eq!(Head::decode(&head.encode()), Ok(head));
    }
}

/// Whatever may be stored can be given out, and what is given out is taken back: near the bounds of entries and of
/// bytes.
#[test]
fn a_clock_that_can_be_read_has_a_context_that_is_taken() {
    let entries = |count: u64| clock((1..=count).map(|life| dot(0xa, life, 1)));
    let wide = |count: u64| clock((1..=count).map(|n| dot(n << 20, INCARNATION_MAX - n, u64::MAX - n)));
    let narrow = |count: u64| clock((1..=count).map(|n| dot(n << 20, n, n << 32)));
    let most = (1..2_000).take_while(|count| wide(*count).can_be_read()).last().expect("some can");
    assert!(most as usize * 26 > MERGED_CLOCK_BYTES_MAX - 2 * 26);
    let bound = MERGED_CLOCK_ENTRIES_MAX as u64;
    for (readable, beyond) in [
        (entries(bound), entries(bound + 1)),
        (wide(most), wide(most + 1)),
        (narrow(NARROW_CLOCK_ENTRIES_MAX as u64), entries(u64::from(u16::MAX))),
    ] {
        assert!(readable.can_be_read() && !beyond.can_be_read());
        let dots =
            (1..=CONTEXT_DOTS_MAX as u64).map(|n| dot(NodeId::MAX - 99 + n, INCARNATION_MAX, u64::MAX)).collect();
        let context = Context { clock: readable.clone(), dots };
        assert!(context.to_text(TOKEN).len() <= CONTEXT_TEXT_BYTES_MAX);
        assert_eq!(Context::from_text(context.to_text(TOKEN).as_bytes(), TOKEN), Ok(context));
        let head = Head { clock: readable, ..Head::default() };
        assert_eq!(Head::decode(&head.encode()), Ok(head));
        let text = Context::from(beyond).to_text(TOKEN);
        let read = Context::from_text(text.as_bytes(), TOKEN);
        assert!(matches!(read, Err(ContextError::Malformed | ContextError::TooLong(_))), "{read:?}");
    }
}

#[test]
fn compact_clocks_are_refused_before_they_cost_memory() {
    // One node, one run: incarnation 1 and so many more, counter 1.
    let block = |more: &[u8]| [&[1, 0xa, 0, 0, 0, 0, 0, 1, 3, 1][..], more, &[0]].concat();
    assert_eq!(Context::from_block(&block(&[2])).map(|c| c.clock.len()), Ok(3));
    let huge = block(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    assert_eq!(Context::from_block(&huge), Err(HeadError::TooMany));
    // No more after all, a number with a byte too many, one that is cut off, one of more than 64 bits.
    for wrong in [&[0][..], &[0x82, 0], &[0x82], &[0xff; 10]] {
        assert!(Context::from_block(&block(wrong)).is_err(), "{wrong:?}");
    }
    let beyond = Context::from(clock([dot(1, INCARNATION_MAX, 1)])).to_block();
    let mut changed = beyond.clone();
    // The run's first byte: bit 0 says whether it has more, the others are the lowest of the incarnation.
    changed[8..17].copy_from_slice(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80]);
    assert_ne!(beyond, changed);
    assert!(Context::from_block(&changed).is_err());
    let nodes = [&[2, 9, 0, 0, 0, 0, 0, 1, 2, 1][..], &[9, 0, 0, 0, 0, 0, 1, 4, 1], &[0]].concat();
    assert_eq!(Context::from_block(&nodes), Err(HeadError::Invalid), "a node that is named twice");
}
