//! One case that is the engine's: the embedded model, run with the plugin and without it, each in a
//! process of its own, as an operator would, but without the operator's settings.

use crate::child;
use crate::cli::VerifyArgs;
use crate::fail::{Failure, Outcome, While};
use crate::plugin::{CaseRow, Described, Kind};
use crate::selector::RESIDENT;
use serde_json::Value;
use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Tokens that are scored: enough that a small budget lets go of most of them.
const TOKENS: usize = 500;
/// The largest difference of a logit, as a share of the spread of all, between two devices in f32.
const DEVICE_SHARE: f32 = 1e-3;

/// Name and promise of the case.
pub fn named(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Kv => (
            "in_the_engine_logits_are_those_of_everything_in_memory",
            "KvCapabilities::exact: bit-identical to resident.",
        ),
        Kind::Offload => (
            "in_the_engine_logits_are_those_of_everything_in_memory",
            "OffloadPolicy::plan: Places every unit.",
        ),
        Kind::Device => (
            "in_the_engine_logits_are_those_of_the_default_device",
            "DeviceBackend::supports: Run what it said yes to.",
        ),
    }
}

/// Whether `--case` asks for it, where that asks for anything.
pub fn is_asked(asked: &[String], kind: Kind) -> bool {
    asked.is_empty() || asked.iter().any(|name| name == named(kind).0)
}

/// Runs the case.
pub fn run(
    args: &VerifyArgs,
    library: &Path,
    plugin: &Described,
    deadline: Duration,
) -> Outcome<CaseRow> {
    let began = Instant::now();
    let is = |capability| plugin.capabilities.get(capability).and_then(Value::as_bool);
    let with: Vec<&str> = match (plugin.kind, is("store")) {
        // Little enough that most of the history goes through the store.
        (Kind::Kv, Some(true)) => vec!["--kv-budget", "512KiB"],
        (Kind::Offload, _) => vec!["--offload-cpu-layers", "1"],
        _ => Vec::new(),
    };
    let room = Room::new(args)?;
    let broken = compare(&room, library, plugin.kind, &with, deadline)?;
    let (outcome, line) = match broken {
        None => ("kept", None),
        Some(Wrong::Ended(line)) => ("broken", Some(line)),
        Some(Wrong::Differs(_)) if is("exact") == Some(false) => {
            ("skipped", Some("it runs, and declares that it is not exact".into()))
        }
        Some(Wrong::Differs(line)) => ("broken", Some(line)),
    };
    let (case, promise) = named(plugin.kind);
    Ok(CaseRow {
        case: case.into(),
        promises: vec![promise.into()],
        outcome: outcome.into(),
        line,
        took_ms: began.elapsed().as_secs_f64() * 1e3,
    })
}

/// What is wrong with a run.
enum Wrong {
    /// It did not end well.
    Ended(String),
    /// It ended with other logits.
    Differs(String),
}

/// What is wrong; `None` where nothing is. *Errors*: a run without the plugin that does not end
/// well, which says nothing of the plugin.
fn compare(
    room: &Room,
    library: &Path,
    kind: Kind,
    with: &[&str],
    deadline: Duration,
) -> Outcome<Option<Wrong>> {
    let flag = match kind {
        Kind::Kv => "--kv",
        Kind::Offload => "--offload-cpu-policy",
        Kind::Device => "--device",
    };
    let library = library.canonicalize().during(library.display())?;
    let mut with: Vec<OsString> = with.iter().map(Into::into).collect();
    with.extend([flag.into(), library.into()]);
    // Everything in memory, as the selector's plainest strategy has it.
    let plain: &[&str] = if kind == Kind::Kv { &["--kv-cache-strategy", RESIDENT] } else { &[] };
    let plain: Vec<OsString> = plain.iter().map(Into::into).collect();
    let without = room.logits("without", &plain, deadline)?.map_err(|line| {
        Failure::new(format!("without the plugin the embedded model does not run: {line}"))
    })?;
    let with = match room.logits("with", &with, deadline)? {
        Ok(with) => with,
        Err(line) => return Ok(Some(Wrong::Ended(line))),
    };
    let differs = if kind == Kind::Device { far(&without, &with) } else { other(&without, &with) };
    Ok(differs.map(Wrong::Differs))
}

/// Where bits differ.
fn other(without: &[f32], with: &[f32]) -> Option<String> {
    if without.len() != with.len() {
        return Some(format!("{} logits, not {}", with.len(), without.len()));
    }
    let differ = without.iter().zip(with).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    (differ > 0).then(|| format!("{differ} of {} logits differ", with.len()))
}

/// Where a logit is too far away.
fn far(without: &[f32], with: &[f32]) -> Option<String> {
    if without.len() != with.len() {
        return Some(format!("{} logits, not {}", with.len(), without.len()));
    }
    let least = without.iter().copied().fold(f32::INFINITY, f32::min);
    let most = without.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let off = |(a, b): (&f32, &f32)| if b.is_finite() { (a - b).abs() } else { f32::INFINITY };
    let worst = without.iter().zip(with).map(off).fold(0.0, f32::max) / (most - least);
    (worst > DEVICE_SHARE).then(|| {
        format!("a logit is {worst:.1e} of the spread away, and may be {DEVICE_SHARE:.0e}")
    })
}

/// A directory of this run's own, removed with it.
struct Room {
    path: PathBuf,
    /// Where the other plugins of the runs are looked for.
    manifests: Vec<PathBuf>,
}

impl Room {
    fn new(args: &VerifyArgs) -> Outcome<Room> {
        let listed = std::env::var_os("KVERN_MANIFESTS").unwrap_or_default();
        let listed: Vec<PathBuf> = std::env::split_paths(&listed).collect();
        let manifests = args.manifests.iter().chain(&listed);
        let manifests = manifests.filter_map(|path| path.canonicalize().ok()).collect();
        // Ours alone: made here, under a name that nobody can have prepared.
        let now = jiff::Timestamp::now().as_nanosecond();
        let path = std::env::temp_dir().join(format!("kvern-verify-{}-{now}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).during(path.display())?;
        let room = Room { path, manifests };
        let ids: Vec<usize> = (0..TOKENS).map(|i| 3 + i * i % 397).collect();
        let file = room.path.join("ids.json");
        std::fs::write(&file, format!("{ids:?}")).during(file.display())?;
        Ok(room)
    }

    /// Every row of logits of the embedded model, or why there are none.
    fn logits(
        &self,
        name: &str,
        more: &[OsString],
        budget: Duration,
    ) -> Outcome<Result<Vec<f32>, String>> {
        let file = self.path.join(name);
        let words = ["perplexity", "--json", "--model", crate::model::EMBEDDED];
        let mut arguments: Vec<OsString> = words.map(Into::into).into();
        let places = [
            ("--token-ids", self.path.join("ids.json")),
            ("--logits", file.clone()),
            ("--cache-dir", self.path.join("cache")),
        ];
        arguments.extend(places.into_iter().flat_map(|(flag, path)| [flag.into(), path.into()]));
        arguments.extend(["--compute-dtype", "f32"].map(OsString::from));
        arguments.extend_from_slice(more);
        let named = self.manifests.iter().flat_map(|path| ["--manifests".into(), path.into()]);
        arguments.extend(named);
        let apart = Some(self.path.as_path());
        let ask = child::Ask { arguments: &arguments, budget, silence: None, apart };
        let ended = child::run(&ask, &mut |_| ())?;
        if let Some(fault) = ended.fault() {
            return Ok(Err(fault));
        }
        let bytes = std::fs::read(&file).during(file.display())?;
        // A safetensors file with one tensor: the header's length, the header, the values.
        let header = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        let from = usize::try_from(header).unwrap_or(usize::MAX).saturating_add(8);
        let values = bytes.get(from..).unwrap_or_default().chunks_exact(4);
        Ok(Ok(values.map(|v| f32::from_le_bytes([v[0], v[1], v[2], v[3]])).collect()))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // What stays behind lies in the temporary directory.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_that_differs_is_other_and_a_small_difference_is_not_far() {
        let (a, b) = ([0.0, 10.0, 5.0], [0.0, 10.0, 5.001]);
        assert_eq!(other(&a, &a), None);
        assert_eq!(other(&a, &b).as_deref(), Some("1 of 3 logits differ"));
        assert_eq!(far(&a, &b), None);
        assert!(far(&a, &[0.0, 10.0, 5.1]).is_some() && far(&a, &[0.0, 10.0, f32::NAN]).is_some());
        assert!(far(&a, &a[..2]).is_some() && other(&a, &a[..2]).is_some());
    }
}
