//! What planning costs, measured in this process and without weights: for the requested model, and
//! for one that nothing specialises.

use super::Session;
use super::fixture::Fixture;
use crate::fail::Outcome;
use crate::planner::{PlanAsk, plan};
use crate::runtime::ask_of;
use kvern_report::{Details, Lane, PlannerSection, Stats};
use serde_json::json;
use std::time::Instant;

/// Planning the requested model.
pub fn requested(session: &Session<'_>) -> Outcome<PlannerSection> {
    section(session, session.settings.model.as_deref(), "planner-specialization")
}

/// Planning a model of a family that has no specialization.
pub fn fallback(session: &Session<'_>) -> Outcome<PlannerSection> {
    let fixture = Fixture::create()?;
    let path = fixture.path().to_string_lossy().into_owned();
    section(session, Some(&path), "fallback-when-no-specialization-applies")
}

fn section(session: &Session<'_>, reference: Option<&str>, name: &str) -> Outcome<PlannerSection> {
    let enabled = lane(session, reference, &format!("{name}-enabled"), true)?;
    let disabled = lane(session, reference, &format!("{name}-disabled"), false)?;
    Ok(PlannerSection::new(enabled, disabled))
}

fn lane(
    session: &Session<'_>,
    reference: Option<&str>,
    name: &str,
    specialization: bool,
) -> Outcome<Lane> {
    let ask = PlanAsk { specialization, ..ask_of(&session.settings) };
    let mut samples = Vec::new();
    let mut last = None;
    for iteration in 0..session.warmup + session.iterations {
        let began = Instant::now();
        let planned = plan(reference, &session.settings.models_dir, &session.machine, &ask)?;
        let took = began.elapsed();
        if iteration >= session.warmup {
            samples.push(took.as_secs_f64() * 1e3);
        }
        last = Some(planned);
    }
    let plan = last.as_ref();
    let mut details = Details::new();
    details.insert("model_reference".into(), json!(reference.unwrap_or(session.reference())));
    details.insert("device".into(), json!(session.device));
    details.insert("use_specialization".into(), json!(specialization));
    details.insert("plan_state".into(), json!(plan.map(|p| p.state)));
    details.insert("family".into(), json!(plan.and_then(|p| p.family).unwrap_or("none")));
    details.insert("passes".into(), json!(plan.map(|p| &p.passes)));
    if !specialization {
        details.insert("backend".into(), json!("generic"));
    }
    Ok(Lane::measured(name, Stats::of(&samples, session.warmup), details))
}
