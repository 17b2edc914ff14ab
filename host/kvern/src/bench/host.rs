//! The machine, as the report tells it.

use crate::drive::Drive;
use crate::machine::Machine;
use kvern_report::Details;
use serde_json::json;
use std::path::Path;

const MIB: f64 = (1 << 20) as f64;

/// The report's `host`. An accelerator counts as available where a device plugin for it is found.
pub fn details(machine: &Machine, cache: &Path, cuda: bool, mps: bool) -> Details {
    let drive = Drive::of(cache);
    let mb = |bytes: Option<u64>| bytes.map(|b| b as f64 / MIB);
    let value = json!({
        "platform": machine.platform,
        "hostname": machine.hostname,
        "cuda_available": cuda,
        "mps_available": mps,
        "kernel": machine.kernel,
        "cpu": machine.cpu,
        "cpu_extensions": machine.isa,
        "cores": machine.cores,
        "core_limit": machine.core_limit,
        "memory_mb": mb(machine.memory_bytes),
        "memory_limit_mb": mb(machine.memory_limit_bytes),
        "file_system": drive.file_system,
        "null_reasons": reasons(machine, &drive),
    });
    value.as_object().cloned().unwrap_or_default()
}

fn reasons(machine: &Machine, drive: &Drive) -> Details {
    let unread = "the kernel did not say";
    let missing = [
        ("hostname", machine.hostname.is_none(), unread),
        ("kernel", machine.kernel.is_none(), unread),
        ("cpu", machine.cpu.is_none(), unread),
        ("memory_mb", machine.memory_bytes.is_none(), unread),
        ("memory_limit_mb", machine.memory_limit_bytes.is_none(), "no cgroup limits memory"),
        ("core_limit", machine.core_limit.is_none(), "no cgroup limits the processor"),
        ("file_system", drive.file_system.is_none(), unread),
    ];
    let missing = missing.into_iter().filter(|(_, missing, _)| *missing);
    missing.map(|(key, _, why)| (key.into(), why.into())).collect()
}
