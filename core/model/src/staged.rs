//! A directory that appears whole or not at all: written beside its place, checked, then renamed
//! there. Its process holds a lock on it; one whose process was killed is removed by the next that
//! makes a directory of that name.

use crate::error::{invalid, io};
use kvern_contract::Result;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A directory in the making. Dropped before [`Staged::publish`], it is removed.
pub(crate) struct Staged {
    operation: &'static str,
    temporary: PathBuf,
    target: PathBuf,
    /// Locked as long as it is open, where the file system has locks.
    _lock: File,
}

impl Staged {
    /// Starts a directory that will be `target`, which must not exist or be empty.
    pub fn begin(operation: &'static str, target: &Path) -> Result<Staged> {
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
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".part-");
        sweep(parent, &prefix);
        let (temporary, lock) = make(operation, parent, &prefix)?;
        Ok(Staged { operation, temporary, target, _lock: lock })
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

/// A new directory in `parent`, `prefix` and two numbers, and its lock.
fn make(operation: &'static str, parent: &Path, prefix: &OsStr) -> Result<(PathBuf, File)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let mut name = prefix.to_owned();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        name.push(format!("{}-{number}", std::process::id()));
        let path = parent.join(name);
        match fs::create_dir(&path) {
            // Of a process of the same number elsewhere, or before.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
            made => made.map_err(|e| io(operation, &path, &e))?,
        }
        // Another process may sweep it before it is locked. Without locks nobody sweeps.
        let Ok(lock) = File::open(&path) else { continue };
        if !matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)) && path.exists() {
            return Ok((path, lock));
        }
    }
}

/// Removes what killed processes left in `parent`: directories named `prefix`, a number, `-` and a
/// number, that nobody has locked. One that cannot be removed stays, and is in nobody's way.
fn sweep(parent: &Path, prefix: &OsStr) {
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let is_ours = |name: &OsStr| {
        let rest = name.as_bytes().strip_prefix(prefix.as_bytes());
        let mut parts = rest.unwrap_or_default().split(|&byte| byte == b'-');
        let two = [parts.next(), parts.next()];
        two.iter().all(|part| part.is_some_and(is_number)) && parts.next().is_none()
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_dir || !is_ours(&entry.file_name()) {
            continue;
        }
        // The lock is held until the directory is gone.
        if let Ok(lock) = File::open(entry.path())
            && lock.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_swept_and_what_is_being_made_or_is_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m");
        let first = Staged::begin("test", &target).unwrap();
        first.write("a", b"1").unwrap();
        let at = |name: &str| dir.path().join(name);
        let others = [".m.part-1-x", ".m.part-1-2-3", ".m.part--", ".n.part-1-2", "m.part-1-2"];
        for name in others.into_iter().chain([".m.part-1-0"]) {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("b"), b"2").unwrap();
        }
        std::os::unix::fs::symlink(at(".n.part-1-2"), at(".m.part-1-1")).unwrap();
        let second = Staged::begin("test", &target).unwrap();
        assert!(!at(".m.part-1-0").exists());
        assert!(at(".m.part-1-1").is_symlink());
        assert!(others.iter().all(|name| at(name).join("b").exists()));
        assert_eq!(fs::read(first.path().join("a")).unwrap(), b"1");
        drop(second);
        first.publish().unwrap();
        assert_eq!(fs::read(target.join("a")).unwrap(), b"1");
    }
}
