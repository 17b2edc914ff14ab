//! What this machine has, as the kernel tells it. What cannot be read is `None`.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};
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
        let (memory_limit_bytes, core_limit) = limits();
        Machine {
            platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
            kernel: System::kernel_version().ok(),
            hostname: System::host_name().ok(),
            cpu: system.as_ref().and_then(brand),
            isa: isa(),
            cores: crate::settings::cores(),
            memory_bytes: bytes(System::total_memory),
            memory_available_bytes: bytes(System::available_memory),
            memory_limit_bytes,
            core_limit,
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

/// The tightest limits of memory (bytes) and processor (cores), over this process's cgroups and
/// their parents.
fn limits() -> (Option<u64>, Option<f64>) {
    let (mut memory, mut cores) = (None, None);
    for line in read_to_string("/proc/self/cgroup").unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, limit_file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        for directory in with_parents(Path::new(mount), path) {
            memory = least(memory, memory_limit(&directory.join(limit_file)), u64::min);
            cores = least(cores, cpu_limit(&directory.join("cpu.max")), f64::min);
        }
    }
    (memory, cores)
}

fn least<T: Copy>(a: Option<T>, b: Option<T>, min: fn(T, T) -> T) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(min(a, b)),
        (a, b) => a.or(b),
    }
}

fn with_parents(mount: &Path, path: &str) -> Vec<PathBuf> {
    let relative = Path::new(path.trim_start_matches('/'));
    relative.ancestors().map(|p| mount.join(p)).collect()
}

/// `max`, and the number close to 2^63 by which version 1 says the same, are no limit.
fn memory_limit(file: &Path) -> Option<u64> {
    let bytes = read_to_string(file).ok()?.trim().parse::<u64>().ok()?;
    (bytes < 1 << 62).then_some(bytes)
}

fn cpu_limit(file: &Path) -> Option<f64> {
    let text = read_to_string(file).ok()?;
    let mut parts = text.split_whitespace();
    let (quota, period) = (parts.next()?.parse::<f64>().ok()?, parts.next()?.parse::<f64>().ok()?);
    (period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_has_its_parents_limits_too() {
        let found = with_parents(Path::new("/m"), "/a/b");
        assert_eq!(found, [Path::new("/m/a/b"), Path::new("/m/a"), Path::new("/m/")]);
    }

    #[test]
    fn the_machine_under_the_test_has_memory_and_cores() {
        let machine = Machine::read();
        assert!(machine.cores > 0 && machine.memory_bytes.is_some_and(|b| b > 1 << 20));
    }
}
