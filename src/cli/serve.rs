//! `serve`: one node in this process.

use super::{
    Exit, Stop, output,
    settings::{self, SettingFlags},
};
use crate::server::{host, kernel, options::ServeOptions};
use clap::Args;
use std::{io::IsTerminal, path::PathBuf};

pub const EXAMPLE: &str = "Started again with --data alone, a node comes back with the address and the cluster it had.\n\n\
    The first node of a cluster is started without --join, or all are started at once, each with --join of all the others.\n\n\
    Example:\n  dynarc serve --data /var/lib/dynarc\n  dynarc serve --data n2 --listen 127.0.0.2 --join 127.0.0.1";

#[derive(Args)]
pub struct ServeArgs {
    /// Configuration file; without it dynarc.toml in the data directory [env: DYNARC_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingFlags<false>,
    /// Form a new cluster, if the directory belongs to none; a first start without --join does so, too
    #[arg(long)]
    bootstrap: bool,
    /// End when this process, which started this one, ends
    #[arg(long, hide = true)]
    parent: Option<u32>,
}

pub fn run(args: ServeArgs) -> Result<(), Stop> {
    if let Some(parent) = args.parent {
        host::die_with(parent).map_err(|e| Stop::failed(e.to_string()))?;
    }
    let effective = settings::effective(&args.settings.0, args.config.as_deref())?;
    let options = ServeOptions { bootstrap: args.bootstrap, ..effective.options()? };
    start_log(effective.log());
    raise_limits();
    crate::server::run(options).map_err(|e| {
        let exit = if e.is_configuration() { Exit::Configuration } else { Exit::Failed };
        Stop::new(exit, e.to_string())
    })
}

/// The limits that a node lives by, as high as the system lets them be. Whether that is enough is the server's to say.
pub fn raise_limits() {
    if let Err(e) = kernel::raise_limits() {
        output::tell(format!("dynarc: warning: the limits of locked memory and open files could not be raised: {e}"));
    }
}

fn start_log(level: &str) {
    let filter = tracing_subscriber::EnvFilter::new(level);
    // A line that cannot be written, for the reader has gone or the disk is full, is dropped: telling of that on
    // standard error, as the library would, ends the process.
    let log = tracing_subscriber::fmt().log_internal_errors(false).with_env_filter(filter).with_writer(std::io::stderr);
    // Another subscriber, set by a program around us, has precedence.
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|text| text.is_empty());
    let _ = log.with_ansi(colours).try_init();
}
