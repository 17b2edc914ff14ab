//! A file that is one checked record, replaced whole.

use crate::frame::{HEADER_BYTES, RECORD_BYTES_MAX, read_record, write_record};
use kvern_contract::{Error, ErrorKind, FileId, FileRead, HostRef, Open, Result};
use std::time::Duration;

/// Replaces `name` by a record of `payload`, durable when it returns, after all that was written to
/// `pages`: page bytes, data sync, index record, rename, directory sync. A cut leaves the old
/// record or the new one, and what either names is on the drive.
///
/// The host's own publish has the last three steps. It knows nothing of page files: a record
/// published before their sync would promise bytes that never reached the drive.
///
/// *Errors* Invalid: the payload is empty or too long; OutOfSpace, Io: the old record is there, or
/// the new one. After a sync of `pages` that failed, nothing that was written to them since the
/// last may be named: write it again, or open the root anew.
pub fn publish(host: &HostRef, pages: &[FileId], name: &str, payload: &[u8]) -> Result<()> {
    let record = write_record(0, payload)?;
    if !pages.is_empty() {
        host.sync(pages)?;
    }
    host.publish(name, &record)
}

/// The payload that was published as `name`, or `None` where there is no such file.
/// *Errors* Damaged: it is not whole, not as it was written, or longer than `most` bytes; Io.
pub fn published(host: &HostRef, name: &str, most: usize) -> Result<Option<Vec<u8>>> {
    let files = host.list()?;
    let Some(&(_, bytes)) = files.iter().find(|(other, _)| other == name) else { return Ok(None) };
    let damaged = || {
        let text = format!("{name} cannot be read: it is damaged; remove the root");
        Error::new(ErrorKind::Damaged, "kv/open", text)
    };
    let longest = HEADER_BYTES + most.min(RECORD_BYTES_MAX);
    if !(HEADER_BYTES as u64..=longest as u64).contains(&bytes) {
        return Err(damaged());
    }
    let file = host.open(name, Open::Read)?;
    let mut record = vec![0; bytes as usize];
    let mut reads = [FileRead { file, offset: 0, into: &mut record, done: Ok(()) }];
    let answer = host.read_batch(&mut reads, Duration::MAX);
    let [FileRead { done, .. }] = reads;
    host.close(file);
    answer.and(done)?;
    read_record(0, &record).map(|payload| Some(payload.to_vec())).ok_or_else(damaged)
}
