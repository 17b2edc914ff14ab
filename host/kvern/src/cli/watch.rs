//! Flags that say what is told of a run while it runs.

use clap::Args;
use clap::builder::FalseyValueParser;
use std::path::PathBuf;

/// What is told of a run while it runs.
#[derive(Args, Debug, Default, Clone)]
#[command(next_help_heading = "Watching")]
pub struct WatchArgs {
    /// Writes a timeline of the run that Perfetto and chrome://tracing open.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Shows no progress; where stderr is no terminal there is none anyway.
    #[arg(long, env = "KVERN_NO_PROGRESS", hide_env_values = true,
          value_parser = FalseyValueParser::new())]
    pub no_progress: bool,
}
