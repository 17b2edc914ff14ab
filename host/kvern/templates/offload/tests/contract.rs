//! The contract, tried on this policy: every case of the testkit.

use __LIB__::Policy;
use kvern_testkit::offload::{hold, host_layers};

#[test]
fn it_keeps_the_contract() {
    hold(|| Box::new(Policy));
}

#[test]
fn every_second_layer_stays() {
    assert_eq!(host_layers(&Policy, 8, 4, 1 << 20), Ok(vec![0, 2, 4, 6]));
}
