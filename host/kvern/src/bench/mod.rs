//! `kvern bench`: lanes in fresh processes, planning in this one, one report on stdout. What was
//! not measured is null, with the reason beside it.

mod fixture;
mod flags;
mod history;
mod host;
mod lane;
mod overhead;
mod probe;
mod table;

use crate::ceilings::Ceilings;
use crate::cli::{BenchArgs, BenchCommand, ModelArgs};
use crate::fail::{Failure, Outcome};
use crate::machine::Machine;
use crate::model::{EMBEDDED, Reference};
use crate::planner::Plan;
use crate::runtime::{Plugins, ask_of, choose};
use crate::selector::DEVICES;
use crate::settings::Settings;
use crate::{interrupt, out, planner};
use kvern_report::{Details, NullReasons, Pair, Report, RuntimeComparison, Target};
use lane::{LaneAsk, Mode};
use serde_json::json;
use std::time::Duration;

/// Why a lane of the generic backend has no figures.
pub const NO_GENERIC: &str = "the generic backend is a program of its own, which is not built here";

/// Runs the command.
pub fn run(args: &BenchArgs) -> Outcome<()> {
    interrupt::catch()?;
    match &args.command {
        Some(BenchCommand::Probe(probe)) => probe::run(probe),
        None => report(args),
    }
}

/// Budgets of the quick profile.
const COLD_BUDGET: Duration = Duration::from_secs(90);
const WARM_BUDGET: Duration = Duration::from_secs(150);

/// Everything that the report's sections need.
struct Session<'a> {
    args: &'a BenchArgs,
    settings: Settings,
    machine: Machine,
    plan: Plan,
    plugins: Vec<Details>,
    device: String,
    iterations: u32,
    warmup: u32,
}

fn report(args: &BenchArgs) -> Outcome<()> {
    match args.profile.as_str() {
        "quick" => {}
        "full" => return Err(Failure::usage("--profile full: not here yet; known: quick")),
        other => {
            return Err(Failure::usage(format!(
                "--profile {other}: no such profile; known: quick"
            )));
        }
    }
    let session = Session::open(args)?;
    let report = session.measure()?;
    let text = kvern_report::pretty(&report).map_err(Failure::new)? + "\n";
    let told = out::say(&text);
    if let Some(path) = &args.compare.output {
        out::publish(path, text.as_bytes())?;
    }
    told?;
    out::note(&table::of(&report));
    history::record_report(&session, &report)
}

impl<'a> Session<'a> {
    fn open(args: &'a BenchArgs) -> Outcome<Session<'a>> {
        let model =
            ModelArgs { model: args.model_reference.clone(), models_dir: args.models_dir.clone() };
        let settings = Settings::from_groups(&model, &args.plugins, &args.engine)?;
        let machine = Machine::read();
        let reference = settings.model.as_deref();
        let mut plan =
            planner::plan(reference, &settings.models_dir, &machine, &ask_of(&settings))?;
        let chosen = choose(&settings, &mut plan)?;
        let ordinal = settings.device.ordinal.map(|n| format!(":{n}")).unwrap_or_default();
        Ok(Session {
            device: format!("{}{ordinal}", chosen.device.origin.described.name),
            plugins: plugins(&chosen)?,
            iterations: args.iterations.unwrap_or(1),
            warmup: args.warmup_iterations.unwrap_or(0),
            args,
            settings,
            machine,
            plan,
        })
    }

    fn reference(&self) -> &str {
        self.settings.model.as_deref().unwrap_or(EMBEDDED)
    }

    fn measure(&self) -> Outcome<Report> {
        out::note(&format!("planning {}", self.reference()));
        let specialization_planner_overhead = overhead::requested(self)?;
        let fallback_cost_when_no_specialization_applies = overhead::fallback(self)?;
        let primary_target = self.target()?;
        let families = "no family is run under the quick profile";
        let reasons = [
            "all_family_cold_start_comparisons_available",
            "all_family_warm_runtime_comparisons_available",
        ];
        let (ceilings, unmeasured) = self.ceilings();
        let unmeasured = unmeasured.map(|why| ("ceilings".to_string(), why));
        Ok(Report {
            generated_at: jiff::Timestamp::now().to_string(),
            benchmark_model_reference: self.reference().into(),
            device: self.device.clone(),
            host: self.host(),
            plugins: self.plugins.clone(),
            ceilings,
            specialization_planner_overhead,
            fallback_cost_when_no_specialization_applies,
            runtime_comparison: RuntimeComparison {
                primary_target,
                family_results: Vec::new(),
                all_family_cold_start_comparisons_available: None,
                all_family_warm_runtime_comparisons_available: None,
                null_reasons: reasons.map(|key| (key.into(), families.into())).into(),
            },
            null_reasons: unmeasured.into_iter().collect(),
        })
    }

    /// What was measured of this machine, else why there is nothing.
    fn ceilings(&self) -> (Option<Details>, Option<String>) {
        let found = Ceilings::read(&self.settings.cache_dir, &self.machine);
        let nothing = || "nothing was measured: run `kvern doctor --probe`".to_string();
        let found = found.and_then(|found| found.ok_or_else(nothing));
        let value = found.and_then(|found| {
            let value = serde_json::to_value(found).map_err(|e| e.to_string())?;
            value.as_object().cloned().ok_or_else(nothing)
        });
        (value.as_ref().ok().cloned(), value.err())
    }

    fn host(&self) -> Details {
        let found = self.settings.discover().map(|f| f.names_owned(crate::plugin::Kind::Device));
        let devices = found.unwrap_or_default();
        let there = |name: &str| devices.iter().any(|d| d == name);
        host::details(&self.machine, &self.settings.cache_dir, there(DEVICES[0]), there(DEVICES[1]))
    }

    fn target(&self) -> Outcome<Target> {
        let found = Reference::resolve(self.settings.model.as_deref(), &self.settings.models_dir);
        let (reason, path) = match &found {
            Ok(reference) => (None, reference.path().map(|p| p.display().to_string())),
            Err(failure) => (Some(failure.message.clone()), None),
        };
        let ask = |mode, budget| LaneAsk {
            family: "requested",
            mode,
            budget,
            iterations: self.iterations,
            warmup: self.warmup,
            reference: found.as_ref().ok(),
            absent: reason.as_deref(),
        };
        let mut null_reasons = NullReasons::new();
        if path.is_none() {
            let why = match &found {
                Ok(_) => "the embedded model has no path",
                Err(_) => "the model is not there",
            };
            null_reasons.insert("model_path".into(), why.into());
        }
        let cold = ask(Mode::Cold, COLD_BUDGET);
        let cold_start = Pair::new(lane::generic(&cold), lane::native(self, &cold)?);
        let warm = ask(Mode::Warm, WARM_BUDGET);
        let warm_runtime = Pair::new(lane::generic(&warm), lane::native(self, &warm)?);
        Ok(Target {
            family: "requested".into(),
            model_reference: self.reference().into(),
            materialized: found.is_ok(),
            model_path: path,
            cold_start,
            warm_runtime,
            null_reasons,
        })
    }
}

/// Who ran: names, versions, digests.
fn plugins(chosen: &Plugins) -> Outcome<Vec<Details>> {
    [&chosen.kv.origin, &chosen.offload.origin, &chosen.device.origin]
        .into_iter()
        .map(|origin| {
            let manifest = origin.manifest.as_ref();
            let value = json!({
                "kind": origin.described.kind.word(),
                "name": origin.described.name,
                "version": origin.described.version,
                "library": origin.library,
                "library_sha256": crate::plugin::digest(&origin.library)?,
                "manifest": manifest.map(|(path, _)| path),
                "manifest_sha256": manifest.map(|(_, digest)| digest),
            });
            Ok(value.as_object().cloned().unwrap_or_default())
        })
        .collect()
}
