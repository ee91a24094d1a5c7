//! Tells the build which commit it is of, for `--version` and the reports of `bench`: the variable `DYNARC_COMMIT`,
//! where whoever builds has set it, else what git says of this directory. Without either the commit is not told.

use std::{path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=src/build.rs");
    println!("cargo:rerun-if-env-changed=DYNARC_COMMIT");
    let given = std::env::var("DYNARC_COMMIT").ok().filter(|commit| !commit.is_empty());
    let version = env!("CARGO_PKG_VERSION");
    // Under names that are no setting's: cargo puts them into the environment of what it runs, too.
    match given.or_else(of_git) {
        Some(commit) => {
            println!("cargo:rustc-env=BUILT_OF_COMMIT={commit}");
            println!("cargo:rustc-env=BUILT_VERSION={version} ({commit})");
        }
        None => println!("cargo:rustc-env=BUILT_VERSION={version}"),
    }
}

/// The commit that is checked out here; `None` where this is no checkout, also where it lies inside another project's.
fn of_git() -> Option<String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().ok()?;
    if Path::new(&git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()? != here {
        return None;
    }
    let branch = git(&["symbolic-ref", "-q", "HEAD"]);
    for name in ["HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        // A path that does not exist would make every build begin anew.
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned()).filter(|text| !text.is_empty())
}
