//! A value: bytes, what kind they are, and the checksum that accompanies them from the coordinator to the reader.

use crate::limits::MEDIA_TYPE_BYTES_MAX;
use bytes::Bytes;

/// The kind of bytes that a value has.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum Media {
    /// A JSON text, kept byte for byte.
    #[default]
    Json,
    /// Raw bytes and their content type (at most [`MEDIA_TYPE_BYTES_MAX`] bytes of ASCII).
    Raw(Box<str>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ValueError {
    #[error("a content type has 1 to {MEDIA_TYPE_BYTES_MAX} printable ASCII characters")]
    MediaType,
    #[error("the value does not match its checksum")]
    Checksum,
    #[error(
        "the value is said to be JSON and is none (line {line}, column {column}); other bytes go with a content type of \
         their own"
    )]
    Json { line: usize, column: usize },
}

impl Media {
    pub const OCTETS: &'static str = "application/octet-stream";
    pub fn octets() -> Media {
        Media::Raw(Self::OCTETS.into())
    }
    /// Raw bytes of this content type; checks its length and characters.
    pub fn raw(content_type: &str) -> Result<Media, ValueError> {
        let printable = content_type.bytes().all(|b| (0x20..0x7f).contains(&b));
        if content_type.is_empty() || content_type.len() > MEDIA_TYPE_BYTES_MAX || !printable {
            return Err(ValueError::MediaType);
        }
        Ok(Media::Raw(content_type.into()))
    }
}

/// A value with its end-to-end checksum (CRC-32C of `bytes`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Value {
    pub media: Media,
    pub bytes: Bytes,
    pub checksum: u32,
}
impl Value {
    /// Computes the checksum: for bytes that have just been received whole from a client.
    pub fn new(media: Media, bytes: impl Into<Bytes>) -> Value {
        let bytes = bytes.into();
        let checksum = crc32c::crc32c(&bytes);
        Value { media, bytes, checksum }
    }
    pub fn json(text: impl Into<Bytes>) -> Value {
        Value::new(Media::Json, text)
    }
    /// Checks that what is said to be a JSON text is one: it goes out as it is, as a part of other JSON.
    pub fn verify_media(&self) -> Result<(), ValueError> {
        match self.media {
            Media::Json => serde_json::from_slice::<&serde_json::value::RawValue>(&self.bytes)
                .map(drop)
                .map_err(|e| ValueError::Json { line: e.line(), column: e.column() }),
            Media::Raw(_) => Ok(()),
        }
    }
    /// Checks the bytes against their checksum.
    pub fn verify(&self) -> Result<(), ValueError> {
        if crc32c::crc32c(&self.bytes) == self.checksum { Ok(()) } else { Err(ValueError::Checksum) }
    }
}
