//! A plan says what a load does.

use super::doubles::{Keep, Policy};
use super::{Setup, bits, prose};
use crate::{Engine, PlanFacts, Rates, UnitTier, WeightPath};
use kvern_contract::{KvEncoding, Result};
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
        assert_eq!(plan.predict(Rates::default(), 1), None, "nothing was measured");
        assert_eq!((plan.mlp_chunks, plan.sessions), (facts.mlp_chunks, 1));
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
    // With a store KV could take more than the least: not what weights are read into.
    let stored = |budget| Setup {
        kv: Box::new(Keep::store()),
        kv_dtype: KvEncoding::Bf16,
        context: Some(1000),
        ..small(budget)
    };
    let least = plan(stored(None)).expect("a plan").least_budget;
    for more in [0, 1, 1000, 50_000, 200_000] {
        stored(Some(least + more)).load().unwrap_or_else(|error| panic!("{more} more: {error}"));
    }
}

#[test]
fn a_prediction_is_the_longer_of_reading_and_computing_and_what_cannot_overlap() {
    let of = |budget| plan(small(budget)).expect("a plan");
    let rates = |drive, memory| Rates { drive, memory, flops: None };
    let (all, fast) = (of(None), rates(Some(1e9), Some(1e9)));
    let p = all.predict(rates(None, Some(1e9)), 1).expect("no drive is needed");
    assert!(p.read == 0.0 && p.apart < 1e-9);
    assert!((p.seconds - p.compute).abs() < 1e-9);
    // Every weight once, and half of the context's history: f32 K and V of 2 heads of 32 channels
    // in each of 6 layers.
    let weights: u64 = all.units.iter().map(|u| u.bytes).sum();
    let history = all.context_tokens / 2 * 6 * 2 * 2 * 32 * 4;
    let kv = all.units.iter().map(|u| u.history_bytes).sum::<u64>() * all.context_tokens / 2;
    assert_eq!(kv, history);
    assert!((p.compute - (weights + history) as f64 / 1e9).abs() < 1e-9, "{p:?}");
    let alone = of(Some(all.least_budget));
    assert_eq!(alone.predict(rates(None, Some(1e9)), 1), None);
    assert_eq!(alone.predict(rates(Some(0.0), Some(1e9)), 1), None, "no rate at all");
    let roomy = of(Some(all.least_budget + 1_500_000));
    for plan in [&alone, &roomy] {
        let p = plan.predict(fast, 1).expect("both were measured");
        assert!(p.read * 1e9 + 1.0 >= plan.streamed_bytes as f64);
        assert!((p.seconds - p.read.max(p.compute) - p.apart).abs() < 1e-9, "{p:?}");
    }
    let (alone, roomy) = (alone.predict(fast, 1).expect("p"), roomy.predict(fast, 1).expect("p"));
    assert!(alone.apart > 0.0, "one unit after another: {alone:?}");
    assert!(roomy.seconds < alone.seconds);
}

#[test]
fn many_rows_take_what_their_arithmetic_takes_or_the_weights_where_that_is_longer() {
    let all = plan(small(None)).expect("a plan");
    let rates = |flops| Rates { drive: None, memory: Some(1e9), flops };
    assert_eq!(all.predict(rates(None), 8), None, "many rows need a rate of arithmetic");
    let one = all.predict(rates(None), 1).expect("one row does not");
    let history = |rows: f64| {
        let bytes: u64 = all.units.iter().map(|u| u.history_bytes).sum();
        bytes as f64 * all.context_tokens as f64 / 2.0 * rows / 1e9
    };
    let weights = one.compute - history(1.0);
    let quick = all.predict(rates(Some(1e15)), 8).expect("a prediction");
    assert!((quick.compute - weights - history(8.0)).abs() < 1e-9, "{quick:?}");
    let slow = all.predict(rates(Some(1e6)), 8).expect("a prediction");
    let flops: u64 = all.units.iter().map(|u| u.flops_per_row).sum();
    assert!((slow.compute - flops as f64 * 8.0 / 1e6 - history(8.0)).abs() < 1e-6, "{slow:?}");
    assert_eq!((one.rows, slow.rows), (1, 8));
}

#[test]
fn where_bytes_pass_through_the_page_cache_a_part_of_the_budget_is_left_for_it() {
    let held = |p: &PlanFacts| p.holders.iter().map(|(_, bytes)| bytes).sum::<u64>();
    let of = |reading, budget| plan(Setup { reading, ..small(Some(budget)) }).expect("a plan");
    // Room for every weight, and half a megabyte.
    let budget = held(&of(WeightPath::Cached, 1 << 24)) + 500_000;
    let cached = of(WeightPath::Cached, budget);
    assert_eq!(cached.streamed_bytes, 0);
    let passing = of(WeightPath::Passing, budget);
    assert!(passing.streamed_bytes > 0, "{passing:?}");
    // Where there is little it is a quarter of what the largest unit leaves of all weights' room.
    let weights = cached.placement.resident_bytes;
    let largest = cached.units.iter().map(|u| u.bytes).max().expect("units");
    let left = budget - held(&passing);
    assert!(left >= (weights - largest) / 4, "{left} of {budget} are left");
    assert_eq!(passing.least_budget, cached.least_budget, "what works at all works");
}
