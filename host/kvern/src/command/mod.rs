//! The commands, a file each.

mod advice;
mod chat;
mod doctor;
mod generate;
mod logits;
mod models;
mod pages;
mod perplexity;
mod plan;
mod plugins;
mod prompt;
mod prompts;

pub use prompt::read_text;

use crate::cli::{Cli, Command};
use crate::fail::Outcome;

/// Runs a command to its end.
pub fn run(cli: Cli) -> Outcome<()> {
    crate::log::set_verbosity(cli.verbose);
    match cli.command {
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Bench(args) => crate::bench::run(&args),
        Command::Models(command) => models::run(&command),
        Command::Plugins(command) => plugins::run(&command),
        Command::Plan(args) => plan::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions { shell } => pages::completions(shell),
        Command::Man { output } => pages::man(&output),
    }
}
