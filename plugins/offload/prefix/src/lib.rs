//! The first layers stay in host memory: a sweep starts with what is there while the rest begins to
//! arrive.

use kvern_contract::placement::{order_options, place_by_order};
use kvern_contract::*;

/// The policy.
#[derive(Default)]
pub struct Prefix;

/// Which layer is kept first, which next: from the first on.
fn order(layers: u32) -> Vec<u32> {
    (0..layers).collect()
}

impl OffloadPolicy for Prefix {
    fn describe(&self) -> OffloadDescription {
        OffloadDescription {
            name: "prefix".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            options: order_options(),
            observes: false,
        }
    }

    fn plan(&self, ask: &PlanAsk) -> Result<Placement> {
        place_by_order(ask, order)
    }
}

kvern_abi::export_offload_policy!(Prefix);

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(layers: u32, host_layers: u32, budget_bytes: u64) -> PlanAsk {
        let unit = |layer| Unit {
            id: UnitId(layer),
            layer: Some(LayerIndex(layer)),
            role: Role::Mlp,
            expert: None,
            bytes: 10,
            encoding: WeightEncoding::Bf16,
            access: Access::Sweep,
            flops_per_row: 1,
        };
        let host = TierFacts { tier: Tier::Host, budget_bytes, read_bytes_per_second: None };
        PlanAsk {
            units: (0..layers).map(unit).collect(),
            layers,
            tiers: vec![host],
            flops_per_second: None,
            rows_per_sweep: 1,
            experts_per_row: 0,
            host_layers,
            device_layers: 0,
            options: Prefix.describe().options,
            observed: Vec::new(),
        }
    }

    fn host_layers(ask: &PlanAsk) -> Vec<u32> {
        let placed = Prefix.plan(ask).unwrap().units;
        placed.iter().filter(|p| p.tier == Tier::Host).map(|p| p.unit.0).collect()
    }

    fn kept(layers: u32, count: u32) -> Vec<u32> {
        host_layers(&ask(layers, count, 1 << 20))
    }

    #[test]
    fn the_first_layers_stay() {
        assert_eq!(order(4), [0, 1, 2, 3]);
        assert_eq!(kept(24, 4), [0, 1, 2, 3]);
        assert_eq!(kept(3, 8), [0, 1, 2]);
    }

    #[test]
    fn a_budget_keeps_the_layers_that_a_count_would() {
        for count in 1..=9 {
            let by_budget = host_layers(&ask(9, 0, u64::from(count) * 10 + 9));
            assert_eq!(by_budget, kept(9, count));
        }
    }
}
