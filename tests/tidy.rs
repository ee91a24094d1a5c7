//! The house rules that a machine can check: who may import whom, what is never written where, names, sizes.
//!
//! The source is read as text without its comments, strings and test modules; that is crude and has been enough.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What each room may import from the crate. Itself goes without saying.
const IMPORTS: &[(&str, &[&str])] = &[
    ("types", &["limits"]),
    ("limits", &[]),
    ("protocol::ring", &["types", "limits"]),
    ("protocol::versions", &["types", "limits"]),
    ("protocol::message", &["types", "limits", "protocol::versions"]),
    ("protocol::health", MACHINE),
    ("protocol::stall", MACHINE),
    ("protocol::membership", MACHINE),
    ("protocol::coordinator", MACHINE),
    ("protocol::replica", MACHINE),
    // What is owed is kept as records beside the replica's own.
    (
        "protocol::hints",
        &[
            "types",
            "limits",
            "protocol::ring",
            "protocol::versions",
            "protocol::message",
            "protocol::replica::keys",
            "protocol::replica::Stored",
            "protocol::pace",
        ],
    ),
    ("protocol::pace", &["limits"]),
    ("protocol::rebuild", MACHINE),
    ("protocol::clocks", MACHINE),
    ("protocol::tables", MACHINE),
    (
        "protocol::repair",
        &["types", "limits", "protocol::ring", "protocol::versions", "protocol::message", "protocol::pace"],
    ),
    ("protocol::shard", &["types", "limits", "protocol"]),
    ("engine", &["types", "limits"]),
    (
        "driver",
        &[
            "types",
            "limits",
            "engine",
            "protocol::message",
            "protocol::shard",
            "protocol::ring",
            "protocol::versions",
            "protocol::tables",
            // Records as they are stored, leases.
            "protocol::replica",
        ],
    ),
    ("wire", &["types", "limits", "protocol::versions", "protocol::message"]),
    ("http", &["types", "limits", "protocol::versions", "protocol::message", "protocol::ring"]),
    ("client", &["types", "limits", "protocol::ring", "protocol::versions", "protocol::message", "wire"]),
    ("server", &["types", "limits", "protocol", "engine", "driver", "wire", "http", "client"]),
    ("sim", &["types", "limits", "protocol", "engine", "driver", "wire", "http", "client"]),
    ("cli", &["types", "limits", "protocol", "engine", "driver", "wire", "http", "client", "server", "sim"]),
];
const MACHINE: &[&str] = &["types", "limits", "protocol::ring", "protocol::versions", "protocol::message"];

/// Rooms whose behaviour is a function of their arguments.
const PURE: &[&str] = &["types", "limits", "protocol", "engine", "driver", "wire", "http", "sim"];
/// Rooms that hold the data path of every core.
const LOCKLESS: &[&str] = &["protocol", "engine", "driver", "wire", "http", "sim", "server"];
const LINES_MAX: usize = 800;
const TOP_LEVEL: &[&str] =
    &["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "benches", "schema", "src", "target", "tests", "tuning"];
const BAD_WORDS: &[&str] =
    &["manager", "handler", "helper", "helpers", "util", "utils", "common", "data", "info", "process", "misc", "base"];

struct Source {
    /// Below `src`, with slashes.
    path: String,
    /// Module path: `["engine", "table"]`.
    module: Vec<String>,
    text: String,
    /// Without comments, strings and test modules.
    code: String,
}
impl Source {
    fn room(&self) -> String {
        let nested = self.module.first().is_some_and(|m| m == "protocol");
        self.module.iter().take(if nested { 2 } else { 1 }).cloned().collect::<Vec<_>>().join("::")
    }
    fn in_room(&self, room: &str) -> bool {
        self.module.first().is_some_and(|m| m == room)
    }
    fn generated(&self) -> bool {
        self.path.contains("generated")
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(below: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(below).unwrap_or_else(|e| panic!("{}: {e}", below.display()));
    for path in entries.map(|e| e.expect("a directory entry").path()) {
        if path.is_dir() {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut paths = Vec::new();
    files(&src, "rs", &mut paths);
    paths.sort();
    assert!(paths.len() > 20, "the sources were found");
    let source = |path: PathBuf| {
        let below = path.strip_prefix(&src).expect("below src").with_extension("");
        let mut module: Vec<String> = below.iter().map(|p| p.to_string_lossy().into_owned()).collect();
        if module.last().is_some_and(|m| m == "mod" || m == "lib") {
            module.pop();
        }
        let text = fs::read_to_string(&path).expect("sources are text");
        // Tests may use whatever helps them.
        let is_test = path.file_name().is_some_and(|n| n == "tests.rs");
        let code = if is_test { String::new() } else { without_tests(&without_words(&text)) };
        let path = path.strip_prefix(&src).expect("below src").to_string_lossy().replace('\\', "/");
        Source { path, module, text, code }
    };
    paths.into_iter().map(source).collect()
}

/// Blanks comments, strings and character literals; keeps lines.
fn without_words(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let comment = || match (rest.starts_with("//"), rest.starts_with("/*")) {
            (true, _) => Some(rest.find('\n').unwrap_or(rest.len())),
            (_, true) => Some(rest.find("*/").map_or(rest.len(), |n| n + 2)),
            _ => None,
        };
        let in_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let raw = || if in_word { None } else { raw_string_end(rest) };
        if let Some(length) = comment().or_else(raw).or_else(|| string_end(rest)).or_else(|| character_end(rest)) {
            out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            at += length;
        } else {
            let c = rest.chars().next().unwrap_or(' ');
            out.push(c);
            at += c.len_utf8();
        }
    }
    out
}
fn string_end(rest: &str) -> Option<usize> {
    let mut escaped = false;
    let inner = rest.strip_prefix('"')?;
    for (at, c) in inner.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 2),
            _ => {}
        }
    }
    Some(rest.len())
}
fn raw_string_end(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = inner.len() - inner.trim_start_matches('#').len();
    if !inner[hashes..].starts_with('"') {
        return None;
    }
    let closing = format!("\"{}", "#".repeat(hashes));
    let start = rest.len() - inner.len() + hashes + 1;
    Some(rest[start..].find(&closing).map_or(rest.len(), |n| start + n + closing.len()))
}
/// A character literal, not a lifetime.
fn character_end(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    let mut characters = inner.char_indices();
    let (_, first) = characters.next()?;
    if first == '\\' {
        let (escaped_at, escaped) = characters.next()?;
        let from = escaped_at + escaped.len_utf8();
        return inner[from..].find('\'').map(|n| from + n + 2);
    }
    let (at, second) = characters.next()?;
    (second == '\'').then_some(at + 2)
}

/// Cuts `#[cfg(test)] mod x { .. }`.
fn without_tests(code: &str) -> String {
    let mut out = code.to_string();
    while let Some(start) = out.find("#[cfg(test)]") {
        let rest = &out[start..];
        let end = match (rest.find('{'), rest.find(';')) {
            (Some(open), semicolon) if semicolon.is_none_or(|s| open < s) => {
                let mut depth = 0usize;
                let closing = rest.char_indices().skip(open).find(|(_, c)| {
                    depth = depth + usize::from(*c == '{') - usize::from(*c == '}');
                    depth == 0
                });
                // `open` counts bytes and `skip` characters: equal, because words outside of ASCII are blanked.
                closing.map_or(rest.len(), |(at, _)| at + 1)
            }
            (_, Some(semicolon)) => semicolon + 1,
            _ => rest.len(),
        };
        out.replace_range(start..start + end, "");
    }
    out
}

/// The paths that start with `crate::` or `super::`, groups unfolded, as segments from the crate's root.
fn imports(source: &Source) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for start in ["crate::", "super::"] {
        for (at, _) in source.code.match_indices(start) {
            let before = source.code[..at].chars().next_back().unwrap_or(' ');
            if before.is_alphanumeric() || before == '_' || before == ':' || before == '$' {
                continue;
            }
            let mut from = source.module.clone();
            let mut rest = &source.code[at..];
            if let Some(after) = rest.strip_prefix("crate::") {
                from.clear();
                rest = after;
            }
            while let Some(after) = rest.strip_prefix("super::") {
                from.pop();
                rest = after;
            }
            unfold(rest, &from, &mut found);
        }
    }
    found
}
/// Parses one use tree at the start of `text`; returns what follows it.
fn unfold<'a>(text: &'a str, from: &[String], found: &mut BTreeSet<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            let after = unfold(rest, from, found).trim_start();
            rest = after.strip_prefix(',').unwrap_or(after);
            if rest.len() == after.len() && !rest.starts_with('}') {
                return rest;
            }
        }
    }
    let length = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(length);
    let mut path = from.to_vec();
    if !name.is_empty() && name != "self" {
        path.push(name.to_string());
    }
    match rest.strip_prefix("::") {
        Some(after) if !name.is_empty() => unfold(after, &path, found),
        _ => {
            found.insert(path);
            let rest = rest.trim_start();
            match rest.strip_prefix("as ") {
                Some(renamed) => renamed.trim_start().trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'),
                None => rest.strip_prefix('*').unwrap_or(rest),
            }
        }
    }
}

fn check(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn imports_point_down_only() {
    let table: BTreeMap<&str, &[&str]> = IMPORTS.iter().copied().collect();
    let mut problems = Vec::new();
    for source in sources()
        .iter()
        .filter(|s| !s.generated() && !s.module.is_empty() && s.path != "main.rs" && s.path != "build.rs")
    {
        let room = source.room();
        if room == "protocol" {
            continue;
        }
        let Some(allowed) = table.get(room.as_str()) else {
            problems.push(format!("{}: room {room} is not in the table", source.path));
            continue;
        };
        for path in imports(source) {
            let path = path.join("::");
            let within = |outer: &str| path == outer || path.starts_with(&format!("{outer}::"));
            if !(within(&room) || path.is_empty() || allowed.iter().any(|a| within(a))) {
                problems.push(format!("{}: {room} may not import {path}", source.path));
            }
        }
    }
    check(problems);
}

#[test]
fn only_the_server_knows_glommio_and_only_wire_knows_flatbuffers() {
    let mut problems = Vec::new();
    for source in sources() {
        for (word, room) in [("glommio", "server"), ("io_uring", "server"), ("flatbuffers", "wire")] {
            if source.code.contains(&format!("{word}::")) && !source.in_room(room) {
                problems.push(format!("{}: {word} outside of {room}", source.path));
            }
        }
    }
    check(problems);
}

#[test]
fn no_hidden_inputs_in_pure_rooms() {
    const INPUTS: &[&str] = &[
        "Instant::now",
        "SystemTime",
        "std::time::Instant",
        "thread::",
        "std::fs",
        "TcpStream",
        "UdpSocket",
        "rand::rng",
        "thread_rng",
        "Rng::new()",
        "fastrand::u",
        "fastrand::i",
        "fastrand::bool",
        "fastrand::shuffle",
        "getrandom",
        "RandomState",
        "DefaultHasher",
        "available_parallelism",
        "std::env",
        "process::id",
    ];
    let mut problems = Vec::new();
    for source in sources().iter().filter(|s| PURE.iter().any(|room| s.in_room(room))) {
        for word in INPUTS.iter().filter(|w| source.code.contains(**w)) {
            problems.push(format!("{}: {word}", source.path));
        }
    }
    check(problems);
}

#[test]
fn no_locks_on_the_data_path() {
    let mut problems = Vec::new();
    for source in sources().iter().filter(|s| LOCKLESS.iter().any(|room| s.in_room(room))) {
        for word in ["Mutex", "RwLock", "Condvar"] {
            if source.code.contains(word) {
                problems.push(format!("{}: {word}", source.path));
            }
        }
        if source.code.contains("Atomic") && !source.in_room("server") {
            problems.push(format!("{}: a shared atomic", source.path));
        }
    }
    check(problems);
}

#[test]
fn the_protocol_awaits_nothing() {
    let mut problems = Vec::new();
    for source in sources().iter().filter(|s| s.in_room("protocol")) {
        for word in ["async ", ".await;", ".await?", ".await)", "Future", "std::io", "println!", "tracing::"] {
            if source.code.contains(word) {
                problems.push(format!("{}: {word}", source.path));
            }
        }
    }
    check(problems);
}

#[test]
fn unsafe_code_is_where_it_was_agreed() {
    let sources = sources();
    let library = sources.iter().find(|s| s.path == "lib.rs").expect("lib.rs");
    let mut problems = Vec::new();
    for room in ["protocol", "engine"] {
        let module = format!("{room}/mod.rs");
        let inner = sources.iter().any(|s| s.path == module && s.code.contains("#![forbid(unsafe_code)]"));
        let outer = library.code.contains(&format!("#[forbid(unsafe_code)]\npub mod {room};"));
        if !inner && !outer {
            problems.push(format!("{module}: no forbid(unsafe_code)"));
        }
    }
    for source in sources.iter().filter(|s| !s.generated() && !s.in_room("server")) {
        let words = source.code.split(|c: char| !c.is_alphanumeric() && c != '_');
        if words.filter(|w| *w == "unsafe").count() > 0 {
            problems.push(format!("{}: unsafe", source.path));
        }
    }
    check(problems);
}

#[test]
fn names_say_what_things_are() {
    let mut problems = Vec::new();
    for source in sources().iter().filter(|s| !s.generated()) {
        for part in source.module.iter().filter(|m| BAD_WORDS.contains(&m.as_str())) {
            problems.push(format!("{}: a module named {part}", source.path));
        }
        let words: Vec<&str> =
            source.code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect();
        for pair in words.windows(2) {
            let name = pair[1];
            let bad = match pair[0] {
                "struct" | "enum" | "trait" | "mod" => parts(name).iter().any(|p| BAD_WORDS.contains(&p.as_str())),
                "fn" => BAD_WORDS.contains(&name.to_lowercase().as_str()),
                _ => false,
            };
            if bad {
                problems.push(format!("{}: {} {name}", source.path, pair[0]));
            }
        }
    }
    check(problems);
}
/// The words of a name in either case.
fn parts(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for c in name.chars() {
        if c == '_' || c.is_uppercase() {
            parts.push(String::new());
        }
        if c != '_' {
            parts.iter_mut().next_back().into_iter().for_each(|p| p.extend(c.to_lowercase()));
        }
    }
    parts
}

#[test]
fn no_file_is_a_god() {
    let mut problems = Vec::new();
    let mut paths = Vec::new();
    ["src", "tests", "benches"].iter().map(|d| root().join(d)).filter(|d| d.is_dir()).for_each(|d| {
        files(&d, "rs", &mut paths);
    });
    for path in paths.iter().filter(|p| !p.to_string_lossy().contains("generated")) {
        let text = fs::read_to_string(path).expect("sources are text");
        let lines = without_tests(&without_words(&text)).lines().count();
        if lines > LINES_MAX {
            problems.push(format!("{}: {lines} lines", path.display()));
        }
    }
    check(problems);
}

/// `cargo fmt` holds the code to that, and leaves comments and prose alone. Tables of Markdown have no choice.
#[test]
fn no_comment_and_no_line_of_the_readme_is_too_long() {
    const COLUMNS_MAX: usize = 120;
    let (mut problems, mut paths) = (Vec::new(), vec![root().join("README.md")]);
    ["src", "tests", "benches"].iter().map(|d| root().join(d)).for_each(|d| files(&d, "rs", &mut paths));
    for path in paths.iter().filter(|p| !p.to_string_lossy().contains("generated")) {
        let is_prose = path.extension().is_some_and(|ending| ending == "md");
        let text = fs::read_to_string(path).expect("sources are text");
        let counts = |line: &str| if is_prose { !line.starts_with('|') } else { line.trim_start().starts_with("//") };
        let long = text.lines().enumerate().filter(|(_, l)| counts(l) && l.chars().count() > COLUMNS_MAX);
        problems.extend(long.map(|(at, _)| format!("{}:{} is longer than {COLUMNS_MAX}", path.display(), at + 1)));
    }
    check(problems);
}

#[test]
fn every_module_opens_with_prose_and_nothing_is_left_for_later() {
    let mut problems = Vec::new();
    for source in sources().iter().filter(|s| !s.generated()) {
        if !source.text.starts_with("//! ") {
            problems.push(format!("{}: does not open with prose", source.path));
        }
        for word in ["todo!(", "unimplemented!(", "dbg!("] {
            if source.code.contains(word) {
                problems.push(format!("{}: {word}", source.path));
            }
        }
        for word in ["TODO", "FIXME", "XXX"] {
            let marks = source.text.split(|c: char| !c.is_alphanumeric()).filter(|w| *w == word).count();
            if marks > 0 {
                problems.push(format!("{}: {word}", source.path));
            }
        }
    }
    check(problems);
}

#[test]
fn every_bound_is_used() {
    let sources = sources();
    let limits = sources.iter().find(|s| s.path == "limits.rs").expect("limits.rs");
    let mut problems = Vec::new();
    for line in limits.code.lines().filter_map(|l| l.strip_prefix("pub const ")) {
        let name = line.split(':').next().unwrap_or(line);
        let used = |s: &&Source| s.code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == name);
        let elsewhere = sources.iter().filter(|s| s.path != "limits.rs").any(|s| used(&s));
        if !elsewhere && !["KIB", "MIB", "GIB"].contains(&name) {
            problems.push(format!("limits.rs: nothing keeps to {name}"));
        }
    }
    check(problems);
}

#[test]
fn the_top_of_the_repository_is_as_agreed() {
    let mut problems = Vec::new();
    for entry in fs::read_dir(root()).expect("the repository") {
        let name = entry.expect("a directory entry").file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()) {
            problems.push(format!("{name} lies at the top of the repository"));
        }
    }
    for needed in ["README.md", "LICENSE", ".ci/run", ".clippy.toml", "tuning", "schema"] {
        if !root().join(needed).exists() {
            problems.push(format!("{needed} is missing"));
        }
    }
    check(problems);
}

#[test]
fn tests_do_not_sleep_and_none_is_ignored() {
    let mut paths = Vec::new();
    files(&root().join("tests"), "rs", &mut paths);
    files(&root().join("src"), "rs", &mut paths);
    let mut problems = Vec::new();
    for path in paths {
        let code = without_words(&fs::read_to_string(&path).expect("sources are text"));
        if code.contains("#[ignore") {
            problems.push(format!("{}: an ignored test", path.display()));
        }
        // One place waits between two looks at a condition with a deadline.
        let waits = path.ends_with("tests/cluster/wait.rs") || path.components().any(|c| c.as_os_str() == "src");
        if code.contains("thread::sleep") && !waits {
            problems.push(format!("{}: sleeps", path.display()));
        }
    }
    check(problems);
}

/// The checks above see what they should: a file with every vice.
#[test]
fn the_reader_of_sources_reads() {
    let text = r####"//! Prose with crate::sim in it.
use crate::{types::{self, Key as Name}, protocol::{ring::*, versions::Head}};
use super::super::sim::World;
fn f<'a>(c: char) -> &'a str { let _ = ['"', '\'', '\\', 'x']; let s = "crate::cli // no"; r#"crate::http " "#; s }
fn g() { crate::wire::decode(); /* crate::cli */ }
#[cfg(test)]
mod tests { use crate::server::Nothing; fn h() { if true { } } }
fn after() { crate::limits::PAGE; }
"####;
    let module: Vec<String> = ["engine", "table"].iter().map(|s| s.to_string()).collect();
    let code = without_tests(&without_words(text));
    let source = Source { path: "engine/table/mod.rs".into(), module, text: text.into(), code };
    let found: Vec<String> = imports(&source).iter().map(|p| p.join("::")).collect();
    let expected = [
        "limits::PAGE",
        "protocol::ring",
        "protocol::versions::Head",
        "sim::World",
        "types",
        "types::Key",
        "wire::decode",
    ];
    assert_eq!(found, expected);
    assert_eq!(parts("TableManager"), ["", "table", "manager"]);
    assert_eq!(parts("read_info"), ["read", "info"]);
}
