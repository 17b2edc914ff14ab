//! The cache's layout, as the hub's own tools have it: blobs by content, snapshots of links, refs
//! by name.

use super::OPERATION;
use crate::error::{invalid, io};
use kvern_contract::Result;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// One model's part of a cache.
pub(super) struct Cache {
    root: PathBuf,
}

/// The snapshot that a revision names here, if a pull of it ended: a name is written last.
pub(super) fn find(cache: &Path, name: &str, revision: &str) -> Option<PathBuf> {
    let root = root(cache, name);
    let named = fs::read_to_string(root.join("refs").join(revision)).ok();
    let commit = named.as_deref().unwrap_or(revision).trim();
    let whole = super::is_hex(commit, 40).then(|| root.join("snapshots").join(commit));
    whole.filter(|dir| dir.join("config.json").is_file())
}

fn root(cache: &Path, name: &str) -> PathBuf {
    cache.join(format!("models--{}", name.replace('/', "--")))
}

impl Cache {
    /// Makes the directories of a model called `owner/name`.
    pub fn open(cache: &Path, name: &str) -> Result<Cache> {
        let root = root(cache, name);
        for part in ["blobs", "snapshots", "refs"] {
            let dir = root.join(part);
            fs::create_dir_all(&dir).map_err(|e| io(OPERATION, &dir, &e))?;
        }
        Ok(Cache { root })
    }

    /// Where a content lies when it is whole.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Where it grows.
    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The directory of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Lets a commit's file be a content.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let dir = self.snapshot(commit);
        let path = dir.join(file);
        let target = Path::new("../../blobs").join(etag);
        if fs::read_link(&path).is_ok_and(|found| found == target) {
            return Ok(());
        }
        let part = dir.join(format!(".{file}.part-{}", std::process::id()));
        let linked = fs::create_dir_all(&dir).and_then(|()| {
            let _ = fs::remove_file(&part); // left by a process of this number that was killed
            std::os::unix::fs::symlink(&target, &part)?;
            fs::rename(&part, &path)
        });
        linked.map_err(|e| io(OPERATION, &path, &e))
    }

    /// Lets a name stand for a commit; a commit's own name needs no such file.
    pub fn point(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        let Some(dir) = path.parent() else {
            return Err(invalid(OPERATION, format!("'{revision}' is no revision")));
        };
        let part = dir.join(format!(".part-{}", std::process::id()));
        let written = fs::create_dir_all(dir).and_then(|()| {
            fs::write(&part, commit)?;
            File::open(&part)?.sync_all()?;
            fs::rename(&part, &path)
        });
        written.map_err(|e| io(OPERATION, &path, &e))
    }
}
