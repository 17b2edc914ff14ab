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
    use kvern_testkit::offload::{hold, host_layers};

    fn kept(layers: u32, count: u32) -> Vec<u32> {
        host_layers(&Prefix, layers, count, 1 << 20).expect("there is room")
    }

    #[test]
    fn it_keeps_the_contract() {
        hold(|| Box::new(Prefix));
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
            let by_budget = host_layers(&Prefix, 9, 0, u64::from(count) * 10 + 9);
            assert_eq!(by_budget, Ok(kept(9, count)));
        }
    }
}
