//! A manifest: what an operator says about a plugin, read strictly, each value with its line.

use super::Kind;
use super::fault::{Place, line_of, toml_fault};
use super::options::from_toml;
use crate::fail::{Failure, Outcome, While};
use kvern_contract::OptionValue;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    plugin: RawPlugin,
    #[serde(default)]
    capabilities: BTreeMap<String, Spanned<toml::Value>>,
    #[serde(default)]
    options: BTreeMap<String, Spanned<toml::Value>>,
    #[serde(default)]
    about: RawAbout,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlugin {
    name: Spanned<String>,
    kind: Spanned<String>,
    version: Spanned<String>,
    contract: Spanned<String>,
    library: Spanned<String>,
    sha256: Option<Spanned<String>>,
    require_verdict: Option<Spanned<bool>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawAbout {
    summary: Option<String>,
    reference: Option<String>,
}

/// A value and where it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct At<T> {
    /// Counted from 1.
    pub line: usize,
    /// What stands there.
    pub value: T,
}

/// A manifest whose own words are in order; its library has not been looked at.
#[derive(Clone, PartialEq, Debug)]
pub struct Manifest {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the file, in hex.
    pub digest: String,
    /// Equal to the file's stem.
    pub name: At<String>,
    /// What the plugin is.
    pub kind: Kind,
    /// What the library must say of itself.
    pub version: At<String>,
    /// The contract that it was written for.
    pub contract: At<String>,
    /// A bare name, without the platform's prefix and suffix.
    pub library: At<String>,
    /// SHA-256 of the library, in hex.
    pub sha256: Option<At<String>>,
    /// The line that demands a good verdict on the library.
    pub require_verdict: Option<usize>,
    /// What the library must describe.
    pub capabilities: BTreeMap<String, At<toml::Value>>,
    /// Defaults of the operator.
    pub options: BTreeMap<String, At<OptionValue>>,
    /// One line for people.
    pub summary: Option<String>,
    /// Where to read on.
    pub reference: Option<String>,
}

impl Manifest {
    /// Reads a file. The failure is one line with file, line and key.
    pub fn read(path: &Path) -> Outcome<Manifest> {
        let bytes = std::fs::read(path).during(path.display())?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Failure::new(format!("{}:1: a manifest is UTF-8 text", path.display())))?;
        Manifest::parse(path, &text)
    }

    /// The same of a text that stands for the file.
    pub fn parse(path: &Path, text: &str) -> Outcome<Manifest> {
        let raw: Raw = toml::from_str(text).map_err(|e| toml_fault(path, text, &e))?;
        let plugin = raw.plugin;
        let at =
            |s: Spanned<String>| At { line: line_of(text, s.span().start), value: s.into_inner() };
        let (name, kind, library) = (at(plugin.name), at(plugin.kind), at(plugin.library));
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        if name.value != stem {
            let wrong = format!("is `{}` in a file called `{stem}.toml`", name.value);
            let cure = "name and file must be the same: rename one of them";
            return Err(Place::new(path, name.line, "plugin.name").fault(wrong, cure));
        }
        let Some(known) = Kind::parse(&kind.value) else {
            let wrong = format!("is `{}`", kind.value);
            return Err(Place::new(path, kind.line, "plugin.kind")
                .fault(wrong, "write `kv`, `offload` or `device`"));
        };
        if !is_bare(&library.value) {
            let wrong = format!("`{}` is not a bare library name", library.value);
            let cure = "write the name without directory, `lib` and `.so`, and put the library \
                        beside the manifest or beside the executable";
            return Err(Place::new(path, library.line, "plugin.library").fault(wrong, cure));
        }
        let demands = plugin.require_verdict.filter(|demand| *demand.get_ref());
        let require_verdict = demands.map(|demand| line_of(text, demand.span().start));
        let sha256 = plugin.sha256.map(at);
        if let Some(hash) = &sha256 {
            check_hash(path, hash)?;
        }
        Ok(Manifest {
            path: path.to_path_buf(),
            digest: super::library::hex_digest(text.as_bytes()),
            kind: known,
            version: at(plugin.version),
            contract: at(plugin.contract),
            capabilities: located(text, raw.capabilities),
            options: options(path, text, raw.options)?,
            summary: raw.about.summary,
            reference: raw.about.reference,
            name,
            library,
            sha256,
            require_verdict,
        })
    }

    /// A key of this manifest.
    pub fn place(&self, line: usize, key: impl Into<String>) -> Place {
        Place::new(&self.path, line, key)
    }

    /// `kv/paged`: how messages name the plugin.
    pub fn id(&self) -> String {
        format!("{}/{}", self.kind.word(), self.name.value)
    }
}

fn is_bare(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        && !name.starts_with('.')
        && !name.ends_with(".so")
}

fn check_hash(path: &Path, hash: &At<String>) -> Outcome<()> {
    let hex = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
    if hash.value.len() == 64 && hash.value.bytes().all(hex) {
        return Ok(());
    }
    let cure = "write the 64 lower-case hex digits that `sha256sum` prints, or leave the key out";
    Err(Place::new(path, hash.line, "plugin.sha256").fault("is not a SHA-256", cure))
}

fn located(
    text: &str,
    entries: BTreeMap<String, Spanned<toml::Value>>,
) -> BTreeMap<String, At<toml::Value>> {
    let place =
        |s: Spanned<toml::Value>| At { line: line_of(text, s.span().start), value: s.into_inner() };
    entries.into_iter().map(|(key, value)| (key, place(value))).collect()
}

fn options(
    path: &Path,
    text: &str,
    entries: BTreeMap<String, Spanned<toml::Value>>,
) -> Outcome<BTreeMap<String, At<OptionValue>>> {
    let mut out = BTreeMap::new();
    for (key, At { line, value }) in located(text, entries) {
        let Some(option) = from_toml(&value) else {
            let wrong = format!("is {}", value.type_str());
            return Err(Place::new(path, line, format!("options.{key}"))
                .fault(wrong, "an option is a number, a text, or true or false"));
        };
        out.insert(key, At { line, value: option });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "[plugin]\nname = \"mine\"\nkind = \"kv\"\nversion = \"0.1.0\"\n\
                        contract = \"1\"\nlibrary = \"kvern_kv_mine\"\n[capabilities]\n\
                        exact = true\n[options]\npage_tokens = 64\n";

    fn parse(text: &str) -> Outcome<Manifest> {
        Manifest::parse(Path::new("/m/kv/mine.toml"), text)
    }

    #[test]
    fn a_manifest_keeps_the_line_of_every_value() {
        let manifest = parse(GOOD).unwrap();
        assert_eq!((manifest.id().as_str(), manifest.version.line), ("kv/mine", 4));
        assert_eq!(manifest.capabilities["exact"].line, 8);
        assert_eq!(manifest.options["page_tokens"].value, OptionValue::Integer(64));
    }

    #[test]
    fn every_fault_names_file_line_and_key() {
        let cases = [
            ("name = \"mine\"", "name = \"other\"", "mine.toml:2: `plugin.name`"),
            ("kind = \"kv\"", "kind = \"kvs\"", "mine.toml:3: `plugin.kind`"),
            ("\"kvern_kv_mine\"", "\"../kvern_kv_mine\"", "mine.toml:6: `plugin.library`"),
            ("\"kvern_kv_mine\"", "\"x\"\nsha256 = \"abc\"", "mine.toml:7: `plugin.sha256`"),
            ("page_tokens = 64", "page_tokens = [64]", "mine.toml:10: `options.page_tokens`"),
            ("version =", "verson =", "did you mean `version`?"),
            ("[options]", "[optoins]", "did you mean `options`?"),
            ("\"0.1.0\"", "\"0.1.0", "mine.toml:4"),
            ("contract = \"1\"\n", "", "missing field `contract`"),
        ];
        for (from, to, said) in cases {
            let failure = parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(failure.message.contains(said), "{to}: {}", failure.message);
            assert!(!failure.message.contains('\n'));
        }
    }

    /// A change to the text: where (as a share of its length), and what stands there then.
    type Change = (f64, String);

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let bits = prop::sample::select(vec![
            "",
            "\n",
            "\"",
            "[",
            "]",
            "=",
            "[[plugin]]",
            "= {",
            "9223372036854775808",
            "nan",
            "-1",
            "\u{0}",
            "\u{e9}",
            "name",
            "[options]",
            "[plugin]\n",
            "1979-05-27",
        ]);
        prop::collection::vec((0.0f64..1.0, bits.prop_map(String::from)), 1..6)
    }

    proptest! {
        #[test]
        fn a_mutated_manifest_is_read_or_refused_in_a_line(changes in changes(), cut in 0usize..3) {
            let mut text = GOOD.to_string();
            for (share, bit) in &changes {
                let mut at = (share * text.len() as f64) as usize;
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                let mut end = text.len().min(at + cut);
                while !text.is_char_boundary(end) {
                    end += 1;
                }
                text.replace_range(at..end, bit);
            }
            if let Err(failure) = parse(&text) {
                prop_assert!(!failure.message.contains('\n'), "{}", failure.message);
                prop_assert!(failure.message.contains("mine.toml"), "{}", failure.message);
            }
        }
    }
}
