//! The generated code belongs to the schema: a checksum of `schema/*.fbs` is kept beside it, and where the compiler of
//! the right version is at hand the code is generated again and compared.
//!
//! After a change of the schema: `UPDATE_SCHEMA=1 cargo test --test schema` (with flatc 25.12.19 on the PATH).

use std::{fs, path::Path, process::Command};

const COMPILER: &str = "flatc version 25.12.19";
const CODE: &str = "src/wire/generated/dynarc_generated.rs";
const CHECKSUM: &str = "src/wire/generated/schema.xxh3";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Of every schema file, by name.
fn schema_checksum() -> String {
    let files = fs::read_dir(root().join("schema")).expect("schema/").map(|f| f.expect("an entry").path());
    let mut files: Vec<_> = files.filter(|f| f.extension().is_some_and(|e| e == "fbs")).collect();
    files.sort();
    assert!(files.len() >= 5, "{files:?}");
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for file in files {
        hash.update(file.file_name().expect("a name").as_encoded_bytes());
        hash.update(&fs::read(&file).expect("a schema file"));
    }
    format!("{:016x}\n", hash.digest())
}

/// What the compiler makes of the schema; `None` where it is absent or of another version.
fn generate() -> Option<String> {
    let version = Command::new("flatc").arg("--version").output().ok()?;
    if !String::from_utf8_lossy(&version.stdout).starts_with(COMPILER) {
        return None;
    }
    let out = tempfile::tempdir().expect("a temporary directory");
    let mut flatc = Command::new("flatc");
    flatc.args(["--rust", "--gen-all", "-o"]).arg(out.path()).arg("schema/dynarc.fbs").current_dir(root());
    assert!(flatc.status().expect("flatc runs").success(), "flatc refused the schema");
    Some(fs::read_to_string(out.path().join("dynarc_generated.rs")).expect("generated code"))
}

#[test]
fn generated_code_belongs_to_the_schema() {
    let generated = generate();
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(root().join(CODE), generated.as_ref().expect(COMPILER)).expect("written");
        fs::write(root().join(CHECKSUM), schema_checksum()).expect("written");
    }
    let recorded = fs::read_to_string(root().join(CHECKSUM)).expect("the recorded checksum");
    assert_eq!(recorded, schema_checksum(), "the schema has changed since the code was generated");
    if let Some(generated) = generated {
        assert!(generated == fs::read_to_string(root().join(CODE)).expect("code"), "{CODE} is not what flatc makes");
    }
}
