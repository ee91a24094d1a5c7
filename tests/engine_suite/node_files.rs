//! The files of a node's identity and of its members, with every bit flipped and cut at every byte: what was saved, or
//! a typed error. Damage to the members keeps no node down: they are asked for, and it is told.

use dynarc::{
    driver::identity::{BootError, Identity, NodeWish, PortsWish, open, peek, save_members},
    sim::{disk::VirtualDisk, executor::block_on},
    types::{Member, MemberState, NodeId, Ports, Token},
};

const FILES: [&str; 2] = ["node/identity", "node/members"];

fn wish() -> NodeWish {
    NodeWish {
        ip: Some("10.1.2.3".parse().expect("an address")),
        ports: PortsWish::default(),
        bootstrap: false,
        shards: 2,
        slices: 32,
        vnodes: 128,
        seeds: vec!["10.1.2.4:7000".parse().expect("an address"), "[::1]:7001".parse().expect("an address")],
        random: 7,
        copied: false,
    }
}

/// A node that has started and knows some others: more than 16 KiB of members.
fn sample() -> (VirtualDisk, Identity) {
    let disk = VirtualDisk::new();
    let identity = block_on(open(&disk, &wish())).expect("a new directory");
    let member = |number: u64| Member {
        id: NodeId(number),
        ip: "10.9.8.7".parse().expect("an address"),
        ports: Ports::default(),
        shards: 4,
        slices: 64,
        tokens: (0..128).map(|i| Token(number << 32 | i)).collect(),
        state: MemberState::Up,
        generation: number,
        revision: 3,
        heartbeat: 99,
    };
    let members: Vec<Member> = (1..=16).map(member).collect();
    block_on(save_members(&disk, &identity, &members)).expect("no faults");
    let saved = block_on(peek(&disk)).expect("no faults").expect("it was made");
    assert_eq!((saved.members.len(), saved.joined), (16, true));
    (disk, saved)
}

/// True: the damage was told.
fn judge(disk: &VirtualDisk, saved: &Identity, note: &str) -> bool {
    let told = match block_on(peek(disk)) {
        Ok(Some(found)) if found.members_lost.is_some() => {
            let without = Identity { members: Vec::new(), members_lost: found.members_lost.clone(), ..saved.clone() };
            assert!(found == without, "{note}: more than the members is lost");
            true
        }
        Ok(found) => {
            assert!(found.as_ref() == Some(saved), "{note}: not as it was saved");
            false
        }
        Err(BootError::Damaged { .. } | BootError::NewerFormat { .. }) => true,
        Err(other) => panic!("{note}: {other}"),
    };
    match block_on(open(&disk.fork(), &wish())) {
        Ok(found) => {
            assert_eq!(told, found.members_lost.is_some(), "{note}");
            assert_eq!(
                (found.node, &found.tokens, found.now.generation),
                (saved.node, &saved.tokens, saved.now.generation + 1)
            );
        }
        Err(error) => assert!(told, "{note}: {error}"),
    }
    told
}

#[test]
fn a_flipped_bit_is_told_or_does_not_matter() {
    let (disk, saved) = sample();
    for path in FILES {
        let length = disk.contents(path).expect("a file").len() as u64;
        let (mut told, mut tried) = (0, 0);
        for at in 0..length.min(20 << 10) {
            for bit in 0..8 {
                disk.flip_bit(path, at, bit);
                told += u64::from(judge(&disk, &saved, &format!("{path}: bit {bit} of byte {at}")));
                tried += 1;
                disk.flip_bit(path, at, bit);
            }
        }
        println!("{path}: {tried} flips, {told} told");
        assert!(tried >= 8 * 4096 && told > 8 * 512, "{path}: {told} of {tried}");
    }
}

#[test]
fn a_cut_is_told() {
    let (disk, saved) = sample();
    for path in FILES {
        let whole = disk.contents(path).expect("a file");
        let used = whole.iter().rposition(|byte| *byte != 0).expect("not blank") + 1;
        for cut in 0..whole.len() {
            for pad in [false, true] {
                let mut left = whole[..cut].to_vec();
                if pad {
                    left.resize(whole.len(), 0);
                }
                disk.replace(path, &left);
                let told = judge(&disk, &saved, &format!("{path} cut at {cut}, padded {pad}"));
                assert_eq!(told, cut < used, "{path} cut at {cut}, padded {pad}");
            }
        }
        disk.replace(path, &whole);
    }
}
