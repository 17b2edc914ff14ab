//! What this machine has, as the kernel tells it. What cannot be read is `None`.

use crate::cgroup::Cgroup;
use std::path::PathBuf;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Memory, processor, kernel.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Machine {
    /// As `linux-x86_64`.
    pub platform: String,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// Name of the host.
    pub hostname: Option<String>,
    /// Model of the processor.
    pub cpu: Option<String>,
    /// Vector extensions that matter here, of those the processor has.
    pub isa: Vec<&'static str>,
    /// Cores that this process may use.
    pub cores: u32,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Bytes that could be had without swapping.
    pub memory_available_bytes: Option<u64>,
    /// The tightest memory limit of this process's cgroups, bytes.
    pub memory_limit_bytes: Option<u64>,
    /// The file that says so.
    pub memory_limit_from: Option<PathBuf>,
    /// Bytes that this process could take now: the least of what is available and of what its
    /// cgroups have left.
    pub memory_free_bytes: Option<u64>,
    /// The tightest processor limit, in cores.
    pub core_limit: Option<f64>,
}

impl Machine {
    /// Reads everything.
    pub fn read() -> Machine {
        let memory = MemoryRefreshKind::nothing().with_ram();
        let asked = RefreshKind::nothing().with_memory(memory).with_cpu(CpuRefreshKind::nothing());
        let system = System::new_with_specifics(asked).ok();
        let bytes = |read: fn(&System) -> u64| system.as_ref().map(read).filter(|b| *b > 0);
        let brand = |s: &System| s.cpus().first().map(|cpu| cpu.brand().trim().to_string());
        let cgroup = Cgroup::read();
        let available = bytes(System::available_memory);
        let (memory_limit_bytes, memory_limit_from) = cgroup.memory_limit.unzip();
        Machine {
            platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
            kernel: System::kernel_version().ok(),
            hostname: System::host_name().ok(),
            cpu: system.as_ref().and_then(brand),
            isa: isa(),
            cores: crate::settings::cores(),
            memory_bytes: bytes(System::total_memory),
            memory_available_bytes: available,
            memory_limit_bytes,
            memory_limit_from,
            memory_free_bytes: match (available, cgroup.memory_left) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
            core_limit: cgroup.cores,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn isa() -> Vec<&'static str> {
    let has = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    has.into_iter().filter(|(_, yes)| *yes).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn isa() -> Vec<&'static str> {
    Vec::new()
}

/// Bytes of memory that the machine has.
pub fn memory_bytes() -> Option<u64> {
    memory().map(|system| system.total_memory()).filter(|bytes| *bytes > 0)
}

fn memory() -> Option<System> {
    let memory = MemoryRefreshKind::nothing().with_ram();
    System::new_with_specifics(RefreshKind::nothing().with_memory(memory)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_under_the_test_has_memory_and_cores() {
        let machine = Machine::read();
        assert!(machine.cores > 0 && machine.memory_bytes.is_some_and(|b| b > 1 << 20));
        assert_eq!(machine.memory_bytes, memory_bytes());
        let (free, most) = (machine.memory_free_bytes, machine.memory_available_bytes);
        assert!(free.is_some() && free <= most, "{machine:?}");
    }
}
