//! From settings and plugins to what an engine is loaded with: for a run and for its plan alike.

use crate::ceilings::{Ceilings, DeviceKey, How, Known, Shape, Wanted};
use crate::chosen::Origin;
use crate::fail::Outcome;
use crate::log;
use crate::machine::Machine;
use crate::read_path::{Reading, Sizes};
use crate::reads;
use crate::runtime::{Plugins, Room};
use crate::settings::Settings;
use kvern_contract::{ComputeDtype, Options};
use kvern_engine::{EngineSpec, ProductShape, WeightPath};
use kvern_model::{Model, WeightFile};
use kvern_storage::{PathChoice, ServiceSpec};
use std::path::PathBuf;
use std::sync::Arc;

/// What an engine is loaded with, and why so.
pub struct Blueprint {
    /// For the engine.
    pub spec: EngineSpec,
    /// How weights are read.
    pub reading: Reading,
    /// What reads them.
    pub service: ServiceSpec,
    /// Why no ring does.
    pub no_ring: Option<String>,
    /// What was measured of the drive and the device.
    pub known: Known,
    /// The plugins: kv, offload, device.
    pub origins: [Origin; 3],
}

impl Blueprint {
    /// Decides what is decided before an engine is. *Errors* a ring was asked for by name and the
    /// kernel refuses it.
    pub fn new(
        settings: &Settings,
        model: &Arc<Model>,
        plugins: Plugins,
        room: Room,
    ) -> Outcome<Blueprint> {
        let machine = Machine::read();
        let files = weight_files(model);
        let sizes = Sizes {
            files: files.iter().map(|(_, bytes)| bytes).sum(),
            budget: settings.memory.bytes,
            free: machine.memory_free_bytes,
        };
        let reading = Reading::choose(settings.read_path, &sizes);
        let device = &plugins.device;
        let ceilings = Ceilings::read_or_warn(&settings.cache_dir, &machine);
        let known = Known::of(
            ceilings.as_ref(),
            &Wanted {
                file: largest(&files),
                how: match reading.how {
                    WeightPath::Direct => How::Direct,
                    WeightPath::Passing => How::Cold,
                    WeightPath::Cached => How::Cached,
                },
                threads: reads::path(settings) == PathChoice::Pool,
                limit: settings.drive_rate,
                device: device_key(settings, &device.origin, &device.options),
                shape: ProductShape::of(model)
                    .map(|shape| Shape::from(&shape))
                    .map_err(|error| error.to_string()),
            },
        );
        let service = reads::spec(settings, known.pieces());
        let (storage, no_ring) = reads::service(settings, service)?;
        let origins = [
            plugins.kv.origin.clone(),
            plugins.offload.origin.clone(),
            plugins.device.origin.clone(),
        ];
        let spec = EngineSpec {
            model: Arc::clone(model),
            storage,
            device: plugins.device.plugin,
            device_options: plugins.device.options,
            kv: plugins.kv.plugin,
            kv_options: plugins.kv.options,
            offload: plugins.offload.plugin,
            offload_options: plugins.offload.options,
            compute: settings.compute,
            kv_dtype: settings.kv_dtype,
            threads: settings.threads,
            memory_budget: settings.memory.bytes,
            kv_budget: settings.kv_budget,
            cache_dir: settings.cache_dir.clone(),
            prefill_chunk: settings.prefill_chunk,
            context_tokens: room.tokens,
            offload_cpu_layers: settings.offload_cpu_layers,
            sessions: room.sessions,
            reading: reading.how,
            rates: known.rates(room.sessions),
            dense_chunk_rows: settings.dense_chunk_rows,
            load_deadline: settings.plugin_deadline,
            log: Arc::new(log::line),
            watch: kvern_engine::Watch::default(),
        };
        Ok(Blueprint { spec, reading, service, no_ring, known, origins })
    }

    /// Says on stderr what was decided, as far as that was asked for.
    pub fn tell(&self, settings: &Settings) {
        if let Some((level, line)) = settings.memory.line() {
            log::line(level, &line);
        }
        let (word, reason) = (self.reading.word(), &self.reading.reason);
        log::line(3, &format!("weights are read {word}: {reason}"));
    }
}

/// A model's weight files and their bytes; those in this program do not count.
pub fn weight_files(model: &Model) -> Vec<(PathBuf, u64)> {
    let file = |file: &WeightFile| match file {
        // What cannot be read here is the load's to refuse.
        WeightFile::Path(path) => {
            Some((path.clone(), std::fs::metadata(path).map_or(0, |facts| facts.len())))
        }
        WeightFile::Memory { .. } => None,
    };
    model.tensors().files.iter().filter_map(file).collect()
}

/// The largest of some files.
pub fn largest(files: &[(PathBuf, u64)]) -> Option<PathBuf> {
    files.iter().max_by_key(|(_, bytes)| bytes).map(|(path, _)| path.clone())
}

/// What makes this device compute as it does.
pub fn device_key(settings: &Settings, origin: &Origin, options: &Options) -> DeviceKey {
    DeviceKey {
        plugin: origin.described.name.clone(),
        version: origin.described.version.clone(),
        options: options.clone(),
        threads: settings.threads,
        compute: if settings.compute == ComputeDtype::F32 { "f32" } else { "auto" }.into(),
    }
}
