//! Tables: the body of a PUT, and what is shown.

use super::{Problem, Reply, json_reply};
use crate::types::{Conflict, Durability, TableEntry, TableName, TableSettings, TableWish};
use serde::{Deserialize, Serialize};

/// `/v1/tables/{name}`: a table's settings.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableView {
    pub name: String,
    pub n: u8,
    pub r: u8,
    pub w: u8,
    /// `siblings` or `last_write_wins`.
    pub conflict: String,
    pub sloppy: bool,
    /// `sync` or `interval`.
    pub durability: String,
    /// In words: it was made by two nodes that did not know of each other, and what is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_apart: Option<String>,
    /// In the answer to the PUT that made it: keys of the table default that it takes over, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takes_over: Option<KeyCount>,
}
/// Keys of a name, as far as the core that answers has counted its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KeyCount {
    /// Those that were written in the table.
    pub table_keys: u64,
    /// Those that were written in the table default, before the table was made.
    pub default_keys: u64,
    /// Whether all records of the core were looked at; else there may be more.
    pub all_counted: bool,
}
impl TableView {
    /// `entry`: what is known of its makings.
    pub fn new(name: &TableName, settings: &TableSettings, entry: Option<&TableEntry>) -> TableView {
        let apart = entry.and_then(TableEntry::made_apart).map(|(latest, other)| {
            let kept = entry.and_then(|entry| entry.settings).is_some_and(|said| said.conflict != settings.conflict);
            let kept = if kept { ", but for siblings, since one of them keeps them" } else { "" };
            format!(
                "made by node {} and by node {}, neither knowing of the other; the newest settings are in force{kept}",
                latest.node, other.node
            )
        });
        TableView {
            made_apart: apart,
            takes_over: None,
            name: name.to_string(),
            n: settings.n,
            r: settings.r,
            w: settings.w,
            conflict: settings.conflict.name().to_owned(),
            sloppy: settings.sloppy,
            durability: settings.durability.name().to_owned(),
        }
    }
}

/// `/v1/tables`: all of them, by name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TablesView {
    pub tables: Vec<TableView>,
}

/// What a PUT names; the rest stays as it is, or is as in the table `default`. Also how the command line asks.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub w: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflict: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sloppy: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<String>,
}

/// The settings that the body of a PUT names; an empty body names none.
pub fn table_wish(body: &[u8]) -> Result<TableWish, Problem> {
    let example = "send an object such as {\"n\": 3, \"r\": 2, \"w\": 2, \"conflict\": \"siblings\", \"sloppy\": true, \
                   \"durability\": \"sync\"}, any of them left out";
    let refused = |reason: String| Problem::bad_request(format!("{reason}; {example}"));
    let text = body.trim_ascii();
    let body: TableBody = match text {
        b"" => TableBody::default(),
        // serde would take an array for the struct.
        [b'{', ..] => serde_json::from_slice(text).map_err(|e| refused(e.to_string()))?,
        _ => return Err(refused("the body is no object".into())),
    };
    let conflict = body.conflict.map(|name| {
        Conflict::from_name(&name).ok_or_else(|| {
            refused(format!("conflict is siblings or last_write_wins, not {}", super::problem::shown(&name)))
        })
    });
    let durability = body.durability.map(|name| {
        Durability::from_name(&name)
            .ok_or_else(|| refused(format!("durability is sync or interval, not {}", super::problem::shown(&name))))
    });
    Ok(TableWish {
        n: body.n,
        r: body.r,
        w: body.w,
        conflict: conflict.transpose()?,
        sloppy: body.sloppy,
        durability: durability.transpose()?,
    })
}

pub fn no_such_table(name: &TableName) -> Problem {
    Problem { code: "no_such_table", ..Problem::not_found(format!("there is no table {name}; see /v1/tables")) }
}

/// The answer to a DELETE. `count`: of before it.
pub fn dropped_reply(name: &TableName, count: &KeyCount) -> Reply {
    json_reply(&DroppedView { name: name.to_string(), dropped: true, count: *count })
}

/// What a drop took, and what belongs to the table default again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DroppedView {
    pub name: String,
    pub dropped: bool,
    #[serde(flatten)]
    pub count: KeyCount,
}
