//! `kvern plugins`: what is found, what it is, and manifests from libraries.

use crate::cli::{PluginArgs, PluginsCommand, RunArgs, VerifyArgs};
use crate::fail::{Failure, Outcome, one_line};
use crate::out;
use crate::plugin::{
    Described, Discovery, Kind, Manifest, Standing, digest, manifest_text, open_plain, show,
};
use crate::settings::Settings;
use crate::{scaffold, verify};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Runs the command.
pub fn run(command: &PluginsCommand) -> Outcome<()> {
    match command {
        PluginsCommand::List { manifests, json } => list(manifests, *json),
        PluginsCommand::Inspect { plugin, manifests, json } => inspect(plugin, manifests, *json),
        PluginsCommand::Manifest { library, output, pin } => {
            manifest(library, output.as_deref(), *pin)
        }
        PluginsCommand::New { kind, name, output, source } => {
            new(kind, name, output, source.as_deref())
        }
        PluginsCommand::Verify(args) => verify(args),
    }
}

fn discover(manifests: &[PathBuf]) -> Outcome<Discovery> {
    let plugins = PluginArgs { manifests: manifests.to_vec(), ..PluginArgs::default() };
    Settings::of(&RunArgs { plugins, ..RunArgs::default() })?.discover()
}

/// `ready`, or why the plugin cannot be used.
fn state(manifest: &Manifest, found: &Discovery) -> Result<(), String> {
    manifest.open(found.require_pinned).map(drop).map_err(|f| f.message)
}

fn list(manifests: &[PathBuf], json: bool) -> Outcome<()> {
    let found = discover(manifests)?;
    if json {
        let rows: Vec<Value> = found
            .manifests
            .iter()
            .map(|m| {
                let fault = state(m, &found).err();
                json!({"kind": m.kind.word(), "name": m.name.value, "version": m.version.value,
                       "summary": m.summary, "manifest": m.path.to_string_lossy(), "fault": fault})
            })
            .collect();
        let searched: Vec<_> = found.searched.iter().map(|path| path.to_string_lossy()).collect();
        return out::document(&json!({"plugins": rows, "searched": searched}));
    }
    let mut text = String::new();
    for m in &found.manifests {
        let about = match state(m, &found) {
            Ok(()) => m.summary.clone().unwrap_or_default(),
            Err(fault) => format!("cannot be used: {fault}"),
        };
        let line = format!("{:8} {:28} {:8} {about}", m.kind.word(), m.name.value, m.version.value);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if found.manifests.is_empty() {
        out::note("no plugin was found; `kvern doctor` lists where they are looked for");
    }
    out::say(&text)
}

/// A plugin by `kind/name`, by a name that only one kind has, or by its library.
fn resolve(plugin: &str, found: &Discovery) -> Outcome<Manifest> {
    if let Some((kind, name)) = plugin.split_once('/')
        && let Some(kind) = Kind::parse(kind)
    {
        return found.demand(kind, name).cloned();
    }
    let named: Vec<&Manifest> = found.manifests.iter().filter(|m| m.name.value == plugin).collect();
    match named[..] {
        [only] => Ok(only.clone()),
        [] => {
            let names: Vec<&str> = found.manifests.iter().map(|m| m.name.value.as_str()).collect();
            let hint = crate::near::hint(plugin, names.iter().copied());
            let hint = if hint.is_empty() { ";".to_string() } else { hint };
            Err(Failure::new(format!("no plugin `{plugin}`{hint} found: {}", names.join(", "))))
        }
        _ => {
            let ids: Vec<String> = named.iter().map(|m| m.id()).collect();
            Err(Failure::new(format!("which `{plugin}`? found: {}", ids.join(", "))))
        }
    }
}

fn inspect(plugin: &str, manifests: &[PathBuf], json: bool) -> Outcome<()> {
    let (described, library, manifest) = if let Some(library) = as_path(Path::new(plugin))? {
        (open_plain(library)?.1, library.to_path_buf(), None)
    } else {
        let found = discover(manifests)?;
        let manifest = resolve(plugin, &found)?;
        let (_, described, library) = manifest.open(found.require_pinned)?;
        (described, library, Some(manifest))
    };
    let (sha256, standing) = (digest(&library)?, Standing::of(&library, &described)?);
    if json {
        let document = document(&described, &library, &sha256, &standing, manifest.as_ref());
        return out::document(&document);
    }
    let mut text =
        format!("{} `{}` {}\n", described.kind.title(), described.name, described.version);
    if let Some(manifest) = &manifest {
        if let Some(summary) = &manifest.summary {
            text += &format!("  {summary}\n");
        }
        if let Some(reference) = &manifest.reference {
            text += &format!("  see {reference}\n");
        }
        text += &format!("manifest  {}\n", manifest.path.display());
    }
    text += &format!("library   {}\nsha256    {sha256}\n", library.display());
    text += &format!("verdict   {standing}\n");
    for (key, value) in &described.capabilities {
        text += &format!("capability  {key} = {value}\n");
    }
    for (key, value) in &described.options {
        text += &format!("option      {key} = {}\n", show(value));
    }
    out::say(&text)
}

fn document(
    described: &Described,
    library: &Path,
    sha256: &str,
    standing: &Standing,
    manifest: Option<&Manifest>,
) -> Value {
    let options: Map<String, Value> = described
        .options
        .iter()
        .map(|(key, value)| {
            let value = serde_json::to_value(value).unwrap_or(Value::Null);
            // `{"Integer": 1}` is how the contract carries it; people want the 1.
            let bare = value.as_object().and_then(|m| m.values().next().cloned());
            (key.clone(), bare.unwrap_or(value))
        })
        .collect();
    json!({
        "kind": described.kind.word(),
        "name": described.name,
        "version": described.version,
        "capabilities": described.capabilities,
        "options": options,
        "library": library.to_string_lossy(),
        "sha256": sha256,
        "verdict": standing.to_string(),
        "manifest": manifest.map(|m| m.path.to_string_lossy()),
    })
}

fn manifest(library: &Path, output: Option<&Path>, pin: bool) -> Outcome<()> {
    let (_, described) = open_plain(library)?;
    let sha256 = if pin { Some(digest(library)?) } else { None };
    let text = manifest_text(&described, library, sha256.as_deref());
    let Some(directory) = output else { return out::say(&text) };
    let path = directory.join(described.kind.word()).join(format!("{}.toml", described.name));
    out::publish(&path, text.as_bytes())?;
    out::note(&format!("wrote {}", path.display()));
    Ok(())
}

fn new(kind: &str, name: &str, output: &Path, source: Option<&Path>) -> Outcome<()> {
    let Some(kind) = Kind::parse(kind) else {
        return Err(Failure::usage(format!("`{kind}` is no kind; write kv, offload or device")));
    };
    let library = scaffold::write(&scaffold::Ask { kind, name, output, source })?;
    let (shown, quoted) = (output.display().to_string(), quoted(output));
    out::note(&one_line(&format!(
        "wrote {shown}; next: cd {quoted} && cargo build --release && kvern plugins verify {}",
        library.display()
    )));
    Ok(())
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    match text.chars().all(plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

fn verify(args: &VerifyArgs) -> Outcome<()> {
    let library = Path::new(&args.plugin);
    if let Some(first) = args.lane {
        return verify::lane(args, library, first);
    }
    if let Some(library) = as_path(library)? {
        return verify::judge(args, library, None);
    }
    let found = discover(&args.manifests)?;
    let manifest = resolve(&args.plugin.to_string_lossy(), &found)?;
    let library = manifest.locate(found.require_pinned)?;
    verify::judge(args, &library, Some(&manifest))
}

/// A library that was given by its path: what is there as a file, or looks like nothing else. A
/// file that is none is refused as the file that it is.
fn as_path(given: &Path) -> Outcome<Option<&Path>> {
    let is_library = given.extension().is_some_and(|e| e == std::env::consts::DLL_EXTENSION);
    match std::fs::metadata(given) {
        Ok(there) if there.is_file() => Ok(Some(given)),
        Ok(_) => Err(Failure::new(format!(
            "{} is no regular file; name a library or a plugin",
            given.display()
        ))),
        Err(e) if is_library || given.is_absolute() => {
            Err(Failure::new(format!("{}: {e}; name a library or a plugin", given.display())))
        }
        Err(_) => Ok(None),
    }
}
