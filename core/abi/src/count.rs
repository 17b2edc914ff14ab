//! How often the border was crossed, for the figure that says what it costs.

use std::sync::atomic::{AtomicU64, Ordering};

static CROSSINGS: AtomicU64 = AtomicU64::new(0);

/// Calls that crossed the border since the process started, in both directions: the host's calls
/// into plugins and plugins' calls into the host. A statistic: relaxed, never wrong by more than
/// what is in flight.
pub fn crossings() -> u64 {
    CROSSINGS.load(Ordering::Relaxed)
}

/// One more. Of the two images that hold this counter only the host's is ever read.
#[inline]
pub(crate) fn tick() {
    CROSSINGS.fetch_add(1, Ordering::Relaxed);
}
