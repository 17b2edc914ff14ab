//! The last layers stay in host memory: they are there when the sweep reaches them, and the next
//! sweep starts to read while they compute.

use kvern_contract::placement::{order_options, place_by_order};
use kvern_contract::*;

/// The policy.
#[derive(Default)]
pub struct Suffix;

/// Which layer is kept first, which next: from the last on.
fn order(layers: u32) -> Vec<u32> {
    (0..layers).rev().collect()
}

impl OffloadPolicy for Suffix {
    fn describe(&self) -> OffloadDescription {
        OffloadDescription {
            name: "suffix".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            options: order_options(),
            observes: false,
        }
    }

    fn plan(&self, ask: &PlanAsk) -> Result<Placement> {
        place_by_order(ask, order)
    }
}

kvern_abi::export_offload_policy!(Suffix);

#[cfg(test)]
mod tests {
    use super::*;
    use kvern_testkit::offload::{hold, host_layers};

    fn kept(layers: u32, count: u32) -> Vec<u32> {
        host_layers(&Suffix, layers, count, 1 << 20).expect("there is room")
    }

    #[test]
    fn it_keeps_the_contract() {
        hold(|| Box::new(Suffix));
    }

    #[test]
    fn the_last_layers_stay() {
        assert_eq!(order(4), [3, 2, 1, 0]);
        assert_eq!(kept(24, 4), [20, 21, 22, 23]);
        assert_eq!(kept(3, 8), [0, 1, 2]);
    }

    #[test]
    fn a_budget_keeps_the_layers_that_a_count_would() {
        for count in 1..=9 {
            let by_budget = host_layers(&Suffix, 9, 0, u64::from(count) * 10 + 9);
            assert_eq!(by_budget, Ok(kept(9, count)));
        }
    }
}
