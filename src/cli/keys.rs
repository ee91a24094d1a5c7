//! `put`, `get` and `delete`: one key.

use super::{
    Exit, Stop,
    fetch::Reach,
    output,
    store::{Held, Store},
};
use crate::{
    limits::VALUE_BYTES_CEILING,
    protocol::versions::Context,
    types::{Key, Level, Media, Value},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use serde_json::value::RawValue;
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, IsTerminal, Read},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

pub const PUT_EXAMPLE: &str = "Prints the context of what was written. A VALUE that is JSON is stored as JSON, other text as\n\
    text/plain; files and standard input are stored as they are.\n\n\
    Example:\n  dynarc put cart:8731 '{\"items\": [\"tea\"]}'\n  dynarc put cart:8731 --replace '{\"items\": []}'\n  dynarc put picture @cat.png --content-type image/png";
pub const GET_EXAMPLE: &str = "Prints the value, and its context on standard error. Exit code 4: no value; 5: concurrent values, one\n\
    a line, to be merged and put with their context.\n\n\
    Example:\n  dynarc get cart:8731\n  dynarc get cart:8731 --json --consistency all";
pub const DELETE_EXAMPLE: &str = "Example:\n  dynarc delete cart:8731\n  dynarc delete cart:8731 --context vc:AQID";

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub enum ConsistencyName {
    One,
    Quorum,
    All,
}
impl From<ConsistencyName> for Level {
    fn from(name: ConsistencyName) -> Level {
        match name {
            ConsistencyName::One => Level::One,
            ConsistencyName::Quorum => Level::Quorum,
            ConsistencyName::All => Level::All,
        }
    }
}

/// What every command about a key has.
#[derive(Args)]
struct About {
    /// 1 to 1,024 bytes
    key: OsString,
    /// Replicas that must answer; default: the table's setting
    #[arg(long, value_enum, value_name = "LEVEL")]
    consistency: Option<ConsistencyName>,
    #[command(flatten)]
    reach: Reach,
    /// Print JSON
    #[arg(long)]
    json: bool,
}
impl About {
    fn key(&self) -> Result<Key, Stop> {
        Key::new(self.key.as_bytes().to_vec()).map_err(|e| Stop::new(Exit::Usage, e.to_string()))
    }
    fn level(&self) -> Option<Level> {
        self.consistency.map(Level::from)
    }
    fn context(&self, key: &Key, text: Option<&str>) -> Result<Option<Context>, Stop> {
        let parse = |text: &str| Context::from_text(text.trim().as_bytes(), key.token());
        text.map(parse).transpose().map_err(|e| Stop::new(Exit::Usage, format!("--context: {e}")))
    }
    /// The context of what was written.
    fn print_written(&self, key: &Key, context: &Context) -> Result<(), Stop> {
        let text = context.to_text(key.token());
        if self.json { output::print_json(&serde_json::json!({ "context": text })) } else { output::print(text + "\n") }
    }
}

#[derive(Args)]
pub struct PutArgs {
    #[command(flatten)]
    about: About,
    /// The value itself, @FILE, or - for standard input
    value: OsString,
    /// Context of the read that this builds on; without it the value is concurrent with what is there
    #[arg(long, value_name = "vc:..")]
    context: Option<String>,
    /// Replace what the key holds now: read its context first, and build on that
    #[arg(long, conflicts_with = "context")]
    replace: bool,
    /// Type of the value; application/json stores JSON
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
}

#[derive(Args)]
pub struct GetArgs {
    #[command(flatten)]
    about: About,
    /// Context of an earlier read or write: the answer is at least as new as that
    #[arg(long, value_name = "vc:..")]
    context: Option<String>,
}

#[derive(Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    about: About,
    /// Context of the read that this builds on; without it, what the coordinator has seen is deleted
    #[arg(long, value_name = "vc:..")]
    context: Option<String>,
}

pub fn put(args: PutArgs) -> Result<(), Stop> {
    let key = args.about.key()?;
    let context = args.about.context(&key, args.context.as_deref())?;
    let value = value(&args.value, args.content_type.as_deref())?;
    let mut store = Store::connect(&args.about.reach)?;
    let blind = context.is_none() && !args.replace;
    let context = match args.replace {
        true => Some(store.get(&key, None, args.about.level())?.context).filter(|known| *known != Context::default()),
        false => context,
    };
    let written = store.put(&key, value, context, args.about.level())?;
    args.about.print_written(&key, &written)?;
    if blind {
        tell_of_siblings(&mut store, &key, args.about.level());
    }
    Ok(())
}

/// Says that a put without a context stands beside other values now. The write has been done, so a read that fails
/// changes nothing about it.
fn tell_of_siblings(store: &mut Store, key: &Key, level: Option<Level>) {
    if let Ok(Held { values, .. }) = store.get(key, None, level)
        && values.len() > 1
    {
        let many = values.len();
        output::tell(format!(
            "dynarc: the key has {many} concurrent values now, for this put named no context; --replace builds on what is there"
        ));
    }
}

pub fn delete(args: DeleteArgs) -> Result<(), Stop> {
    let key = args.about.key()?;
    let context = args.about.context(&key, args.context.as_deref())?;
    let written = Store::connect(&args.about.reach)?.delete(&key, context, args.about.level())?;
    args.about.print_written(&key, &written)
}

/// The value that an argument means.
fn value(argument: &OsStr, content_type: Option<&str>) -> Result<Value, Stop> {
    let (bytes, inline) = match argument.as_bytes() {
        b"-" => (read_whole(io::stdin().lock(), "standard input")?, false),
        [b'@', path @ ..] => {
            let path = OsStr::from_bytes(path);
            let shown = path.to_string_lossy().into_owned();
            let file = File::open(path).map_err(|e| Stop::failed(format!("{shown}: {e}")))?;
            (read_whole(file, &shown)?, false)
        }
        _ => (argument.to_owned().into_vec(), true),
    };
    let json = || serde_json::from_slice::<&RawValue>(&bytes).map(|_| ());
    let media = match content_type {
        Some("application/json") => {
            json().map_err(|e| Stop::new(Exit::Usage, format!("the value is not JSON: {e}")))?;
            Media::Json
        }
        Some(kind) => Media::raw(kind).map_err(|e| Stop::new(Exit::Usage, format!("--content-type: {e}")))?,
        None if !inline => Media::octets(),
        None if json().is_ok() => Media::Json,
        None => Media::Raw("text/plain; charset=utf-8".into()),
    };
    Ok(Value::new(media, bytes))
}

/// Reads all, but no more than any server would take.
fn read_whole(from: impl Read, name: &str) -> Result<Vec<u8>, Stop> {
    let mut bytes = Vec::new();
    let limit = VALUE_BYTES_CEILING as u64 + 1;
    from.take(limit).read_to_end(&mut bytes).map_err(|e| Stop::failed(format!("{name}: {e}")))?;
    if bytes.len() as u64 == limit {
        return Err(Stop::failed(format!(
            "{name} has more than {VALUE_BYTES_CEILING} bytes, the most that a value may have"
        )));
    }
    Ok(bytes)
}

pub fn get(args: GetArgs) -> Result<(), Stop> {
    let key = args.about.key()?;
    let context = args.about.context(&key, args.context.as_deref())?;
    let held = Store::connect(&args.about.reach)?.get(&key, context, args.about.level())?;
    let context = (held.context != Context::default()).then(|| held.context.to_text(key.token()));
    if args.about.json {
        print_json(&held, context.as_deref())?;
    } else {
        print_values(&held)?;
    }
    let known = context.as_deref().unwrap_or("none");
    match (held.values.len(), args.about.json) {
        (0, _) => Err(Stop::new(Exit::NotFound, format!("{} has no value", output::key(key.as_bytes())))),
        (1, true) => Ok(()),
        (1, false) => {
            output::tell(format!("context: {known}"));
            Ok(())
        }
        (many, _) => {
            let line = format!("{many} concurrent values; merge them and put the result with --context {known}");
            Err(Stop::new(Exit::Conflict, line))
        }
    }
}

/// One value: its bytes, and an end of line behind JSON. Several: a line each, base64 for those that are not JSON.
fn print_values(held: &Held) -> Result<(), Stop> {
    match held.values.as_slice() {
        // On a terminal the context comes on the next line; in a pipe the value stays as it is, byte for byte.
        [Value { media: Media::Raw(_), bytes, .. }] if io::stdout().is_terminal() && !bytes.ends_with(b"\n") => {
            output::print([&bytes[..], b"\n"].concat())
        }
        [Value { media: Media::Raw(_), bytes, .. }] => output::print(bytes),
        values => {
            for value in values {
                match value.media {
                    Media::Json => output::print(&value.bytes)?,
                    Media::Raw(_) => output::print(STANDARD.encode(&value.bytes))?,
                }
                output::print("\n")?;
            }
            Ok(())
        }
    }
}

/// Prints what the HTTP answer would be.
fn print_json(held: &Held, context: Option<&str>) -> Result<(), Stop> {
    let render = |value: &Value| match value.media {
        Media::Json => String::from_utf8_lossy(&value.bytes).into_owned(),
        Media::Raw(_) => format!("\"{}\"", STANDARD.encode(&value.bytes)),
    };
    let encoding = |value: &Value| if value.media == Media::Json { "json" } else { "base64" };
    let context = serde_json::json!(context);
    let text = match held.values.as_slice() {
        [] => format!("{{\"value\": null, \"found\": false, \"context\": {context}}}"),
        [value] if value.media == Media::Json => format!("{{\"value\": {}, \"context\": {context}}}", render(value)),
        [value] => format!("{{\"value\": {}, \"encoding\": \"base64\", \"context\": {context}}}", render(value)),
        values => {
            let siblings: Vec<_> = values.iter().map(render).collect();
            let encodings = serde_json::json!(values.iter().map(encoding).collect::<Vec<_>>());
            let raw = values.iter().any(|v| v.media != Media::Json);
            let encodings = if raw { format!(", \"encodings\": {encodings}") } else { String::new() };
            format!("{{\"siblings\": [{}]{encodings}, \"context\": {context}}}", siblings.join(", "))
        }
    };
    output::print(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media(text: &str, content_type: Option<&str>) -> Result<Media, String> {
        value(OsStr::new(text), content_type).map(|v| v.media).map_err(|s| s.line)
    }

    #[test]
    fn an_argument_is_json_if_it_can_be() {
        assert_eq!(media("{\"a\": 1}", None), Ok(Media::Json));
        assert_eq!(media("7", None), Ok(Media::Json));
        assert_eq!(media("tea", None), Ok(Media::Raw("text/plain; charset=utf-8".into())));
        assert_eq!(media("7", Some("image/png")), Ok(Media::Raw("image/png".into())));
        assert!(media("tea", Some("application/json")).is_err_and(|e| e.contains("not JSON")));
        assert!(media("tea", Some("")).is_err_and(|e| e.contains("--content-type")));
        assert!(media("@/nonexistent/file", None).is_err_and(|e| e.contains("/nonexistent/file: ")));
    }

    #[test]
    fn no_more_is_read_than_a_value_may_have() {
        assert!(read_whole(io::repeat(b'x'), "it").is_err_and(|s| s.line.contains("it has more than")));
        assert_eq!(read_whole(&b"abc"[..], "it"), Ok(b"abc".to_vec()));
    }
}
