//! The contract, tried on this device: every op that it runs against a scalar reference, and
//! everything around them.

use __LIB__::Device;

#[test]
fn it_keeps_the_contract() {
    kvern_testkit::device::hold(|| Box::new(Device::default()));
}
