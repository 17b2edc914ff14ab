//! A model with its plugins: first chosen and checked, then loaded, then asked.

use crate::blueprint::Blueprint;
use crate::chosen::{self, Chosen, Origin};
use crate::fail::{Failure, Outcome};
use crate::machine::Machine;
use crate::meter::Meter;
use crate::metrics;
use crate::model::Reference;
use crate::planner::{Plan, PlanAsk, plan_config};
use crate::reads::Reads;
use crate::selector::Selection;
use crate::settings::Settings;
use crate::speculate::{self, DraftModel, Speculation};
use crate::watching::Watching;
use crate::{interrupt, log, watchdog};
use kvern_contract::{DeviceBackend, KvStrategy, OffloadPolicy};
use kvern_engine::{Engine, Facts, Flow, Outcome as Ended, Request, Said};
use kvern_model::{Model, Sampler, Text};
use kvern_report::Resources;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Everything that can be refused before weights are read.
pub struct Prepared {
    /// What was asked for.
    pub settings: Settings,
    /// The model, opened.
    pub model: Arc<Model>,
    /// What will run.
    pub plan: Plan,
    /// The plugins.
    pub plugins: Plugins,
    /// Who guesses for it, where a model does.
    draft: Option<DraftModel>,
    began: Instant,
    meter: Meter,
    watching: Watching,
}

/// What a run wants room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Tokens of its longest session; `None`: as many as the model was made for.
    pub tokens: Option<u64>,
    /// Sessions at once, at least 1.
    pub sessions: u32,
}

impl Default for Room {
    fn default() -> Room {
        Room { tokens: None, sessions: 1 }
    }
}

impl Room {
    /// One session of so many tokens.
    pub fn of(tokens: u64) -> Room {
        Room { tokens: Some(tokens), ..Room::default() }
    }
}

/// The three plugins of a run.
pub struct Plugins {
    /// Where history goes.
    pub kv: Chosen<dyn KvStrategy>,
    /// Which weights stay.
    pub offload: Chosen<dyn OffloadPolicy>,
    /// Why this policy: `placement by budget`, or what else it was.
    pub offload_why: String,
    /// Who computes.
    pub device: Chosen<dyn DeviceBackend>,
}

/// Chooses and opens the plugins of a plan; the plan then says which strategy is applied.
pub fn choose(settings: &Settings, plan: &mut Plan) -> Outcome<Plugins> {
    watchdog::watch(settings.plugin_deadline);
    let found = settings.discover()?;
    let kv = chosen::kv(settings, &found, &mut plan.selection)?;
    let (offload, offload_why) = chosen::offload(settings, &found)?;
    Ok(Plugins { kv, offload, offload_why, device: chosen::device(settings, &found)? })
}

/// How a run of these settings is planned.
pub fn ask_of(settings: &Settings) -> PlanAsk<'_> {
    let library = settings.kv.library.as_ref().map(|p| p.display().to_string());
    PlanAsk {
        profile: &settings.selector_profile,
        pinned: settings.kv.name.clone().or(library),
        window_tokens: settings.window_tokens,
        specialization: true,
    }
}

impl Prepared {
    /// Resolves and opens the model, plans, chooses plugins.
    pub fn new(settings: Settings) -> Outcome<Prepared> {
        let (began, meter) = (Instant::now(), Meter::start());
        let reference = Reference::resolve(settings.model.as_deref(), &settings.models_dir)?;
        let model = Arc::new(reference.open()?);
        let draft = DraftModel::of(&settings, &reference, &model)?;
        let mut plan = plan_config(&model.config().raw, &Machine::read(), &ask_of(&settings))?;
        let plugins = choose(&settings, &mut plan)?;
        let selection = &plan.selection;
        log::line(
            3,
            &format!(
                "model {}, kv {} ({}), offload {} ({}), device {}",
                model.name(),
                selection.applied,
                selection.rule_id,
                plugins.offload.origin.described.name,
                plugins.offload_why,
                plugins.device.origin.described.name
            ),
        );
        let watching = Watching::default();
        Ok(Prepared { settings, model, plan, plugins, draft, began, meter, watching })
    }

    /// The same, watched.
    pub fn watched(self, watching: Watching) -> Prepared {
        Prepared { watching, ..self }
    }

    /// The model's words.
    pub fn text(&self) -> Outcome<&Text> {
        Ok(self.model.text()?)
    }

    /// Tokens that a session can hold at most.
    pub fn context_limit(&self) -> u64 {
        let model = u64::from(self.model.config().max_position_embeddings);
        self.settings.context_tokens.unwrap_or(model)
    }

    /// Refuses what does not fit the context, before weights are read.
    pub fn check_fits(&self, tokens: u64, what: &str) -> Outcome<()> {
        let limit = self.context_limit();
        if tokens <= limit {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{what} has {tokens} tokens, and the context of {} holds {limit}; shorten it",
            self.model.name()
        )))
    }

    /// Loads the weights, with room for so much unless another context was asked for.
    pub fn load(self, room: Room) -> Outcome<Runtime> {
        let limit = self.context_limit();
        let Prepared { settings: asked, model, plan, plugins, draft, began, meter, watching } =
            self;
        let tokens = asked.context_tokens.or(room.tokens.map(|n| n.clamp(1, limit)));
        let room = Room { tokens, ..room };
        let settings = match &draft {
            Some(draft) => draft.share(&asked, &model, room)?,
            None => asked.clone(),
        };
        let blueprint = Blueprint::new(&settings, &model, plugins, room)?;
        blueprint.tell(&asked);
        let Blueprint { mut spec, reading, no_ring, known, origins, .. } = blueprint;
        let ceiling = known.best_rates(1).drive;
        let reads = Reads { reading, ring_refused: no_ring, ceiling };
        spec.watch = watching.watch(ceiling);
        // What reading a tokenizer left would be missing where the last weights come to a limit.
        kvern_storage::give_back();
        let mut engine = Engine::load(spec)?;
        speculate::arm(&mut engine, &settings.speculation, draft.as_ref(), room)?;
        kvern_storage::give_back();
        interrupt::check()?;
        let (load_time, mut load_resources) = (began.elapsed(), meter.finish());
        metrics::accelerator(&mut load_resources, &engine.facts());
        let selection = plan.selection;
        let guessed = (settings.speculation, draft.map(|draft| draft.name().to_string()));
        Ok(Runtime {
            engine,
            model,
            selection,
            reads,
            guessed,
            origins,
            load_time,
            load_resources,
            _watching: watching,
        })
    }
}

/// A loaded model.
pub struct Runtime {
    /// The engine.
    pub engine: Engine,
    /// The model.
    pub model: Arc<Model>,
    /// How the KV strategy was chosen.
    pub selection: Selection,
    /// How bytes come from the drive.
    pub reads: Reads,
    /// Who guesses, and the draft's name where a draft does.
    pub guessed: (Speculation, Option<String>),
    /// The plugins: kv, offload, device.
    pub origins: [Origin; 3],
    /// From before the model was resolved to here.
    pub load_time: Duration,
    /// During that time.
    pub load_resources: Resources,
    /// Last, so that it hears of the engine's end.
    _watching: Watching,
}

/// A request as the host puts it.
pub struct Ask<'a> {
    /// Ids that follow what the session holds.
    pub ids: &'a [u32],
    /// Time of rendering and tokenising.
    pub prepared: Duration,
    /// Most new tokens.
    pub max_new_tokens: u32,
    /// How tokens are chosen.
    pub sampler: Sampler,
    /// Whether to go on past an end-of-sequence token.
    pub ignore_eos: bool,
    /// Texts that end the answer.
    pub stop: &'a [String],
}

/// A request's answer.
pub struct Answer {
    /// What the engine gave.
    pub outcome: Ended,
    /// The same as the report tells it.
    pub metrics: kvern_report::Request,
}

impl Runtime {
    /// Runs a request on a session. `on_text` gets each piece of text; its failure ends the request
    /// and is the answer. Ctrl-C ends it too, and is the outcome's `finish`.
    pub fn ask(
        &mut self,
        session: kvern_contract::SessionId,
        ask: Ask<'_>,
        on_text: &mut dyn FnMut(&str) -> Outcome<()>,
    ) -> Outcome<Answer> {
        let before = self.engine.facts();
        // What happened before belongs to nobody's request.
        drop(self.engine.take_events());
        let meter = Meter::start();
        let crossed = kvern_abi::crossings();
        let request = Request {
            prompt: ask.ids,
            max_new_tokens: ask.max_new_tokens,
            sampler: ask.sampler,
            ignore_eos: ask.ignore_eos,
            stop: ask.stop,
        };
        let mut failed = None;
        let outcome = self.engine.generate(session, &request, &mut |piece| match (
            on_text(piece),
            interrupt::asked(),
        ) {
            (Ok(()), false) => Flow::Go,
            (Ok(()), true) => Flow::Stop,
            (Err(failure), _) => {
                failed = Some(failure);
                Flow::Stop
            }
        })?;
        let crossings = kvern_abi::crossings().saturating_sub(crossed);
        let resources = meter.finish();
        if let Some(failure) = failed {
            return Err(failure);
        }
        let (events, after): (_, Facts) = (self.engine.take_events(), self.engine.facts());
        let metrics = metrics::request(metrics::Seen {
            prepared: ask.prepared,
            outcome: &outcome,
            before: &before,
            after: &after,
            events: &events,
            crossings,
            resources,
            selection: &self.selection,
            reads: &self.reads,
            guessed: (&self.guessed.0, self.guessed.1.as_deref()),
        });
        Ok(Answer { outcome, metrics })
    }

    /// Runs many requests in one batch, at most `most` at once. `on_ended` gets each by its place
    /// as soon as it has ended; its failure ends all, and is the answer. So does Ctrl-C, and is the
    /// `finish` of those that had not ended.
    pub fn ask_all<'r>(
        &mut self,
        requests: Vec<Request<'r>>,
        most: usize,
        on_ended: &mut dyn FnMut(usize, kvern_contract::Result<Ended>) -> Outcome<()>,
    ) -> Outcome<()> {
        let mut failed = None;
        let done = self.engine.run(requests, most, &mut |which, said| {
            if let Said::Ended(ended) = said
                && failed.is_none()
            {
                failed = on_ended(which, ended).err();
            }
            if failed.is_some() || interrupt::asked() { Flow::StopAll } else { Flow::Go }
        });
        failed.map_or(Ok(()), Err)?;
        Ok(done?)
    }
}
