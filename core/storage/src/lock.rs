//! One writer for each root, and what is left of a root when it goes.

use crate::fault::at_path;
use crate::files::make_directories;
use kvern_contract::{Error, ErrorKind, Result};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file that carries the lock, inside the root. Reserved: no plugin may use the name.
pub(crate) const LOCK_NAME: &str = "lock";

/// The right to write a root; given back when dropped, or when the process dies.
#[derive(Debug)]
pub struct RootLock {
    file: File,
    dir: PathBuf,
}
impl RootLock {
    /// Creates `dir` (mode 0700) if it is absent and takes the lock in it, `<dir>/lock`, without
    /// waiting. *Errors* Busy (another process, or another handle of this one, has it), Io,
    /// NotFound, OutOfSpace.
    pub fn take(dir: &Path) -> Result<Self> {
        make_directories("root/lock", dir)?;
        let path = dir.join(LOCK_NAME);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = file.open(&path).map_err(|error| {
            let mut out = at_path("root/lock", &path, &error);
            out.message.push_str("; choose another --cache-dir");
            out
        })?;
        match file.try_lock() {
            Ok(()) => Ok(RootLock { file, dir: dir.to_owned() }),
            Err(TryLockError::WouldBlock) => {
                let text = format!(
                    "{} is in use by another process; wait for it, or choose another --cache-dir",
                    dir.display()
                );
                Err(Error::new(ErrorKind::Busy, "root/lock", text))
            }
            Err(TryLockError::Error(error)) => Err(at_path("root/lock", &path, &error)),
        }
    }
    /// The root.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
impl Drop for RootLock {
    fn drop(&mut self) {
        // Closing the file gives the lock back too; a child that inherited the handle would keep
        // it.
        let _ = self.file.unlock();
    }
}

/// Removes a directory and all in it; one that is not there is fine. Links are removed, not
/// followed. *Errors* Io, and Invalid for a path without a parent.
pub fn remove_tree(dir: &Path) -> Result<()> {
    if dir.parent().is_none() {
        let text = format!("{} will not be removed: it is no root of ours", dir.display());
        return Err(Error::new(ErrorKind::Invalid, "root/remove", text));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| at_path("root/remove", dir, &error)),
    }
}

/// Bytes of the regular files under a directory, links not followed; what cannot be read counts
/// nothing.
pub fn tree_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(facts) if facts.is_dir() => tree_bytes(&entry.path()),
        Ok(facts) if facts.is_file() => facts.len(),
        _ => 0,
    });
    sizes.sum()
}
