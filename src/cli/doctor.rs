//! `doctor`: whether this machine suits a node, and how to mend what does not.

use super::{Exit, Stop, output};
use crate::server::boot::doctor::{self, Verdict};
use clap::Args;
use std::path::PathBuf;

pub const EXAMPLE: &str = "Exit code 1 when a node would not start here, or would take no writes.\n\n\
    Example:\n  dynarc doctor\n  dynarc doctor --data /var/lib/dynarc\n  dynarc doctor --data /var/lib/dynarc --fix";

#[derive(Args)]
pub struct DoctorArgs {
    /// Also look at this data directory: its file system, O_DIRECT, how long a sync takes
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Mend what can be mended from here, then look
    #[arg(long)]
    fix: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: DoctorArgs) -> Result<(), Stop> {
    let data = args.data.as_deref();
    let done = if args.fix { doctor::fix(data) } else { Vec::new() };
    let findings = doctor::look(data);
    if args.json {
        let lines = findings.iter().map(
            |f| serde_json::json!({ "check": f.name, "verdict": f.verdict.name(), "found": f.found, "mend": f.mend }),
        );
        output::print_json(&serde_json::json!({ "findings": lines.collect::<Vec<_>>(), "fixed": done }))?;
    } else {
        let rows = findings.iter().map(|f| [f.verdict.name().into(), f.name.into(), f.found.clone()]);
        let mends = findings.iter().filter(|f| !f.mend.is_empty()).map(|f| format!("{}: {}\n", f.name, f.mend));
        let done: String = done.iter().map(|line| format!("{line}\n")).collect();
        output::print(done + &output::table(["", "check", "found"], rows) + &mends.collect::<String>())?;
    }
    let bad: Vec<_> = findings.iter().filter(|f| f.verdict == Verdict::Bad).map(|f| f.name).collect();
    if bad.is_empty() { Ok(()) } else { Err(Stop::new(Exit::Failed, format!("to be mended: {}", bad.join(", ")))) }
}
