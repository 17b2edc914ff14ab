//! How many long reads through the page cache may be under way at once. Each has the kernel read
//! ahead of it, into memory that a limit may not have: what is asked for too early is dropped
//! before it is fetched, and read again.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// Most bytes that the kernel reads ahead of all of them together.
const AHEAD_BYTES: u64 = 8 << 20;
/// What kernels read ahead of a file unless they are told otherwise.
const USUAL_KIB: u64 = 128;

/// For a file with these facts: at least one, and fewer the further its drive is read ahead of.
pub(crate) fn at_once(facts: &fs::Metadata) -> usize {
    let device = facts.dev();
    let name = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let places = [
        format!("/sys/class/bdi/{name}/read_ahead_kb"),
        // A part of a drive is read ahead of as the whole is.
        format!("/sys/dev/block/{name}/../queue/read_ahead_kb"),
    ];
    let read = |path: &String| fs::read_to_string(path).ok()?.trim().parse().ok();
    of(places.iter().find_map(read).unwrap_or(USUAL_KIB))
}

fn of(read_ahead_kib: u64) -> usize {
    (AHEAD_BYTES / (read_ahead_kib << 10).max(1)).clamp(1, 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_further_a_drive_is_read_ahead_of_the_fewer_reads_are_under_way() {
        assert_eq!([of(0), of(128), of(1024), of(8192), of(1 << 20)], [64, 64, 8, 1, 1]);
        let facts = fs::metadata("/proc/self/exe").unwrap();
        assert!((1..=64).contains(&at_once(&facts)));
    }
}
