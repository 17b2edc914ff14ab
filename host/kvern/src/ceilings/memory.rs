//! Plain reading of memory: all threads sum over more bytes than a cache holds.

use super::MemoryCeiling;
use jiff::Timestamp;
use std::time::Instant;

/// What the largest cache is taken for where the kernel does not say.
const CACHE_UNKNOWN: u64 = 32 << 20;
/// Passes that are timed.
const PASSES: usize = 9;

/// Bytes of the largest cache of the first core.
pub fn cache_bytes() -> u64 {
    let indices = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").into_iter().flatten();
    let sizes = indices.flatten().filter_map(|index| {
        std::fs::read_to_string(index.path().join("size")).ok().and_then(|text| bytes_of(&text))
    });
    sizes.max().filter(|bytes| *bytes > 0).unwrap_or(CACHE_UNKNOWN)
}

/// As the kernel writes it: `32768K`.
fn bytes_of(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, unit) = match text.strip_suffix('K') {
        Some(number) => (number, 1 << 10),
        None => text.strip_suffix('M').map_or((text, 1), |number| (number, 1 << 20)),
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// Measures with so many threads over so many bytes.
pub fn measure(threads: u32, bytes: u64) -> MemoryCeiling {
    let threads = threads.max(1);
    let values = vec![1_u64; (bytes / 8).max(u64::from(threads)) as usize];
    let part = values.len().div_ceil(threads as usize);
    let mut rates: Vec<f64> = (0..PASSES).map(|_| pass(&values, part)).collect();
    rates.sort_by(f64::total_cmp);
    let (best, median) = (rates[PASSES - 1], rates[PASSES / 2]);
    let buffer_bytes = 8 * values.len() as u64;
    MemoryCeiling { threads, buffer_bytes, best, median, measured_at: Timestamp::now().to_string() }
}

/// Bytes a second of one pass, each part on a thread of its own.
fn pass(values: &[u64], part: usize) -> f64 {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for part in values.chunks(part) {
            let sum = move || part.iter().fold(0_u64, |sum, value| sum.wrapping_add(*value));
            scope.spawn(move || std::hint::black_box(sum()));
        }
    });
    8.0 * values.len() as f64 / began.elapsed().as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_kernel_writes_them() {
        assert_eq!(bytes_of("32768K\n"), Some(32 << 20));
        assert_eq!(bytes_of("8M"), Some(8 << 20));
        assert_eq!((bytes_of("512"), bytes_of("x"), bytes_of("")), (Some(512), None, None));
        assert!(cache_bytes() > 0);
    }

    #[test]
    fn reading_has_a_rate() {
        let found = measure(2, 1 << 20);
        assert_eq!((found.threads, found.buffer_bytes), (2, 1 << 20));
        assert!(found.best.is_finite() && found.best >= found.median && found.median > 0.0);
    }
}
