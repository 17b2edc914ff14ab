//! Offload policies that break a promise.

use super::{Mutant, all_turn_red};
use crate::shipped::of;
use crate::suite::{as_offload, opened};
use kvern_abi::PluginKind;
use kvern_contract::OffloadPolicy;
use kvern_testkit::offload::cases;

fn mutants() -> Vec<Mutant<dyn OffloadPolicy>> {
    Vec::new()
}

#[test]
fn every_promise_of_an_offload_policy_is_tried() {
    let shipped = of(PluginKind::Offload).remove(0);
    all_turn_red(&cases(), &mutants(), &|| opened(&shipped, as_offload));
}
