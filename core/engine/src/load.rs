//! What a load does, in order: plan, divide the budget, open the device and ask it for every op,
//! read the weights that stay, open the strategy's root.

use crate::budget::{Division, Fixed, divide, fixed, table_bytes};
use crate::engine::Engine;
use crate::events::{Recorder, Track, What};
use crate::family::{self, Family, Places, Plan};
use crate::io::Io;
use crate::pager::{Frugality, Opening};
use crate::placement::{self, Placed, Room};
use crate::scratch::{Activations, Size};
use crate::spec::EngineSpec;
use crate::step;
use crate::weights::{Files, Load, RowReader, Staging, Stored, Table, Weights, import};
use kvern_contract::{
    Access, DeviceBackend, DeviceSpec, Error, ErrorKind, Op, PAGE_TOKENS, Result, Role, Slice,
    Support, Weight, WeightEncoding, encoding_word,
};
use kvern_storage::{Budget, HostSink, RootHost, Storage};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// What a load decides before it reads weights.
pub(crate) struct Outline {
    pub family: Box<dyn Family>,
    pub files: Files,
    pub opening: Opening,
    pub need: Frugality,
    pub fixed: Fixed,
    pub division: Division,
    pub placed: Placed,
    pub staging: Staging,
    pub workspace: u64,
    pub context_tokens: u64,
    pub budget: Arc<Budget>,
    pub events: Arc<Recorder>,
}

impl Outline {
    /// Opens the model's files and the device, and decides; reads no weights. *Errors* as
    /// [`Engine::load`].
    pub(crate) fn of(spec: &mut EngineSpec) -> Result<Self> {
        let family = family::of(&spec.model)?;
        let plan = family.plan();
        let context_tokens = spec.context_tokens.unwrap_or(u64::MAX).min(plan.context_tokens);
        let budget = Budget::new(spec.memory_budget);
        let events = Recorder::new(Arc::clone(&spec.log), spec.watch.clone());
        let files = Files::open(&spec.model, plan, spec.storage.as_ref(), spec.reading)?;
        let mut opening = opening(spec, family.as_ref(), context_tokens, &budget, &events)?;
        let need = opening.frugality();
        let asked = opening.chunk_tokens;
        let device_spec = DeviceSpec {
            compute: spec.compute,
            threads: spec.threads.max(1),
            budget_bytes: spec.memory_budget.unwrap_or(u64::MAX),
            rows: asked,
            options: spec.device_options.clone(),
        };
        let (device, dir) = (spec.device.as_mut(), &spec.cache_dir);
        open_device(device, &device_spec, &spec.storage, dir, &budget, &events)?;
        let ops = Ops { family: family.as_ref(), files: &files, opening: &opening, rows: asked };
        let workspace = ops.ask(spec.device.as_ref())?;
        let sessions = opening.sessions;
        let fixed = fixed(family.as_ref(), &files, asked, sessions, context_tokens, workspace);
        let division = divide(spec, &fixed, &need, asked)?;
        opening.chunk_tokens = division.chunk;
        let (placed, staging) = place(spec, plan, &files, &division, &fixed)?;
        Ok(Outline {
            family,
            files,
            opening,
            need,
            fixed,
            division,
            placed,
            staging,
            workspace,
            context_tokens,
            budget,
            events,
        })
    }
}

impl Engine {
    /// Loads a model. *Errors* OverBudget says what is needed at least; Unsupported names the
    /// architecture, the op or the tensor; and those of files and plugins.
    pub fn load(mut spec: EngineSpec) -> Result<Engine> {
        let began = Instant::now();
        let outline = Outline::of(&mut spec)?;
        let Outline { family, files, opening, need, division, placed, staging, .. } = outline;
        let Outline { workspace, context_tokens, budget, events, .. } = outline;
        let sessions = opening.sessions;
        let plan = family.plan();
        let device_description = spec.device.describe();
        budget.reserve("device workspace", workspace)?;
        let device = spec.device.as_mut();
        let weights = Weights::load(Load {
            plan,
            files,
            resident: &placed.resident,
            staging,
            device,
            storage: &spec.storage,
            budget: &budget,
            deadline: spec.load_deadline,
            events: Arc::clone(&events),
        })?;
        let embedding_rows = match weights.stays(plan.embedding.0) {
            true => None,
            false => {
                let table = weights.stored(plan.embedding.0);
                Some(RowReader::new(table, division.chunk, device, &budget, &events)?)
            }
        };
        let size = Size { rows: division.chunk, dense: division.mlp.rows, sessions };
        let activations = Activations::new(plan, size, device, &budget)?;
        let bytes = table_bytes(family.as_ref(), division.chunk, sessions, context_tokens);
        let io = Io::new(bytes, plan.inverse_frequencies.clone(), device, &budget)?;
        let description = opening.description.clone();
        let (kept, ring) = (division.kept, division.ring);
        let pager = opening.open(spec.kv, kept, ring, need.frame_bytes)?;
        let pool = Slice { buffer: import(device, pager.pool())?, offset: 0 };
        let (layer_units, head_unit) = units(family.as_ref());
        events.span("load", events.clock().map(|_| began), || What::new(Track::Steps, "load"));
        Ok(Engine {
            device: spec.device,
            weights,
            pager,
            io,
            activations,
            embedding_rows,
            storage: spec.storage,
            pool,
            kv_dtype: spec.kv_dtype,
            layer_units,
            head_unit,
            model: spec.model,
            context_tokens,
            rows_most: division.chunk,
            mlp_chunks: division.mlp,
            sessions,
            deadline: spec.load_deadline,
            description,
            device_description,
            placement: placed.facts,
            budget,
            events,
            guesses: None,
            family,
        })
    }
}

/// Places the weights so that what stays and one streamed unit at least fit together.
fn place(
    spec: &EngineSpec,
    plan: &Plan,
    files: &Files,
    division: &Division,
    fixed: &Fixed,
) -> Result<(Placed, Staging)> {
    let mut refused = None;
    for host_bytes in division.offers(fixed) {
        let (host_layers, rates) = (spec.offload_cpu_layers, spec.rates);
        let rows_per_sweep = spec.sessions.max(1);
        let room = Room { host_bytes, host_layers, rows_per_sweep, rates };
        let (policy, options) = (spec.offload.as_ref(), &spec.offload_options);
        let placed = match placement::place(policy, options, plan, files, &room) {
            Ok(placed) => placed,
            // A count may need the larger offer that comes next; a policy that chose by itself has
            // broken its word.
            Err(error) if host_layers.is_none() => return Err(error),
            Err(error) => {
                refused.get_or_insert(error);
                continue;
            }
        };
        let of = plan.units.iter().zip(&files.layouts).zip(&placed.resident);
        let streamed = of.filter(|((u, _), stays)| !**stays && u.access == Access::Sweep);
        let streamed: Vec<u64> = streamed.map(|((_, layout), _)| layout.memory()).collect();
        let ahead = placed.read_ahead_units;
        if let Some(staging) = division.staging(placed.resident_memory, &streamed, ahead) {
            return Ok((placed, staging));
        }
    }
    let text = "no placement leaves room for one streamed unit: raise --memory-budget";
    Err(refused.unwrap_or_else(|| Error::new(ErrorKind::OverBudget, "engine/load", text)))
}

/// For each layer the unit of its attention and that of the rest; and the head's.
fn units(family: &dyn Family) -> (Vec<(usize, usize)>, usize) {
    let plan = family.plan();
    let find = |layer: Option<usize>, role: Role| {
        let is = |u: &family::UnitPlan| u.layer.map(|l| l.0 as usize) == layer && u.role == role;
        plan.units.iter().position(is).unwrap_or_default()
    };
    let layer = |l| (find(Some(l), Role::Attention), find(Some(l), Role::Mlp));
    ((0..plan.layers.len()).map(layer).collect(), find(None, Role::Head))
}

fn opening(
    spec: &EngineSpec,
    family: &dyn Family,
    context_tokens: u64,
    budget: &Arc<Budget>,
    events: &Arc<Recorder>,
) -> Result<Opening> {
    let layers = family.plan().layers.clone();
    let (description, policy) = Opening::ask(
        spec.kv.as_ref(),
        &spec.kv_options,
        &layers,
        spec.kv_dtype,
        context_tokens,
        spec.kv_budget.or(spec.memory_budget).unwrap_or(u64::MAX),
        spec.device.describe().kind != "cpu",
    )?;
    let pair = |name: &str, value: String| (name.to_string(), value);
    let identity = vec![
        pair("weights", spec.model.digest().to_string()),
        pair("compute", format!("{:?}", spec.compute).to_lowercase()),
        pair("encoding", format!("{:?}", spec.kv_dtype).to_lowercase()),
        pair("layout", format!("head-token-channel-{PAGE_TOKENS}")),
        pair("adapters", "none".into()),
        pair("format", "1".into()),
    ];
    Ok(Opening {
        options: spec.kv_options.clone(),
        layers,
        hot: spec.kv_dtype,
        context_tokens,
        chunk_tokens: rows_of_step(spec, context_tokens),
        sessions: spec.sessions.max(1),
        identity,
        cache_dir: spec.cache_dir.clone(),
        deadline: spec.load_deadline,
        storage: Arc::clone(&spec.storage),
        budget: Arc::clone(budget),
        events: Arc::clone(events),
        description,
        policy,
    })
}

/// Most rows of a step: a row for each session at least, and no more than they can hold together.
fn rows_of_step(spec: &EngineSpec, context_tokens: u64) -> u32 {
    let sessions = spec.sessions.max(1);
    let most = context_tokens.saturating_mul(u64::from(sessions));
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    spec.prefill_chunk.max(sessions).clamp(1, most.max(1))
}

/// Opens the device. *Errors* the device's.
pub(crate) fn open_device(
    device: &mut dyn DeviceBackend,
    asked: &DeviceSpec,
    storage: &Arc<dyn Storage>,
    cache_dir: &Path,
    budget: &Arc<Budget>,
    events: &Arc<Recorder>,
) -> Result<()> {
    let name = device.describe().name;
    let host = RootHost::new(
        Arc::clone(storage),
        cache_dir.join(format!("device_{}", name.replace('-', "_"))),
        Arc::clone(budget),
        Arc::clone(events) as Arc<dyn HostSink>,
    );
    device.open(asked, host)
}

/// Every op that a model's steps will submit.
struct Ops<'a> {
    family: &'a dyn Family,
    files: &'a Files,
    opening: &'a Opening,
    rows: u32,
}

impl Ops<'_> {
    /// Asks the device for them, before weights are read; answers the most bytes that one takes
    /// beside its operands. *Errors* Unsupported names the op, or the encoding of KV pages.
    fn ask(&self, device: &dyn DeviceBackend) -> Result<u64> {
        let description = device.describe();
        let name = &description.name;
        let unsupported = |text| Error::new(ErrorKind::Unsupported, "engine/load", text);
        for encoding in [self.opening.hot, self.opening.policy.cold] {
            if !description.kv.contains(&encoding) {
                let known = &description.kv;
                let text = format!(
                    "device {name} does not read kv pages in {encoding:?}; known: {known:?}"
                );
                return Err(unsupported(text));
            }
        }
        let mut workspace = 0;
        for op in self.list() {
            match device.supports(&op) {
                Support::Yes { workspace_bytes } => workspace = workspace_bytes.max(workspace),
                Support::No => {
                    let op = op.name();
                    let text = format!("device {name} does not do the op {op} as this model needs");
                    return Err(unsupported(text));
                }
            }
        }
        Ok(workspace)
    }

    fn list(&self) -> Vec<Op> {
        let plan = self.family.plan();
        let weight = |s: &Stored| Weight {
            encoding: s.encoding,
            outputs: s.outputs,
            inputs: s.inputs,
            ..Weight::default()
        };
        let vector = |s: &Stored| Weight { encoding: WeightEncoding::F32, ..weight(s) };
        let table = Table {
            matrices: self.files.stored.iter().map(weight).collect(),
            vectors: self.files.vectors.iter().map(vector).collect(),
        };
        let scratch = vec![Slice::default(); plan.scratch.len()];
        let at = Places { scratch: &scratch, table: &table, first: 0, rows: self.rows };
        let mut list = vec![step::embed_op(self.family, &at)];
        for layer in 0..plan.layers.len() {
            self.family.before_attention(layer, &at, &mut list);
            list.push(step::write_op(self.family, layer, &at, encoding_word(self.opening.hot)));
            let window = self.opening.policy.window;
            // At once, and in the parts that a history on disk comes in.
            for ends in [(true, true), (true, false), (false, false), (false, true)] {
                list.push(step::attention_op(self.family, layer, &at, window, ends));
            }
            self.family.after_attention(layer, &at, &mut list);
            self.family.feed_forward(layer, &at, &mut list);
        }
        self.family.head(Slice::default(), Slice::default(), &at, &mut list);
        list
    }
}
