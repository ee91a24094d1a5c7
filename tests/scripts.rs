//! Golden scripts: conversations with a part of the system, the expected transcript below each command.
//!
//! A script is a text of blocks with a blank line between them: commands one a line (`#` starts a comment), a line
//! `---`, and what they print. `UPDATE=1 cargo test --test scripts` writes what they print now; read the difference
//! before you commit it. Scripts below `versions/` talk to replicas
//! of one key (see [`versions`]), those below `cluster/` to nodes (see [`cluster`]).

#[path = "scripts/cluster.rs"]
mod cluster;
#[path = "scripts/versions.rs"]
mod versions;

use std::{fs, path::Path};

/// What a script talks to.
trait Stage {
    /// Runs one command and returns what it prints.
    fn run(&mut self, command: &str) -> Result<String, String>;
}

fn play(folder: &str, stage: impl Fn() -> Box<dyn Stage>) {
    let below = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(folder);
    let entries = fs::read_dir(&below).unwrap_or_else(|e| panic!("{}: {e}", below.display()));
    let mut paths: Vec<_> = entries.map(|e| e.expect("a directory entry").path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "txt"));
    paths.sort();
    assert!(!paths.is_empty(), "no scripts in {}", below.display());
    let update = std::env::var_os("UPDATE").is_some();
    let mut problems = Vec::new();
    for path in paths {
        let script = fs::read_to_string(&path).expect("scripts are text");
        let played = replay(&script, stage().as_mut());
        if played == script {
            continue;
        }
        if update {
            fs::write(&path, &played).expect("scripts can be written");
        } else {
            problems.push(format!("{}\n{}", path.display(), difference(&script, &played)));
        }
    }
    assert!(problems.is_empty(), "{} (UPDATE=1 accepts what was printed)", problems.join("\n\n"));
}

/// The script with the transcript that it has now.
fn replay(script: &str, stage: &mut dyn Stage) -> String {
    let blocks = script.split("\n\n").filter(|b| !b.trim().is_empty());
    let played = blocks.map(|block| {
        let commands = block.lines().take_while(|l| *l != "---").collect::<Vec<_>>();
        let mut out = commands.join("\n").trim().to_string();
        let spoken = commands.iter().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
        let printed: Vec<String> = spoken
            .map(|command| stage.run(command).unwrap_or_else(|e| format!("error: {e}")))
            .filter(|text| !text.is_empty())
            .collect();
        if !printed.is_empty() {
            out += "\n---\n";
            out += &printed.join("\n");
        }
        out
    });
    played.collect::<Vec<_>>().join("\n\n") + "\n"
}

fn difference(expected: &str, actual: &str) -> String {
    let (mut expected, mut actual) = (expected.lines(), actual.lines());
    let mut number = 0;
    loop {
        number += 1;
        match (expected.next(), actual.next()) {
            (None, None) => return "only the blank lines differ".into(),
            (e, a) if e == a => {}
            (e, a) => {
                let line = |l: Option<&str>| l.unwrap_or("(end)").to_string();
                return format!("line {number}\n  expected: {}\n  printed:  {}", line(e), line(a));
            }
        }
    }
}

#[test]
fn versions_scripts() {
    play("versions", || Box::new(versions::Replicas::default()));
}

#[test]
fn cluster_scripts() {
    play("cluster", || Box::new(cluster::Stage::default()));
}
