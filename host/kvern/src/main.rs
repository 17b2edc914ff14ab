//! `kvern`: parses, discovers, loads, plans, runs and reports. What it computes, the engine
//! computes; what is a matter of opinion, a plugin decides.
//!
//! Stdout carries what was asked for; everything else goes to stderr. A failure is one line and an
//! exit code: 2 for bad flags, 130 after Ctrl-C, 1 otherwise.
#![forbid(unsafe_code)]

mod bench;
mod blueprint;
mod budget;
mod ceilings;
mod cgroup;
mod child;
mod chosen;
mod cli;
mod command;
mod config;
mod drive;
mod fail;
mod interrupt;
mod log;
mod machine;
mod meter;
mod metrics;
mod model;
mod near;
mod out;
mod planned;
mod planner;
mod plugin;
mod progress;
mod read_path;
mod reads;
mod runtime;
mod scaffold;
mod selector;
mod settings;
mod speculate;
mod trace;
mod verify;
mod watchdog;
mod watching;

use clap::Parser;
use clap::error::ErrorKind;
use fail::{Failure, Outcome};
use std::process::ExitCode;

fn main() -> ExitCode {
    child::keep_trail();
    let ended = parse().and_then(|cli| cli.map_or(Ok(()), run));
    let Err(failure) = ended else { return ExitCode::SUCCESS };
    if !failure.message.is_empty() {
        out::note(&format!("kvern: {}", failure.message));
    }
    ExitCode::from(failure.code)
}

/// Runs a command under the watchdog.
fn run(cli: cli::Cli) -> Outcome<()> {
    match &cli.command {
        cli::Command::Plugins(command) => {
            watchdog::longer_with(match command {
                cli::PluginsCommand::Verify(_) => "--case-deadline",
                _ => settings::DEADLINE_VARIABLE,
            });
            watchdog::watch(settings::deadline_without_flags()?);
        }
        // Until its flags are read.
        _ => watchdog::watch(settings::DEADLINE),
    }
    command::run(cli)
}

/// The command line; `None` where it only asked for help, which is told.
fn parse() -> Outcome<Option<cli::Cli>> {
    let error = match cli::Cli::try_parse() {
        Ok(cli) => return Ok(Some(cli)),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            out::say(&error.to_string()).map(|()| None)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(Failure::usage("a command is expected; `--help` lists them"))
        }
        _ => Err(Failure::usage(format!("{}; try `--help`", in_one_line(&error.to_string())))),
    }
}

/// The parser's words without its usage text.
fn in_one_line(told: &str) -> String {
    let told = told.split("\nUsage:").next().unwrap_or_default();
    let told = told.split("\nFor more information").next().unwrap_or_default();
    fail::one_line(told.trim_start_matches("error:").trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        cli::Cli::command().debug_assert();
    }

    #[test]
    fn a_bad_flag_is_told_without_the_usage_text() {
        let error = cli::Cli::try_parse_from(["kvern", "generate", "--nonsense"]).unwrap_err();
        let said = in_one_line(&error.to_string());
        assert!(said.contains("--nonsense") && !said.contains("Usage"), "{said}");
    }

    #[test]
    fn every_command_has_a_line_of_help_and_every_flag_too() {
        fn check(command: &clap::Command) {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.contains('\n'), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&cli::Cli::command());
    }
}
