//! A directory that appears whole or not at all: written beside its place, checked, then renamed
//! there.

use crate::error::{invalid, io};
use kvern_contract::Result;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A directory in the making. Dropped before [`Staged::publish`], it is removed.
pub(crate) struct Staged {
    operation: &'static str,
    temporary: PathBuf,
    target: PathBuf,
}

impl Staged {
    /// Starts a directory that will be `target`, which must not exist or be empty.
    pub fn begin(operation: &'static str, target: &Path) -> Result<Staged> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let failed = |e: std::io::Error| io(operation, target, &e);
        let target = std::path::absolute(target).map_err(failed)?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            let message = format!("{} names no directory that could be made", target.display());
            return Err(invalid(operation, message));
        };
        match fs::read_dir(&target).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) => {
                let message =
                    format!("{} exists and is not empty; choose another place", target.display());
                return Err(invalid(operation, message));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        fs::create_dir_all(parent).map_err(failed)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut part = std::ffi::OsString::from(".");
        part.push(name);
        part.push(format!(".part-{}-{number}", std::process::id()));
        let temporary = parent.join(part);
        fs::create_dir(&temporary).map_err(|e| io(operation, &temporary, &e))?;
        Ok(Staged { operation, temporary, target })
    }

    /// Where to write for now.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Writes a small file, synced.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.temporary.join(name);
        let written = fs::write(&path, bytes).and_then(|()| File::open(&path)?.sync_all());
        written.map_err(|e| io(self.operation, &path, &e))
    }

    /// Moves the directory to its place; its files are synced by whoever wrote them.
    pub fn publish(self) -> Result<PathBuf> {
        let sync = |path: &Path| File::open(path)?.sync_all();
        let moved = sync(&self.temporary)
            .and_then(|()| fs::rename(&self.temporary, &self.target))
            .and_then(|()| self.target.parent().map_or(Ok(()), sync));
        moved.map_err(|e| io(self.operation, &self.target, &e))?;
        Ok(self.target.clone())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a publish there is nothing of that name; a failure here leaves a name that starts
        // with a dot.
        let _ = fs::remove_dir_all(&self.temporary);
    }
}
