//! One file, fetched to the end: goes on where it was cut, checks length and digest, then appears.

use super::cache::Cache;
use super::http::{Facts, Failed, Http, pause};
use super::{OPERATION, PullEvent};
use crate::digest::Digest;
use crate::error::{damaged, io};
use kvern_contract::{Error, ErrorKind, Result};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

const BUFFER_BYTES: usize = 1 << 18;

/// A file that grows, with the digest of what it holds.
struct Growing<'a> {
    file: File,
    path: &'a Path,
    done: u64,
    hasher: Sha256,
}

/// Makes sure that a file's content is in the cache, whole and checked.
pub(super) fn fetch(
    http: &Http,
    cache: &Cache,
    commit: &str,
    name: &str,
    facts: &Facts,
    progress: &mut dyn FnMut(PullEvent<'_>),
) -> Result<()> {
    let (blob, path) = (cache.blob(&facts.etag), cache.incomplete(&facts.etag));
    let whole = |blob: &Path| blob.metadata().is_ok_and(|m| m.is_file() && m.len() == facts.bytes);
    let all = PullEvent::Advanced { file: name, done: facts.bytes, bytes: facts.bytes };
    if whole(&blob) {
        progress(all);
        return Ok(());
    }
    let mut growing = Growing::open(&path, name)?;
    if whole(&blob) {
        // Another process finished it between the look and the lock.
        let _ = fs::remove_file(&path);
        progress(all);
        return Ok(());
    }
    // Only a content with a digest can be trusted to go on from what an earlier run left.
    let had = growing.file.metadata().map_err(|e| io(OPERATION, &path, &e))?.len();
    if facts.is_digest && had <= facts.bytes {
        growing.take_in(had)?;
    } else {
        growing.restart()?;
    }
    let mut fruitless = 0;
    while growing.done < facts.bytes {
        let before = growing.done;
        let failed = match attempt(http, commit, name, facts, &mut growing, progress) {
            Ok(()) => break,
            Err(failed) => failed,
        };
        fruitless = if growing.done > before { 0 } else { fruitless + 1 };
        if !failed.again || fruitless >= http.attempts {
            return Err(failed.error);
        }
        pause(fruitless.max(1));
        progress(PullEvent::Resuming { file: name, done: growing.done });
    }
    publish(growing, &blob, name, facts)
}

/// One connection: appends what it brings.
fn attempt(
    http: &Http,
    commit: &str,
    name: &str,
    facts: &Facts,
    growing: &mut Growing<'_>,
    progress: &mut dyn FnMut(PullEvent<'_>),
) -> std::result::Result<(), Failed> {
    let stop = |error: Error| Failed { error, again: false };
    let (answer, from) = http.bytes(commit, name, growing.done, facts.bytes)?;
    if from != growing.done {
        growing.restart().map_err(stop)?;
    }
    let mut body = answer.into_body().into_with_config().limit(u64::MAX).reader();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = body.read(&mut buffer).map_err(|e| Failed {
            error: Error::new(
                ErrorKind::Io,
                OPERATION,
                format!("{name}: the connection broke: {e}"),
            ),
            again: true,
        })?;
        if count == 0 {
            break;
        }
        if growing.done + count as u64 > facts.bytes {
            let message =
                format!("{name}: the hub sends more than the {} bytes it named", facts.bytes);
            growing.restart().map_err(stop)?;
            return Err(stop(damaged(OPERATION, message)));
        }
        growing.append(&buffer[..count]).map_err(stop)?;
        progress(PullEvent::Advanced { file: name, done: growing.done, bytes: facts.bytes });
    }
    if growing.done < facts.bytes {
        let (done, bytes) = (growing.done, facts.bytes);
        let message = format!("{name}: the connection ended after {done} of {bytes} bytes");
        return Err(Failed { error: Error::new(ErrorKind::Io, OPERATION, message), again: true });
    }
    Ok(())
}

/// Checks the digest, syncs, and gives the content its name.
fn publish(growing: Growing<'_>, blob: &Path, name: &str, facts: &Facts) -> Result<()> {
    let found = Digest(growing.hasher.finalize().into()).to_string();
    if facts.is_digest && found != facts.etag {
        let _ = fs::remove_file(growing.path);
        let message = format!(
            "{name} has the sha256 {found}, expected {}; what came was thrown away, pull again",
            facts.etag
        );
        return Err(damaged(OPERATION, message));
    }
    let done = growing
        .file
        .sync_all()
        .and_then(|()| fs::rename(growing.path, blob))
        .and_then(|()| blob.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all()));
    done.map_err(|e| io(OPERATION, blob, &e))
}

impl<'a> Growing<'a> {
    /// Opens the file for this process alone.
    fn open(path: &'a Path, name: &str) -> Result<Growing<'a>> {
        let options =
            File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = options.map_err(|e| io(OPERATION, path, &e))?;
        match file.try_lock() {
            Ok(()) => Ok(Growing { file, path, done: 0, hasher: Sha256::new() }),
            Err(TryLockError::WouldBlock) => {
                let message = format!("{name} is being fetched by another process");
                Err(Error::new(ErrorKind::Busy, OPERATION, message))
            }
            Err(TryLockError::Error(e)) => Err(io(OPERATION, path, &e)),
        }
    }

    /// Hashes the first bytes of the file, which an earlier run left.
    fn take_in(&mut self, bytes: u64) -> Result<()> {
        let failed = |e: std::io::Error| io(OPERATION, self.path, &e);
        let mut buffer = vec![0; BUFFER_BYTES];
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        while self.done < bytes {
            let most = buffer.len().min((bytes - self.done) as usize);
            let count = self.file.read(&mut buffer[..most]).map_err(failed)?;
            if count == 0 {
                break;
            }
            self.hasher.update(&buffer[..count]);
            self.done += count as u64;
        }
        Ok(())
    }

    /// Forgets everything.
    fn restart(&mut self) -> Result<()> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|e| io(OPERATION, self.path, &e))?;
        (self.done, self.hasher) = (0, Sha256::new());
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| io(OPERATION, self.path, &e))?;
        self.hasher.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }
}
