//! A plan says what a load does.

use super::doubles::Policy;
use super::{Setup, bits, prose};
use crate::{Engine, PlanFacts, Rates, UnitTier};
use kvern_contract::Result;
use kvern_storage::{Service, Storage};
use std::sync::Arc;

fn small(memory_budget: Option<u64>) -> Setup {
    let offload = Box::new(Policy { by_budget: true, read_ahead: 2, ..Policy::everything() });
    Setup { memory_budget, context: Some(256), chunk: 64, offload, ..Setup::default() }
}

fn plan(setup: Setup) -> Result<PlanFacts> {
    Engine::plan(setup.spec()?.0)
}

#[test]
fn a_plan_holds_what_a_load_holds_and_reads_nothing() {
    let least = plan(small(None)).expect("a plan").least_budget;
    let mut streams = 0;
    for budget in [None, Some(least), Some(least + 1_500_000), Some(least + 3_000_000)] {
        let storage = Service::pool(2);
        let counted = Arc::clone(&storage) as Arc<dyn Storage>;
        let plan = plan(Setup { storage: counted, ..small(budget) }).expect("a plan");
        assert_eq!(storage.counters().bytes_read, 0);
        let mut engine = small(budget).load().expect("it loads");
        let facts = engine.facts();
        // Frames are taken when they are used.
        let fixed = |list: &[(String, u64)]| {
            let mut list = list.to_vec();
            list.retain(|(name, _)| name != "kv frames");
            list
        };
        assert_eq!(fixed(&plan.holders), fixed(&facts.budget), "{budget:?}");
        assert_eq!(plan.placement, facts.placement);
        assert_eq!(plan.staging_bytes, facts.stream.staging_bytes);
        assert_eq!(plan.read_ahead_units, facts.stream.read_ahead_units);
        assert_eq!(plan.streamed_bytes, facts.stream.sweep_bytes);
        assert_eq!((plan.budget, plan.least_budget), (budget, least));
        assert_eq!(plan.prediction, None, "nothing was measured");
        let held: u64 = plan.holders.iter().map(|(_, bytes)| bytes).sum();
        assert!(budget.is_none_or(|most| held <= most), "{held} of {budget:?}");
        let of = |tier| plan.units.iter().filter(|u| u.tier == tier).map(|u| u.bytes).sum::<u64>();
        assert_eq!(of(UnitTier::Streamed), plan.streamed_bytes);
        assert_eq!(of(UnitTier::Resident), plan.placement.resident_bytes);
        streams += u32::from(plan.streamed_bytes > 0);
    }
    assert_eq!(streams, 3);
}

#[test]
fn one_byte_less_than_the_least_is_refused_with_the_least_and_the_least_works() {
    let least = plan(small(None)).expect("a plan").least_budget;
    let error = small(Some(least - 1)).load().err().expect("too small").to_string();
    assert!(error.contains(&format!("at least {least} are needed")), "{error}");
    let refused = plan(small(Some(least - 1)));
    assert_eq!(refused.expect_err("too small").to_string(), error);
    let mut engine = small(Some(least)).load().expect("the least works");
    bits(&mut engine, &prose(100)).expect("it scores");
    assert!(engine.facts().budget_peak <= least);
}

#[test]
fn a_prediction_is_the_longer_of_reading_and_computing_and_what_cannot_overlap() {
    let plan = |budget: Option<u64>, drive: Option<f64>, memory: Option<f64>| {
        let rates = Rates { drive, memory, flops: None };
        plan(Setup { rates, ..small(budget) }).expect("a plan")
    };
    let all = plan(None, None, Some(1e9)).prediction.expect("no drive is needed");
    assert!(all.read == 0.0 && all.apart < 1e-9);
    assert!((all.seconds_per_token - all.compute).abs() < 1e-9);
    let least = plan(None, None, None).least_budget;
    assert_eq!(plan(Some(least), None, Some(1e9)).prediction, None);
    let alone = plan(Some(least), Some(1e9), Some(1e9));
    let roomy = plan(Some(least + 1_500_000), Some(1e9), Some(1e9));
    for plan in [&alone, &roomy] {
        let p = plan.prediction.expect("both were measured");
        assert!(p.read * 1e9 + 1.0 >= plan.streamed_bytes as f64);
        let sum = p.read.max(p.compute) + p.apart;
        assert!((p.seconds_per_token - sum).abs() < 1e-9, "{p:?}");
    }
    let (alone, roomy) = (alone.prediction.expect("p"), roomy.prediction.expect("p"));
    assert!(alone.apart > 0.0, "one unit after another: {alone:?}");
    assert!(roomy.seconds_per_token < alone.seconds_per_token);
}
