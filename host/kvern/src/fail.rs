//! How a run ends when it does not end well: one line on stderr and an exit code.

use std::fmt::Display;

/// What every step of the host returns.
pub type Outcome<T> = std::result::Result<T, Failure>;

/// Why a run ended. An empty message is told to nobody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The process's exit code.
    pub code: u8,
    /// One line: what was found, what was expected, what to do.
    pub message: String,
}

impl Failure {
    /// Something is wrong with what was asked for, or with the machine.
    pub fn new(message: impl Display) -> Failure {
        Failure { code: 1, message: one_line(&message.to_string()) }
    }

    /// A flag is wrong.
    pub fn usage(message: impl Display) -> Failure {
        Failure { code: 2, message: one_line(&message.to_string()) }
    }

    /// Ctrl-C. What was under way has ended in order.
    pub fn interrupted() -> Failure {
        Failure { code: 130, message: String::new() }
    }

    /// The reader of stdout went away, which is how `head` says that it has enough.
    pub fn closed_pipe() -> Failure {
        Failure { code: 0, message: String::new() }
    }
}

/// Text on one line, whatever it held.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl From<kvern_contract::Error> for Failure {
    /// An error of a plugin names the plugin.
    fn from(error: kvern_contract::Error) -> Failure {
        let plugin = error.context.iter().find(|(name, _)| name == "plugin");
        match plugin.filter(|(_, plugin)| !error.message.contains(plugin)) {
            Some((_, plugin)) => Failure::new(format!("{plugin}: {error}")),
            None => Failure::new(error),
        }
    }
}

/// Says what was being done when an error came.
pub trait While<T> {
    /// `what` goes before the error's own words.
    fn during(self, what: impl Display) -> Outcome<T>;
}

impl<T, E: Display> While<T> for std::result::Result<T, E> {
    fn during(self, what: impl Display) -> Outcome<T> {
        self.map_err(|e| Failure::new(format!("{what}: {e}")))
    }
}
