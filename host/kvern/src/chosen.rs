//! The three plugins of a run: by what was asked for, else by the table, each opened and held to
//! its manifest.

use crate::fail::{Failure, Outcome};
use crate::log;
use crate::plugin::{
    Described, Discovery, Kind, Manifest, describe, kind_of, open_plain, parse_pairs,
};
use crate::selector::{DEVICES, Selection, offload_auto};
use crate::settings::{Choice, Settings};
use kvern_abi::Plugin;
use kvern_contract::{DeviceBackend, KvStrategy, OffloadPolicy, OptionValue, Options};
use std::path::PathBuf;

/// A plugin that will run, and where it comes from.
pub struct Chosen<P: ?Sized> {
    /// The plugin.
    pub plugin: Box<P>,
    /// Where it comes from.
    pub origin: Origin,
    /// What it opens with.
    pub options: Options,
}

/// Where a plugin comes from.
#[derive(Clone, PartialEq, Debug)]
pub struct Origin {
    /// What it said of itself.
    pub described: Described,
    /// The library.
    pub library: PathBuf,
    /// The manifest and its digest; `None` for a library that was given.
    pub manifest: Option<(PathBuf, String)>,
}

type Opened = (Plugin, Origin);

fn open_manifest(manifest: &Manifest, pinned: bool) -> Outcome<Opened> {
    let (plugin, described, library) = manifest.open(pinned)?;
    let manifest = Some((manifest.path.clone(), manifest.digest.clone()));
    Ok((plugin, Origin { described, library, manifest }))
}

fn open_library(path: &std::path::Path) -> Outcome<Opened> {
    let (plugin, described) = open_plain(path)?;
    Ok((plugin, Origin { described, library: path.into(), manifest: None }))
}

/// Opens what was asked for by library or by name; `None` where nothing was.
fn open_asked(kind: Kind, choice: &Choice, found: &Discovery) -> Outcome<Option<Opened>> {
    if let Some(path) = &choice.library {
        return open_library(path).map(Some);
    }
    let Some(name) = &choice.name else { return Ok(None) };
    open_manifest(found.demand(kind, name)?, found.require_pinned).map(Some)
}

/// The plugin's defaults, under the manifest's, under files', under flags'.
fn options(kind: Kind, origin: &Origin, choice: &Choice) -> Outcome<Options> {
    let mut out = origin.described.options.clone();
    for (key, value) in &choice.options {
        let Some(default) = out.get(key) else {
            let hint = crate::near::hint(key, out.keys().map(String::as_str));
            return Err(Failure::new(format!(
                "{} `{}` has no option `{key}`{hint}",
                kind.title(),
                origin.described.name
            )));
        };
        if std::mem::discriminant(default) != std::mem::discriminant(value) {
            return Err(Failure::new(format!(
                "option `{key}` of {} `{}` is {}, expected {}",
                kind.title(),
                origin.described.name,
                kind_of(value),
                kind_of(default)
            )));
        }
        out.insert(key.clone(), value.clone());
    }
    let pairs = parse_pairs(&format!("--{}-option", kind.word()), &choice.pairs, &out)?;
    out.extend(pairs);
    Ok(out)
}

fn wrong_kind(kind: Kind, plugin: &Plugin, origin: &Origin) -> Failure {
    let found = describe(plugin).map_or("another kind of plugin", |d| d.kind.title());
    Failure::new(format!("{} is a {found}, expected a {}", origin.library.display(), kind.title()))
}

/// Opens the KV strategy: the pinned one, else the first of the selector's chain that is found and
/// opens.
pub fn kv(
    settings: &Settings,
    found: &Discovery,
    selection: &mut Selection,
) -> Outcome<Chosen<dyn KvStrategy>> {
    let (plugin, origin) = match open_asked(Kind::Kv, &settings.kv, found)? {
        Some(opened) => opened,
        None => walk(found, selection)?,
    };
    selection.applied = origin.described.name.clone();
    if settings.kv.library.is_some() {
        // The name inside a library is known only now.
        selection.requested_override = origin.described.name.clone();
        selection.selected = origin.described.name.clone();
        selection.chain = vec![origin.described.name.clone()];
    }
    let mut options = options(Kind::Kv, &origin, &settings.kv)?;
    if let Some(tokens) = settings.window_tokens {
        let Some(window) = options.get_mut("window_tokens") else {
            return Err(Failure::usage(format!(
                "--kv-cache-window-tokens: KV strategy `{}` has no window",
                origin.described.name
            )));
        };
        *window = OptionValue::Integer(i64::from(tokens));
    }
    match plugin {
        Plugin::Kv(plugin) => Ok(Chosen { plugin, origin, options }),
        other => Err(wrong_kind(Kind::Kv, &other, &origin)),
    }
}

fn walk(found: &Discovery, selection: &Selection) -> Outcome<Opened> {
    let mut last = None;
    for name in &selection.chain {
        let Some(manifest) = found.find(Kind::Kv, name) else { continue };
        match open_manifest(manifest, found.require_pinned) {
            Ok(opened) => return Ok(opened),
            Err(failure) => {
                log::line(2, &format!("KV strategy `{name}` is passed over: {}", failure.message));
                last = Some(failure);
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        let names = found.names(Kind::Kv);
        let names = if names.is_empty() { "none".into() } else { names.join(", ") };
        Failure::new(format!(
            "the selector chose `{}`, and none of {} is found; found: {names}; give --manifests, \
             or a strategy by --kv-cache-strategy or --kv",
            selection.selected,
            selection.chain.join(", ")
        ))
    }))
}

/// The first of the table that is found, else the only one that there is.
fn by_table(kind: Kind, table: &[&str], found: &Discovery) -> Outcome<Opened> {
    let names = found.names(kind);
    let name = table.iter().copied().find(|n| names.contains(n));
    match name.or(if let [only] = names[..] { Some(only) } else { None }) {
        Some(name) => open_manifest(found.demand(kind, name)?, found.require_pinned),
        None if names.is_empty() => found
            .demand(kind, table[table.len() - 1])
            .and(Err(Failure::new(format!("no {} was found", kind.title())))),
        None => Err(Failure::new(format!(
            "which {}? none is the default; found: {}",
            kind.title(),
            names.join(", ")
        ))),
    }
}

/// Opens the offload policy: the one asked for, else what `auto` means; and says why that one.
pub fn offload(
    settings: &Settings,
    found: &Discovery,
) -> Outcome<(Chosen<dyn OffloadPolicy>, String)> {
    let (table, by) = offload_auto(settings.offload_cpu_layers.is_some());
    let ((plugin, origin), why) = match open_asked(Kind::Offload, &settings.offload, found)? {
        Some(opened) => (opened, "asked for".into()),
        None => {
            let opened = by_table(Kind::Offload, &table, found)?;
            let why = match opened.1.described.name == table[0] {
                true => by.into(),
                false => format!("{by}; `{}` is not found", table[0]),
            };
            (opened, why)
        }
    };
    let options = options(Kind::Offload, &origin, &settings.offload)?;
    match plugin {
        Plugin::Offload(plugin) => Ok((Chosen { plugin, origin, options }, why)),
        other => Err(wrong_kind(Kind::Offload, &other, &origin)),
    }
}

/// Opens the device: the one asked for, else the best that is found.
pub fn device(settings: &Settings, found: &Discovery) -> Outcome<Chosen<dyn DeviceBackend>> {
    let (plugin, origin) = match open_asked(Kind::Device, &settings.device, found)? {
        Some(opened) => opened,
        None => by_table(Kind::Device, &DEVICES, found)?,
    };
    let mut options = options(Kind::Device, &origin, &settings.device)?;
    match (settings.device.ordinal, options.get_mut("ordinal")) {
        (Some(n), Some(slot)) => *slot = OptionValue::Integer(i64::from(n)),
        (Some(n), None) if n > 0 => {
            return Err(Failure::usage(format!(
                "--device {}:{n}: this device is one of its kind; write `{0}`",
                origin.described.name
            )));
        }
        _ => {}
    }
    match plugin {
        Plugin::Device(plugin) => Ok(Chosen { plugin, origin, options }),
        other => Err(wrong_kind(Kind::Device, &other, &origin)),
    }
}
