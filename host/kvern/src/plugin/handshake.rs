//! What a library says of itself, and whether its manifest says the same.

use super::manifest::{At, Manifest};
use super::options::{kind_of, known, show};
use super::verdict::Standing;
use super::{Kind, library};
use crate::fail::{Failure, Outcome};
use kvern_abi::Plugin;
use kvern_contract::{OptionValue, Options};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The contract that this host speaks, as manifests spell it.
pub const CONTRACT: &str = "1";

/// A plugin's description, the same shape for every kind.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Described {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its options with their defaults.
    pub options: Options,
    /// Everything else that it described, except what is null.
    pub capabilities: BTreeMap<String, Value>,
}

/// Asks a plugin who it is.
pub fn describe(plugin: &Plugin) -> Outcome<Described> {
    match plugin {
        Plugin::Kv(p) => {
            let d = p.describe();
            described(Kind::Kv, &d, &d.name, &d.version, &d.options)
        }
        Plugin::Offload(p) => {
            let d = p.describe();
            described(Kind::Offload, &d, &d.name, &d.version, &d.options)
        }
        Plugin::Device(p) => {
            let d = p.describe();
            described(Kind::Device, &d, &d.name, &d.version, &d.options)
        }
    }
}

fn described(
    kind: Kind,
    whole: &impl Serialize,
    name: &str,
    version: &str,
    options: &Options,
) -> Outcome<Described> {
    let value = serde_json::to_value(whole).map_err(Failure::new)?;
    let mut capabilities = BTreeMap::new();
    let mut insert = |entries: Map<String, Value>| {
        for (key, value) in entries {
            if !matches!(key.as_str(), "name" | "version" | "options") && !value.is_null() {
                capabilities.insert(key, spelled(value));
            }
        }
    };
    if let Value::Object(mut entries) = value {
        if let Some(Value::Object(inner)) = entries.shift_remove("capabilities") {
            insert(inner);
        }
        insert(entries);
    }
    let (name, version, options) = (name.into(), version.into(), options.clone());
    Ok(Described { kind, name, version, options, capabilities })
}

/// Manifests spell everything in lower case: `bf16`, not `Bf16`.
fn spelled(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.to_lowercase()),
        Value::Array(items) => Value::Array(items.into_iter().map(spelled).collect()),
        Value::Object(map) => {
            let entries = map.into_iter().map(|(k, v)| (k.to_lowercase(), spelled(v)));
            Value::Object(entries.collect())
        }
        other => other,
    }
}

/// Opens a library without a manifest; its options are its own defaults.
pub fn open_plain(path: &Path) -> Outcome<(Plugin, Described)> {
    let plugin = kvern_abi::open(path)?;
    let described = describe(&plugin)?;
    Ok((plugin, described))
}

impl Manifest {
    /// The library, with everything checked that can be checked before a line of it runs.
    pub fn locate(&self, require_pinned: bool) -> Outcome<PathBuf> {
        if self.contract.value != CONTRACT {
            let wrong = format!("is `{}`", self.contract.value);
            let cure = format!("this host speaks contract `{CONTRACT}`: use a plugin built for it");
            return Err(self.place(self.contract.line, "plugin.contract").fault(wrong, cure));
        }
        if require_pinned && self.sha256.is_none() {
            let cure = "write it again with `kvern plugins manifest --pin`";
            return Err(self
                .place(self.name.line, "plugin.sha256")
                .fault("is missing, and this host demands pinned plugins", cure));
        }
        library::locate(self)
    }

    /// Opens the library, after everything that can be checked before; then compares what it says
    /// of itself. The options are the plugin's defaults under the manifest's.
    pub fn open(&self, require_pinned: bool) -> Outcome<(Plugin, Described, PathBuf)> {
        let path = self.locate(require_pinned)?;
        self.demand_verdict(&path)?;
        let (plugin, mut described) = open_plain(&path)?;
        self.compare(&described)?;
        for (key, option) in &self.options {
            described.options.insert(key.clone(), option.value.clone());
        }
        Ok((plugin, described, path))
    }

    /// Whether a verdict on this very library is there and good, where the manifest demands one.
    fn demand_verdict(&self, library: &Path) -> Outcome<()> {
        let Some(line) = self.require_verdict else { return Ok(()) };
        let standing = Standing::of(library, self)?;
        if standing == Standing::Kept {
            return Ok(());
        }
        let cure = format!("run `kvern plugins verify {}`", library.display());
        Err(self.place(line, "plugin.require_verdict").fault(standing, cure))
    }

    /// Whether the manifest says what the plugin says.
    pub fn compare(&self, described: &Described) -> Outcome<()> {
        let again =
            "write the manifest again with `kvern plugins manifest`, or restore the library";
        if described.kind != self.kind {
            let wrong = format!(
                "is `{}`, but the library is a {}",
                self.kind.word(),
                described.kind.title()
            );
            return Err(self.place(self.name.line, "plugin.kind").fault(wrong, again));
        }
        let texts = [
            ("plugin.name", &self.name, &described.name),
            ("plugin.version", &self.version, &described.version),
        ];
        for (key, said, found) in texts {
            if said.value != *found {
                let wrong = format!("is `{}`, but the library says `{found}`", said.value);
                return Err(self.place(said.line, key).fault(wrong, again));
            }
        }
        self.compare_capabilities(described, again)?;
        self.compare_options(&described.options)
    }

    fn compare_capabilities(&self, described: &Described, again: &str) -> Outcome<()> {
        for (key, At { line, value }) in &self.capabilities {
            let place = self.place(*line, format!("capabilities.{key}"));
            let said = serde_json::to_value(value).map(spelled).map_err(Failure::new)?;
            match described.capabilities.get(key) {
                Some(found) if *found == said => {}
                Some(found) => {
                    let wrong = format!("is {said}, but the library says {found}");
                    return Err(place.fault(wrong, again));
                }
                None => {
                    let known = described.capabilities.keys().map(String::as_str);
                    let hint = crate::near::hint(key, known);
                    return Err(
                        place.fault(format!("is nothing that the library describes{hint}"), again)
                    );
                }
            }
        }
        match described.capabilities.keys().find(|k| !self.capabilities.contains_key(*k)) {
            None => Ok(()),
            Some(missing) => {
                let line =
                    self.capabilities.values().map(|c| c.line).min().unwrap_or(self.name.line);
                let found = &described.capabilities[missing];
                Err(self
                    .place(line, format!("capabilities.{missing}"))
                    .fault(format!("is missing, and the library says {found}"), again))
            }
        }
    }

    fn compare_options(&self, defaults: &Options) -> Outcome<()> {
        for (key, At { line, value }) in &self.options {
            let place = self.place(*line, format!("options.{key}"));
            let Some(default) = defaults.get(key) else {
                let hint = crate::near::hint(key, defaults.keys().map(String::as_str));
                let wrong = format!("is no option of the plugin{hint}");
                return Err(place.fault(wrong, format!("known: {}", known(defaults))));
            };
            if !same_type(default, value) {
                let wrong =
                    format!("is {}, but the plugin takes {}", kind_of(value), kind_of(default));
                return Err(place.fault(wrong, format!("its default is {}", show(default))));
            }
        }
        Ok(())
    }
}

fn same_type(a: &OptionValue, b: &OptionValue) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn manifest(version: &str, capabilities: &str, options: &str) -> Manifest {
        let text = format!(
            "[plugin]\nname = \"mine\"\nkind = \"kv\"\nversion = \"{version}\"\ncontract = \"1\"\n\
             library = \"x\"\n[capabilities]\n{capabilities}\n[options]\n{options}\n"
        );
        Manifest::parse(Path::new("/m/mine.toml"), &text).unwrap()
    }

    fn library() -> Described {
        Described {
            kind: Kind::Kv,
            name: "mine".into(),
            version: "1".into(),
            options: Options::from([("tokens".into(), OptionValue::Integer(64))]),
            capabilities: BTreeMap::from([("exact".into(), json!(true))]),
        }
    }

    #[test]
    fn a_manifest_that_says_the_same_is_accepted_with_another_default() {
        manifest("1", "exact = true", "tokens = 128").compare(&library()).unwrap();
    }

    #[test]
    fn every_difference_is_refused_with_its_line() {
        let cases = [
            (manifest("2", "exact = true", ""), ":4: `plugin.version`"),
            (manifest("1", "exact = false", ""), ":8: `capabilities.exact`"),
            (manifest("1", "exact = true\nstore = true", ""), ":9: `capabilities.store`"),
            (manifest("1", "", ""), "`capabilities.exact`: is missing"),
            (manifest("1", "exact = true", "token = 1"), "did you mean `tokens`?"),
            (
                manifest("1", "exact = true", "tokens = \"x\""),
                "is a text, but the plugin takes an integer",
            ),
        ];
        for (manifest, said) in cases {
            let failure = manifest.compare(&library()).unwrap_err();
            assert!(failure.message.contains(said), "{said}: {}", failure.message);
        }
    }
}
