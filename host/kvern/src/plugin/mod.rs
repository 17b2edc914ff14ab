//! Plugins from the host's side: manifests, where they are found, and the check before one is
//! trusted.

mod discovery;
mod fault;
mod handshake;
mod library;
mod manifest;
mod options;
mod verdict;
mod write;

pub use discovery::{Discovery, search_path};
pub use fault::{Place, line_of, toml_fault};
pub use handshake::{Described, describe, open_plain};
pub use library::{digest, executable_dir, hex_digest};
pub use manifest::Manifest;
pub use options::{from_toml, kind_of, parse_pairs, show};
pub use verdict::{CaseRow, Standing, Verdict, card_path};
pub use write::manifest_text;

/// The three kinds, as manifests and directories spell them.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Where history goes.
    Kv,
    /// Which weights stay in which memory.
    Offload,
    /// Who does the arithmetic.
    Device,
}

impl Kind {
    /// All kinds, in the order of a run.
    pub const ALL: [Kind; 3] = [Kind::Kv, Kind::Offload, Kind::Device];

    /// `kv`, `offload` or `device`.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Kv => "kv",
            Kind::Offload => "offload",
            Kind::Device => "device",
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Kv => "KV strategy",
            Kind::Offload => "offload policy",
            Kind::Device => "device",
        }
    }

    /// The reverse of `word`.
    pub fn parse(word: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.word() == word)
    }
}
