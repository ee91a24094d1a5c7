//! The command line as a program sees it: help, exit codes, where errors are printed, what bad configuration says.
//! Nothing here starts a node; tests/cluster does.

#![cfg(feature = "server")]
#![allow(clippy::disallowed_methods, reason = "another program on the port is a thread here")]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
};

fn dynarc(arguments: &[&str]) -> Output {
    dynarc_with(arguments, &[])
}
fn dynarc_with(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dynarc"));
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("DYNARC_")) {
        command.env_remove(name);
    }
    command.args(arguments).envs(environment.iter().copied()).output().expect("the program runs")
}
fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit code")
}

const COMMANDS: [&str; 15] = [
    "serve",
    "dev",
    "put",
    "get",
    "delete",
    "load",
    "status",
    "ring",
    "table",
    "inspect",
    "doctor",
    "bench",
    "simulate",
    "config",
    "completions",
];

#[test]
fn every_command_explains_itself_with_an_example() {
    let help = out(&dynarc(&["--help"]));
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is not in the help");
        let own = dynarc(&[command, "--help"]);
        assert_eq!(code(&own), 0, "{command}");
        assert!(out(&own).contains("Example") && out(&own).contains("dynarc "), "{command}: {}", out(&own));
    }
    for later in ["node", "repair", "backup", "restore"] {
        assert_eq!(code(&dynarc(&[later])), 2, "{later} is not there yet");
    }
}

#[test]
fn the_doctor_names_what_it_finds_and_how_to_mend_it() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let data = place.path().to_str().expect("text");
    let look = |arguments: &[&str]| {
        let output = dynarc(&[&["doctor", "--json"], arguments].concat());
        let found: serde_json::Value = serde_json::from_str(&out(&output)).expect("JSON");
        (code(&output), found, err(&output))
    };
    let verdict = |found: &serde_json::Value, name: &str| {
        let findings = found["findings"].as_array().expect("findings");
        let finding = findings.iter().find(|f| f["check"] == name).unwrap_or_else(|| panic!("no {name} in {found}"));
        let (verdict, mend) = (finding["verdict"].as_str().expect("text"), finding["mend"].as_str().expect("text"));
        assert_eq!(verdict == "good", mend.is_empty(), "{finding}");
        verdict.to_owned()
    };
    let (_, found, _) = look(&[]);
    for name in ["kernel", "io_uring", "locked memory", "open files", "cpus", "clock source", "clock"] {
        verdict(&found, name);
    }
    let (_, found, said) = look(&["--data", data]);
    assert_eq!(verdict(&found, "o_direct"), "good", "{found} {said}");
    assert!(["good", "poor"].contains(&&verdict(&found, "sync")[..]));
    verdict(&found, "disk space");
    assert_eq!(fs::read_dir(data).expect("readable").count(), 0, "the doctor leaves nothing behind");
    // A directory that is not there, then made.
    let missing = format!("{data}/a/b");
    assert_eq!(verdict(&look(&["--data", &missing]).1, "data directory"), "poor");
    let (_, found, _) = look(&["--data", &missing, "--fix"]);
    assert_eq!(verdict(&found, "data directory"), "good");
    assert!(found["fixed"].as_array().is_some_and(|fixed| fixed.len() == 1), "{found}");
    // Memory is no disk.
    if Path::new("/dev/shm").is_dir() {
        let (code, found, said) = look(&["--data", "/dev/shm"]);
        assert_eq!((code, &verdict(&found, "data directory")[..]), (1, "bad"));
        assert!(said.contains("data directory"), "{said}");
        let text = dynarc(&["doctor", "--data", "/dev/shm"]);
        assert!(out(&text).contains("choose a directory on a disk"), "{}", out(&text));
    }
}

#[test]
fn usage_errors_are_2_and_print_nothing_on_standard_output() {
    let long = "k".repeat(1025);
    let cases: [&[&str]; 12] = [
        &[],
        &["frobnicate"],
        &["put", "key"],
        &["get", ""],
        &["get", &long],
        &["get", "k", "--consistency", "most"],
        &["delete", "k", "--context", "A2B1"],
        &["put", "k", "v", "--context", "vc:A2B1"],
        &["put", "k", "v", "--content-type", "application/json"],
        &["load", ".", "--w", "0"],
        &["dev", "--nodes", "0"],
        &["status", "--node", "host:port"],
    ];
    for arguments in cases {
        let output = dynarc(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", err(&output));
        assert_eq!(out(&output), "", "{arguments:?}");
        assert!(!err(&output).is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_cluster_that_is_not_there_is_3_and_says_how_to_mend_it() {
    // A port that was free a moment ago: nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let node = format!("127.0.0.1:{port}");
    for arguments in
        [&["status"][..], &["ring", "k"], &["get", "k"], &["put", "k", "v"], &["delete", "k"], &["load", "src"]]
    {
        let output = dynarc(&[arguments, &["--node", &node]].concat());
        assert_eq!(code(&output), 3, "{arguments:?}: {}", err(&output));
        let said = err(&output);
        assert!(said.contains(&node) && said.contains("--node HOST"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn something_else_on_the_port_is_no_crash() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let node = listener.local_addr().expect("its address").to_string();
    let answers = ["", "SSH-2.0-OpenSSH\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"];
    let server = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().expect("a client");
            read_head(&mut stream);
            stream.write_all(answer.as_bytes()).expect("answered");
        }
    });
    for answer in answers {
        let output = dynarc(&["status", "--node", &node]);
        assert!(matches!(code(&output), 1 | 3), "{answer:?}: {}", err(&output));
        assert!(err(&output).contains(&node), "{}", err(&output));
    }
    server.join().expect("the other program ended well");
}
fn read_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        head.push(byte[0]);
    }
}

#[test]
fn bad_configuration_is_78_with_its_place() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("dynarc.toml");
    let path = file.to_str().expect("text");
    fs::write(&file, "n = 3\n\nlisen = \"127.0.0.1\"\n").expect("written");
    for arguments in
        [&["config", "check", path][..], &["config", "print", "--config", path], &["serve", "--config", path]]
    {
        let output = dynarc(arguments);
        assert_eq!(code(&output), 78, "{arguments:?}: {}", err(&output));
        let expected = format!("{path}:3:1: unknown setting \"lisen\"; did you mean \"listen\"?");
        assert!(err(&output).contains(&expected), "{}", err(&output));
    }
    // The file beside the data is found by itself.
    let data = directory.path().to_str().expect("text");
    assert_eq!(code(&dynarc(&["serve", "--data", data])), 78);

    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case; 5] = [
        (&["serve"], &[], "no data directory: give --data DIR"),
        (&["config", "print", "--http-port", "0"], &[], "--http-port: 0 is not 1 to 65535"),
        (&["config", "print"], &[("DYNARC_W", "x")], "DYNARC_W: \"x\" is no whole number"),
        (&["config", "print", "--w", "4"], &[], "--w: w is 4, more than n"),
        (&["config", "check", "/nonexistent.toml"], &[], "/nonexistent.toml: "),
    ];
    for (arguments, environment, words) in cases {
        let output = dynarc_with(arguments, environment);
        assert_eq!(code(&output), 78, "{arguments:?}: {}", err(&output));
        assert!(err(&output).contains(words), "{}", err(&output));
    }
}

#[test]
fn effective_settings_are_printed_with_their_origin() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("dynarc.toml"), "vnodes = 100\nsloppy = false\n").expect("written");
    let data = directory.path().to_str().expect("text");
    let arguments = ["config", "print", "--json", "--data", data, "--n", "5"];
    let output = dynarc_with(&arguments, &[("DYNARC_VNODES", "64"), ("DYNARC_LSITEN", "x")]);
    assert!(err(&output).contains("DYNARC_LSITEN in the environment is no setting"), "{}", err(&output));
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let seen = |name: &str| format!("{} from {}", all[name]["value"], all[name]["from"]);
    assert_eq!(seen("n"), "\"5\" from \"flag --n\"");
    assert_eq!(seen("vnodes"), "\"64\" from \"environment DYNARC_VNODES\"");
    assert_eq!(seen("w"), "\"2\" from \"default\"");
    assert!(seen("sloppy").starts_with("\"false\" from ") && seen("sloppy").ends_with("dynarc.toml:2\""));

    // As TOML it is a configuration file itself.
    let printed = directory.path().join("printed.toml");
    fs::write(&printed, dynarc(&["config", "print", "--data", data]).stdout).expect("written");
    let checked = dynarc(&["config", "check", printed.to_str().expect("text")]);
    assert_eq!(code(&checked), 0, "{}", err(&checked));
    assert!(out(&checked).contains(": ok, "), "{}", out(&checked));
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = dynarc(&["completions", shell]);
        assert_eq!(code(&output), 0, "{shell}");
        assert!(out(&output).contains("simulate") && out(&output).contains("value-bytes-max"), "{shell}");
    }
    assert_eq!(code(&dynarc(&["completions", "tcsh"])), 2);
}

#[test]
fn files_that_are_not_what_they_should_be_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(&path, bytes).expect("written");
        path.to_str().expect("text").to_owned()
    };
    let garbage: Vec<u8> = (0..3 * 4096u32).map(|i| (i * 31 % 251) as u8).collect();
    let files = [
        ("wal", write("log/0000000000000001.seg", &garbage)),
        ("table", write("slices/0000/0000000000000001.sst", &garbage)),
        ("manifest", write("slices/0000/MANIFEST", &garbage)),
        ("wal", write("log/0000000000000002.seg", b"")),
        ("table", write("slices/0000/0000000000000002.sst", b"")),
        ("manifest", write("slices/0001/MANIFEST", b"short")),
        ("wal", "/nonexistent".to_owned()),
    ];
    for (kind, file) in &files {
        let output = dynarc(&["inspect", kind, file]);
        assert_eq!(code(&output), 1, "{kind} {file}: {}{}", out(&output), err(&output));
        assert_eq!(err(&output).lines().count(), 1, "{}", err(&output));
    }
    assert_eq!(code(&dynarc(&["inspect", "sstable", &files[0].1])), 2);
}

#[test]
fn what_cannot_be_stored_is_said_before_anything_is_sent() {
    let missing = dynarc(&["put", "k", "@/nonexistent"]);
    assert_eq!(code(&missing), 1);
    assert!(err(&missing).contains("/nonexistent: "), "{}", err(&missing));
    let nowhere = dynarc(&["load", "/nonexistent"]);
    assert_eq!(code(&nowhere), 1);
    assert!(err(&nowhere).contains("/nonexistent: "), "{}", err(&nowhere));
    assert!(!Path::new("/nonexistent").exists());
}

#[test]
fn the_same_seed_prints_the_same_trace_hash() {
    let hash = || {
        let text = out(&dynarc(&["simulate", "7", "--minutes", "0.05"]));
        text.lines().find(|l| l.starts_with("trace hash ")).map(str::to_owned)
    };
    let first = hash();
    assert!(first.is_some() && first == hash(), "{first:?}");
}

/// Runs a command of the shell in which `$D` is the program.
fn shell(script: &str) -> Output {
    let mut bash = Command::new("bash");
    bash.env("D", env!("CARGO_BIN_EXE_dynarc")).args(["-c", script]).output().expect("a shell")
}

#[test]
fn standard_error_that_takes_nothing_changes_no_exit_code() {
    let nobody = "--node 127.0.0.1:9";
    for (arguments, expected) in [
        (&*format!("get k {nobody}"), 3),
        (&*format!("status {nobody}"), 3),
        (&*format!("load /nonexistent {nobody}"), 1),
        ("config check /nonexistent", 78),
        ("nonsense", 2),
        ("put", 2),
    ] {
        for closed in ["2>/dev/full", "2>&-"] {
            let ended = shell(&format!("$D {arguments} {closed}"));
            assert_eq!(code(&ended), expected, "{arguments} {closed}: {}", out(&ended));
        }
        let piped = shell(&format!("$D {arguments} 2>&1 >/dev/null | true; echo ${{PIPESTATUS[0]}}"));
        assert_eq!(out(&piped).trim(), expected.to_string(), "{arguments}");
    }
    let warned = shell("DYNARC_NONSENSE=1 $D config print 2>/dev/full >/dev/null");
    assert_eq!(code(&warned), 0);
}

#[test]
fn standard_output_that_takes_nothing_is_an_error_and_no_panic() {
    for arguments in ["--help", "serve --help", "--version", "config print", "completions bash"] {
        let full = shell(&format!("$D {arguments} >/dev/full"));
        assert_eq!(code(&full), 1, "{arguments}: {}", err(&full));
        assert!(!err(&full).contains("panicked"), "{arguments}: {}", err(&full));
        let piped = shell(&format!("$D {arguments} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"));
        assert_eq!(out(&piped).trim(), "0", "{arguments}: {}", err(&piped));
    }
}

#[test]
fn the_version_names_the_commit() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
        output.status.success().then(|| out(&output).trim().to_owned())
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().ok();
    let checkout = git(&["rev-parse", "--show-toplevel"]).and_then(|top| Path::new(&top).canonicalize().ok()) == here;
    let commit =
        git(&["rev-parse", "--short=12", "HEAD"]).filter(|_| checkout && option_env!("BUILT_OF_COMMIT").is_some());
    let version = env!("CARGO_PKG_VERSION");
    let expected = match commit {
        Some(commit) => format!("dynarc {version} ({commit})"),
        None => format!("dynarc {version}"),
    };
    let printed = out(&dynarc(&["--version"]));
    assert_eq!(printed.trim(), expected);
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    for (arguments, expected) in [
        (&["get", "k", "--json", "--node", "127.0.0.1:9"][..], 3),
        (&["put", "k", "v", "--context", "vc:x", "--json"], 2),
        (&["status", "--json", "--nonsense"], 2),
        (&["load", "/nonexistent", "--json", "--node", "127.0.0.1:9"], 1),
    ] {
        let ended = dynarc(arguments);
        assert_eq!(code(&ended), expected, "{arguments:?}");
        let printed: serde_json::Value = serde_json::from_slice(&ended.stdout).expect("JSON");
        assert_eq!(printed["error"]["exit_code"], expected, "{printed}");
        assert!(printed["error"]["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{printed}");
        assert!(!err(&ended).is_empty(), "and words for people");
    }
}

#[test]
fn variables_that_are_empty_or_speak_of_a_service_are_not_given() {
    let environment = [
        ("DYNARC_N", ""),
        ("DYNARC_NODE", ""),
        ("DYNARC_CONFIG", ""),
        ("DYNARC_SERVICE_HOST", "10.0.0.7"),
        ("DYNARC_PORT_7700_TCP", "tcp://10.0.0.7:7700"),
        ("DYNARC_CLIENT_PORT", "tcp://10.0.0.7:8000"),
    ];
    let printed = dynarc_with(&["config", "print", "--data", "/nonexistent"], &environment);
    assert_eq!((code(&printed), err(&printed)), (0, String::new()));
    assert!(!out(&printed).contains("environment"), "{}", out(&printed));
    let asked = dynarc_with(&["status"], &environment);
    assert!(err(&asked).contains("127.0.0.1:7700"), "{}", err(&asked));
}
