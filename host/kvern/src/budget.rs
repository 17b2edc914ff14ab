//! The memory budget of a run: what was asked for, else what the cgroups of this process leave.

use crate::out::size;

/// What a process takes beside its budget, in bytes: the code of host and plugins, the tokenizer,
/// stacks, what the allocator keeps, and the page tables and socket buffers that a cgroup counts.
pub const ALLOWANCE: u64 = 64 << 20;

/// Who said how much memory a run may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BudgetFrom {
    /// `--memory-budget` or `KVERN_MEMORY_BUDGET`.
    Flag,
    /// A profile manifest or `kvern.toml`.
    File,
    /// The limit of a cgroup, less [`ALLOWANCE`].
    Cgroup,
    /// Nobody: there is no budget.
    Nobody,
}

impl BudgetFrom {
    /// As reports spell it.
    pub fn word(self) -> &'static str {
        match self {
            BudgetFrom::Flag => "flag",
            BudgetFrom::File => "file",
            BudgetFrom::Cgroup => "cgroup",
            BudgetFrom::Nobody => "none",
        }
    }
}

/// How much memory a run may take, and who said so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryBudget {
    /// Bytes; `None`: no budget.
    pub bytes: Option<u64>,
    /// Who said so.
    pub from: BudgetFrom,
    /// The cgroup limit in bytes, where it is below what the machine has.
    pub limit: Option<u64>,
}

impl MemoryBudget {
    /// The flag's budget, else the file's, else what a cgroup limit below `physical` leaves.
    pub fn of(
        flag: Option<u64>,
        file: Option<u64>,
        limit: Option<u64>,
        physical: Option<u64>,
    ) -> MemoryBudget {
        let limit = limit.filter(|limit| physical.is_none_or(|physical| *limit < physical));
        let (bytes, from) = match (flag, file, limit) {
            (Some(bytes), ..) => (Some(bytes), BudgetFrom::Flag),
            (None, Some(bytes), _) => (Some(bytes), BudgetFrom::File),
            (None, None, Some(limit)) => {
                (Some(limit.saturating_sub(ALLOWANCE)), BudgetFrom::Cgroup)
            }
            (None, None, None) => (None, BudgetFrom::Nobody),
        };
        MemoryBudget { bytes, from, limit }
    }

    /// A line about it and its level, where there is something to tell.
    pub fn line(&self) -> Option<(u32, String)> {
        let (bytes, limit) = (self.bytes?, self.limit?);
        let told = |bytes: u64| format!("{bytes} bytes ({})", size(bytes));
        match self.from {
            BudgetFrom::Cgroup => Some((
                3,
                format!(
                    "the memory budget is {}: the cgroup's limit of {} less {}",
                    told(bytes),
                    told(limit),
                    size(ALLOWANCE)
                ),
            )),
            _ if bytes.saturating_add(ALLOWANCE) > limit => Some((
                2,
                format!(
                    "a memory budget of {} and {} beside it are more than the cgroup's limit of \
                     {}: the kernel may end this process; lower --memory-budget, or leave it out",
                    told(bytes),
                    size(ALLOWANCE),
                    told(limit)
                ),
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_was_asked_for_wins_over_a_limit_and_a_limit_over_nothing() {
        let of = |flag, file| MemoryBudget::of(flag, file, Some(2 * GIB), Some(16 * GIB));
        assert_eq!(
            (of(Some(1), Some(2)).bytes, of(Some(1), Some(2)).from.word()),
            (Some(1), "flag")
        );
        assert_eq!((of(None, Some(2)).bytes, of(None, Some(2)).from.word()), (Some(2), "file"));
        let limited = of(None, None);
        assert_eq!((limited.bytes, limited.from.word()), (Some(2 * GIB - ALLOWANCE), "cgroup"));
        let (level, line) = limited.line().unwrap();
        assert!(level == 3 && line.contains("2.0 GiB") && line.contains("64.0 MiB"), "{line}");
    }

    #[test]
    fn a_limit_of_more_than_the_machine_has_is_none() {
        let found = MemoryBudget::of(None, None, Some(16 * GIB), Some(16 * GIB));
        assert_eq!((found.bytes, found.from.word(), found.line()), (None, "none", None));
        assert_eq!(MemoryBudget::of(None, None, None, Some(GIB)).bytes, None);
        // A limit below the allowance leaves nothing, which a load refuses with what it needs.
        assert_eq!(MemoryBudget::of(None, None, Some(1), Some(GIB)).bytes, Some(0));
    }

    #[test]
    fn a_budget_above_the_limit_is_warned_of() {
        let line =
            |bytes| MemoryBudget::of(Some(bytes), None, Some(2 * GIB), Some(16 * GIB)).line();
        assert_eq!(line(2 * GIB - ALLOWANCE), None);
        let (level, told) = line(2 * GIB - ALLOWANCE + 1).unwrap();
        assert!(level == 2 && told.contains("--memory-budget"), "{told}");
    }
}
