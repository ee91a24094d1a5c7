//! Starts that cannot succeed: each says in one line what is wrong and how to mend it, and exits with its code.

use crate::{
    node::{Cluster, Node, Place, READY_WITHIN, address, dynarc},
    wait,
};
use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// Runs a start that should end by itself; returns its exit code and what it complained of.
fn refused(mut command: Command) -> (i32, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
    let ended = wait::until(Duration::from_secs(20), &format!("{command:?} ends"), || {
        child.try_wait().map_err(|e| e.to_string())?.ok_or("it runs".to_string())
    });
    let output = child.wait_with_output().expect("what it said");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    (ended.code().unwrap_or(-1), said)
}
fn serve(data: &Path) -> Command {
    let mut command = dynarc();
    command.arg("serve").arg("--data").arg(data).args(["--listen", &address().to_string(), "--shards", "1"]);
    command
}
/// Ended with an error code and named the trouble.
fn assert_refused(command: Command, words: &[&str]) {
    let (code, said) = refused(command);
    assert!(code == 1 || code == 78, "exit code {code}: {said}");
    let lower = said.to_lowercase();
    assert!(words.iter().any(|w| lower.contains(w)), "none of {words:?} in: {said}");
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|l| l.starts_with("Uid:") && l.split_whitespace().nth(2) == Some("0"))
}

#[test]
fn a_data_directory_in_use() {
    let cluster = Cluster::start("in-use", 1);
    assert_refused(serve(&cluster.nodes[0].data), &["in use", "another process", "locked"]);
    assert_eq!(cluster.http(0).get("/readyz").unwrap().status, 200);
}

#[test]
fn a_port_that_is_taken() {
    let place = Place::new("taken");
    for port in [7700, 8000, 9000] {
        let ip = address();
        let _taken = TcpListener::bind((ip, port)).expect("a free port");
        let mut command = dynarc();
        command.arg("serve").arg("--data").arg(place.path.join(port.to_string()));
        command.args(["--listen", &ip.to_string(), "--shards", "1"]);
        assert_refused(command, &[&port.to_string()]);
    }
}

/// Each start that did not get its ports took four incarnations of every slice.
#[test]
fn a_start_without_its_ports_takes_no_incarnation() {
    let place = Place::new("not-counted");
    let mut node = Node::new(&place, "n", address(), None);
    node.start();
    node.wait_ready();
    let incarnation = |node: &Node| node.figures()["incarnation"].as_u64().expect("a number");
    assert_eq!(incarnation(&node), 1);
    assert!(node.stop().success());
    let identity = node.data.join("node/identity");
    let before = fs::read(&identity).expect("the identity");
    // The kernel may still be closing what the node has let go.
    let taken =
        wait::until(READY_WITHIN, "the port is free", || TcpListener::bind((node.ip, 9000)).map_err(|e| e.to_string()));
    let mut again = dynarc();
    again.arg("serve").arg("--data").arg(&node.data);
    assert_refused(again, &["9000"]);
    assert_eq!(fs::read(&identity).expect("the identity"), before, "it is not counted");
    drop(taken);
    node.start();
    node.wait_ready();
    assert_eq!(incarnation(&node), 1);
}

#[test]
fn a_data_directory_of_a_newer_format() {
    let place = Place::new("newer");
    let mut node = Node::new(&place, "n", address(), None);
    node.start();
    node.wait_ready();
    node.kill();
    // The format number lies behind the magic.
    let identity = node.data.join("node/identity");
    let mut bytes = fs::read(&identity).expect("the identity");
    bytes[8..12].copy_from_slice(&99u32.to_le_bytes());
    fs::write(&identity, &bytes).expect("the identity changed");
    assert_refused(serve(&node.data), &["newer", "format"]);
    // Damaged is another thing.
    bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
    bytes[30] ^= 0x10;
    fs::write(&identity, &bytes).expect("the identity changed");
    assert_refused(serve(&node.data), &["damaged", "checksum"]);
}

#[test]
fn a_data_directory_that_is_not_one() {
    let place = Place::new("no-directory");
    let file = place.path.join("file");
    fs::write(&file, "x").expect("a file");
    assert_refused(serve(&file), &["director"]);
    assert_refused(serve(&file.join("below")), &["director"]);
    assert_refused(serve(Path::new("/proc/nothing/here")), &["director", "/proc/nothing"]);
}

#[test]
fn bad_settings() {
    let place = Place::new("settings");
    let config = place.path.join("dynarc.toml");
    for (text, word) in
        [("colour = 1\n", "colour"), ("n = 99\n", "n"), ("n = \n", "1:"), ("shards = \"x\"\n", "shards")]
    {
        fs::write(&config, text).expect("a file");
        let mut command = serve(&place.path.join("data"));
        command.arg("--config").arg(&config);
        let (code, said) = refused(command);
        assert_eq!(code, 78, "{text:?}: {said}");
        assert!(said.contains(word) && said.contains("dynarc.toml"), "{text:?}: {said}");
    }
    // Not on the network without TLS, unless told so.
    let mut command = dynarc();
    command.arg("serve").arg("--data").arg(place.path.join("open")).args(["--listen", "192.0.2.1"]);
    let (code, said) = refused(command);
    assert!(code == 78 || code == 1 || code == 2, "{code}: {said}");
    assert!(said.contains("insecure"), "{said}");
    let mut command = dynarc();
    command.args(["serve", "--data"]).arg(place.path.join("x")).arg("--no-such-flag");
    assert_eq!(refused(command).0, 2);
}

/// A folder that an ordinary user may enter, with a copy of the binary in it: the build folder may be closed to it.
fn open_folder(test: &str) -> Option<(tempfile::TempDir, String)> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::Builder::new().prefix(test).tempdir().ok()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).ok()?;
    let binary = folder.path().join("dynarc");
    fs::copy(env!("CARGO_BIN_EXE_dynarc"), &binary).ok()?;
    let binary = binary.to_string_lossy().into_owned();
    Some((folder, binary))
}
/// The binary as a user without privileges, also when the test runs as root.
fn unprivileged(binary: &str, limits: &[&str]) -> Command {
    let mut command = Command::new("prlimit");
    command.args(limits);
    command.args(["setpriv", "--pdeathsig", "KILL"]);
    if is_root() {
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", "--no-new-privs"]);
    }
    command.arg(binary);
    command
}

#[test]
fn a_data_directory_that_is_not_writable() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, binary) = open_folder("not-writable").expect("a temporary folder");
    let data = folder.path().join("data");
    fs::create_dir(&data).expect("a folder");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o555)).expect("read only");
    let mut command = unprivileged(&binary, &[]);
    command.arg("serve").arg("--data").arg(&data).args(["--listen", &address().to_string(), "--shards", "1"]);
    assert_refused(command, &["permission", "not writable", "writ"]);
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).expect("writable");
}

#[test]
fn too_little_locked_memory() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, binary) = open_folder("memlock").expect("a temporary folder");
    let data = folder.path().join("data");
    fs::create_dir(&data).expect("a folder");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).expect("writable");
    let mut command = unprivileged(&binary, &["--memlock=65536:65536"]);
    command.arg("serve").arg("--data").arg(&data).args(["--listen", &address().to_string(), "--shards", "1"]);
    assert_refused(command, &["memlock", "locked memory"]);
}

#[test]
fn a_file_system_without_direct_access() {
    // ramfs has no O_DIRECT; only root may mount one.
    let place = Place::new("no-direct");
    let mount = place.path.join("ramfs");
    fs::create_dir(&mount).expect("a folder");
    let mounted = is_root()
        && Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(&mount).status().is_ok_and(|s| s.success());
    if !mounted {
        eprintln!("cannot mount a ramfs here: only the path is checked");
        assert_refused(serve(Path::new("/proc/self/data")), &["direct"]);
        return;
    }
    let outcome = std::panic::catch_unwind(|| assert_refused(serve(&mount.join("data")), &["o_direct"]));
    let unmounted = Command::new("umount").arg("-l").arg(&mount).status().is_ok_and(|s| s.success());
    assert!(unmounted);
    if let Err(cause) = outcome {
        std::panic::resume_unwind(cause);
    }
}
