//! Tests that need root and a namespace of their own: whatever ends them, the kernel takes what they made away with it.
//!
//! They run when `ROOT_TESTS` is set (`.ci/run` does that) and fail there if they cannot; without it the program says
//! that nothing was run, and counts nothing as passed. Each runs alone, in the order given.

use std::{
    env,
    os::unix::process::CommandExt,
    panic,
    process::{Command, ExitCode},
    time::Instant,
};

/// Set once within the namespace.
const WITHIN: &str = "TESTS_WITHIN_NAMESPACE";

pub type Test = (&'static str, fn());

/// The main function of a test program: `unshare` are the options that make its namespace.
pub fn main(program: &str, unshare: &[&str], tests: &[Test]) -> ExitCode {
    let wanted: Vec<String> = env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()));
    let chosen: Vec<&Test> = tests.iter().filter(|(name, _)| chosen(name)).collect();
    if env::args().any(|a| a == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if env::var_os("ROOT_TESTS").is_none() || chosen.is_empty() {
        let command = format!("ROOT_TESTS=1 cargo test --release --test {program}");
        println!("{program}: NOT RUN: {} tests; as root: {command}", tests.len());
        return verdict(0, 0, tests.len());
    }
    if env::var_os(WITHIN).is_none() {
        let this = env::current_exe().expect("the path of this program");
        let mut again = Command::new("unshare");
        let error = again.args(unshare).arg(this).args(env::args_os().skip(1)).env(WITHIN, "1").exec();
        eprintln!("{program}: cannot make a namespace: unshare: {error}");
        return ExitCode::FAILURE;
    }
    println!("running {} tests", chosen.len());
    let passed = chosen.iter().filter(|test| passes(test)).count();
    verdict(passed, chosen.len() - passed, tests.len() - chosen.len())
}

fn passes((name, test): &Test) -> bool {
    let start = Instant::now();
    let passed = panic::catch_unwind(test).is_ok();
    let word = if passed { "ok" } else { "FAILED" };
    println!("test {name} ... {word} ({:.1} s)", start.elapsed().as_secs_f64());
    passed
}

fn verdict(passed: usize, failed: usize, out: usize) -> ExitCode {
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {out} filtered out");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
