//! How long a sweep takes, foreseen: units computed one after another, extents read one after
//! another into staging memory that computed units give back.

/// A unit of a sweep.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timed {
    /// Seconds that the device computes on it.
    pub compute: f64,
    /// Bytes of each extent, where it is streamed.
    pub extents: Vec<u64>,
}

/// Sweeps until the ring has found its rhythm, and sweeps that are timed.
const SETTLING: usize = 4;
const TIMED: usize = 4;

/// Seconds of one sweep among many, at `drive` bytes a second, with so many bytes of staging and at
/// most `ahead` units under way beyond the one that is computed.
pub(crate) fn seconds(units: &[Timed], staging: u64, ahead: usize, drive: f64) -> f64 {
    // Of streamed units so far: bytes up to and with each, and when each gave way.
    let (mut ends, mut released): (Vec<u64>, Vec<f64>) = (Vec::new(), Vec::new());
    let (mut now, mut drive_free, mut settled) = (0.0_f64, 0.0_f64, 0.0);
    for sweep in 0..SETTLING + TIMED {
        if sweep == SETTLING {
            settled = now;
        }
        for unit in units {
            let mut end = ends.last().copied().unwrap_or(0);
            for extent in &unit.extents {
                end += extent;
                // The first unit that may still be in memory while this extent is read.
                let crowded = ends.partition_point(|gone| end - gone > staging);
                let first = if end > staging { crowded + 1 } else { 0 };
                let first = first.max(ends.len().saturating_sub(ahead)).min(ends.len());
                let room = first.checked_sub(1).map_or(0.0, |last| released[last]);
                drive_free = drive_free.max(room) + *extent as f64 / drive;
            }
            if !unit.extents.is_empty() {
                now = now.max(drive_free);
            }
            now += unit.compute;
            if !unit.extents.is_empty() {
                ends.push(end);
                released.push(now);
            }
        }
    }
    (now - settled) / TIMED as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streamed(compute: f64, bytes: u64) -> Timed {
        Timed { compute, extents: vec![bytes] }
    }

    #[track_caller]
    fn near(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-9, "{got}, expected {want}");
    }

    #[test]
    fn reading_and_computing_overlap_where_staging_has_room_for_two() {
        let slow_drive = vec![streamed(0.5, 10); 6];
        near(seconds(&slow_drive, 20, 1, 10.0), 6.0);
        let slow_device = vec![streamed(2.0, 10); 6];
        near(seconds(&slow_device, 20, 1, 10.0), 12.0);
    }

    #[test]
    fn with_room_for_one_unit_nothing_overlaps() {
        near(seconds(&vec![streamed(0.5, 10); 6], 10, 1, 10.0), 9.0);
        near(seconds(&vec![streamed(0.5, 10); 6], 20, 0, 10.0), 9.0);
    }

    #[test]
    fn a_stretch_that_stays_stops_the_drive_once_staging_is_full() {
        let stays = Timed { compute: 5.0, extents: Vec::new() };
        let mut units = vec![streamed(0.1, 10); 4];
        units.push(stays.clone());
        // Two units arrive while the stretch is computed, two seconds of five; after it the ring
        // ends with what it has to read alone.
        let banded = seconds(&units, 20, 3, 10.0);
        assert!(banded > 5.0 + 2.0 && banded < 5.0 + 3.0, "{banded}");
        let part = Timed { compute: 1.25, extents: Vec::new() };
        let spread: Vec<Timed> = (0..4).flat_map(|_| [streamed(0.1, 10), part.clone()]).collect();
        near(seconds(&spread, 20, 3, 10.0), 5.4);
    }

    #[test]
    fn a_large_units_parts_arrive_as_room_for_them_comes() {
        let small = streamed(0.1, 10);
        let large = Timed { compute: 3.0, extents: vec![10, 10, 10] };
        let units = [small.clone(), large.clone(), small, large];
        // Beside the large one there is room for the small one and a part.
        let seconds = seconds(&units, 50, 2, 10.0);
        assert!(seconds > 8.0 && seconds < 10.3, "{seconds}");
    }

    #[test]
    fn everything_in_memory_is_computing_alone() {
        let units = vec![Timed { compute: 0.25, extents: Vec::new() }; 8];
        near(seconds(&units, 0, 0, 1.0), 2.0);
    }
}
