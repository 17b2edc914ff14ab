//! Memory and processor of this process during a stage, sampled every 10 ms by a thread of its own.

use kvern_report::Resources;
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, park_timeout};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(10);
const MIB: f64 = (1 << 20) as f64;

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    peak_bytes: AtomicU64,
}

/// A stage that is under way.
pub struct Meter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    started: Instant,
    cpu: Duration,
}

/// Resident bytes now.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages = statm.split_whitespace().nth(1)?.parse::<u64>().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Processor time of all threads so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

impl Meter {
    /// Begins a stage.
    pub fn start() -> Meter {
        let shared = Arc::new(Shared::default());
        shared.peak_bytes.store(resident_bytes().unwrap_or(0), Ordering::Relaxed);
        let seen = Arc::clone(&shared);
        let sample = move || {
            while !seen.stop.load(Ordering::Relaxed) {
                park_timeout(INTERVAL);
                seen.peak_bytes.fetch_max(resident_bytes().unwrap_or(0), Ordering::Relaxed);
            }
        };
        let thread = std::thread::Builder::new().name("kvern-meter".into()).spawn(sample).ok();
        Meter { shared, thread, started: Instant::now(), cpu: cpu_time() }
    }

    /// Ends the stage. Accelerator fields are the caller's to fill in.
    pub fn finish(mut self) -> Resources {
        let (wall, cpu) = (self.started.elapsed(), cpu_time().saturating_sub(self.cpu));
        let current = resident_bytes();
        let sampled = self.thread.is_some();
        self.end();
        let peak = self.shared.peak_bytes.load(Ordering::Relaxed).max(current.unwrap_or(0));
        let mut out = Resources {
            current_rss_mb: current.map(|b| b as f64 / MIB),
            peak_rss_mb: (sampled && peak > 0).then_some(peak as f64 / MIB),
            peak_rss_source: (sampled && peak > 0).then(|| "sampled".into()),
            process_cpu_utilization_percent: (wall > Duration::ZERO)
                .then(|| 100.0 * cpu.as_secs_f64() / wall.as_secs_f64()),
            ..Resources::default()
        };
        let mut reason = |key: &str, missing: bool, why: &str| {
            if missing {
                out.null_reasons.insert(key.into(), why.into());
            }
        };
        let statm = "/proc/self/statm could not be read";
        reason("current_rss_mb", out.current_rss_mb.is_none(), statm);
        reason("peak_rss_mb", out.peak_rss_mb.is_none(), "no sample was taken");
        reason("peak_rss_source", out.peak_rss_source.is_none(), "no sample was taken");
        let quick = "the stage took no measurable time";
        reason(
            "process_cpu_utilization_percent",
            out.process_cpu_utilization_percent.is_none(),
            quick,
        );
        out
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread has nothing to say.
            let _ = thread.join();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_sees_memory_that_was_given_back_before_its_end() {
        let before = resident_bytes().unwrap() as f64 / MIB;
        let meter = Meter::start();
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        std::thread::sleep(INTERVAL * 5);
        drop(block);
        let seen = meter.finish();
        assert_eq!(seen.peak_rss_source.as_deref(), Some("sampled"));
        assert!(seen.peak_rss_mb.unwrap() > before + 60.0, "{seen:?} {before}");
        assert!(seen.null_reasons.is_empty());
    }
}
