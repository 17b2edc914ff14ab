//! An append-only file of checked records, one durable at a time.

use crate::frame::{HEADER_BYTES, payload_bytes, read_record, write_record};
use kvern_contract::{Error, ErrorKind, FileId, FileRead, FileWrite, HostRef, Open, Result};
use std::time::Duration;

/// Bytes read at once while a journal is scanned, where no single record is longer.
const WINDOW_BYTES: usize = 1 << 20;

/// A journal that is open.
///
/// 1. Every record before `tail` is whole and durable; whatever lies behind is overwritten.
/// 2. A record is appended only after the one before is durable. So a cut leaves at most one in
///    doubt.
/// 3. After a sync that failed, nothing is appended: the system may have dropped what it could not
///    write and still show it to readers. Opening writes the last record again, the same bytes, and
///    syncs, so that a record that was only shown is on the drive before another follows it.
pub struct Journal {
    host: HostRef,
    file: FileId,
    name: String,
    tail: u64,
    /// Bytes that the file may have: appends that failed leave some behind the tail.
    length: u64,
    lost: bool,
    read_only: bool,
}
impl Journal {
    /// Opens `name` under the root (creates it unless `read_only`) and gives every whole record's
    /// payload to `each`, oldest first. The scan ends at the first record whose magic, length or
    /// checksum is off. *Errors* what `each` answers; NotFound (read-only, and not there); Io: a
    /// read that fails is no end.
    pub fn open(
        host: &HostRef,
        name: &str,
        read_only: bool,
        mut each: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Self> {
        let files = host.list()?;
        let bytes = files.iter().find(|(other, _)| other == name).map_or(0, |(_, bytes)| *bytes);
        let file = host.open(name, if read_only { Open::Read } else { Open::Write })?;
        let mut journal = Journal {
            host: host.clone(),
            file,
            name: name.to_owned(),
            tail: 0,
            length: bytes,
            lost: false,
            read_only,
        };
        let last = journal.scan(bytes, &mut each)?;
        if journal.tail < bytes {
            let rest = bytes - journal.tail;
            let line = format!("{name}: {rest} bytes behind the last whole record are left out");
            host.log(3, &line);
        }
        if let (false, Some((offset, record))) = (read_only, last) {
            journal.write(offset, &record)?;
            host.sync(&[file])?;
        }
        Ok(journal)
    }

    /// Appends a record; durable when it returns. *Errors* OutOfSpace, Io: the record is not there,
    /// or will be found whole when the root is opened anew; after a failed sync every later append
    /// answers Io. Invalid: opened read-only, or the payload is too long.
    pub fn append(&mut self, payload: &[u8]) -> Result<()> {
        if self.read_only {
            let text = format!("{} is open to read", self.name);
            return Err(Error::new(ErrorKind::Invalid, "journal/append", text));
        }
        if self.lost {
            let text = format!("{}: a sync failed before; open the root anew", self.name);
            return Err(Error::new(ErrorKind::Io, "journal/append", text));
        }
        let record = write_record(self.tail, payload)?;
        self.length = self.length.max(self.tail + record.len() as u64);
        self.write(self.tail, &record)?;
        if let Err(error) = self.host.sync(&[self.file]) {
            self.lost = true;
            return Err(error);
        }
        self.tail += record.len() as u64;
        Ok(())
    }

    /// Length in bytes of what is whole and durable.
    pub fn bytes(&self) -> u64 {
        self.tail
    }
    /// Most bytes that the file has, once `more` bytes of records are appended: what appends that
    /// failed or a cut left behind the last whole record counts too.
    pub fn bytes_with(&self, more: u64) -> u64 {
        self.length.max(self.tail.saturating_add(more))
    }
    /// Whether a sync failed, so that the root must be opened anew.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let write = FileWrite { file: self.file, offset, bytes };
        self.host.write_batch(&[write], Duration::MAX)
    }

    /// Reads from the start; sets the tail and answers the last whole record with its offset.
    fn scan(
        &mut self,
        bytes: u64,
        each: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Option<(u64, Vec<u8>)>> {
        let mut window = Window { start: 0, held: Vec::new() };
        let mut last = None;
        while bytes - self.tail >= HEADER_BYTES as u64 {
            let mut header = [0; HEADER_BYTES];
            header.copy_from_slice(window.at(self, bytes, HEADER_BYTES)?);
            let Some(payload) = payload_bytes(&header) else { break };
            let whole = HEADER_BYTES + payload;
            if bytes - self.tail < whole as u64 {
                break;
            }
            let record = window.at(self, bytes, whole)?;
            let Some(payload) = read_record(self.tail, record) else { break };
            each(payload)?;
            last = Some((self.tail, whole));
            self.tail += whole as u64;
        }
        let Some((offset, whole)) = last else { return Ok(None) };
        let mut record = vec![0; whole];
        self.read(offset, &mut record)?;
        Ok(Some((offset, record)))
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let mut reads = [FileRead { file: self.file, offset, into, done: Ok(()) }];
        let answer = self.host.read_batch(&mut reads, Duration::MAX);
        let [FileRead { done, .. }] = reads;
        answer.and(done)
    }
}
impl Drop for Journal {
    fn drop(&mut self) {
        self.host.close(self.file);
    }
}

/// Part of the file in memory, so that short records do not cost a read each.
struct Window {
    start: u64,
    held: Vec<u8>,
}
impl Window {
    /// `count` bytes at the journal's tail; the file has them.
    fn at(&mut self, journal: &Journal, file_bytes: u64, count: usize) -> Result<&[u8]> {
        let end = self.start + self.held.len() as u64;
        if journal.tail + count as u64 > end {
            let rest = file_bytes - journal.tail;
            let take = count.max(WINDOW_BYTES.min(usize::try_from(rest).unwrap_or(WINDOW_BYTES)));
            self.start = journal.tail;
            self.held.resize(take, 0);
            journal.read(self.start, &mut self.held)?;
        }
        let from = (journal.tail - self.start) as usize;
        Ok(&self.held[from..from + count])
    }
}
