//! A limit on the rate at which reads start.

use crate::meter::lock;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lets so many bytes a second begin; without a limit, all.
#[derive(Default)]
pub(crate) struct Pace {
    bytes_per_second: Option<u64>,
    /// When the bytes that have begun are paid for.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Pace { bytes_per_second: bytes_per_second.map(|rate| rate.max(1)), ..Pace::default() }
    }
    /// How long more bytes should wait from `now` on.
    pub(crate) fn pause(&self, now: Instant) -> Duration {
        lock(&self.free_at).map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }
    /// So many bytes begin, whether they have waited or not.
    pub(crate) fn begin(&self, bytes: u64, now: Instant) {
        let Some(rate) = self.bytes_per_second else { return };
        let mut free_at = lock(&self.free_at);
        let begins = free_at.map_or(now, |at| at.max(now));
        // A wait too long for a clock is as good as none at all.
        *free_at = begins.checked_add(Duration::from_secs_f64(bytes as f64 / rate as f64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_until_those_before_them_are_paid_for() {
        let (pace, now) = (Pace::new(Some(1000)), Instant::now());
        assert_eq!(pace.pause(now), Duration::ZERO);
        pace.begin(500, now);
        assert_eq!(pace.pause(now), Duration::from_millis(500));
        pace.begin(250, now);
        assert_eq!(pace.pause(now), Duration::from_millis(750), "what does not wait counts too");
        let later = now + Duration::from_secs(5);
        pace.begin(1000, later);
        assert_eq!(pace.pause(later), Duration::from_secs(1), "idle time is not saved up");
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let (pace, now) = (Pace::new(None), Instant::now());
        pace.begin(u64::MAX, now);
        assert_eq!(pace.pause(now), Duration::ZERO);
    }
}
