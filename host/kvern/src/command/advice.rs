//! What `kvern doctor` measured, and what it recommends for a model.

use super::plan::{rate, seconds};
use crate::blueprint::{device_key, weight_files};
use crate::budget::ALLOWANCE;
use crate::ceilings::{
    Asked, CACHES, Ceilings, How, Identity, LONG, MOMENT, Probed, age, cache_bytes, probe,
};
use crate::fail::{Failure, Outcome};
use crate::machine::Machine;
use crate::model::Reference;
use crate::out::size;
use crate::planned::Planned;
use crate::reads::path;
use crate::runtime::Prepared;
use crate::settings::Settings;
use crate::{chosen, interrupt, log};
use jiff::Timestamp;
use kvern_contract::WeightEncoding;
use kvern_engine::{DeviceProbe, ProductShape};
use kvern_model::Model;
use kvern_storage::{Service, ServiceSpec};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Rows that a device is measured with.
const ROWS: [u32; 5] = [1, 8, 32, 128, 512];
/// Rounds over them, and the least time of each in a round.
const ROUNDS: u32 = 3;
const SLICE: Duration = Duration::from_millis(150);
/// Products of a model that has no files: those of a llama of 3 billion parameters.
const USUAL: ProductShape = ProductShape {
    hidden: 3072,
    query: 3072,
    key_value: 1024,
    inner: 8192,
    encoding: WeightEncoding::Bf16,
};

/// What is known of this machine, and what follows for a model.
pub struct Advice {
    /// What was measured; why a file that is there does not count.
    ceilings: Result<Option<Ceilings>, String>,
    /// What could not be measured just now.
    faults: Vec<(&'static str, String)>,
    planned: Result<Planned, String>,
    free: Option<u64>,
}

impl Advice {
    /// Measures first where `anew` says so. *Errors* Ctrl-C, and a cache directory that cannot be
    /// written.
    pub fn of(settings: &Settings, machine: &Machine, anew: bool) -> Outcome<Advice> {
        let faults = if anew { measure(settings, machine)? } else { Vec::new() };
        let ceilings = Ceilings::read(&settings.cache_dir, machine);
        let prepared = Prepared::new(settings.clone());
        let planned = prepared.and_then(|prepared| Planned::of(prepared, 1));
        let planned = planned.map_err(|failure| failure.message);
        Ok(Advice { ceilings, faults, planned, free: machine.memory_free_bytes })
    }

    /// Lines of a key and a text.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = self.measured();
        let unmeasured = |(what, why): &(&str, String)| ("not measured", format!("{what}: {why}"));
        lines.extend(self.faults.iter().map(unmeasured));
        let planned = match &self.planned {
            Ok(planned) => planned,
            Err(why) => {
                lines.push(("recommended", format!("nothing: {why}")));
                return lines;
            }
        };
        let reading = &planned.reading;
        let path = format!("read path {}: {}", reading.word(), reading.reason);
        lines.push(("recommended", path));
        let (service, measured) = (&planned.service, planned.known.drive.is_ok());
        let (depth, block) = (service.depth, size(service.piece_bytes as u64));
        let from = if measured { "the drive's best" } else { "the default, nothing was measured" };
        let io = format!("io {}, {depth} reads of {block} at once: {from}", planned.facts.path);
        lines.push(("", io));
        lines.push(("", self.budget(planned)));
        lines.push(("", verdict(planned)));
        lines
    }

    fn measured(&self) -> Vec<(&'static str, String)> {
        let found = match &self.ceilings {
            Err(why) => return vec![("ceilings", format!("none: {why}"))],
            Ok(None) => {
                let text = "none: `kvern doctor --probe` measures them";
                return vec![("ceilings", text.into())];
            }
            Ok(Some(found)) => found,
        };
        let now = Timestamp::now();
        let mut lines = Vec::new();
        if let Some(m) = &found.memory {
            let (threads, when) = (m.threads, age(&m.measured_at, now));
            lines.push(("memory reads", format!("{}, {threads} threads; {when}", rate(m.best))));
        }
        for drive in &found.drives {
            for how in [How::Direct, How::Cold, How::Cached] {
                let Some(best) = drive.choice(how) else { continue };
                let word = match how {
                    How::Direct => "direct",
                    How::Cold => "through the page cache",
                    How::Cached => "out of the page cache",
                };
                let text = format!(
                    "{word}: {} at best, {} in the median of {} x {}; {}, {}",
                    rate(best.best),
                    rate(best.median),
                    best.depth,
                    size(best.block_bytes),
                    drive.path,
                    age(&drive.measured_at, now)
                );
                lines.push(("drive reads", text));
            }
        }
        for device in &found.devices {
            let key = &device.device;
            let rates = device.rates.iter().map(|r| format!("{} of {}", rate(r.best), r.rows));
            let text = format!(
                "{}, {} threads, {}, weights {} wide in {}: {} rows; {}",
                key.plugin,
                key.threads,
                key.compute,
                device.shape.hidden,
                device.shape.encoding,
                rates.collect::<Vec<_>>().join(", "),
                age(&device.measured_at, now)
            );
            lines.push(("products", text));
        }
        lines
    }

    /// What everything in memory would take, and what there is.
    fn budget(&self, planned: &Planned) -> String {
        let whole = whole(planned);
        let Some(free) = self.free else {
            return "memory budget: free memory cannot be measured".into();
        };
        let least = planned.facts.least_budget;
        match free.saturating_sub(ALLOWANCE) {
            most if whole <= most => {
                format!("no memory budget: everything takes {} of {} free", size(whole), size(free))
            }
            most if most < least => format!(
                "no run: {} are free, and {} are needed at least",
                size(free),
                size(least + ALLOWANCE)
            ),
            most => format!(
                "--memory-budget {}MiB: {} are free, everything would take {}",
                most >> 20,
                size(free),
                size(whole)
            ),
        }
    }

    /// For documents.
    pub fn document(&self) -> Value {
        let fault = |(what, why): &(&str, String)| json!({"what": what, "why": why});
        let planned = self.planned.as_ref().ok();
        json!({
            "ceilings": self.ceilings.as_ref().ok().and_then(Option::as_ref),
            "ceilings_fault": self.ceilings.as_ref().err(),
            "not_measured": self.faults.iter().map(fault).collect::<Vec<_>>(),
            "recommended": planned.map(|p| json!({
                "read_path": p.reading.word(), "read_path_reason": p.reading.reason,
                "io": p.facts.path, "block_bytes": p.service.piece_bytes, "depth": p.service.depth,
                "measured": p.known.drive.is_ok(),
                "memory_for_everything_bytes": whole(p),
                "memory_free_bytes": self.free,
                "least_budget_bytes": p.facts.least_budget,
                "streams": p.facts.streamed_bytes > 0,
            })),
            "plan": planned.map(Planned::document),
            "plan_fault": self.planned.as_ref().err(),
        })
    }
}

/// Bytes that a run takes which streams nothing.
fn whole(planned: &Planned) -> u64 {
    let beside = |(name, _): &&(String, u64)| !matches!(&name[..], "weights" | "weight staging");
    let units: u64 = planned.facts.units.iter().map(|unit| unit.bytes).sum();
    let holders = planned.facts.holders.iter().filter(beside);
    units + holders.map(|(_, bytes)| bytes).sum::<u64>()
}

fn verdict(planned: &Planned) -> String {
    let what = match planned.facts.streamed_bytes {
        0 => format!("{} streams nothing", planned.model),
        bytes => format!("{} streams {} a sweep", planned.model, size(bytes)),
    };
    match planned.foreseen() {
        Some(p) => {
            format!("{what}: {} a token, {:.2} tokens/s", seconds(p.seconds), p.seconds.recip())
        }
        None => format!("{what}; no time is foreseen: {}", planned.unforeseen()),
    }
}

/// Measures, and keeps the figures. Answers what could not be measured.
fn measure(settings: &Settings, machine: &Machine) -> Outcome<Vec<(&'static str, String)>> {
    interrupt::catch()?;
    let dir = &settings.cache_dir;
    let none = || Ceilings::none(Identity::of(machine));
    let mut kept = Ceilings::read_or_warn(dir, machine).unwrap_or_else(none);
    // Where the figures cannot be kept, nothing is measured.
    kept.write(dir)?;
    let reference = Reference::resolve(settings.model.as_deref(), &settings.models_dir)?;
    let model = reference.open()?;
    let service = Service::new(ServiceSpec { path: path(settings), ..ServiceSpec::default() });
    let Probed { ceilings, faults } = probe(Asked {
        machine,
        files: weight_files(&model),
        cache_dir: &settings.cache_dir,
        path: path(settings),
        slices: (MOMENT, LONG),
        threads: settings.threads,
        device: device(settings, &model, service).map_err(|failure| failure.message),
    })?;
    kept.renew(ceilings);
    kept.write(dir)?;
    Ok(faults)
}

/// The device that would run, and how it is measured.
fn device(
    settings: &Settings,
    model: &Model,
    storage: Arc<Service>,
) -> Outcome<(crate::ceilings::DeviceKey, crate::ceilings::Shape, DeviceProbe)> {
    let device = chosen::device(settings, &settings.discover()?)?;
    let shape = match weight_files(model).is_empty() {
        true => USUAL,
        false => ProductShape::of(model).map_err(Failure::from)?,
    };
    let key = device_key(settings, &device.origin, &device.options);
    let probe = DeviceProbe {
        device: device.plugin,
        options: device.options,
        compute: settings.compute,
        threads: settings.threads,
        storage,
        cache_dir: settings.cache_dir.clone(),
        shape,
        weight_bytes: CACHES * cache_bytes(),
        rows: ROWS.to_vec(),
        rounds: ROUNDS,
        slice: SLICE,
        deadline: settings.plugin_deadline,
        log: Arc::new(log::line),
    };
    Ok((key, (&shape).into(), probe))
}
