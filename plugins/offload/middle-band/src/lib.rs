//! A band of layers in the middle stays in host memory: n of L layers, from floor((L - n) / 2) on.

use kvern_contract::placement::{order_options, place_by_order};
use kvern_contract::*;

/// The policy.
#[derive(Default)]
pub struct MiddleBand;

/// Which layer is kept first, which next: from the middle outwards.
fn order(layers: u32) -> Vec<u32> {
    let first = |kept: u32| (layers - kept) / 2;
    // A wider band holds the narrower one and one layer more, at its start or at its end.
    let grown = |kept: u32| match first(kept) == first(kept - 1) {
        true => first(kept) + kept - 1,
        false => first(kept),
    };
    (1..=layers).map(|kept| if kept == 1 { first(1) } else { grown(kept) }).collect()
}

impl OffloadPolicy for MiddleBand {
    fn describe(&self) -> OffloadDescription {
        OffloadDescription {
            name: "middle-band".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            options: order_options(),
            observes: false,
        }
    }

    fn plan(&self, ask: &PlanAsk) -> Result<Placement> {
        place_by_order(ask, order)
    }
}

kvern_abi::export_offload_policy!(MiddleBand);

#[cfg(test)]
mod tests {
    use super::*;
    use kvern_testkit::offload::{hold, host_layers};

    fn kept(layers: u32, count: u32) -> Vec<u32> {
        host_layers(&MiddleBand, layers, count, 1 << 20).expect("there is room")
    }

    #[test]
    fn it_keeps_the_contract() {
        hold(|| Box::new(MiddleBand));
    }

    #[test]
    fn the_middle_layers_stay() {
        assert_eq!(kept(24, 4), [10, 11, 12, 13]);
        assert_eq!(kept(8, 3), [2, 3, 4]);
        for layers in 1..30 {
            for count in 1..=layers {
                let first = (layers - count) / 2;
                let band: Vec<u32> = (first..first + count).collect();
                assert_eq!(kept(layers, count), band, "{count} of {layers}");
            }
        }
        assert!(order(0).is_empty());
    }

    #[test]
    fn a_budget_keeps_the_layers_that_a_count_would() {
        for count in 1..=9 {
            let by_budget = host_layers(&MiddleBand, 9, 0, u64::from(count) * 10 + 9);
            assert_eq!(by_budget, Ok(kept(9, count)));
        }
    }
}
