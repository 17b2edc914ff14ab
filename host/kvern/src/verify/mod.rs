//! `kvern plugins verify`: the suites of the testkit on a library, through the border that users
//! get. The cases run in a process of their own, so that a plugin that crashes or hangs is a broken
//! case with the call's name, and the cases after it still run.

mod engine;
mod judge;
mod lane;

pub use judge::judge;
pub use lane::lane;

use crate::fail::{Failure, Outcome};
use crate::plugin::{CaseRow, Described, Kind};
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

/// A lane's line. A plugin may have left stdout in the middle of one: it begins with a line's end,
/// and with the word that the judge chose for it.
fn line(word: &str, said: &Said) -> Outcome<String> {
    let json = serde_json::to_string(said).map_err(Failure::new)?;
    Ok(format!("\n{word} {json}\n"))
}

/// The reverse; `None` for what is no lane's.
fn from_line(word: &str, line: &str) -> Option<Said> {
    serde_json::from_str(line.strip_prefix(word)?.strip_prefix(' ')?).ok()
}

/// The cases of a kind in the order in which they run, with what they try: the testkit's, then the
/// engine's.
pub fn suite(kind: Kind) -> Vec<(&'static str, Vec<String>)> {
    let told =
        |promises: &[kvern_testkit::Promise]| promises.iter().map(ToString::to_string).collect();
    let mut all: Vec<(&str, Vec<String>)> = match kind {
        Kind::Kv => kvern_testkit::kv::cases().iter().map(|c| (c.name, told(c.promises))).collect(),
        Kind::Offload => {
            kvern_testkit::offload::cases().iter().map(|c| (c.name, told(c.promises))).collect()
        }
        Kind::Device => {
            kvern_testkit::device::cases().iter().map(|c| (c.name, told(c.promises))).collect()
        }
    };
    let (name, promise) = engine::named(kind);
    all.push((name, vec![promise.to_owned()]));
    all
}
