//! fio: what the device and the file system give to a program that does nothing else.

use crate::Fallible;
use std::{path::Path, process::Command};

/// What one run of fio has read.
#[derive(Clone, Copy, Debug)]
pub struct Reads {
    pub per_second: f64,
    pub bytes_per_second: f64,
    /// Microseconds.
    pub p99: f64,
}

pub fn present() -> bool {
    Command::new("fio").arg("--version").output().is_ok_and(|o| o.status.success())
}

/// A file of `bytes`, written through and through: unwritten space would be read without the device.
pub fn lay_out(file: &Path, bytes: u64) -> Fallible<()> {
    let write = ["--rw=write", "--bs=1m", "--iodepth=8", "--end_fsync=1", &format!("--size={bytes}")].map(String::from);
    run(file, &write).map(|_| ())
}

/// Random reads of `block` bytes, `depth` at once.
pub fn random_reads(file: &Path, bytes: u64, block: usize, depth: usize, seconds: u64) -> Fallible<Reads> {
    reads(file, "randread", bytes, block, depth, seconds)
}

/// The whole file in order, once.
pub fn sequential_read(file: &Path, bytes: u64) -> Fallible<Reads> {
    reads(file, "read", bytes, 1 << 20, 4, 0)
}

fn reads(file: &Path, kind: &str, bytes: u64, block: usize, depth: usize, seconds: u64) -> Fallible<Reads> {
    let mut arguments = vec![
        format!("--rw={kind}"),
        format!("--bs={block}"),
        format!("--iodepth={depth}"),
        format!("--size={bytes}"),
        "--norandommap".into(),
    ];
    if seconds > 0 {
        arguments.extend(["--time_based".into(), format!("--runtime={seconds}")]);
    }
    let answer = run(file, &arguments)?;
    let read = &answer["jobs"][0]["read"];
    let number = |value: &serde_json::Value| value.as_f64().ok_or("fio's answer has another form");
    Ok(Reads {
        per_second: number(&read["iops"])?,
        bytes_per_second: number(&read["bw_bytes"])?,
        p99: number(&read["clat_ns"]["percentile"]["99.000000"])? / 1e3,
    })
}

fn run(file: &Path, arguments: &[String]) -> Fallible<serde_json::Value> {
    let output = Command::new("fio")
        .args(["--name=compare", "--ioengine=io_uring", "--direct=1", "--output-format=json"])
        .arg(format!("--filename={}", file.display()))
        .args(arguments)
        .output()?;
    if !output.status.success() {
        return Err(format!("fio: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // Warnings may stand before the object.
    let from = text.find('{').ok_or("fio's answer has another form")?;
    Ok(serde_json::from_str(&text[from..])?)
}
