//! What the suites said of a library: a card beside it, good for that very file and that suite.

use super::library::{digest, hex_digest};
use super::{Described, Kind, Manifest};
use crate::fail::Outcome;
use crate::verify::suite;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The card's own version; a card of another one is stale.
const SCHEMA: u32 = 1;

/// The card, as it is kept and as `--json` writes it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// Version of this document.
    pub schema: u32,
    /// `kept` where no case is broken, else `broken`.
    pub verdict: String,
    /// Who the plugin says it is.
    pub plugin: Described,
    /// The file that was judged.
    pub library: String,
    /// SHA-256 of that file.
    pub sha256: String,
    /// The contract's epoch, the target and the version of kvern-abi that it was built for.
    pub built_for: BuiltFor,
    /// Version of the host that judged.
    pub host: String,
    /// SHA-256 of the table of promises and cases: another suite gives another verdict.
    pub suite: String,
    /// Chose the random traces.
    pub seed: u64,
    /// How many times as many random traces as usual.
    pub effort: u32,
    /// When, in UTC, as RFC 3339 has it.
    pub verified_at: String,
    /// All cases together, in milliseconds.
    pub took_ms: f64,
    /// How they ended.
    pub counts: Counts,
    /// Every case, in the order in which they ran.
    pub cases: Vec<CaseRow>,
}

/// What a library was built for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BuiltFor {
    /// Of the contract.
    pub epoch: u32,
    /// As `x86_64-linux-gnu`.
    pub target: String,
    /// Of kvern-abi.
    pub abi: String,
}

/// How many cases ended how.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Held.
    pub kept: u32,
    /// Did not.
    pub broken: u32,
    /// Not for this plugin, by its own description.
    pub skipped: u32,
}

/// One case.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CaseRow {
    /// Its name.
    pub case: String,
    /// What it tried, as `KvStore::load: …`.
    pub promises: Vec<String>,
    /// `kept`, `broken` or `skipped`.
    pub outcome: String,
    /// What was found and what was expected, or why it was skipped; null where it was kept.
    pub line: Option<String>,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
}

impl Verdict {
    /// A card for these cases of this library, of today's host and suite.
    pub fn of(
        library: &Path,
        sha256: String,
        plugin: Described,
        cases: Vec<CaseRow>,
        seed: u64,
        effort: u32,
    ) -> Outcome<Self> {
        let stamp = kvern_abi::read_stamp(library)?;
        let count =
            |outcome: &str| cases.iter().filter(|row| row.outcome == outcome).count() as u32;
        let counts =
            Counts { kept: count("kept"), broken: count("broken"), skipped: count("skipped") };
        Ok(Verdict {
            schema: SCHEMA,
            verdict: if counts.broken == 0 { "kept" } else { "broken" }.into(),
            library: library.to_string_lossy().into_owned(),
            sha256,
            built_for: BuiltFor {
                epoch: stamp.epoch(),
                target: stamp.target(),
                abi: stamp.version(),
            },
            host: env!("CARGO_PKG_VERSION").into(),
            suite: suite_digest(plugin.kind),
            plugin,
            seed,
            effort,
            verified_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            took_ms: cases.iter().map(|row| row.took_ms).sum(),
            counts,
            cases,
        })
    }
}

/// Where the card of a library lies unless another place is named.
pub fn card_path(library: &Path) -> PathBuf {
    let mut name = library.as_os_str().to_owned();
    name.push(".verdict.json");
    name.into()
}

/// A digest of the suite of a kind: every case, what it tries, and the version of the host.
pub fn suite_digest(kind: Kind) -> String {
    let mut text = format!("{kind:?} {}", env!("CARGO_PKG_VERSION"));
    for (name, promises) in suite(kind) {
        text += &format!("\n{name}");
        promises.iter().for_each(|promise| text += &format!("\n\t{promise}"));
    }
    hex_digest(text.as_bytes())
}

/// What the card beside a library is worth now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// No case was broken, in this very file, by this suite.
    Kept,
    /// There is none.
    None,
    /// The card is of another file, of another suite, or no card; which.
    Stale(String),
    /// Cases were broken; the first.
    Broken(String),
}

impl Standing {
    /// Reads the card beside a library of this kind, name and version. *Errors*: a library that
    /// cannot be read.
    pub fn of(library: &Path, plugin: &impl Named) -> Outcome<Standing> {
        let path = card_path(library);
        let Ok(there) = std::fs::symlink_metadata(&path) else { return Ok(Standing::None) };
        if !there.is_file() || there.mode() & 0o002 != 0 {
            let why = "is no regular file, or can be written by everyone";
            return Ok(Standing::Stale(format!("{} {why}", path.display())));
        }
        let read = std::fs::read(&path).map_err(|e| e.to_string());
        let card: Verdict =
            match read.and_then(|b| serde_json::from_slice(&b).map_err(|e| e.to_string())) {
                Ok(card) => card,
                Err(e) => {
                    return Ok(Standing::Stale(format!("{} is no verdict: {e}", path.display())));
                }
            };
        let found = digest(library)?;
        Ok(card.judged(&found, plugin))
    }
}

impl Verdict {
    /// What the card is worth for a library with this digest.
    fn judged(&self, digest: &str, plugin: &impl Named) -> Standing {
        let short = |hash: &str| hash.chars().take(12).collect::<String>();
        if self.sha256 != digest {
            let (was, is) = (short(&self.sha256), short(digest));
            return Standing::Stale(format!("it is of a library {was}…, and this one is {is}…"));
        }
        let (kind, name, version) = plugin.named();
        let Described { kind: of, name: called, version: its, .. } = &self.plugin;
        if (*of, called.as_str(), its.as_str()) != (kind, name, version) {
            let (of, kind) = (of.word(), kind.word());
            return Standing::Stale(format!(
                "it is of {of} `{called}` {its}, and this is {kind} `{name}` {version}"
            ));
        }
        if (self.schema, self.suite.as_str()) != (SCHEMA, &suite_digest(kind)) {
            return Standing::Stale(format!("it is by the suite of kvern {}", self.host));
        }
        if let Some(row) = self.cases.iter().find(|row| row.outcome == "broken") {
            return Standing::Broken(row.case.clone());
        }
        let ran = |name: &str| {
            let mut rows = self.cases.iter().filter(|row| row.case == name);
            rows.next().is_some_and(|row| matches!(row.outcome.as_str(), "kept" | "skipped"))
                && rows.next().is_none()
        };
        let suite = suite(kind);
        match suite.iter().find(|(name, _)| !ran(name)) {
            Some((name, _)) => Standing::Stale(format!("it has not one answer of {name}")),
            None if self.cases.len() > suite.len() => Standing::Stale("it has more cases".into()),
            None if self.verdict == "kept" => Standing::Kept,
            None => Standing::Stale(format!("its verdict is `{}`", self.verdict)),
        }
    }
}

/// Who a card must be about.
pub trait Named {
    /// Kind, name and version.
    fn named(&self) -> (Kind, &str, &str);
}

impl Named for Described {
    fn named(&self) -> (Kind, &str, &str) {
        (self.kind, &self.name, &self.version)
    }
}

impl Named for Manifest {
    fn named(&self) -> (Kind, &str, &str) {
        (self.kind, &self.name.value, &self.version.value)
    }
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Standing::Kept => write!(f, "the verdict is good"),
            Standing::None => write!(f, "there is no verdict on the library"),
            Standing::Stale(why) => write!(f, "the verdict on the library is stale: {why}"),
            Standing::Broken(case) => write!(f, "the library breaks {case}"),
        }
    }
}
