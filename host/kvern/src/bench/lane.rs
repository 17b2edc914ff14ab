//! Lanes: cold start with a process an iteration, warm runtime in one.

use super::{NO_GENERIC, Session, flags};
use crate::child::{self, Ended, tail};
use crate::fail::{Outcome, one_line};
use crate::model::Reference;
use crate::out;
use kvern_report::{
    ColdProbe, Details, Lane, Stats, WarmProbe, excerpt, merge_loads, merge_requests, parse,
};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::time::Duration;

/// Which lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// A process an iteration: load and one request.
    Cold,
    /// One process: load, requests.
    Warm,
}

impl Mode {
    fn flag(self) -> &'static str {
        match self {
            Mode::Cold => "cold",
            Mode::Warm => "warm",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Mode::Cold => "cold-start",
            Mode::Warm => "warm-runtime",
        }
    }
}

/// One lane of one target.
pub struct LaneAsk<'a> {
    /// `requested`, or a family.
    pub family: &'a str,
    /// Which lane.
    pub mode: Mode,
    /// Time for each process.
    pub budget: Duration,
    /// Measured iterations.
    pub iterations: u32,
    /// Iterations thrown away before.
    pub warmup: u32,
    /// The model, where it is there.
    pub reference: Option<&'a Reference>,
    /// Why it is not.
    pub absent: Option<&'a str>,
}

fn details(value: Value) -> Details {
    value.as_object().cloned().unwrap_or_default()
}

/// The generic backend's lane.
pub fn generic(ask: &LaneAsk<'_>) -> Lane {
    let name = format!("{}-generic-{}", ask.family, ask.mode.word());
    Lane::unavailable(&name, NO_GENERIC, Details::new())
}

/// The engine's lane.
pub fn native(session: &Session<'_>, ask: &LaneAsk<'_>) -> Outcome<Lane> {
    let name = format!("{}-optimized-{}", ask.family, ask.mode.word());
    if let Some(reason) = ask.absent {
        return Ok(Lane::unavailable(&name, reason, Details::new()));
    }
    out::note(&format!("running {name}"));
    let lane = match ask.mode {
        Mode::Cold => cold(session, ask, &name)?,
        Mode::Warm => warm(session, ask, &name)?,
    };
    if let Some(reason) = lane.details.get("reason").and_then(Value::as_str) {
        out::note(&format!("{name} is unavailable: {}", one_line(reason)));
    }
    Ok(lane)
}

fn command(session: &Session<'_>, ask: &LaneAsk<'_>) -> Vec<OsString> {
    let mut out: Vec<OsString> =
        ["bench", "probe", "--mode", ask.mode.flag()].map(Into::into).into();
    let mut add = |flag: &str, value: OsString| out.extend([OsString::from(flag), value]);
    add("--model", session.reference().into());
    add("--models-dir", session.settings.models_dir.clone().into());
    add("--backend", "optimized-native".into());
    if ask.mode == Mode::Warm {
        add("--iterations", ask.iterations.to_string().into());
        add("--warmup-iterations", ask.warmup.to_string().into());
    }
    out.push("--no-record-history".into());
    out.extend(flags::of(&session.args.plugins, &session.args.engine));
    out
}

fn run(arguments: &[OsString], budget: Duration) -> Outcome<Ended> {
    child::run(&child::Ask { arguments, budget, silence: None, apart: None }, &mut |_| ())
}

fn shown(command: &[OsString]) -> Vec<String> {
    let words = command.iter().map(|w| w.to_string_lossy().into_owned());
    std::iter::once("kvern".to_string()).chain(words).collect()
}

/// Drops the model's pages from the page cache, so that a cold start reads the drive. Says what was
/// done.
fn drop_pages(reference: Option<&Reference>) -> Value {
    let Some(directory) = reference.and_then(Reference::path) else {
        return json!({"dropped_files": 0, "absence_checked": false,
                      "reason": "the embedded model is part of the program"});
    };
    let mut dropped = 0;
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(file) = std::fs::File::open(entry.path()) else { continue };
        let advice = rustix::fs::Advice::DontNeed;
        dropped += u32::from(rustix::fs::fadvise(&file, 0, None, advice).is_ok());
    }
    json!({"dropped_files": dropped, "absence_checked": false,
           "reason": "the kernel was asked to drop the pages; whether it did is not checked here"})
}

fn cold(session: &Session<'_>, ask: &LaneAsk<'_>, name: &str) -> Outcome<Lane> {
    let command = command(session, ask);
    let (mut probes, mut pages) = (Vec::new(), Value::Null);
    for iteration in 0..ask.warmup + ask.iterations {
        pages = drop_pages(ask.reference);
        let ended = run(&command, ask.budget)?;
        match read::<ColdProbe>(&ended) {
            Ok(probe) if iteration >= ask.warmup => probes.push(probe),
            Ok(_) => {}
            Err(reason) => {
                return Ok(failed(name, &command, &ended, &reason, iteration < ask.warmup));
            }
        }
    }
    let samples: Vec<f64> = probes.iter().map(|p| p.load_ms + p.request.total_ms).collect();
    let loads: Vec<f64> = probes.iter().map(|p| p.load_ms).collect();
    let resources: Vec<_> = probes.iter().map(|p| p.load_resources.clone()).collect();
    let requests: Vec<_> = probes.into_iter().map(|p| p.request).collect();
    let details = details(json!({
        "command": shown(&command),
        "load": {"latency_ms": kvern_report::Sum::of(&loads), "resources": merge_loads(&resources)},
        "metrics": merge_requests(&requests),
        "text_excerpt": requests.last().map(|r| &r.text_excerpt),
        "page_cache": pages,
    }));
    Ok(Lane::measured(name, Stats::of(&samples, ask.warmup), details))
}

fn warm(session: &Session<'_>, ask: &LaneAsk<'_>, name: &str) -> Outcome<Lane> {
    let command = command(session, ask);
    let ended = run(&command, ask.budget)?;
    let probe: WarmProbe = match read(&ended) {
        Ok(probe) => probe,
        Err(reason) => return Ok(failed(name, &command, &ended, &reason, false)),
    };
    let samples: Vec<f64> = probe.measured_iterations.iter().map(|r| r.total_ms).collect();
    let details = details(json!({
        "command": shown(&command),
        "runtime_load_ms": probe.runtime_load_ms,
        "runtime_load_resources": probe.runtime_load_resources,
        "warmup_iterations": probe.warmup_iterations,
        "metrics": merge_requests(&probe.measured_iterations),
    }));
    Ok(Lane::measured(name, Stats::of(&samples, probe.warmup_iterations), details))
}

/// A probe's document, or why there is none.
fn read<T: serde::de::DeserializeOwned>(ended: &Ended) -> Result<T, String> {
    if let Some(fault) = ended.fault() {
        return Err(fault);
    }
    parse(&ended.stdout).map_err(|e| format!("its output is not a probe's: {e}"))
}

fn failed(
    name: &str,
    command: &[OsString],
    ended: &Ended,
    reason: &str,
    warmup_only: bool,
) -> Lane {
    let details = details(json!({
        "command": shown(command),
        "returncode": ended.code,
        "stdout_excerpt": excerpt(&ended.stdout),
        "stderr_excerpt": tail(&ended.stderr),
        "timed_out": ended.late.is_some(),
        "warmup_only": warmup_only,
    }));
    Lane::unavailable(name, reason, details)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::Late;

    fn ended(code: i32, timed_out: bool, stdout: &str, stderr: &str) -> Ended {
        let late = timed_out.then_some(Late::Budget(Duration::from_secs(90)));
        let (stdout, stderr) = (stdout.into(), stderr.into());
        Ended { code, signal: None, late, stdout, stderr, calls: Vec::new() }
    }

    #[test]
    fn a_lane_that_fails_says_why() {
        let reason = |e: &Ended| read::<ColdProbe>(e).unwrap_err();
        assert_eq!(reason(&ended(1, false, "", "loading\nkvern: no model\n")), "no model");
        assert!(reason(&ended(124, true, "", "")).contains("did not end in 90 s"));
        assert!(reason(&ended(0, false, "{}", "")).contains("not a probe's"));
        let lane = failed("x", &[], &ended(3, false, "", "boom"), "boom", false);
        assert_eq!(lane.details["returncode"], 3);
        assert_eq!(lane.details["reason"], "boom");
    }

    #[test]
    fn the_generic_lane_is_unavailable_with_its_reason() {
        let ask = LaneAsk {
            family: "requested",
            mode: Mode::Cold,
            budget: Duration::ZERO,
            iterations: 1,
            warmup: 0,
            reference: None,
            absent: None,
        };
        let lane = generic(&ask);
        assert_eq!(lane.name, "requested-generic-cold-start");
        assert_eq!(lane.details["reason"], NO_GENERIC);
    }
}
