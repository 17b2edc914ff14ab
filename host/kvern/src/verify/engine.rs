//! One case that is the engine's: the embedded model, run with the plugin and without it, each in a
//! process of its own, as an operator would.

use crate::child;
use crate::fail::{Outcome, While};
use crate::plugin::{CaseRow, Described, Kind};
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Tokens that are scored: enough that a small budget lets go of most of them.
const TOKENS: usize = 500;
/// The largest difference of a logit, as a share of the spread of all, between two devices in f32.
const DEVICE_SHARE: f32 = 1e-3;

/// Name and promise of the case.
fn named(kind: Kind) -> (&'static str, &'static str) {
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
pub fn run(library: &Path, plugin: &Described, deadline: Duration) -> Outcome<CaseRow> {
    let began = Instant::now();
    let is = |capability| plugin.capabilities.get(capability).and_then(Value::as_bool);
    let with: Vec<&str> = match (plugin.kind, is("store")) {
        // Little enough that most of the history goes through the store.
        (Kind::Kv, Some(true)) => vec!["--kv-budget", "512KiB"],
        (Kind::Offload, _) => vec!["--offload-cpu-layers", "1"],
        _ => Vec::new(),
    };
    let (outcome, line) = match (plugin.kind, is("exact")) {
        (Kind::Kv, Some(false)) => ("skipped", Some("it declares that it is not exact".into())),
        _ => match compare(library, plugin.kind, &with, deadline)? {
            None => ("kept", None),
            Some(line) => ("broken", Some(line)),
        },
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

/// What differs; `None` where nothing does.
fn compare(
    library: &Path,
    kind: Kind,
    with: &[&str],
    deadline: Duration,
) -> Outcome<Option<String>> {
    let room = Room::new()?;
    let flag = match kind {
        Kind::Kv => "--kv",
        Kind::Offload => "--offload-cpu-policy",
        Kind::Device => "--device",
    };
    let library = library.canonicalize().during(library.display())?;
    let mut with: Vec<OsString> = with.iter().map(Into::into).collect();
    with.extend([flag.into(), library.into()]);
    let logits = |name: &str, more: &[OsString]| room.logits(name, more, deadline);
    let (without, with) = match (logits("without", &[])?, logits("with", &with)?) {
        (Err(line), _) => {
            return Ok(Some(format!("without the plugin the model does not run: {line}")));
        }
        (_, Err(line)) => return Ok(Some(line)),
        (Ok(without), Ok(with)) => (without, with),
    };
    if without.len() != with.len() {
        return Ok(Some(format!("{} logits, not {}", with.len(), without.len())));
    }
    let differ = without.iter().zip(&with).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    if kind != Kind::Device {
        let told = || format!("{differ} of {} logits differ", with.len());
        return Ok((differ > 0).then(told));
    }
    let least = without.iter().copied().fold(f32::INFINITY, f32::min);
    let most = without.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let off = |(a, b): (&f32, &f32)| if b.is_finite() { (a - b).abs() } else { f32::INFINITY };
    let worst = without.iter().zip(&with).map(off).fold(0.0, f32::max) / (most - least);
    let told =
        || format!("a logit is {worst:.1e} of the spread away, the most is {DEVICE_SHARE:.0e}");
    Ok((worst > DEVICE_SHARE).then(told))
}

/// A directory of this run's own, removed with it.
struct Room(PathBuf);

impl Room {
    fn new() -> Outcome<Room> {
        let path = std::env::temp_dir().join(format!("kvern-verify-{}", std::process::id()));
        std::fs::create_dir_all(&path).during(path.display())?;
        let ids: Vec<usize> = (0..TOKENS).map(|i| 3 + i * i % 397).collect();
        std::fs::write(path.join("ids.json"), format!("{ids:?}")).during(path.display())?;
        Ok(Room(path))
    }

    /// Every row of logits of the embedded model, or why there are none.
    fn logits(
        &self,
        name: &str,
        more: &[OsString],
        budget: Duration,
    ) -> Outcome<Result<Vec<f32>, String>> {
        let file = self.0.join(name);
        let mut arguments: Vec<OsString> =
            ["perplexity", "--json", "--model", crate::model::EMBEDDED].map(Into::into).into();
        let places = [("--token-ids", self.0.join("ids.json")), ("--logits", file.clone())];
        arguments.extend(places.into_iter().flat_map(|(flag, path)| [flag.into(), path.into()]));
        arguments.extend(["--compute-dtype", "f32", "--cache-dir"].map(OsString::from));
        arguments.push(self.0.join("cache").into());
        arguments.extend_from_slice(more);
        let ask = child::Ask { arguments: &arguments, budget, silence: None };
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
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
