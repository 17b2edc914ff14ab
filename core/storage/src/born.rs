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

#[cfg(test)]
mod tests {
    use crate::files::OpenFile;
    use crate::service::OpenHow;
    use std::fs;
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    #[test]
    fn a_file_is_not_what_it_was_once_it_is_replaced_cut_or_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let to_write = |path: &Path| fs::OpenOptions::new().write(true).open(path).unwrap();
        let said = |change: &dyn Fn()| {
            fs::write(&path, [1; 900]).unwrap();
            let file = OpenFile::open(&path, OpenHow::Read).unwrap();
            file.unchanged().unwrap();
            change();
            file.unchanged().unwrap_err().message
        };
        let replaced = said(&|| {
            fs::write(dir.path().join("new"), [1; 900]).unwrap();
            fs::rename(dir.path().join("new"), &path).unwrap();
        });
        assert!(replaced.contains("was replaced by another file"), "{replaced}");
        let cut = said(&|| to_write(&path).set_len(400).unwrap());
        assert!(cut.contains("went from 900 to 400 bytes"), "{cut}");
        let later = SystemTime::now() + Duration::from_secs(5);
        let written = said(&|| to_write(&path).set_modified(later).unwrap());
        assert!(written.contains("was written to"), "{written}");
    }
}
