//! What was asked for, once every source has spoken: flags, then `KVERN_*`, then the profile
//! manifest, then `kvern.toml`, then defaults.

use crate::budget::MemoryBudget;
use crate::cgroup::Cgroup;
use crate::cli::{EngineArgs, IoPath, ModelArgs, PluginArgs, ReadPath, RunArgs, SpeculateArgs};
use crate::config::Layer;
use crate::fail::{Failure, Outcome};
use crate::plugin::{Discovery, search_path};
use crate::speculate::Speculation;
use kvern_contract::{ComputeDtype, KvEncoding, Options};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

/// The environment's word on the deadline.
pub const DEADLINE_VARIABLE: &str = "KVERN_PLUGIN_DEADLINE";

/// A run's settings. Names are not looked up yet.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The model, as it was asked for; `None`: the embedded one.
    pub model: Option<String>,
    /// Where names are looked up.
    pub models_dir: PathBuf,
    /// Directories with manifests, from flags.
    pub manifests: Vec<PathBuf>,
    /// The same from files.
    pub configured_manifests: Vec<PathBuf>,
    /// Whether a manifest must pin its library.
    pub require_pinned: bool,
    /// The kv plugin.
    pub kv: Choice,
    /// What the selector favours.
    pub selector_profile: String,
    /// A window for a windowed strategy.
    pub window_tokens: Option<u32>,
    /// The device plugin.
    pub device: Choice,
    /// The offload plugin; nothing or `auto` is the table's.
    pub offload: Choice,
    /// Layers kept in host memory; `None`: the budget decides.
    pub offload_cpu_layers: Option<u32>,
    /// Longest that a plugin may take to come back from a call.
    pub plugin_deadline: Duration,
    /// Encoding of KV in memory.
    pub kv_dtype: KvEncoding,
    /// What activations are computed in.
    pub compute: ComputeDtype,
    /// Most prompt tokens of a step.
    pub prefill_chunk: u32,
    /// Most rows of a feed-forward block at once, where it was asked for.
    pub dense_chunk_rows: Option<u32>,
    /// Bytes for KV.
    pub kv_budget: Option<u64>,
    /// Bytes for everything, and who said so.
    pub memory: MemoryBudget,
    /// How weights are read.
    pub read_path: ReadPath,
    /// What reads files.
    pub io: IoPath,
    /// Most bytes read in a second.
    pub drive_rate: Option<u64>,
    /// Who guesses tokens ahead; nobody, but in a command that asks.
    pub speculation: Speculation,
    /// Where KV on disk goes.
    pub cache_dir: PathBuf,
    /// Threads that compute.
    pub threads: u32,
    /// Tokens that a session may hold, where it was asked for.
    pub context_tokens: Option<u64>,
    /// Where the ledger is, where a file says so.
    pub history_dir: Option<PathBuf>,
}

/// A plugin as it was asked for.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// By name.
    pub name: Option<String>,
    /// By library, without a manifest.
    pub library: Option<PathBuf>,
    /// Options from files.
    pub options: Options,
    /// Options from flags, `KEY=VALUE`.
    pub pairs: Vec<String>,
    /// The n-th of its devices.
    pub ordinal: Option<u32>,
}

impl Settings {
    /// Settings of a command that runs a model.
    pub fn of(args: &RunArgs) -> Outcome<Settings> {
        Settings::from_groups(&args.model, &args.plugins, &args.engine)
    }

    /// The same of the groups.
    pub fn from_groups(
        model: &ModelArgs,
        plugins: &PluginArgs,
        engine: &EngineArgs,
    ) -> Outcome<Settings> {
        let profile = match &plugins.profile_manifest {
            Some(path) => Layer::profile(path)?,
            None => Layer::default(),
        };
        let file = Layer::configured()?;
        if plugins.offload_gpu_layers.is_some_and(|n| n > 0) {
            return Err(Failure::usage(
                "--offload-gpu-layers: layers are kept on an accelerator by the budget of its \
                 device plugin; give 0 or leave it out",
            ));
        }
        let (name, library) = by_name_or_library(plugins.kv_cache_strategy.clone());
        let kv_library = plugins.kv.clone().or(library);
        // A pinned library leaves no room for a name from a file.
        let kv_name = match kv_library {
            Some(_) => None,
            None => name.or(profile.kv.clone()).or(file.kv.clone()),
        };
        let (device, ordinal) = with_ordinal(
            plugins.device.clone().or(profile.device.clone()).or(file.device.clone()),
        )?;
        let offload = plugins
            .offload_cpu_policy
            .clone()
            .or(profile.offload.clone())
            .or(file.offload.clone())
            .filter(|name| name != "auto");
        let over = |mut low: Options, high: &Options| {
            low.extend(high.clone());
            low
        };
        let choice = |(name, library): (Option<String>, Option<PathBuf>),
                      low: &Options,
                      high,
                      pairs: &[String]| {
            Choice {
                name,
                library,
                options: over(low.clone(), high),
                pairs: pairs.to_vec(),
                ordinal: None,
            }
        };
        let kv = choice(
            (kv_name, kv_library),
            &file.kv_options,
            &profile.kv_options,
            &plugins.kv_option,
        );
        let mut device = choice(
            by_name_or_library(device),
            &file.device_options,
            &profile.device_options,
            &plugins.device_option,
        );
        device.ordinal = ordinal;
        let offload = choice(
            by_name_or_library(offload),
            &file.offload_options,
            &profile.offload_options,
            &plugins.offload_option,
        );
        let kv_dtype = engine.kv_dtype.or(profile.kv_dtype).or(file.kv_dtype);
        let compute = engine.compute_dtype.or(profile.compute_dtype).or(file.compute_dtype);
        let budget = |flag: Option<u64>, p: Option<u64>, f: Option<u64>| flag.or(p).or(f);
        Ok(Settings {
            model: model.model.clone().or(profile.model).or(file.model),
            models_dir: (model.models_dir.clone().or(profile.models_dir).or(file.models_dir))
                .unwrap_or_else(|| "models".into()),
            manifests: plugins.manifests.clone(),
            configured_manifests: [profile.manifests, file.manifests].concat(),
            require_pinned: profile.require_pinned.or(file.require_pinned).unwrap_or(false),
            kv,
            selector_profile: plugins
                .strategy_selector_profile
                .clone()
                .or(profile.selector_profile)
                .or(file.selector_profile)
                .unwrap_or_else(|| crate::selector::PROFILES[0].into()),
            window_tokens: plugins
                .kv_cache_window_tokens
                .or(profile.window_tokens)
                .or(file.window_tokens),
            device,
            offload,
            offload_cpu_layers: plugins
                .offload_cpu_layers
                .or(profile.offload_layers)
                .or(file.offload_layers),
            plugin_deadline: (plugins.plugin_deadline)
                .or(profile.plugin_deadline)
                .or(file.plugin_deadline)
                .map_or(DEADLINE, |seconds| Duration::from_secs(seconds.into())),
            kv_dtype: kv_dtype.map_or(KvEncoding::Bf16, |d| d.encoding()),
            compute: compute.map_or(ComputeDtype::Auto, |c| c.dtype()),
            prefill_chunk: at_least_one(
                engine.prefill_chunk.or(profile.prefill_chunk).or(file.prefill_chunk),
                512,
            ),
            dense_chunk_rows: (engine.dense_projection_chunk_rows)
                .or(profile.dense_chunk_rows)
                .or(file.dense_chunk_rows)
                .map(|rows| rows.max(1)),
            kv_budget: budget(engine.kv_budget, profile.kv_budget, file.kv_budget),
            memory: MemoryBudget::of(
                engine.memory_budget,
                profile.memory_budget.or(file.memory_budget),
                Cgroup::read().memory_limit.map(|(bytes, _)| bytes),
                crate::machine::memory_bytes(),
            ),
            read_path: (engine.read_path.or(profile.read_path).or(file.read_path))
                .unwrap_or(ReadPath::Auto),
            io: engine.io.or(profile.io).or(file.io).unwrap_or(IoPath::Auto),
            drive_rate: engine.drive_rate.or(profile.drive_rate).or(file.drive_rate),
            speculation: Speculation::off(),
            cache_dir: (engine.cache_dir.clone().or(profile.cache_dir).or(file.cache_dir))
                .unwrap_or_else(default_cache_dir),
            threads: at_least_one(engine.threads.or(profile.threads).or(file.threads), cores()),
            context_tokens: engine
                .context_tokens
                .or(profile.context_tokens)
                .or(file.context_tokens),
            history_dir: file.history_dir,
        })
    }

    /// The same in a command that generates, where tokens may be guessed ahead.
    pub fn speculating(self, args: &SpeculateArgs, plugins: &PluginArgs) -> Outcome<Settings> {
        let profile = plugins.profile_manifest.as_deref().map(Layer::profile).transpose()?;
        let file = Layer::configured()?;
        let speculation = Speculation::of(args, &profile.unwrap_or_default(), &file)?;
        Ok(Settings { speculation, ..self })
    }

    /// Looks for plugins where these settings say.
    pub fn discover(&self) -> Outcome<Discovery> {
        let path = search_path(&self.manifests, &self.configured_manifests)?;
        Discovery::read(&path, self.require_pinned)
    }
}

/// How long a plugin may take to come back from a call where nobody said otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The deadline of a command that has no flag for it: the environment's, then the file's.
pub fn deadline_without_flags() -> Outcome<Duration> {
    let asked = std::env::var_os(DEADLINE_VARIABLE);
    let seconds = match asked.map(|text| deadline_of(&text)).transpose()? {
        None => Layer::configured()?.plugin_deadline,
        seconds => seconds,
    };
    Ok(seconds.map_or(DEADLINE, |seconds| Duration::from_secs(seconds.into())))
}

/// What the flag's parser accepts, and nothing else.
fn deadline_of(text: &OsStr) -> Outcome<u32> {
    let seconds = text.to_str().and_then(|text| text.parse().ok()).filter(|n| *n > 0);
    seconds.ok_or_else(|| {
        Failure::usage(format!(
            "{DEADLINE_VARIABLE} is `{}`: a number of seconds is expected, 1 or more",
            text.to_string_lossy()
        ))
    })
}

/// Cores that this process may use.
pub fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

fn at_least_one(asked: Option<u32>, default: u32) -> u32 {
    asked.unwrap_or(default).max(1)
}

/// `$XDG_CACHE_HOME/kvern`, `~/.cache/kvern`, or `.kvern/cache` where there is no home.
fn default_cache_dir() -> PathBuf {
    let xdg = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
    match xdg.or_else(home).filter(|p| p.is_absolute()) {
        Some(cache) => cache.join("kvern"),
        None => ".kvern/cache".into(),
    }
}

/// What has a directory in it, or a library's suffix, is a library.
fn by_name_or_library(asked: Option<String>) -> (Option<String>, Option<PathBuf>) {
    match asked {
        Some(text) if text.contains('/') || text.ends_with(std::env::consts::DLL_SUFFIX) => {
            (None, Some(text.into()))
        }
        name => (name, None),
    }
}

/// `PLUGIN:ORDINAL` apart.
fn with_ordinal(asked: Option<String>) -> Outcome<(Option<String>, Option<u32>)> {
    let Some(text) = asked else { return Ok((None, None)) };
    match text.rsplit_once(':') {
        None => Ok((Some(text), None)),
        Some((name, ordinal)) => match ordinal.parse() {
            Ok(ordinal) if !name.is_empty() => Ok((Some(name.into()), Some(ordinal))),
            _ => Err(Failure::usage(format!(
                "--device {text}: PLUGIN or PLUGIN:ORDINAL is expected, as cuda:0"
            ))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_may_have_an_ordinal() {
        assert_eq!(with_ordinal(Some("x:1".into())).unwrap(), (Some("x".into()), Some(1)));
        assert_eq!(with_ordinal(Some("x".into())).unwrap(), (Some("x".into()), None));
        assert_eq!(with_ordinal(Some("x:y".into())).unwrap_err().code, 2);
    }

    #[test]
    fn a_deadline_is_a_number_of_seconds_and_never_none() {
        assert_eq!(deadline_of(OsStr::new("7")).unwrap(), 7);
        for wrong in ["0", "", "x", "-1", "1.5", "99999999999"] {
            let failure = deadline_of(OsStr::new(wrong)).unwrap_err();
            assert_eq!(failure.code, 2, "{wrong}");
            assert!(failure.message.starts_with("KVERN_PLUGIN_DEADLINE is `"));
        }
    }

    #[test]
    fn a_path_is_a_library_and_a_word_is_a_name() {
        assert_eq!(by_name_or_library(Some("./x.so".into())).1, Some("./x.so".into()));
        assert_eq!(by_name_or_library(Some("x".into())).0, Some("x".into()));
    }

    #[test]
    fn a_flag_wins_over_a_profile() {
        let path = std::env::temp_dir().join(format!("kvern-profile-{}.toml", std::process::id()));
        std::fs::write(
            &path,
            "[run]\nprefill_chunk = 7\nthreads = 3\n[device]\nplugin = \"a:2\"\n",
        )
        .unwrap();
        let plugins = PluginArgs { profile_manifest: Some(path.clone()), ..PluginArgs::default() };
        let engine = EngineArgs { threads: Some(1), ..EngineArgs::default() };
        let settings = Settings::from_groups(&ModelArgs::default(), &plugins, &engine).unwrap();
        assert_eq!((settings.prefill_chunk, settings.threads), (7, 1));
        assert_eq!(
            (settings.device.name.as_deref(), settings.device.ordinal),
            (Some("a"), Some(2))
        );
        std::fs::remove_file(path).unwrap();
    }
}
