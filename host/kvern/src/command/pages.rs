//! Completion scripts and manual pages, made from the same source as the help text.

use crate::cli::Cli;
use crate::fail::{Outcome, While};
use crate::out;
use clap::CommandFactory;
use std::path::Path;

/// A completion script on stdout.
pub fn completions(shell: clap_complete::Shell) -> Outcome<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kvern", &mut script);
    out::say(&String::from_utf8_lossy(&script))
}

/// A page a command, as `kvern-generate.1`, into a directory.
pub fn man(directory: &Path) -> Outcome<()> {
    let mut root = Cli::command();
    root.build();
    let mut commands = vec![("kvern".to_string(), root)];
    while let Some((name, command)) = commands.pop() {
        let visible = command.get_subcommands().filter(|c| !c.is_hide_set());
        commands.extend(visible.map(|c| (format!("{name}-{}", c.get_name()), c.clone())));
        let mut page = Vec::new();
        let command = command.display_name(name.replace('-', " "));
        clap_mangen::Man::new(command).title(&name).render(&mut page).during(&name)?;
        out::publish(&directory.join(format!("{name}.1")), &page)?;
    }
    Ok(())
}
