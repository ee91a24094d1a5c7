//! What a script says beside a request: of its context, its quorum, its write id.

use dynarc::{
    protocol::versions::Context,
    types::{Consistency, Level, WriteId},
};
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Options {
    pub context: Option<Context>,
    pub consistency: Consistency,
    pub id: WriteId,
    /// The name that the context of the answer is kept under.
    pub keep: Option<String>,
}
impl Options {
    pub fn parse(mut words: &[&str], contexts: &BTreeMap<String, Context>) -> Result<Options, String> {
        let mut options = Options::default();
        loop {
            words = match words {
                [] => return Ok(options),
                ["strict", rest @ ..] => {
                    options.consistency.sloppy = Some(false);
                    rest
                }
                ["after", name, rest @ ..] => {
                    options.context = Some(contexts.get(*name).ok_or(format!("nothing is known as {name}"))?.clone());
                    rest
                }
                ["as", name, rest @ ..] => {
                    options.keep = Some(name.to_string());
                    rest
                }
                [word @ ("w" | "r" | "id"), number, rest @ ..] => {
                    let number: u64 = number.parse().map_err(|_| format!("{number} is no number"))?;
                    match *word {
                        "id" => options.id = WriteId(number),
                        _ => options.consistency.level = Some(Level::Count(number as u8)),
                    }
                    rest
                }
                other => return Err(format!("unknown options {other:?}")),
            }
        }
    }
}
