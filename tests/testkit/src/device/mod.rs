//! The suite of device plugins: every op against a scalar reference, and what holds around them.
//!
//! The suite needs memory that it shares with the device: what the device imports, or staging from
//! and to which it copies. Of `spec` it tries the budget and the rows. Threads it does not count:
//! a process under test has others, and which of them are a device's nothing says.

mod bench;
mod cases;
mod desk;
mod host;
pub mod memory;
mod reference;
mod samples;
mod scalar;

pub use scalar::ScalarDevice;

use crate::{Case, Subject};
use kvern_contract::DeviceBackend;

/// Every case, in the order in which they run.
pub fn cases() -> Vec<Case<dyn DeviceBackend>> {
    cases::all()
}

/// Runs every case on what `make` makes, for a plugin's own test.
///
/// # Panics
/// Where a promise is broken.
pub fn hold(make: impl Fn() -> Box<dyn DeviceBackend>) {
    crate::hold(&cases(), &Subject::new(&|| Ok(make())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Outcome;

    #[test]
    fn the_scalar_device_keeps_every_case_and_skips_none() {
        let subject: Subject<'_, dyn DeviceBackend> =
            Subject::new(&|| Ok(Box::new(ScalarDevice::default())));
        for ran in crate::sweep(&cases(), &subject) {
            assert_eq!(ran.outcome, Outcome::Kept, "{}", ran.name);
        }
    }
}
