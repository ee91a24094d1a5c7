//! The command line: argv -> a command -> an exit code.
//!
//! Each command is a file of its own. A command prints its answer to standard output and nothing else there; what goes
//! wrong ends as a [`Stop`], one line on standard error that says how to mend it, and the exit code of the contract.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "clocks, threads and locks of a command line tool"
)]

pub mod bench;
mod demo;
mod dev;
mod doctor;
mod fetch;
mod inspect;
mod keys;
mod load;
mod look;
mod output;
mod repair;
mod serve;
mod settings;
mod simulate;
mod store;
mod tables;

use clap::{Args, CommandFactory, Parser, Subcommand};
use std::{fmt, process::ExitCode};

/// A Dynamo-style distributed key-value store whose unit is a CPU core.
#[derive(Parser)]
#[command(name = "dynarc", version = env!("BUILT_VERSION"), max_term_width = 110, after_help = "Start with: dynarc dev")]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node
    #[command(after_help = serve::EXAMPLE)]
    Serve(serve::ServeArgs),
    /// Run a whole cluster on this machine, one process a node
    #[command(after_help = dev::EXAMPLE)]
    Dev(dev::DevArgs),
    /// Show what the design promises, on a running cluster
    #[command(after_help = demo::EXAMPLE)]
    Demo(demo::DemoArgs),
    /// Store a value
    #[command(after_help = keys::PUT_EXAMPLE)]
    Put(keys::PutArgs),
    /// Read a value
    #[command(after_help = keys::GET_EXAMPLE)]
    Get(keys::GetArgs),
    /// Delete a key
    #[command(after_help = keys::DELETE_EXAMPLE)]
    Delete(keys::DeleteArgs),
    /// Store every file below a directory, or compare them with what is stored
    #[command(after_help = load::EXAMPLE)]
    Load(load::LoadArgs),
    /// Show the cluster and its nodes
    #[command(after_help = look::STATUS_EXAMPLE)]
    Status(look::StatusArgs),
    /// Show the ring, or where a key lives
    #[command(after_help = look::RING_EXAMPLE)]
    Ring(look::RingArgs),
    /// Show the tables, make, alter or drop one
    #[command(after_help = tables::EXAMPLE)]
    Table(tables::TableArgs),
    /// Show how far replicas have been compared, or compare them now
    #[command(after_help = repair::EXAMPLE)]
    Repair(repair::RepairArgs),
    /// Print what a file of a data directory holds and verify its checksums
    #[command(after_help = inspect::EXAMPLE)]
    Inspect(inspect::InspectArgs),
    /// Look whether this machine suits a node, and say how to mend what does not
    #[command(after_help = doctor::EXAMPLE)]
    Doctor(doctor::DoctorArgs),
    /// Measure a cluster: open loop, latencies from the scheduled start
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::BenchArgs),
    /// Run a cluster in simulated time with simulated faults; the same seed prints the same trace hash
    #[command(after_help = simulate::EXAMPLE)]
    Simulate(simulate::SimulateArgs),
    /// Show or check the configuration
    #[command(after_help = settings::EXAMPLE)]
    Config(settings::ConfigArgs),
    /// Print completions for a shell
    #[command(after_help = "Example:\n  dynarc completions bash > /etc/bash_completion.d/dynarc")]
    Completions(CompletionsArgs),
}

#[derive(Args)]
struct CompletionsArgs {
    shell: clap_complete::Shell,
}

/// Exit codes other than success.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    Failed = 1,
    Usage = 2,
    Unreachable = 3,
    NotFound = 4,
    /// Concurrent values.
    Conflict = 5,
    /// A quorum was not reached, or a member is not up.
    Degraded = 6,
    Configuration = 78,
}

/// The end of a command that did not succeed: one line for people, a code for programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stop {
    pub exit: Exit,
    /// Empty when the answer on standard output says it all.
    pub line: String,
}
impl Stop {
    pub fn new(exit: Exit, line: impl Into<String>) -> Stop {
        Stop { exit, line: line.into() }
    }
    pub fn failed(line: impl Into<String>) -> Stop {
        Stop::new(Exit::Failed, line)
    }
}
impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}
impl From<crate::server::config::ConfigError> for Stop {
    fn from(error: crate::server::config::ConfigError) -> Stop {
        Stop::new(Exit::Configuration, error.to_string())
    }
}

/// Reads the arguments of this process, runs the command, says how it ended.
pub fn run() -> ExitCode {
    let json = asks_for_json(std::env::args_os());
    let command = match CommandLine::try_parse() {
        Ok(line) => line.command,
        Err(said) if said.use_stderr() => return usage(&said, json),
        // Help or the version, which is an answer: that it could not be printed is a failure.
        Err(help) => return finish(output::written(help.print()), json),
    };
    let ended = match command {
        Command::Serve(args) => serve::run(args),
        Command::Dev(args) => dev::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Put(args) => keys::put(args),
        Command::Get(args) => keys::get(args),
        Command::Delete(args) => keys::delete(args),
        Command::Load(args) => load::run(args),
        Command::Status(args) => look::status(args),
        Command::Ring(args) => look::ring(args),
        Command::Table(args) => tables::run(args),
        Command::Repair(args) => repair::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Config(args) => settings::run(args),
        Command::Completions(args) => completions(args),
    };
    finish(ended, json)
}

/// Says on standard error how a command ended and gives its exit code. Under `--json` standard output holds JSON in
/// each case: an error of a command that has printed nothing else there is printed as an object.
fn finish(ended: Result<(), Stop>, json: bool) -> ExitCode {
    let Err(stop) = ended else { return ExitCode::SUCCESS };
    if !stop.line.is_empty() {
        output::tell(format!("dynarc: {}", stop.line));
    }
    print_error(&stop.line, stop.exit, json);
    ExitCode::from(stop.exit as u8)
}
/// Says what is wrong with the arguments, as the parser of the command line words it.
fn usage(said: &clap::Error, json: bool) -> ExitCode {
    // Colours, when it is a terminal that shows the words.
    drop(said.print());
    print_error(said.render().to_string().trim_end(), Exit::Usage, json);
    ExitCode::from(Exit::Usage as u8)
}
fn print_error(line: &str, exit: Exit, json: bool) {
    if json && !output::has_printed() {
        // That it could not be printed has nowhere to be told, and the exit code says already that the command failed.
        drop(output::print_json(&serde_json::json!({ "error": { "exit_code": exit as u8, "detail": line } })));
    }
}

/// Whether a command was asked to print JSON; also told of arguments that cannot be parsed.
fn asks_for_json(arguments: impl Iterator<Item = std::ffi::OsString>) -> bool {
    arguments.take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

fn completions(args: CompletionsArgs) -> Result<(), Stop> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut CommandLine::command(), "dynarc", &mut script);
    output::print(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_command_has_an_example() {
        let command = CommandLine::command();
        command.clone().debug_assert();
        for sub in command.get_subcommands() {
            let example = sub.get_after_help().map(|h| h.to_string()).unwrap_or_default();
            assert!(example.contains("dynarc "), "{} has no example", sub.get_name());
        }
    }

    #[test]
    fn every_command_that_reads_has_json_and_a_node() {
        let command = CommandLine::command();
        for name in ["get", "status", "ring", "put", "delete", "load"] {
            let sub = command.find_subcommand(name).expect(name);
            for flag in ["json", "node"] {
                assert!(sub.get_arguments().any(|a| a.get_long() == Some(flag)), "{name} --{flag}");
            }
        }
    }

    #[test]
    fn json_is_asked_for_before_the_end_of_options() {
        let asks = |line: &str| asks_for_json(line.split(' ').map(Into::into));
        assert!(asks("dynarc get k --json") && asks("dynarc --json nonsense"));
        assert!(!asks("dynarc put -- --json v") && !asks("dynarc get json"));
    }
}
