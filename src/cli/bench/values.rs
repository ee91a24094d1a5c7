//! What is written, and how a read is checked.
//!
//! A value is eight bytes of stamp (hash of its key number, place in the pool) and then bytes of a pool of random
//! ones from that place on. So a value is made without work, does not compress, differs from write to write, and a
//! reader can tell from the value alone whether it belongs to the key and is whole.

use super::keys::fnv1a;

/// Random bytes beyond the longest value.
const POOL_BYTES: usize = 4 << 20;
const STAMP_BYTES: usize = 8;

pub struct ValuePool {
    bytes: Vec<u8>,
    value_bytes: usize,
}

impl ValuePool {
    /// Values of `value_bytes`. The pool is the same for every run, so that one run can check what another wrote.
    pub fn new(value_bytes: usize) -> ValuePool {
        let mut bytes = vec![0; POOL_BYTES + value_bytes];
        fastrand::Rng::with_seed(0xd1a2_c0de).fill(&mut bytes);
        ValuePool { bytes, value_bytes }
    }
    pub fn value_bytes(&self) -> usize {
        self.value_bytes
    }
    /// The parts of a value of the key numbered `key`, together `value_bytes` long; `variant` tells writes apart.
    pub fn value(&self, key: u64, variant: u64) -> ([u8; STAMP_BYTES], usize, &[u8]) {
        let place = (fnv1a(variant ^ key.rotate_left(32)) as usize) % POOL_BYTES;
        let mut stamp = [0; STAMP_BYTES];
        stamp[..4].copy_from_slice(&(fnv1a(key) as u32).to_le_bytes());
        stamp[4..].copy_from_slice(&(place as u32).to_le_bytes());
        let stamped = self.value_bytes.min(STAMP_BYTES);
        (stamp, stamped, &self.bytes[place..place + self.value_bytes - stamped])
    }
    /// Appends a value.
    pub fn write(&self, key: u64, variant: u64, out: &mut Vec<u8>) {
        let (stamp, stamped, rest) = self.value(key, variant);
        out.extend_from_slice(&stamp[..stamped]);
        out.extend_from_slice(rest);
    }
    /// Whether these bytes are some value of the key numbered `key`, whole.
    pub fn is_value_of(&self, key: u64, value: &[u8]) -> bool {
        if value.len() != self.value_bytes {
            return false;
        }
        let tag = (fnv1a(key) as u32).to_le_bytes();
        let tagged = value.len().min(4);
        if value[..tagged] != tag[..tagged] {
            return false;
        }
        let Some((place, rest)) = value.get(4..).and_then(|v| v.split_first_chunk::<4>()) else { return true };
        let place = u32::from_le_bytes(*place) as usize;
        place < POOL_BYTES && self.bytes[place..place + rest.len()] == *rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_recognised_and_damage_is_seen() {
        for size in [0, 1, 4, 7, 8, 9, 100, 10_240] {
            let pool = ValuePool::new(size);
            let mut value = Vec::new();
            pool.write(17, 3, &mut value);
            assert_eq!(value.len(), size);
            assert!(pool.is_value_of(17, &value), "{size}");
            if size >= 4 {
                assert!(!pool.is_value_of(18, &value), "{size}");
            }
            if size > 8 {
                value[size - 1] ^= 1;
                assert!(!pool.is_value_of(17, &value), "{size}");
                value.pop();
                assert!(!pool.is_value_of(17, &value), "{size}");
            }
        }
    }
    #[test]
    fn writes_of_one_key_differ() {
        let pool = ValuePool::new(64);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        pool.write(1, 1, &mut a);
        pool.write(1, 2, &mut b);
        assert_ne!(a, b);
        assert!(pool.is_value_of(1, &a) && pool.is_value_of(1, &b));
    }
}
