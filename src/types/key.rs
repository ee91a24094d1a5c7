//! A key: 1 to [`KEY_BYTES_MAX`] arbitrary bytes.

use super::Token;
use crate::limits::KEY_BYTES_MAX;
use bytes::Bytes;
use std::fmt;

/// A key whose length has been checked.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    #[error("a key has at least 1 byte")]
    Empty,
    #[error("a key has at most {KEY_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
}

impl Key {
    /// Checks the length: 1 to [`KEY_BYTES_MAX`] bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Key, KeyError> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(KeyError::Empty),
            1..=KEY_BYTES_MAX => Ok(Key(bytes)),
            n => Err(KeyError::TooLong(n)),
        }
    }
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
    /// The key's place on the ring: xxh3-64 of its bytes. Stored and sent, so it never changes.
    pub fn token(&self) -> Token {
        Token(xxhash_rust::xxh3::xxh3_64(&self.0))
    }
}
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}
