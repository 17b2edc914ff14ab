//! `kvern.toml` and profile manifests: two files with the same tables, read strictly.

use crate::cli::parse_size;
use crate::fail::{Failure, Outcome, While};
use crate::plugin::{Place, from_toml, line_of, toml_fault};
use kvern_contract::Options;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use toml::Spanned;

use crate::cli::{Compute, Guesser, IoPath, KvDtype, ReadPath, parse_guesser};

type RawOptions = BTreeMap<String, Spanned<toml::Value>>;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    profile: RawProfile,
    run: RawRun,
    kv: RawKv,
    offload: RawOffload,
    device: RawDevice,
    budgets: RawBudgets,
    storage: RawStorage,
    speculate: RawSpeculate,
    directories: RawDirectories,
    plugins: RawPlugins,
    benchmark: RawBenchmark,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawProfile {
    name: Option<Spanned<String>>,
    summary: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawRun {
    model: Option<String>,
    kv_dtype: Option<KvDtype>,
    compute_dtype: Option<Compute>,
    prefill_chunk: Option<u32>,
    dense_projection_chunk_rows: Option<u32>,
    threads: Option<u32>,
    context_tokens: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawKv {
    plugin: Option<String>,
    selector_profile: Option<String>,
    window_tokens: Option<u32>,
    options: RawOptions,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawOffload {
    plugin: Option<String>,
    layers: Option<u32>,
    options: RawOptions,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawDevice {
    plugin: Option<String>,
    options: RawOptions,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawBudgets {
    memory: Option<Spanned<String>>,
    kv: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawStorage {
    read_path: Option<ReadPath>,
    io: Option<IoPath>,
    drive_rate: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawSpeculate {
    by: Option<Spanned<String>>,
    tokens: Option<Spanned<u32>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawDirectories {
    models: Option<PathBuf>,
    cache: Option<PathBuf>,
    manifests: Vec<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawPlugins {
    require_pinned: Option<bool>,
    deadline_secs: Option<NonZeroU32>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawBenchmark {
    history_dir: Option<PathBuf>,
}

/// What one file says; everything may be left open.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Layer {
    /// `[profile] name`.
    pub name: Option<String>,
    /// `[profile] summary`.
    pub summary: Option<String>,
    /// `[run] model`.
    pub model: Option<String>,
    /// `[run] kv_dtype`.
    pub kv_dtype: Option<KvDtype>,
    /// `[run] compute_dtype`.
    pub compute_dtype: Option<Compute>,
    /// `[run] prefill_chunk`.
    pub prefill_chunk: Option<u32>,
    /// `[run] dense_projection_chunk_rows`.
    pub dense_chunk_rows: Option<u32>,
    /// `[run] threads`.
    pub threads: Option<u32>,
    /// `[run] context_tokens`.
    pub context_tokens: Option<u64>,
    /// `[kv] plugin`.
    pub kv: Option<String>,
    /// `[kv] selector_profile`.
    pub selector_profile: Option<String>,
    /// `[kv] window_tokens`.
    pub window_tokens: Option<u32>,
    /// `[kv.options]`.
    pub kv_options: Options,
    /// `[offload] plugin`.
    pub offload: Option<String>,
    /// `[offload] layers`.
    pub offload_layers: Option<u32>,
    /// `[offload.options]`.
    pub offload_options: Options,
    /// `[device] plugin`.
    pub device: Option<String>,
    /// `[device.options]`.
    pub device_options: Options,
    /// `[budgets] memory`, bytes.
    pub memory_budget: Option<u64>,
    /// `[budgets] kv`, bytes.
    pub kv_budget: Option<u64>,
    /// `[storage] read_path`.
    pub read_path: Option<ReadPath>,
    /// `[storage] io`.
    pub io: Option<IoPath>,
    /// `[storage] drive_rate`, bytes a second.
    pub drive_rate: Option<u64>,
    /// `[speculate] by`.
    pub speculate: Option<Guesser>,
    /// `[speculate] tokens`.
    pub speculate_tokens: Option<u32>,
    /// `[directories] models`.
    pub models_dir: Option<PathBuf>,
    /// `[directories] cache`.
    pub cache_dir: Option<PathBuf>,
    /// `[directories] manifests`.
    pub manifests: Vec<PathBuf>,
    /// `[plugins] require_pinned`.
    pub require_pinned: Option<bool>,
    /// `[plugins] deadline_secs`.
    pub plugin_deadline: Option<u32>,
    /// `[benchmark] history_dir`.
    pub history_dir: Option<PathBuf>,
}

impl Layer {
    /// The profile manifest of `--profile-manifest`.
    pub fn profile(path: &Path) -> Outcome<Layer> {
        let text = std::fs::read_to_string(path).during(path.display())?;
        Layer::parse(path, &text)
    }

    /// `kvern.toml` in the working directory, or the file that `KVERN_CONFIG` names; nothing where
    /// neither is.
    pub fn configured() -> Outcome<Layer> {
        if let Some(path) = std::env::var_os("KVERN_CONFIG") {
            return Layer::profile(Path::new(&path));
        }
        let path = Path::new("kvern.toml");
        match std::fs::read_to_string(path) {
            Ok(text) => Layer::parse(path, &text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Layer::default()),
            Err(e) => Err(Failure::new(format!("{}: {e}", path.display()))),
        }
    }

    /// The same of a text that stands for the file.
    pub fn parse(path: &Path, text: &str) -> Outcome<Layer> {
        let raw: Raw = toml::from_str(text).map_err(|e| toml_fault(path, text, &e))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(name) = raw.profile.name.as_ref().filter(|n| *n.get_ref() != stem) {
            let wrong = format!("is `{}` in a file called `{stem}.toml`", name.get_ref());
            return Err(Place::new(path, line_of(text, name.span().start), "profile.name")
                .fault(wrong, "name and file must be the same: rename one of them"));
        }
        let size = |key: &str, value: Option<Spanned<String>>| match value {
            None => Ok(None),
            Some(value) => parse_size(value.get_ref()).map(Some).map_err(|e| {
                Place::new(path, line_of(text, value.span().start), key)
                    .fault(e, "write a number and a unit")
            }),
        };
        let rate = |key: &str, value: Option<Spanned<String>>| {
            let at = value.as_ref().map_or(0, |v| line_of(text, v.span().start));
            match size(key, value)? {
                Some(0) => Err(Place::new(path, at, key)
                    .fault("is 0", "write at least a byte a second, or leave it out")),
                rate => Ok(rate),
            }
        };
        let options = |table: &str, raw: RawOptions| {
            raw.into_iter()
                .map(|(key, value)| match from_toml(value.get_ref()) {
                    Some(option) => Ok((key, option)),
                    None => Err(Place::new(
                        path,
                        line_of(text, value.span().start),
                        format!("{table}.{key}"),
                    )
                    .fault("is no option value", "write a number, a text, or true or false")),
                })
                .collect::<Outcome<Options>>()
        };
        Ok(Layer {
            name: raw.profile.name.map(Spanned::into_inner),
            summary: raw.profile.summary,
            model: raw.run.model,
            kv_dtype: raw.run.kv_dtype,
            compute_dtype: raw.run.compute_dtype,
            prefill_chunk: raw.run.prefill_chunk,
            dense_chunk_rows: raw.run.dense_projection_chunk_rows,
            threads: raw.run.threads,
            context_tokens: raw.run.context_tokens,
            kv: raw.kv.plugin,
            selector_profile: raw.kv.selector_profile,
            window_tokens: raw.kv.window_tokens,
            kv_options: options("kv.options", raw.kv.options)?,
            offload: raw.offload.plugin,
            offload_layers: raw.offload.layers,
            offload_options: options("offload.options", raw.offload.options)?,
            device: raw.device.plugin,
            device_options: options("device.options", raw.device.options)?,
            memory_budget: size("budgets.memory", raw.budgets.memory)?,
            kv_budget: size("budgets.kv", raw.budgets.kv)?,
            read_path: raw.storage.read_path,
            io: raw.storage.io,
            drive_rate: rate("storage.drive_rate", raw.storage.drive_rate)?,
            speculate: said(path, text, "speculate.by", raw.speculate.by, |by| {
                parse_guesser(by).map_err(|expected| (format!("is `{by}`"), expected))
            })?,
            speculate_tokens: said(path, text, "speculate.tokens", raw.speculate.tokens, |n| {
                let expected = || (format!("is {n}"), "a number from 1 to 32 is expected".into());
                Some(*n).filter(|n| (1..=32).contains(n)).ok_or_else(expected)
            })?,
            models_dir: raw.directories.models,
            cache_dir: raw.directories.cache,
            manifests: raw.directories.manifests,
            require_pinned: raw.plugins.require_pinned,
            plugin_deadline: raw.plugins.deadline_secs.map(NonZeroU32::get),
            history_dir: raw.benchmark.history_dir,
        })
    }
}

/// What is found in a value, or the value's place with what is wrong and what to do.
fn said<V, T>(
    path: &Path,
    text: &str,
    key: &str,
    value: Option<Spanned<V>>,
    read: impl Fn(&V) -> Result<T, (String, String)>,
) -> Outcome<Option<T>> {
    let Some(value) = value else { return Ok(None) };
    let line = line_of(text, value.span().start);
    let fault =
        |(wrong, expected): (String, String)| Place::new(path, line, key).fault(wrong, expected);
    read(value.get_ref()).map(Some).map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Outcome<Layer> {
        Layer::parse(Path::new("/p/small.toml"), text)
    }

    #[test]
    fn a_profile_names_plugins_budgets_and_directories() {
        let layer = parse(
            "[profile]\nname = \"small\"\n[kv]\nplugin = \"x\"\n[kv.options]\ntokens = 64\n\
             [budgets]\nmemory = \"2GiB\"\n[directories]\ncache = \"/c\"\n\
             [run]\nkv_dtype = \"f32\"\n[storage]\nread_path = \"direct\"\nio = \"io_uring\"\n\
             drive_rate = \"500MB\"\n",
        )
        .unwrap();
        assert_eq!((layer.read_path, layer.io), (Some(ReadPath::Direct), Some(IoPath::IoUring)));
        assert_eq!(layer.drive_rate, Some(500_000_000));
        assert_eq!(layer.memory_budget, Some(2 << 30));
        assert_eq!((layer.kv.as_deref(), layer.kv_dtype), (Some("x"), Some(KvDtype::F32)));
        assert_eq!(layer.kv_options.len(), 1);
    }

    #[test]
    fn every_fault_names_file_and_line() {
        let cases = [
            ("[budgets]\nmemory = \"2 apples\"\n", "small.toml:2: `budgets.memory`"),
            ("[profile]\nname = \"big\"\n", "small.toml:2: `profile.name`"),
            ("[kv]\nplugn = \"x\"\n", "did you mean `plugin`?"),
            ("[run]\nkv_dtype = \"f8\"\n", "small.toml:2"),
            ("[plugins]\ndeadline_secs = 0\n", "small.toml:2"),
            ("[storage]\nio = \"mmap\"\n", "small.toml:2"),
            ("[storage]\n\ndrive_rate = \"0\"\n", "small.toml:3: `storage.drive_rate`"),
            ("[speculate]\nby = \"draft=\"\n", "small.toml:2: `speculate.by`"),
            ("[speculate]\ntokens = 0\n", "small.toml:2: `speculate.tokens`"),
            ("[kv.options]\nx = [1]\n", "small.toml:2: `kv.options.x`"),
        ];
        for (text, said) in cases {
            let failure = parse(text).unwrap_err();
            assert!(failure.message.contains(said), "{}", failure.message);
        }
    }
}
