//! `kvern plugins verify`: the suites of the testkit on a library, through the border that users
//! get. The cases run in a process of their own, so that a plugin that crashes or hangs is a broken
//! case with the call's name, and the cases after it still run.

mod engine;
mod judge;
mod lane;

pub use judge::judge;
pub use lane::lane;

use crate::plugin::{CaseRow, Described};
use serde::{Deserialize, Serialize};

/// What a lane says, a line of JSON each.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    /// The library opened; who the plugin is.
    Opened(Described),
    /// A case begins.
    Begin(usize, String),
    /// It ended.
    Ran(CaseRow),
    /// There are no more.
    Done,
}
