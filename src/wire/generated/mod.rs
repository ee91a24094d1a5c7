//! What the compiler makes of `schema/*.fbs`; `tests/schema.rs` says how, and compares.

#[allow(warnings, clippy::all)]
#[rustfmt::skip]
mod dynarc_generated;

pub(super) use dynarc_generated::dynarc::*;
