//! Outputs that lie over the tables that steer them.
//!
//! A table is checked once, before the task runs, and read again at use: whatever wrote over it in
//! between would send the kernel anywhere. What else overlaps costs numbers, not memory.

use kvern_contract::ErrorKind;

/// A range of addresses. An empty one meets none.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    from: usize,
    to: usize,
}

impl Range {
    /// So many bytes from an address.
    pub fn of<T>(at: *const T, bytes: usize) -> Range {
        let from = at as usize;
        Range { from, to: from.saturating_add(bytes) }
    }

    fn meets(&self, other: &Range) -> bool {
        self.from.max(other.from) < self.to.min(other.to)
    }
}

/// Refuses to write over a table. *Errors* Invalid.
pub(crate) fn apart(written: Range, tables: &[Range]) -> Result<(), ErrorKind> {
    match tables.iter().any(|table| written.meets(table)) {
        true => Err(ErrorKind::Invalid),
        false => Ok(()),
    }
}
