//! Who guesses tokens ahead in a run: nobody, a lookup, or a draft. A draft is a second model, held
//! in memory whole; what it takes comes out of the memory budget before the model has the rest.

use crate::blueprint::Blueprint;
use crate::budget::{BudgetFrom, MemoryBudget};
use crate::cli::{Guesser, SpeculateArgs};
use crate::config::Layer;
use crate::fail::{Failure, Outcome, While};
use crate::log;
use crate::machine::Machine;
use crate::model::Reference;
use crate::out::size;
use crate::planner::plan_config;
use crate::runtime::{Room, ask_of, choose};
use crate::selector::RESIDENT;
use crate::settings::{Choice, Settings};
use kvern_engine::{Draft, Engine, EngineSpec, Ngram, Outcome as Ended};
use kvern_model::Model;
use kvern_report::Speculation as Told;
use std::sync::Arc;

/// Tokens that are guessed at once where nobody said how many.
pub const TOKENS: u32 = 8;

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Speculation {
    /// Who guesses.
    pub by: Guesser,
    /// Most tokens at once.
    pub tokens: u32,
}

impl Speculation {
    /// Nobody guesses.
    pub fn off() -> Speculation {
        Speculation { by: Guesser::Off, tokens: TOKENS }
    }

    /// Flags and variables, then the profile, then the file.
    pub fn of(args: &SpeculateArgs, profile: &Layer, file: &Layer) -> Outcome<Speculation> {
        let by = args.speculate.clone().or(profile.speculate.clone()).or(file.speculate.clone());
        if by.is_none() && args.speculate_tokens.is_some() {
            return Err(Failure::usage(
                "--speculate-tokens: nobody guesses; give --speculate ngram or draft=MODEL too",
            ));
        }
        let tokens = args.speculate_tokens.or(profile.speculate_tokens).or(file.speculate_tokens);
        Ok(Speculation { by: by.unwrap_or(Guesser::Off), tokens: tokens.unwrap_or(TOKENS) })
    }
}

/// A model that guesses, opened and not loaded.
pub struct DraftModel {
    settings: Settings,
    model: Arc<Model>,
}

impl DraftModel {
    /// Opens the draft that was asked for, where one was. *Errors* it is the model itself, it has
    /// another vocabulary, or it is no model.
    pub fn of(settings: &Settings, reference: &Reference, target: &Model) -> Outcome<Option<Self>> {
        let Guesser::Draft(name) = &settings.speculation.by else { return Ok(None) };
        let about = |text: String| Failure::new(format!("--speculate draft={name}: {text}"));
        let found = Reference::resolve(Some(name), &settings.models_dir)
            .map_err(|failure| about(failure.message))?;
        if is_same(&found, reference) {
            return Err(about(format!(
                "that is the model itself, which would compute everything twice; name a smaller \
                 model with the vocabulary of {}",
                target.name()
            )));
        }
        let model = found.open().map_err(|failure| about(failure.message))?;
        let text = model.text().map_err(|error| about(error.to_string()))?;
        if let Some(difference) = target.text()?.difference(text) {
            return Err(about(format!(
                "its vocabulary is another: {difference}; name a model with the tokenizer of {}",
                target.name()
            )));
        }
        let nobody = MemoryBudget { bytes: None, from: BudgetFrom::Nobody, limit: None };
        let kv = Choice { name: Some(RESIDENT.into()), ..Choice::default() };
        let settings = Settings {
            kv,
            window_tokens: None,
            offload: Choice::default(),
            offload_cpu_layers: None,
            memory: nobody,
            kv_budget: None,
            ..settings.clone()
        };
        Ok(Some(DraftModel { settings, model: Arc::new(model) }))
    }

    /// The draft's name.
    pub fn name(&self) -> &str {
        self.model.name()
    }

    fn spec(&self, room: Room) -> Outcome<EngineSpec> {
        spec(&self.settings, &self.model, room)
    }

    /// The settings of the model itself: the run's, with what the draft needs taken out of the
    /// budget. *Errors* what is left is less than the model needs at least.
    pub fn share(&self, asked: &Settings, target: &Arc<Model>, room: Room) -> Outcome<Settings> {
        let mut settings = asked.clone();
        let Some(budget) = settings.memory.bytes else { return Ok(settings) };
        let during = format!("draft {}", self.name());
        let holders = Engine::plan(self.spec(room)?).during(during)?.holders;
        let taken: u64 = holders.iter().map(|(_, bytes)| bytes).sum();
        settings.memory.bytes = None;
        let least = Engine::plan(spec(&settings, target, room)?)?.least_budget;
        if budget < taken.saturating_add(least) {
            return Err(Failure::new(format!(
                "a memory budget of {budget} bytes is too small with a draft: at least {} are \
                 needed ({taken} for {}, which is held in memory, and {least} for {}); raise \
                 --memory-budget, or use --speculate ngram",
                taken.saturating_add(least),
                self.name(),
                target.name()
            )));
        }
        settings.memory.bytes = Some(budget - taken);
        log::line(3, &format!("draft {} takes {} of the memory budget", self.name(), size(taken)));
        Ok(settings)
    }

    /// Loads the draft.
    fn load(&self, room: Room) -> Outcome<Draft> {
        let during = format!("draft {}", self.name());
        Ok(Draft::new(Engine::load(self.spec(room)?).during(during)?))
    }
}

/// What an engine of these settings is loaded with, its plugins chosen anew.
fn spec(settings: &Settings, model: &Arc<Model>, room: Room) -> Outcome<EngineSpec> {
    let mut plan = plan_config(&model.config().raw, &Machine::read(), &ask_of(settings))?;
    let plugins = choose(settings, &mut plan)?;
    Ok(Blueprint::new(settings, model, plugins, room)?.spec)
}

/// Has an engine guess as was asked for.
pub fn arm(
    engine: &mut Engine,
    asked: &Speculation,
    draft: Option<&DraftModel>,
    room: Room,
) -> Outcome<()> {
    match (&asked.by, draft) {
        (Guesser::Ngram, _) => engine.speculate(Box::new(Ngram::new()), asked.tokens),
        (_, Some(draft)) => engine.speculate(Box::new(draft.load(room)?), asked.tokens),
        _ => (),
    }
    Ok(())
}

/// What a request's guesses came to, for the report.
pub fn told(asked: &Speculation, draft: Option<&str>, ended: &Ended) -> Told {
    let counts = ended.speculation;
    let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    let told = Told {
        mode: match asked.by {
            Guesser::Off => "off",
            Guesser::Ngram => "ngram",
            Guesser::Draft(_) => "draft",
        }
        .into(),
        draft_model: draft.map(String::from),
        tokens_most: (asked.by != Guesser::Off).then_some(u64::from(asked.tokens)),
        proposed: counts.proposed,
        accepted: counts.accepted,
        acceptance_rate: ratio(counts.accepted, counts.proposed),
        steps: counts.steps,
        tokens_per_step: ratio(ended.token_ids.len() as u64, counts.sweeps),
        ..Told::default()
    };
    told.explained()
}

/// Whether two references lead to the same files.
fn is_same(a: &Reference, b: &Reference) -> bool {
    let real = |r: &Reference| r.path().map(|p| p.canonicalize().unwrap_or_else(|_| p.into()));
    real(a) == real(b)
}
