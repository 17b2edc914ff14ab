//! How weights are read: through the page cache where it can keep them, round it where it cannot.

use crate::cli::ReadPath;
use crate::out::size;
use kvern_engine::WeightPath;

/// What the choice depends on, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Weight files on a file system; 0 where all are in this process already.
    pub files: u64,
    /// The memory budget; `None`: none.
    pub budget: Option<u64>,
    /// Memory that can be had, of the machine and of this process's cgroups; `None` where nobody
    /// says.
    pub free: Option<u64>,
}

/// How weights are read, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reading {
    /// Through the page cache or round it.
    pub how: WeightPath,
    /// Why, in a line.
    pub reason: String,
}

impl Reading {
    /// `direct` or `buffered`.
    pub fn word(&self) -> &'static str {
        if self.how == WeightPath::Direct { "direct" } else { "buffered" }
    }

    /// Chooses. Reads go through the page cache when it can hold all files beside what this process
    /// takes: then only the first sweep waits for the drive.
    pub fn choose(asked: ReadPath, sizes: &Sizes) -> Reading {
        let reading = |how, reason: String| Reading { how, reason };
        if sizes.files == 0 {
            return reading(WeightPath::Cached, "the weights are part of this program".into());
        }
        if asked == ReadPath::Direct {
            return reading(WeightPath::Direct, "asked for".into());
        }
        let Some(free) = sizes.free else {
            return match asked {
                ReadPath::Buffered => reading(WeightPath::Cached, "asked for".into()),
                _ => reading(WeightPath::Direct, "free memory cannot be measured".into()),
            };
        };
        // Without a budget all weights come into memory once.
        let taken = sizes.budget.map_or(sizes.files, |budget| budget.min(sizes.files));
        let left = free.saturating_sub(taken);
        let fits = sizes.files <= left;
        let facts = format!(
            "weights of {}, and {} of {} free memory left beside the {} that this run takes",
            size(sizes.files),
            size(left),
            size(free),
            size(taken)
        );
        match (asked, fits) {
            (ReadPath::Buffered, true) => reading(WeightPath::Cached, "asked for".into()),
            (ReadPath::Buffered, false) => reading(
                WeightPath::Passing,
                format!("asked for, though the page cache cannot hold the {facts}"),
            ),
            (_, true) => {
                reading(WeightPath::Cached, format!("the page cache can hold the {facts}"))
            }
            (_, false) => {
                reading(WeightPath::Direct, format!("the page cache cannot hold the {facts}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn choose(files: u64, budget: Option<u64>, free: Option<u64>) -> Reading {
        Reading::choose(ReadPath::Auto, &Sizes { files, budget, free })
    }

    #[test]
    fn files_that_the_page_cache_can_hold_beside_the_budget_are_read_through_it() {
        assert_eq!(
            choose(6 * GIB, Some(2 * GIB), Some(8 * GIB)).how,
            WeightPath::Cached,
            "to the byte"
        );
        assert_eq!(choose(6 * GIB, Some(2 * GIB), Some(8 * GIB - 1)).how, WeightPath::Direct);
        let told = choose(6 * GIB, Some(2 * GIB), Some(7 * GIB));
        assert_eq!(told.word(), "direct");
        assert!(told.reason.contains("6.0 GiB, and 5.0 GiB of 7.0 GiB"), "{}", told.reason);
    }

    #[test]
    fn a_run_takes_no_more_than_the_weights_whatever_its_budget() {
        assert_eq!(choose(3 * GIB, Some(u64::MAX), Some(6 * GIB)).how, WeightPath::Cached);
        assert_eq!(choose(3 * GIB, None, Some(6 * GIB)).how, WeightPath::Cached);
        assert_eq!(choose(3 * GIB, None, Some(5 * GIB)).how, WeightPath::Direct);
    }

    #[test]
    fn what_was_asked_for_is_done_and_what_nobody_measured_is_not_assumed() {
        let sizes = Sizes { files: 1, budget: None, free: Some(GIB) };
        assert_eq!(Reading::choose(ReadPath::Direct, &sizes).how, WeightPath::Direct);
        let sizes = Sizes { files: 9 * GIB, budget: None, free: Some(GIB) };
        let kept = Reading::choose(ReadPath::Buffered, &sizes);
        assert_eq!((kept.how, kept.word()), (WeightPath::Passing, "buffered"));
        assert!(kept.reason.contains("cannot hold"), "{}", kept.reason);
        let sizes = Sizes { free: Some(99 * GIB), ..sizes };
        assert_eq!(Reading::choose(ReadPath::Buffered, &sizes).how, WeightPath::Cached);
        assert_eq!(choose(1, None, None).how, WeightPath::Direct);
        assert_eq!(
            choose(0, None, None).how,
            WeightPath::Cached,
            "weights in the program are not read from files"
        );
    }
}
