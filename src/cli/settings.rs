//! Settings on the command line: their flags, the file that goes with them, and `dynarc config`.

use super::{Exit, Stop, output};
use crate::server::config::{self, Effectives, Flags, Kind, SETTINGS, Setting};
use clap::{Arg, ArgMatches, Args, FromArgMatches, Subcommand};
use std::path::{Path, PathBuf};

pub const EXAMPLE: &str = "Example:\n  dynarc config print --data /var/lib/dynarc\n  dynarc config check dynarc.toml";

/// The file in a data directory that is read when no other is named.
pub const FILE: &str = "dynarc.toml";

/// A flag for each setting, but for those that `dynarc dev` decides itself.
#[derive(Clone, Debug, Default)]
pub struct SettingFlags<const DEV: bool>(pub Flags);

impl<const DEV: bool> SettingFlags<DEV> {
    fn settings() -> impl Iterator<Item = &'static Setting> {
        const DECIDED_BY_DEV: [&str; 5] = ["data", "listen", "join", "shards", "cpus"];
        SETTINGS.iter().filter(|s| !(DEV && DECIDED_BY_DEV.contains(&s.name)))
    }
    fn arg(setting: &'static Setting) -> Arg {
        let default = match setting.default {
            "" => String::new(),
            text => format!("default: {text}; "),
        };
        let bounds = match setting.bounds() {
            text if text.is_empty() => text,
            text => format!("{text}; "),
        };
        let help = format!("{} [{default}{bounds}env: {}]", setting.doc, setting.variable());
        let arg = Arg::new(setting.name).long(setting.flag()).help(help).help_heading("Settings");
        match setting.kind {
            Kind::Switch => {
                arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("true|false")
            }
            Kind::Path => arg.value_name("DIR"),
            Kind::Ip => arg.value_name("ADDR"),
            Kind::Peers => arg.value_name("ADDR,.."),
            Kind::Cpus => arg.value_name("LIST"),
            Kind::Number { .. } => arg.value_name("N"),
            Kind::Bytes { .. } => arg.value_name("BYTES"),
            Kind::Log => arg.value_name("LEVEL"),
            Kind::Durability => arg.value_name("sync|interval"),
        }
    }
}
impl<const DEV: bool> Args for SettingFlags<DEV> {
    fn augment_args(command: clap::Command) -> clap::Command {
        Self::settings().fold(command, |command, setting| command.arg(Self::arg(setting)))
    }
    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}
impl<const DEV: bool> FromArgMatches for SettingFlags<DEV> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |s: &'static Setting| matches.get_one::<String>(s.name).map(|text| (s.name, text.clone()));
        Ok(SettingFlags(Self::settings().filter_map(given).collect()))
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Puts flags, environment and file together. Without `--config` the file is the one that `DYNARC_CONFIG` names, else
/// `dynarc.toml` in the data directory, if it is there.
pub fn effective(flags: &Flags, config: Option<&Path>) -> Result<Effectives, Stop> {
    let named = config.map(Path::to_owned).or_else(|| config::environment("DYNARC_CONFIG").map(PathBuf::from));
    let path = named.or_else(|| beside_data(flags));
    let text = path.as_deref().map(read).transpose()?;
    warn_of_unknown_variables();
    let file = path.as_deref().zip(text.as_deref());
    Ok(config::resolve(flags, config::environment, file)?)
}

fn beside_data(flags: &Flags) -> Option<PathBuf> {
    let data = flags.get("data").cloned().or_else(|| config::environment("DYNARC_DATA"))?;
    let path = Path::new(&data).join(FILE);
    path.is_file().then_some(path)
}

fn read(path: &Path) -> Result<String, Stop> {
    let place = path.display();
    std::fs::read_to_string(path).map_err(|e| Stop::new(Exit::Configuration, format!("{place}: {e}")))
}

/// A misspelt variable would be obeyed by nobody: say so.
fn warn_of_unknown_variables() {
    for (name, text) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|n| n.starts_with("DYNARC_")) else { continue };
        if text.is_empty() || config::speaks_of_a_service(name, &text.to_string_lossy()) {
            continue;
        }
        let known = SETTINGS.iter().any(|s| s.variable() == name) || matches!(name, "DYNARC_CONFIG" | "DYNARC_NODE");
        if !known {
            output::tell(format!("dynarc: warning: {name} in the environment is no setting"));
        }
    }
}

#[derive(Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}
#[derive(Subcommand)]
enum ConfigCommand {
    /// Print every setting with its effective value and where that comes from, as TOML
    Print(PrintArgs),
    /// Check a configuration file
    Check(CheckArgs),
}
#[derive(Args)]
struct PrintArgs {
    /// Configuration file; without it dynarc.toml in the data directory [env: DYNARC_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingFlags<false>,
}
#[derive(Args)]
struct CheckArgs {
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: ConfigArgs) -> Result<(), Stop> {
    match args.command {
        ConfigCommand::Print(args) => print(args),
        ConfigCommand::Check(args) => check(args),
    }
}

fn print(args: PrintArgs) -> Result<(), Stop> {
    let all = effective(&args.settings.0, args.config.as_deref())?;
    if !args.json {
        return output::print(all.to_toml().trim_end().to_owned() + "\n");
    }
    let line = |(setting, effective): (&'static Setting, &config::Effective)| {
        let value = serde_json::json!({ "value": effective.text, "from": effective.origin_text(setting) });
        (setting.name.to_owned(), value)
    };
    output::print_json(&all.iter().map(line).collect::<serde_json::Map<_, _>>())
}

fn check(args: CheckArgs) -> Result<(), Stop> {
    let count = config::check_file(&args.file, &read(&args.file)?)?;
    if args.json {
        return output::print_json(&serde_json::json!({ "file": args.file, "settings": count, "ok": true }));
    }
    output::print(format!("{}: ok, {count} settings\n", args.file.display()))
}
