//! The suite of offload plugins.

use crate::{Case, Subject};
use kvern_contract::OffloadPolicy;

/// Every case, in the order in which they run.
pub fn cases() -> Vec<Case<dyn OffloadPolicy>> {
    Vec::new()
}

/// Runs every case on what `make` makes, for a plugin's own test.
///
/// # Panics
/// Where a promise is broken.
pub fn hold(make: impl Fn() -> Box<dyn OffloadPolicy>) {
    crate::hold(&cases(), &Subject::new(&|| Ok(make())));
}
