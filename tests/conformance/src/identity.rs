//! Who a plugin says it is.

use crate::shipped::{Shipped, of};
use kvern_abi::{Plugin, PluginKind};

/// Name and version as the library says them, and all that it describes as text.
fn described(plugin: &Plugin) -> (String, String, String) {
    match plugin {
        Plugin::Kv(plugin) => {
            let d = plugin.describe();
            (d.name.clone(), d.version.clone(), format!("{d:?}"))
        }
        Plugin::Offload(plugin) => {
            let d = plugin.describe();
            (d.name.clone(), d.version.clone(), format!("{d:?}"))
        }
        Plugin::Device(plugin) => {
            let d = plugin.describe();
            (d.name.clone(), d.version.clone(), format!("{d:?}"))
        }
    }
}

fn all() -> impl Iterator<Item = Shipped> {
    PluginKind::ALL.into_iter().flat_map(of)
}

#[test]
fn every_manifest_names_a_library_that_says_the_same() {
    for shipped in all() {
        let plugin = shipped.open();
        assert_eq!(plugin.kind(), shipped.kind, "{}", shipped.name);
        let (name, version, _) = described(&plugin);
        assert_eq!((name, version), (shipped.name.clone(), shipped.value("version")));
        assert_eq!(shipped.value("name"), shipped.name);
        assert_eq!(shipped.value("kind"), shipped.kind.to_string());
    }
}

#[test]
fn a_description_is_a_constant() {
    for shipped in all() {
        let (one, other) = (shipped.open(), shipped.open());
        assert_eq!(described(&one), described(&one), "{}", shipped.name);
        assert_eq!(described(&one), described(&other), "{}", shipped.name);
    }
}
