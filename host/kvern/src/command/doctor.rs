//! `kvern doctor`: what this machine can do, what was found, and what would be used and why.

use super::advice::Advice;
use crate::cli::DoctorArgs;
use crate::drive::{Drive, io_uring};
use crate::fail::Outcome;
use crate::machine::Machine;
use crate::model::Reference;
use crate::out;
use crate::planner::{Plan, plan};
use crate::plugin::{Discovery, Kind, search_path};
use crate::runtime::{ask_of, choose};
use crate::selector::Size;
use crate::settings::Settings;
use serde_json::{Value, json};
use std::fmt::Write;

/// Runs the command.
pub fn run(args: &DoctorArgs) -> Outcome<()> {
    let settings = Settings::of(&args.run)?;
    let machine = Machine::read();
    let found = Found {
        advice: Advice::of(&settings, &machine, args.probe)?,
        drive: Drive::of(&settings.cache_dir),
        ring: io_uring(),
        plugins: Plugins::look(&settings),
        choice: Choice::make(&settings, &machine),
    };
    match args.json {
        true => out::document(&document(&settings, &machine, &found)),
        false => out::say(&text(&settings, &machine, &found)),
    }
}

/// What was found beside the machine.
struct Found {
    drive: Drive,
    /// Why there is no ring.
    ring: Result<(), String>,
    plugins: Plugins,
    choice: Choice,
    advice: Advice,
}

/// What discovery gave, or why it gave nothing.
struct Plugins {
    searched: Vec<String>,
    rows: Vec<(Kind, String, Result<(), String>)>,
    fault: Option<String>,
}

impl Plugins {
    fn look(settings: &Settings) -> Plugins {
        let path = search_path(&settings.manifests, &settings.configured_manifests);
        let searched = path.iter().flatten().map(|p| p.display().to_string()).collect();
        match path.and_then(|p| Discovery::read(&p, settings.require_pinned)) {
            Ok(found) => {
                let row = |m: &crate::plugin::Manifest| {
                    let state = m.open(found.require_pinned).map(drop).map_err(|f| f.message);
                    (m.kind, m.name.value.clone(), state)
                };
                Plugins { searched, rows: found.manifests.iter().map(row).collect(), fault: None }
            }
            Err(f) => Plugins { searched, rows: Vec::new(), fault: Some(f.message) },
        }
    }
}

/// What a run would use.
struct Choice {
    model: Result<String, String>,
    plan: Result<Plan, String>,
    names: Result<[String; 3], String>,
}

impl Choice {
    fn make(settings: &Settings, machine: &Machine) -> Choice {
        let reference = settings.model.as_deref();
        let model = Reference::resolve(reference, &settings.models_dir)
            .and_then(|r| r.open())
            .map(|m| m.name().to_string())
            .map_err(|f| f.message);
        let planned = plan(reference, &settings.models_dir, machine, &ask_of(settings));
        let mut planned = planned.map_err(|f| f.message);
        let names = match &mut planned {
            Err(message) => Err(message.clone()),
            Ok(plan) => choose(settings, plan)
                .map(|p| {
                    let name = |o: &crate::chosen::Origin| o.described.name.clone();
                    [name(&p.kv.origin), name(&p.offload.origin), name(&p.device.origin)]
                })
                .map_err(|f| f.message),
        };
        Choice { model, plan: planned, names }
    }
}

fn yes_or<T>(state: &Result<T, String>) -> String {
    match state {
        Ok(_) => "yes".into(),
        Err(why) => format!("no: {why}"),
    }
}

fn known<T: ToString>(value: Option<T>) -> String {
    value.map_or("unknown".into(), |v| v.to_string())
}

fn text(settings: &Settings, machine: &Machine, found: &Found) -> String {
    let Found { drive, ring, plugins, choice, advice } = found;
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{:16}{value}", key);
    };
    let isa = if machine.isa.is_empty() { "none known here".into() } else { machine.isa.join(" ") };
    line("platform", format!("{}, kernel {}", machine.platform, known(machine.kernel.as_ref())));
    line("processor", format!("{}, {} cores", known(machine.cpu.as_ref()), machine.cores));
    line("extensions", isa);
    let size = |bytes: Option<u64>| bytes.map_or("unknown".to_string(), out::size);
    line(
        "memory",
        format!(
            "{} ({}), {} available",
            size(machine.memory_bytes),
            Size::of_memory(machine.memory_bytes).word(),
            size(machine.memory_available_bytes)
        ),
    );
    let limit = machine.memory_limit_bytes.map_or("none".to_string(), out::size);
    let cores = machine.core_limit.map_or("none".to_string(), |c| format!("{c:.2} cores"));
    line("cgroup limits", format!("memory {limit}, processor {cores}"));
    line("cache", settings.cache_dir.display().to_string());
    line(
        "drive",
        format!(
            "{} at {}, {} free",
            known(drive.file_system.as_ref()),
            drive.directory.display(),
            size(drive.free_bytes)
        ),
    );
    line("  writable", yes_or(&drive.writable));
    line("  O_DIRECT", yes_or(&drive.direct));
    let threads = if ring.is_ok() { "" } else { "; files are read by threads" };
    line("io_uring", format!("{}{threads}", yes_or(ring)));
    let budget = settings.memory.bytes.map_or("none".into(), out::size);
    line("memory budget", format!("{budget} ({})", settings.memory.from.word()));
    for directory in &plugins.searched {
        line("searched", directory.clone());
    }
    if let Some(fault) = &plugins.fault {
        line("plugins", format!("no: {fault}"));
    }
    for (kind, name, state) in &plugins.rows {
        let state = if state.is_ok() { "ready".into() } else { yes_or(state) };
        line(&format!("  {}", kind.word()), format!("{name}: {state}"));
    }
    line("model", choice.model.clone().unwrap_or_else(|why| format!("no: {why}")));
    if let Ok(plan) = &choice.plan {
        line(
            "family",
            format!("{}, passes: {}", plan.family.unwrap_or("none"), plan.passes.join(", ")),
        );
        let tier = Size::of_model(plan.parameters).word();
        line("parameters", format!("{}: {tier}", known(plan.parameters)));
    }
    match (&choice.names, &choice.plan) {
        (Ok([kv, offload, device]), Ok(plan)) => {
            let selection = &plan.selection;
            let chain = selection.chain.join(" -> ");
            line("would use kv", format!("{kv}: rule {} ({chain})", selection.rule_id));
            line("  offload", offload.clone());
            line("  device", format!("{device}, {} threads", settings.threads));
        }
        (Err(why), _) | (_, Err(why)) => line("would use", format!("nothing: {why}")),
    }
    advice.lines().into_iter().for_each(|(key, value)| line(key, value));
    out
}

fn document(settings: &Settings, machine: &Machine, found: &Found) -> Value {
    let Found { drive, ring, plugins, choice, advice } = found;
    let fault = |state: &Result<(), String>| state.as_ref().err().cloned();
    let rows: Vec<Value> = plugins
        .rows
        .iter()
        .map(
            |(kind, name, state)| json!({"kind": kind.word(), "name": name, "fault": fault(state)}),
        )
        .collect();
    let selection = choice.plan.as_ref().ok().map(|p| &p.selection);
    json!({
        "machine": {
            "platform": machine.platform, "kernel": machine.kernel, "cpu": machine.cpu,
            "isa": machine.isa, "cores": machine.cores, "memory_bytes": machine.memory_bytes,
            "memory_available_bytes": machine.memory_available_bytes,
            "memory_limit_bytes": machine.memory_limit_bytes, "core_limit": machine.core_limit,
        },
        "drive": {
            "cache_dir": settings.cache_dir, "directory": drive.directory,
            "file_system": drive.file_system, "free_bytes": drive.free_bytes,
            "writable": drive.writable.is_ok(), "writable_fault": fault(&drive.writable),
            "o_direct": drive.direct.is_ok(), "o_direct_fault": fault(&drive.direct),
        },
        "io_uring": {"available": ring.is_ok(), "fault": fault(ring)},
        "memory_budget": {
            "bytes": settings.memory.bytes, "from": settings.memory.from.word(),
            "allowance_bytes": crate::budget::ALLOWANCE,
        },
        "plugins": {"searched": plugins.searched, "found": rows, "fault": plugins.fault},
        "choice": {
            "model": choice.model.as_ref().ok(), "model_fault": choice.model.as_ref().err(),
            "family": choice.plan.as_ref().ok().and_then(|p| p.family),
            "parameters": choice.plan.as_ref().ok().and_then(|p| p.parameters),
            "plugins": choice.names.as_ref().ok().map(|[kv, offload, device]| {
                json!({"kv": kv, "offload": offload, "device": device})
            }),
            "fault": choice.names.as_ref().err(),
            "rule_id": selection.map(|s| &s.rule_id), "fallback_chain": selection.map(|s| &s.chain),
            "threads": settings.threads,
        },
        "advice": advice.document(),
    })
}
