//! `table`: the tables of a cluster, over the HTTP of one node.

use super::{
    Exit, Stop,
    fetch::{self, Host, Reach},
    output,
};
use crate::{
    http::{DroppedView, KeyCount, TableBody, TableView, TablesView},
    types::TableName,
};
use clap::{Args, Subcommand};

pub const EXAMPLE: &str = "A key cart:8731 belongs to the table cart if there is one, else to the table default. Exit code 4: no such table.\n\n\
    Example:\n  dynarc table list\n  dynarc table create session --n 3 --r 1 --w 1 --conflict last_write_wins\n  \
    dynarc table alter session --w 2\n  dynarc table drop session";
const LIST_EXAMPLE: &str = "Example:\n  dynarc table list --json";
const CREATE_EXAMPLE: &str = "What is not named is as in the table default. Fails when the table exists. Keys that begin with the\n\
    name are there already: the table takes them over, and gives back those it has not written when it is dropped.\n\n\
    Example:\n  dynarc table create cart --n 5 --r 3 --w 3";
const ALTER_EXAMPLE: &str = "What is not named stays. How conflicts end cannot be altered.\n\n\
    Example:\n  dynarc table alter cart --durability interval";
const DROP_EXAMPLE: &str = "All keys that were written in the table are gone, on every node once it hears of it. Those that were\n\
    there before it was made and were not written since belong to the table default again, as does what is\n\
    written under the name afterwards.\n\nExample:\n  dynarc table drop cart";

#[derive(Args)]
pub struct TableArgs {
    #[command(subcommand)]
    command: TableCommand,
}

#[derive(Subcommand)]
enum TableCommand {
    /// Show all tables
    #[command(after_help = LIST_EXAMPLE)]
    List(ListArgs),
    /// Make a table
    #[command(after_help = CREATE_EXAMPLE)]
    Create(SetArgs),
    /// Change settings of a table
    #[command(after_help = ALTER_EXAMPLE)]
    Alter(SetArgs),
    /// Drop a table and all keys written in it
    #[command(after_help = DROP_EXAMPLE)]
    Drop(DropArgs),
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    reach: Reach,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct SetArgs {
    /// Up to 64 letters, digits, '-', '_' and '.'
    name: TableName,
    /// Replicas of a key: 1 to 7
    #[arg(long)]
    n: Option<u8>,
    /// Replicas that must answer a get: 1 to n
    #[arg(long)]
    r: Option<u8>,
    /// Replicas that must acknowledge a write: 1 to n
    #[arg(long)]
    w: Option<u8>,
    /// What becomes of concurrent writes; said when the table is made
    #[arg(long, value_parser = ["siblings", "last_write_wins"])]
    conflict: Option<String>,
    /// Whether stand-ins for absent replicas count
    #[arg(long, value_name = "true|false", action = clap::ArgAction::Set)]
    sloppy: Option<bool>,
    /// When a write is acknowledged: after its sync, or before it
    #[arg(long, value_parser = ["sync", "interval"])]
    durability: Option<String>,
    #[command(flatten)]
    reach: Reach,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct DropArgs {
    name: TableName,
    #[command(flatten)]
    reach: Reach,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: TableArgs) -> Result<(), Stop> {
    match args.command {
        TableCommand::List(args) => {
            let (_, view): (Host, TablesView) = fetch::view(&args.reach.nodes, "/v1/tables")?;
            if args.json { output::print_json(&view) } else { output::print(text(&view.tables)) }
        }
        TableCommand::Create(args) => set(args, true),
        TableCommand::Alter(args) => set(args, false),
        TableCommand::Drop(args) => {
            let (host, answer) = ask(&args.reach, "DELETE", &args.name, "", "")?;
            let view: DroppedView = said(&host, answer)?;
            if args.json { output::print_json(&view) } else { output::print(dropped_text(&view)) }
        }
    }
}

fn set(args: SetArgs, new: bool) -> Result<(), Stop> {
    if !new {
        let (host, known) = ask(&args.reach, "GET", &args.name, "", "")?;
        let _: TableView = said(&host, known)?;
    }
    let body = TableBody {
        n: args.n,
        r: args.r,
        w: args.w,
        conflict: args.conflict,
        sloppy: args.sloppy,
        durability: args.durability,
    };
    let body = serde_json::to_string(&body).map_err(|e| Stop::failed(e.to_string()))?;
    let (host, answer) = ask(&args.reach, "PUT", &args.name, if new { "?create=true" } else { "" }, &body)?;
    let view: TableView = said(&host, answer)?;
    if args.json { output::print_json(&view) } else { output::print(text(&[view])) }
}

/// A count of one core is the least that there can be.
fn count_text(count: u64, all: bool) -> String {
    if all { format!("at least {count}") } else { format!("more than {count}") }
}
fn dropped_text(view: &DroppedView) -> String {
    let KeyCount { table_keys, default_keys, all_counted } = view.count;
    let mut text = match table_keys {
        0 => format!("{} is dropped\n", view.name),
        keys => format!("{} is dropped, and with it {} keys\n", view.name, count_text(keys, all_counted)),
    };
    if default_keys > 0 {
        let left = count_text(default_keys, all_counted);
        text += &format!("{left} keys from before it was made belong to the table default again\n");
    }
    text
}

/// The first node that answers, and its answer.
fn ask(reach: &Reach, method: &str, name: &TableName, query: &str, body: &str) -> Result<(Host, fetch::Fetched), Stop> {
    let mut last = Stop::new(Exit::Usage, "no node is named");
    for host in &reach.nodes {
        match fetch::change(host, method, &format!("/v1/tables/{name}{query}"), body) {
            Ok(answer) => return Ok((host.clone(), answer)),
            Err(stop) => last = stop,
        }
    }
    Err(last)
}

fn said<T: serde::de::DeserializeOwned>(host: &Host, answer: fetch::Fetched) -> Result<T, Stop> {
    let status = answer.status;
    fetch::read(host, answer).map_err(|stop| if status == 404 { Stop { exit: Exit::NotFound, ..stop } } else { stop })
}

fn text(tables: &[TableView]) -> String {
    let row = |t: &TableView| {
        [
            t.name.clone(),
            t.n.to_string(),
            t.r.to_string(),
            t.w.to_string(),
            t.conflict.clone(),
            t.sloppy.to_string(),
            t.durability.clone(),
        ]
    };
    let mut text = output::table(["table", "n", "r", "w", "conflict", "sloppy", "durability"], tables.iter().map(row));
    for table in tables {
        if let Some(words) = &table.made_apart {
            text += &format!("{}: {words}\n", table.name);
        }
        if let Some(count) = table.takes_over.filter(|count| count.default_keys > 0) {
            let keys = count_text(count.default_keys, count.all_counted);
            text += &format!("{} takes over {keys} keys of the table default\n", table.name);
        }
    }
    text
}
