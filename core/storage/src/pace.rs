//! A limit on the rate at which reads start.

use crate::meter::lock;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lets so many bytes a second begin; without a limit, all.
#[derive(Default)]
pub(crate) struct Pace {
    bytes_per_second: Option<u64>,
    /// When the bytes that were let through are paid for.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Pace { bytes_per_second: bytes_per_second.map(|rate| rate.max(1)), ..Pace::default() }
    }
    /// Waits until `bytes` more may begin.
    pub(crate) fn wait(&self, bytes: u64) {
        let pause = self.pause(bytes, Instant::now());
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    /// How long to wait from `now` on before `bytes` more begin; they count as begun then.
    fn pause(&self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let mut free_at = lock(&self.free_at);
        let begins = free_at.map_or(now, |at| at.max(now));
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        // A wait too long for a clock is as good as none at all: the next one begins now.
        *free_at = begins.checked_add(cost);
        begins.duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_begin_once_those_before_them_are_paid_for() {
        let pace = Pace::new(Some(1000));
        let now = Instant::now();
        assert_eq!(pace.pause(500, now), Duration::ZERO);
        assert_eq!(pace.pause(250, now), Duration::from_millis(500));
        assert_eq!(pace.pause(1, now), Duration::from_millis(750));
        let later = now + Duration::from_secs(5);
        assert_eq!(pace.pause(1000, later), Duration::ZERO, "idle time is not saved up");
        assert_eq!(pace.pause(1, later), Duration::from_secs(1));
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let pace = Pace::new(None);
        assert_eq!(pace.pause(u64::MAX, Instant::now()), Duration::ZERO);
    }
}
