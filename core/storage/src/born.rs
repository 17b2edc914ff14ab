//! What a file was when it was opened, so that one that changed under its reader is found out.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Which file it is, how long, and when it was written to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Born {
    file: (u64, u64),
    bytes: u64,
    written: (i64, i64),
}

impl Born {
    pub(crate) fn of(facts: &Metadata) -> Self {
        Born {
            file: (facts.dev(), facts.ino()),
            bytes: facts.len(),
            written: (facts.mtime(), facts.mtime_nsec()),
        }
    }

    /// What became of it since, by what it is `now` and what its name leads to; `None`: nothing.
    pub(crate) fn became(self, now: Born, named: Born) -> Option<String> {
        if named.file != self.file {
            Some("was replaced by another file".into())
        } else if now.bytes != self.bytes {
            Some(format!("went from {} to {} bytes", self.bytes, now.bytes))
        } else if now.written != self.written {
            Some("was written to".into())
        } else {
            None
        }
    }
}
