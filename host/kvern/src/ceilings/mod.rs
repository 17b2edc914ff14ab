//! What this machine was measured to give, kept in the cache directory: read by every run, written
//! by `kvern doctor --probe` alone. A file that is damaged or of another machine counts as none.

mod known;
mod memory;
mod probe;

pub use known::{Known, Wanted};
pub use memory::cache_bytes;
pub use probe::{Asked, CACHES, LONG, MOMENT, Probed, probe};

use crate::fail::Outcome;
use crate::log;
use crate::machine::Machine;
use crate::out;
use jiff::Timestamp;
use kvern_contract::Options;
use kvern_engine::ProductShape;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The file in the cache directory.
pub const FILE: &str = "ceilings.json";
/// What its first key says.
const SCHEMA: u32 = 1;

/// Everything that was measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ceilings {
    schema: u32,
    /// Of which machine.
    pub machine: Identity,
    /// Plain reading of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryCeiling>,
    /// A drive and a mover of its bytes each.
    pub drives: Vec<DriveCeiling>,
    /// A device and shape of products each.
    pub devices: Vec<DeviceCeiling>,
}

/// What makes a machine the same one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Model of the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Cores that this process may use.
    pub cores: u32,
    /// Memory, to the GiB: what a kernel keeps for itself changes from boot to boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_gib: Option<u64>,
    /// The kernel's release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

/// Plain reading of memory by all threads, in bytes a second.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryCeiling {
    /// Threads that read.
    pub threads: u32,
    /// Bytes that they went through, all together.
    pub buffer_bytes: u64,
    /// In the best pass.
    pub best: f64,
    /// In the median pass.
    pub median: f64,
    /// When: UTC, RFC 3339.
    pub measured_at: String,
}

/// What a drive gives.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveCeiling {
    /// The file system's device number.
    pub device: u64,
    /// As `ext4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<String>,
    /// The largest file that was read.
    pub file: PathBuf,
    /// What moved the bytes: `io_uring`, `pread-pool`.
    pub path: String,
    /// Why it was not a ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_reason: Option<String>,
    /// Why nothing was read round the page cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_refused: Option<String>,
    /// Every way that was measured, for moments each.
    pub rates: Vec<ReadRate>,
    /// Ways that runs may read in, measured for as long as a sweep takes.
    pub sustained: Vec<ReadRate>,
    /// When: UTC, RFC 3339.
    pub measured_at: String,
}

/// How bytes of a file were read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Round the page cache.
    Direct,
    /// Through the page cache, which did not have them.
    Cold,
    /// Out of the page cache.
    Cached,
}

/// Reading in one way, in bytes a second.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadRate {
    /// How.
    pub how: How,
    /// Bytes of one operation.
    pub block_bytes: u64,
    /// Operations at once.
    pub depth: u32,
    /// In the best round.
    pub best: f64,
    /// In the median round.
    pub median: f64,
}

/// What a device gives, for products of some shape.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceCeiling {
    /// Which device.
    pub device: DeviceKey,
    /// Which products.
    pub shape: Shape,
    /// By rows, ascending.
    pub rates: Vec<RowsRate>,
    /// When: UTC, RFC 3339.
    pub measured_at: String,
}

/// What makes a device compute the same.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceKey {
    /// The plugin.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// Its options.
    pub options: Options,
    /// Threads that compute.
    pub threads: u32,
    /// `auto` or `f32`.
    pub compute: String,
}

/// Sizes of a layer's products, in values, and how weights are stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden: u32,
    /// Width of all queries.
    pub query: u32,
    /// Width of all keys.
    pub key_value: u32,
    /// Width inside of the feed-forward block.
    pub inner: u32,
    /// As `bf16`.
    pub encoding: String,
}

/// Products of so many rows: bytes of weights a second.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowsRate {
    /// Rows.
    pub rows: u32,
    /// In the best pass.
    pub best: f64,
    /// In the median pass.
    pub median: f64,
}

impl Identity {
    /// This machine.
    pub fn of(machine: &Machine) -> Identity {
        const GIB: u64 = 1 << 30;
        Identity {
            cpu: machine.cpu.clone(),
            cores: machine.cores,
            memory_gib: machine.memory_bytes.map(|bytes| (bytes + GIB / 2) / GIB),
            kernel: machine.kernel.clone(),
        }
    }
}

impl Ceilings {
    /// Nothing is measured of this machine.
    pub fn none(machine: Identity) -> Ceilings {
        let (drives, devices) = (Vec::new(), Vec::new());
        Ceilings { schema: SCHEMA, machine, memory: None, drives, devices }
    }

    /// What the cache directory has of this machine, if it has a file. *Errors* a file that is
    /// damaged or of another machine, and what to do.
    pub fn read(cache_dir: &Path, machine: &Machine) -> Result<Option<Ceilings>, String> {
        let path = cache_dir.join(FILE);
        let found = match std::fs::read(&path) {
            Ok(text) => parse(&text, &Identity::of(machine)).map(Some),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(e) => Err(e.to_string()),
        };
        found.map_err(|why| {
            let path = path.display();
            format!("{path}: {why}: nothing of it is used; `kvern doctor --probe` measures anew")
        })
    }

    /// The same, with a warning in place of an error.
    pub fn read_or_warn(cache_dir: &Path, machine: &Machine) -> Option<Ceilings> {
        Ceilings::read(cache_dir, machine).unwrap_or_else(|why| {
            log::line(2, &why);
            None
        })
    }

    /// Puts it in the cache directory, whole or not at all.
    pub fn write(&self, cache_dir: &Path) -> Outcome<()> {
        let text = kvern_report::pretty(self).map_err(crate::fail::Failure::new)? + "\n";
        out::publish(&cache_dir.join(FILE), text.as_bytes())
    }

    /// Takes what is newer in place of what it replaces.
    pub fn renew(&mut self, newer: Ceilings) {
        self.memory = newer.memory.or(self.memory.take());
        let drive = |a: &DriveCeiling, b: &DriveCeiling| a.device == b.device && a.path == b.path;
        self.drives.retain(|old| newer.drives.iter().all(|new| !drive(new, old)));
        self.drives.extend(newer.drives);
        let same =
            |a: &DeviceCeiling, b: &DeviceCeiling| a.device == b.device && a.shape == b.shape;
        self.devices.retain(|old| newer.devices.iter().all(|new| !same(new, old)));
        self.devices.extend(newer.devices);
    }
}

/// What a file says, if it is good and of this machine.
fn parse(text: &[u8], machine: &Identity) -> Result<Ceilings, String> {
    let found: Ceilings = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    if found.schema != SCHEMA {
        return Err(format!("its schema is {}, expected {SCHEMA}", found.schema));
    }
    if found.machine != *machine {
        let told = |identity: &Identity| {
            serde_json::to_string(identity).unwrap_or_else(|_| "another machine".into())
        };
        let (theirs, ours) = (told(&found.machine), told(machine));
        return Err(format!("measured on {theirs}, and this machine is {ours}"));
    }
    match found.is_sound() {
        true => Ok(found),
        false => Err("a rate, a size or a date in it makes no sense".into()),
    }
}

impl Ceilings {
    /// Whether every figure can be computed with.
    fn is_sound(&self) -> bool {
        let pair = |best: f64, median: f64| best.is_finite() && median > 0.0 && best >= median;
        let read = |r: &ReadRate| {
            let block =
                r.block_bytes.is_multiple_of(4096) && (4096..=1 << 30).contains(&r.block_bytes);
            pair(r.best, r.median) && block && (1..=4096).contains(&r.depth)
        };
        let ascends = |rates: &[RowsRate]| rates.is_sorted_by(|a, b| a.rows < b.rows);
        let rows = |r: &RowsRate| pair(r.best, r.median) && r.rows > 0;
        let date = |text: &String| text.parse::<Timestamp>().is_ok();
        let dates = self.memory.iter().map(|m| &m.measured_at);
        let dates = dates.chain(self.drives.iter().map(|d| &d.measured_at));
        dates.chain(self.devices.iter().map(|d| &d.measured_at)).all(date)
            && self.memory.as_ref().is_none_or(|m| pair(m.best, m.median))
            && self.drives.iter().all(|d| d.rates.iter().all(read))
            && self.devices.iter().all(|d| d.rates.iter().all(rows) && ascends(&d.rates))
    }
}

/// How long ago, for people.
pub fn age(measured_at: &str, now: Timestamp) -> String {
    let Ok(then) = measured_at.parse::<Timestamp>() else { return "at an unknown time".into() };
    let seconds = (now.as_second() - then.as_second()).max(0);
    let units = [(86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")];
    let unit = units.into_iter().find(|(length, _)| seconds >= *length);
    let (count, word) = unit.map_or((0, "second"), |(length, word)| (seconds / length, word));
    format!("{count} {word}{} ago", if count == 1 { "" } else { "s" })
}

impl From<&ProductShape> for Shape {
    fn from(shape: &ProductShape) -> Shape {
        Shape {
            hidden: shape.hidden,
            query: shape.query,
            key_value: shape.key_value,
            inner: shape.inner,
            encoding: format!("{:?}", shape.encoding).to_lowercase(),
        }
    }
}

#[cfg(test)]
mod tests;
