//! Parsed flags as a command line again, for the process that runs a lane.

use crate::cli::{Compute, EngineArgs, IoPath, KvDtype, PluginArgs, ReadPath};
use std::ffi::OsString;

struct Flags(Vec<OsString>);

impl Flags {
    fn add(&mut self, flag: &str, value: Option<impl Into<OsString>>) {
        if let Some(value) = value {
            self.0.push(flag.into());
            self.0.push(value.into());
        }
    }

    fn number(&mut self, flag: &str, value: Option<impl ToString>) {
        self.add(flag, value.map(|v| v.to_string()));
    }

    fn each(&mut self, flag: &str, values: &[String]) {
        values.iter().for_each(|value| self.add(flag, Some(value)));
    }
}

/// Every flag of the two groups that was given.
pub fn of(plugins: &PluginArgs, engine: &EngineArgs) -> Vec<OsString> {
    let mut out = Flags(Vec::new());
    plugins.manifests.iter().for_each(|m| out.add("--manifests", Some(m)));
    out.add("--profile-manifest", plugins.profile_manifest.as_ref());
    out.add("--kv-cache-strategy", plugins.kv_cache_strategy.as_ref());
    out.add("--kv", plugins.kv.as_ref());
    out.each("--kv-option", &plugins.kv_option);
    out.add("--strategy-selector-profile", plugins.strategy_selector_profile.as_ref());
    out.number("--kv-cache-window-tokens", plugins.kv_cache_window_tokens);
    out.add("--device", plugins.device.as_ref());
    out.each("--device-option", &plugins.device_option);
    out.number("--offload-cpu-layers", plugins.offload_cpu_layers);
    out.number("--offload-gpu-layers", plugins.offload_gpu_layers);
    out.add("--offload-cpu-policy", plugins.offload_cpu_policy.as_ref());
    out.each("--offload-option", &plugins.offload_option);
    out.number("--plugin-deadline", plugins.plugin_deadline);
    out.add("--kv-dtype", engine.kv_dtype.map(kv_word));
    out.add("--compute-dtype", engine.compute_dtype.map(compute_word));
    out.number("--prefill-chunk", engine.prefill_chunk);
    out.number("--dense-projection-chunk-rows", engine.dense_projection_chunk_rows);
    out.number("--kv-budget", engine.kv_budget);
    out.number("--memory-budget", engine.memory_budget);
    out.add("--cache-dir", engine.cache_dir.as_ref());
    out.number("--threads", engine.threads);
    out.number("--context-tokens", engine.context_tokens);
    out.add("--read-path", engine.read_path.map(ReadPath::word));
    out.add("--io", engine.io.map(IoPath::word));
    out.number("--drive-rate", engine.drive_rate);
    out.0
}

fn kv_word(dtype: KvDtype) -> &'static str {
    match dtype {
        KvDtype::Bf16 => "bf16",
        KvDtype::F16 => "f16",
        KvDtype::F32 => "f32",
    }
}

fn compute_word(dtype: Compute) -> &'static str {
    match dtype {
        Compute::Auto => "auto",
        Compute::F32 => "f32",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    #[test]
    fn flags_survive_the_way_to_another_process() {
        let given = [
            "kvern",
            "bench",
            "--manifests",
            "m",
            "--kv",
            "./x.so",
            "--kv-option",
            "a=1",
            "--kv-option",
            "b=2",
            "--device",
            "d:1",
            "--offload-cpu-layers",
            "2",
            "--offload-cpu-policy",
            "p",
            "--plugin-deadline",
            "5",
            "--kv-dtype",
            "f32",
            "--compute-dtype",
            "f32",
            "--prefill-chunk",
            "3",
            "--kv-budget",
            "1MiB",
            "--memory-budget",
            "2GiB",
            "--cache-dir",
            "c",
            "--threads",
            "1",
            "--context-tokens",
            "9",
            "--strategy-selector-profile",
            "latency",
            "--read-path",
            "direct",
            "--io",
            "io_uring",
            "--drive-rate",
            "500MB",
        ];
        let groups = |words: &[OsString]| match Cli::try_parse_from(words).unwrap().command {
            Command::Bench(args) => (args.plugins, args.engine),
            _ => unreachable!("the words say bench"),
        };
        let first = groups(&given.map(OsString::from));
        let again: Vec<OsString> = ["kvern", "bench"]
            .map(OsString::from)
            .into_iter()
            .chain(of(&first.0, &first.1))
            .collect();
        assert_eq!(format!("{:?}", groups(&again)), format!("{first:?}"));
    }
}
