//! `__NAME__`: every second layer stays in memory, so that while one computes from there, the next
//! arrives from the drive.

use kvern_abi::contract::placement::{order_options, place_by_order};
use kvern_abi::contract::*;

#[derive(Default)]
pub struct Policy;

/// Which layer is kept first, which next: the even ones, then the odd ones.
fn order(layers: u32) -> Vec<u32> {
    (0..layers).step_by(2).chain((1..layers).step_by(2)).collect()
}

impl OffloadPolicy for Policy {
    fn describe(&self) -> OffloadDescription {
        OffloadDescription {
            name: "__NAME__".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            options: order_options(),
            observes: false,
        }
    }

    fn plan(&self, ask: &PlanAsk) -> Result<Placement> {
        place_by_order(ask, order)
    }
}

kvern_abi::export_offload_policy!(Policy);
