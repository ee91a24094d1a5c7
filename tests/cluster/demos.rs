//! The demos, on a cluster of `dynarc dev`, as their reader would run them.

use crate::{
    node::{Place, addresses, dynarc, run},
    wait,
};
use std::{fs, net::IpAddr, process::Command, time::Duration};

#[test]
fn the_demos_keep_their_promises() {
    let place = Place::new("demos");
    let IpAddr::V4(first) = addresses(3) else { panic!("an address of 127.0.0.0/8") };
    let (data, first) = (place.path.join("dev"), first.to_string());
    let directory = data.to_string_lossy().into_owned();
    let out = place.path.join("out");
    let file = fs::File::create(&out).expect("a file");
    let said = || fs::read_to_string(&out).unwrap_or_default();

    assert_eq!(run(&["demo", "conflict", "--node", &first]).0, 3, "nobody is there yet");
    assert_eq!(run(&["demo", "kill", "--data", &directory]).0, 3);

    let mut dev = dynarc();
    dev.args(["dev", "--base-ip", &first, "--data"]).arg(&data);
    let mut dev = dev.stdout(file.try_clone().expect("the file twice")).stderr(file).spawn().expect("it starts");
    wait::until(Duration::from_secs(30), "the cluster is up", || {
        if said().contains("Ctrl-C") { Ok(()) } else { Err(said()) }
    });

    let (code, told, complained) = run(&["demo", "conflict", "--node", &first]);
    assert_eq!(code, 0, "{told}\n{complained}");
    assert!(told.contains("300 {") && told.contains("siblings"), "{told}");

    assert_eq!(run(&["demo", "kill", "--data", &directory, "--victim", "n9"]).0, 2);
    let pid = || fs::read_to_string(data.join("n2/pid")).unwrap_or_default();
    let before = pid();
    let (code, told, complained) = run(&["demo", "kill", "--data", &directory, "--victim", "n2"]);
    assert_eq!(code, 0, "{told}\n{complained}\n{}", said());
    assert!(told.contains("none failed") && told.contains("0 hints to go"), "{told}");
    assert!(said().contains("killed by signal 9") && said().contains("started again"), "{}", said());
    assert_ne!(pid(), before, "another process serves the directory");
    println!("{told}");

    let asked = Command::new("kill").args(["-INT", &dev.id().to_string()]).status();
    assert!(asked.is_ok_and(|s| s.success()));
    let ended = wait::until(Duration::from_secs(20), "dev ends", || {
        dev.try_wait().map_err(|e| e.to_string())?.ok_or_else(said)
    });
    assert!(ended.success(), "{ended:?}: {}", said());
}
