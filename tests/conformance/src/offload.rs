//! Offload policies: every unit once, within the budgets, the same answer to the same question.

use crate::shipped::policies;
use kvern_contract::*;
use std::collections::BTreeMap;

const LAYERS: u32 = 9;
const UNIT_BYTES: u64 = 1 << 20;

fn unit(id: u32, layer: Option<u32>, role: Role, access: Access) -> Unit {
    Unit {
        id: UnitId(id),
        layer: layer.map(LayerIndex),
        role,
        expert: None,
        bytes: UNIT_BYTES,
        encoding: WeightEncoding::Bf16,
        access,
        flops_per_row: UNIT_BYTES,
    }
}

/// A model of nine layers with two units each, an embedding and a head; `host` bytes of memory.
fn ask(policy: &dyn OffloadPolicy, host: u64, host_layers: u32) -> PlanAsk {
    let mut units = vec![unit(0, None, Role::Embed, Access::Rows)];
    for layer in 0..LAYERS {
        units.push(unit(1 + 2 * layer, Some(layer), Role::Attention, Access::Sweep));
        units.push(unit(2 + 2 * layer, Some(layer), Role::Mlp, Access::Sweep));
    }
    units.push(unit(1 + 2 * LAYERS, None, Role::Head, Access::Sweep));
    let tier =
        |tier, budget_bytes, rate| TierFacts { tier, budget_bytes, read_bytes_per_second: rate };
    PlanAsk {
        units,
        layers: LAYERS,
        tiers: vec![tier(Tier::Host, host, Some(1e10)), tier(Tier::Disk, u64::MAX, None)],
        flops_per_second: None,
        rows_per_sweep: 1,
        experts_per_row: 0,
        host_layers,
        device_layers: 0,
        options: policy.describe().options,
        observed: Vec::new(),
    }
}

/// Budgets from nothing to more than all, in bytes.
fn budgets() -> impl Iterator<Item = u64> {
    (0..24).map(|units| units * UNIT_BYTES + UNIT_BYTES / 2)
}

#[test]
fn every_unit_is_placed_once_and_within_the_budget() {
    for (name, policy) in policies() {
        for (host, layers) in budgets().flat_map(|host| [(host, 0), (host, 4)]) {
            let ask = ask(policy.as_ref(), host, layers);
            let placement = match policy.plan(&ask) {
                Ok(placement) => placement,
                Err(error) => {
                    assert_eq!(error.kind, ErrorKind::OverBudget, "{name}: {error}");
                    continue;
                }
            };
            let places: BTreeMap<UnitId, Tier> =
                placement.units.iter().map(|placed| (placed.unit, placed.tier)).collect();
            assert_eq!(places.len(), placement.units.len(), "{name} places a unit twice");
            assert!(ask.units.iter().all(|unit| places.contains_key(&unit.id)), "{name}");
            assert_eq!(places.len(), ask.units.len(), "{name} places a unit that there is not");
            assert!(places.values().all(|tier| *tier != Tier::Device), "{name}: there is none");
            let resident = places.values().filter(|tier| **tier == Tier::Host).count() as u64;
            assert!(resident * UNIT_BYTES <= host, "{name}: {resident} units in {host} bytes");
            assert!(placement.units.iter().all(|placed| !placed.reason.is_empty()), "{name}");
        }
    }
}

#[test]
fn the_layers_that_were_asked_for_are_kept_and_no_others() {
    for (name, policy) in policies() {
        for asked in [1, 4, LAYERS, LAYERS + 5] {
            let ask = ask(policy.as_ref(), u64::MAX, asked);
            let placement = policy.plan(&ask).expect("there is room for everything");
            let host = |unit: &&Unit| {
                let place = placement.units.iter().find(|placed| placed.unit == unit.id);
                place.is_some_and(|placed| placed.tier == Tier::Host)
            };
            let mut units: BTreeMap<LayerIndex, usize> = BTreeMap::new();
            for unit in ask.units.iter().filter(host) {
                if let Some(layer) = unit.layer {
                    *units.entry(layer).or_default() += 1;
                }
            }
            assert_eq!(units.len(), asked.min(LAYERS) as usize, "{name}: {units:?}");
            assert!(
                units.values().all(|count| *count == 2),
                "{name} keeps half a layer: {units:?}"
            );
        }
    }
}

#[test]
fn the_same_question_has_the_same_answer() {
    for (name, policy) in policies() {
        for host in budgets() {
            let ask = ask(policy.as_ref(), host, 3);
            assert_eq!(policy.plan(&ask), policy.plan(&ask), "{name}");
        }
    }
}
