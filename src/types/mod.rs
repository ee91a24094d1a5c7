//! The nouns: plain data without behaviour of its own. Everything here is cheap to copy or counted by reference.

mod address;
mod bounds;
mod failure;
mod instant;
mod key;
pub mod mark;
mod member;
mod request;
mod span;
mod table;
mod value;

pub use address::{Address, ClusterId, NodeId, Ports, ShardId, SliceId, Token};
pub use bounds::ShardBounds;
pub use failure::{ErrorCode, Failure, Outcome};
pub use instant::Instant;
pub use key::{Key, KeyError};
pub use member::{Member, MemberState, MemberView, Stranger};
pub use request::{Consistency, Level, WriteId};
pub use span::Span;
pub use table::{
    Conflict, Durability, Making, TableChange, TableChangeKind, TableEntry, TableError, TableName, TableSettings,
    TableWish, TableWord,
};
pub use value::{Media, Value, ValueError};
