//! A manifest from a library's own description.

use super::Described;
use super::handshake::CONTRACT;
use super::options::show;
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// The text of a manifest. Reading it back and comparing it with the library succeeds by
/// construction.
pub fn manifest_text(described: &Described, library: &Path, sha256: Option<&str>) -> String {
    let stem = library.file_stem().unwrap_or_default().to_string_lossy();
    let bare = stem.strip_prefix(std::env::consts::DLL_PREFIX).unwrap_or(&stem);
    let mut out = String::from("[plugin]\n");
    let mut line = |key: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{key} = {value}");
    };
    let quoted = |text: &str| toml::Value::String(text.into()).to_string();
    line("name", &quoted(&described.name));
    line("kind", &quoted(described.kind.word()));
    line("version", &quoted(&described.version));
    line("contract", &quoted(CONTRACT));
    line("library", &quoted(bare));
    if let Some(sha256) = sha256 {
        line("sha256", &quoted(sha256));
    }
    out.push_str("\n[capabilities]\n");
    for (key, value) in &described.capabilities {
        let _ = writeln!(out, "{key} = {}", toml_value(value));
    }
    out.push_str("\n[options]\n");
    for (key, value) in &described.options {
        let _ = writeln!(out, "{key} = {}", show(value));
    }
    out
}

fn toml_value(value: &Value) -> String {
    match value {
        Value::String(text) => toml::Value::String(text.clone()).to_string(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(toml_value).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let entries = map.iter().map(|(k, v)| format!("{k} = {}", toml_value(v)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{Kind, Manifest};
    use kvern_contract::{OptionValue, Options};
    use serde_json::json;
    use std::collections::BTreeMap;

    #[test]
    fn a_written_manifest_reads_back_as_the_library_says() {
        let described = Described {
            kind: Kind::Device,
            name: "mine".into(),
            version: "0.1.0".into(),
            options: Options::from([
                ("path".into(), OptionValue::Text("a \"b\"".into())),
                ("share".into(), OptionValue::Float(1.0)),
            ]),
            capabilities: BTreeMap::from([
                ("align".into(), json!(64)),
                ("kv".into(), json!(["bf16", {"int8": {"key": "page"}}])),
                ("unified".into(), json!(true)),
            ]),
        };
        let text = manifest_text(&described, Path::new("/x/libkvern_device_mine.so"), None);
        let manifest = Manifest::parse(Path::new("/m/mine.toml"), &text).unwrap();
        manifest.compare(&described).unwrap();
        assert_eq!(manifest.library.value, "kvern_device_mine");
    }
}
