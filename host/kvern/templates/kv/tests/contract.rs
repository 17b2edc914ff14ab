//! The contract, tried on this strategy: every case of the testkit that its description asks for.

use __LIB__::Strategy;

#[test]
fn it_keeps_the_contract() {
    kvern_testkit::kv::hold(|| Box::new(Strategy));
}
