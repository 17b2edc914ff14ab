//! What the suites said of a library: a card beside it, good for that very file and that suite.

use super::library::{digest, hex_digest};
use super::{Described, Kind};
use crate::fail::{Outcome, While};
use serde::{Deserialize, Serialize};
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
    pub library: PathBuf,
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
            library: library.to_path_buf(),
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

/// A digest of every promise that the suite of a kind tries, and by which cases.
pub fn suite_digest(kind: Kind) -> String {
    let mut text = format!("{kind:?}");
    let mut add = |name: &str, promises: &[kvern_testkit::Promise]| {
        text += &format!("\n{name}");
        promises.iter().for_each(|promise| text += &format!("\n\t{promise}"));
    };
    match kind {
        Kind::Kv => kvern_testkit::kv::cases().iter().for_each(|c| add(c.name, c.promises)),
        Kind::Offload => {
            kvern_testkit::offload::cases().iter().for_each(|c| add(c.name, c.promises));
        }
        Kind::Device => kvern_testkit::device::cases().iter().for_each(|c| add(c.name, c.promises)),
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
    /// The card is of another file, or of another suite; which.
    Stale(String),
    /// Cases were broken; the first.
    Broken(String),
}

impl Standing {
    /// Reads the card beside a library. *Errors*: a card, or a library, that cannot be read.
    pub fn of(library: &Path) -> Outcome<Standing> {
        let path = card_path(library);
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Standing::None),
            read => read.during(path.display())?,
        };
        let card: Verdict = match serde_json::from_str(&text) {
            Ok(card) => card,
            Err(e) => {
                return Ok(Standing::Stale(format!("{} is no verdict: {e}", path.display())));
            }
        };
        let found = digest(library)?;
        let short = |hash: &str| hash.chars().take(12).collect::<String>();
        if card.sha256 != found {
            let (was, is) = (short(&card.sha256), short(&found));
            return Ok(Standing::Stale(format!(
                "it is of a library {was}…, and this one is {is}…"
            )));
        }
        if (card.schema, card.suite.as_str()) != (SCHEMA, &suite_digest(card.plugin.kind)) {
            return Ok(Standing::Stale(format!("it is by the suite of kvern {}", card.host)));
        }
        let broken = card.cases.iter().find(|row| row.outcome == "broken");
        Ok(match broken {
            Some(row) => Standing::Broken(row.case.clone()),
            None if card.verdict == "kept" => Standing::Kept,
            None => Standing::Stale(format!("its verdict is `{}`", card.verdict)),
        })
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
