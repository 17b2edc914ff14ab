//! What was measured that a run depends on: the drive that holds its weights, read as it reads
//! them, and its device, with products like the model's.

use super::{Ceilings, DeviceCeiling, DeviceKey, How, ReadRate, RowsRate, Shape};
use kvern_engine::Rates;
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a run depends on.
pub struct Wanted {
    /// The largest of the files that weights are read from; `None` where there is none.
    pub file: Option<PathBuf>,
    /// How it is read.
    pub how: How,
    /// Whether threads read it, even where a ring could.
    pub threads: bool,
    /// Most bytes a second that reads may begin.
    pub limit: Option<u64>,
    /// The device.
    pub device: DeviceKey,
    /// The model's products, or why they are not known.
    pub shape: Result<Shape, String>,
}

/// What is known of it, or why nothing is.
#[derive(Clone, PartialEq, Debug)]
pub struct Known {
    /// The drive.
    pub drive: Result<KnownDrive, String>,
    /// The device.
    pub device: Result<KnownDevice, String>,
}

/// A drive, read in the best way.
#[derive(Clone, PartialEq, Debug)]
pub struct KnownDrive {
    /// The way, and what it gives.
    pub rate: ReadRate,
    /// What moved the bytes.
    pub path: String,
    /// When it was measured.
    pub measured_at: String,
    /// Most bytes a second that reads may begin, where that is less.
    pub limit: Option<u64>,
}

/// A device, with products as near to the model's as were measured.
#[derive(Clone, PartialEq, Debug)]
pub struct KnownDevice {
    /// What was measured.
    pub ceiling: DeviceCeiling,
    /// Whether the products were of the model's very sizes.
    pub exact: bool,
}

/// What a ring is called.
const RING: &str = "io_uring";
/// What measures.
const CURE: &str = "`kvern doctor --probe` with the same flags measures it";

impl Known {
    /// Looks it up.
    pub fn of(ceilings: Option<&Ceilings>, wanted: &Wanted) -> Known {
        Known { drive: drive(ceilings, wanted), device: device(ceilings, wanted) }
    }

    /// What sweeps of so many rows can count on: of the drive the median of long reads.
    pub fn rates(&self, rows: u32) -> Rates {
        Rates { drive: self.drive.as_ref().ok().map(KnownDrive::median), ..self.device_rates(rows) }
    }

    /// The same with the drive as it was in its best moment.
    pub fn best_rates(&self, rows: u32) -> Rates {
        Rates { drive: self.drive.as_ref().ok().map(KnownDrive::best), ..self.device_rates(rows) }
    }

    fn device_rates(&self, rows: u32) -> Rates {
        let rates = self.device.as_ref().map_or(&[][..], |d| &d.ceiling.rates[..]);
        let value_bytes = self.device.as_ref().map_or(2.0, |d| d.ceiling.shape.value_bytes());
        let flops = |time: f64| 2.0 * f64::from(rows) / value_bytes / time;
        let many = if rows > 1 { seconds_a_byte(rates, rows).map(flops) } else { None };
        Rates { drive: None, memory: seconds_a_byte(rates, 1).map(f64::recip), flops: many }
    }

    /// The most that the drive gives of one operation, and how many at once, if it was measured.
    pub fn pieces(&self) -> Option<(usize, usize)> {
        let drive = self.drive.as_ref().ok()?;
        Some((drive.rate.block_bytes as usize, drive.rate.depth as usize))
    }

    /// For documents: what each is and when it was measured, or null and why.
    pub fn document(&self, rows: u32) -> Value {
        let drive = self.drive.as_ref().ok().map(|drive| {
            json!({
                "bytes_per_second": drive.best(), "median_bytes_per_second": drive.median(),
                "how": drive.rate.how, "block_bytes": drive.rate.block_bytes,
                "depth": drive.rate.depth, "path": drive.path, "limit": drive.limit,
                "measured_at": drive.measured_at,
            })
        });
        let rates = self.rates(rows);
        let device = self.device.as_ref().ok().map(|device| {
            json!({
                "weight_bytes_per_second": rates.memory, "flops_per_second": rates.flops,
                "null_reasons": rates.flops.map_or_else(
                    || json!({"flops_per_second": "one row takes what its weights take"}),
                    |_| json!({})
                ),
                "rows": rows, "measured_rows": device.ceiling.rates, "shape": device.ceiling.shape,
                "shape_is_the_models": device.exact, "measured_at": device.ceiling.measured_at,
            })
        });
        let why = |key: &str, why: &String| (key.to_string(), Value::from(why.as_str()));
        let reasons = self.drive.as_ref().err().map(|text| why("drive", text)).into_iter();
        let reasons = reasons.chain(self.device.as_ref().err().map(|text| why("device", text)));
        let reasons: serde_json::Map<String, Value> = reasons.collect();
        json!({"drive": drive, "device": device, "null_reasons": reasons})
    }
}

impl KnownDrive {
    /// Bytes a second in the best round, or the limit.
    pub fn best(&self) -> f64 {
        self.limited(self.rate.best)
    }

    /// Bytes a second in the median round, or the limit.
    pub fn median(&self) -> f64 {
        self.limited(self.rate.median)
    }

    fn limited(&self, rate: f64) -> f64 {
        self.limit.map_or(rate, |limit| rate.min(limit as f64))
    }
}

impl Shape {
    /// Bytes of a value of a weight.
    fn value_bytes(&self) -> f64 {
        if self.encoding == "f32" { 4.0 } else { 2.0 }
    }

    /// Values of a layer's weights.
    fn values(&self) -> f64 {
        let [hidden, query, key_value, inner] =
            [self.hidden, self.query, self.key_value, self.inner].map(f64::from);
        hidden * (2.0 * query + 2.0 * key_value + 3.0 * inner)
    }
}

/// Number of the device that a path's file system is on.
pub fn device_number(path: &Path) -> std::io::Result<u64> {
    std::fs::metadata(path).map(|facts| facts.dev())
}

fn drive(ceilings: Option<&Ceilings>, wanted: &Wanted) -> Result<KnownDrive, String> {
    let Some(file) = &wanted.file else {
        return Err("the weights are part of this program, and no drive is read".into());
    };
    let number = device_number(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let of = || ceilings.into_iter().flat_map(|c| &c.drives).filter(|d| d.device == number);
    let ring = of().find(|drive| drive.path == RING).filter(|_| !wanted.threads);
    let found = ring.or_else(|| of().find(|drive| drive.path != RING)).ok_or_else(|| {
        let by = if wanted.threads { " as threads read it" } else { "" };
        format!("the drive that holds {} was not measured{by}; {CURE}", file.display())
    })?;
    let how = match (wanted.how, &found.direct_refused) {
        (How::Direct, Some(_)) => How::Cold,
        (how, _) => how,
    };
    let rate = found.choice(how).ok_or_else(|| {
        let way = serde_json::to_value(how).unwrap_or_default();
        format!("the drive was not measured for {way} reads; {CURE}")
    })?;
    let limit = wanted.limit.filter(|limit| (*limit as f64) < rate.best);
    let (path, measured_at) = (found.path.clone(), found.measured_at.clone());
    Ok(KnownDrive { rate, path, measured_at, limit })
}

/// Blocks and depth that stay, round the page cache and through it, unless another way is so much
/// faster: of many ways, each measured for a moment, the fastest is mostly the luckiest.
const USUAL: (u64, u32) = (4 << 20, 16);
const USUAL_CACHED: (u64, u32) = (512 << 10, 16);
const CLEARLY: f64 = 1.1;

impl super::DriveCeiling {
    /// The way to read. Its `best` is the best of all ways: more has not been seen of the drive.
    pub fn choice(&self, how: How) -> Option<ReadRate> {
        let long = || self.sustained.iter().filter(|rate| rate.how == how);
        let of = || self.rates.iter().filter(|rate| rate.how == how);
        let (chosen, _) = usual_or_fastest(how, long).or_else(|| usual_or_fastest(how, of))?;
        let best = of().chain(long()).map(|rate| rate.best).fold(0.0, f64::max);
        Some(ReadRate { best, ..chosen })
    }

    /// Ways of which the best may be one: those to measure for longer.
    pub fn candidates(&self, how: How) -> Vec<ReadRate> {
        let of = || self.rates.iter().filter(|rate| rate.how == how);
        let Some((chosen, other)) = usual_or_fastest(how, of) else { return Vec::new() };
        [Some(chosen), other].into_iter().flatten().collect()
    }
}

/// The fastest of some ways by its median, or the usual one where that is no slower to speak of;
/// and the other of the two.
fn usual_or_fastest<'a, I: Iterator<Item = &'a ReadRate>>(
    how: How,
    ways: impl Fn() -> I,
) -> Option<(ReadRate, Option<ReadRate>)> {
    let fastest = *ways().max_by(|a, b| a.median.total_cmp(&b.median))?;
    let usual = if how == How::Direct { USUAL } else { USUAL_CACHED };
    let is_usual = |rate: &&ReadRate| (rate.block_bytes, rate.depth) == usual;
    let usual = ways().find(is_usual).copied().filter(|usual| *usual != fastest);
    Some(match usual {
        Some(usual) if usual.median * CLEARLY >= fastest.median => (usual, Some(fastest)),
        other => (fastest, other),
    })
}

fn device(ceilings: Option<&Ceilings>, wanted: &Wanted) -> Result<KnownDevice, String> {
    let shape = wanted.shape.as_ref().map_err(Clone::clone)?;
    let fits = |d: &&DeviceCeiling| {
        d.device == wanted.device && d.shape.encoding == shape.encoding && !d.rates.is_empty()
    };
    let far = |d: &&DeviceCeiling| (d.shape.values() / shape.values()).ln().abs();
    let of = ceilings.into_iter().flat_map(|c| &c.devices).filter(fits);
    let nearest = of.min_by(|a, b| far(a).total_cmp(&far(b)));
    let found = nearest.ok_or_else(|| {
        let DeviceKey { plugin, threads, compute, .. } = &wanted.device;
        format!(
            "device `{plugin}` with {threads} threads, computing in {compute} on weights in {}, \
             was not measured; {CURE}",
            shape.encoding
        )
    })?;
    Ok(KnownDevice { exact: found.shape == *shape, ceiling: found.clone() })
}

/// Seconds for a byte of weights in a product of so many rows: between what was measured on a
/// straight line, beyond it in proportion to the rows.
fn seconds_a_byte(rates: &[RowsRate], rows: u32) -> Option<f64> {
    let at = |rate: &RowsRate| (f64::from(rate.rows), rate.best.recip());
    let rows = f64::from(rows);
    let next = rates.partition_point(|rate| f64::from(rate.rows) < rows);
    match (next.checked_sub(1).map(|last| at(&rates[last])), rates.get(next).map(at)) {
        (None, None) => None,
        (None, Some((_, time))) => Some(time),
        (Some((most, time)), None) => Some(time * rows / most),
        (Some((a, low)), Some((b, high))) => Some(low + (high - low) * (rows - a) / (b - a)),
    }
}
