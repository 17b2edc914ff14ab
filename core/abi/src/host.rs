//! Host services over the border: the one contract that a plugin calls and the host serves.
#![allow(unsafe_code)]

use crate::border::{Foreign, Object, border, cross};
use crate::guard::{Handle, expose_host, host_call, retire_host};
use crate::trail::Maker;
use crate::views::{files_in, files_out};
use crate::wire::{AbiResult, duration, nanos, read_doc, receive, send, unknown, write_doc};
use abi_stable::StableAbi;
use abi_stable::std_types::{RResult, RSlice, RSliceMut, RStr, RVec};
use kvern_contract::{FileId, FileRead, FileWrite, Host, HostRef, Open, Result};
use std::sync::Arc;
use std::time::Duration;

/// One read of a batch. `answered` is 0 until the host has set `done`.
#[repr(C)]
#[derive(StableAbi)]
pub struct ReadRow<'a> {
    pub offset: u64,
    pub file: u32,
    pub answered: u32,
    pub into: RSliceMut<'a, u8>,
    pub done: AbiResult<()>,
}

/// One write of a batch.
#[repr(C)]
#[derive(StableAbi)]
pub struct WriteRow<'a> {
    pub offset: u64,
    pub file: u32,
    pub reserved: u32,
    pub bytes: RSlice<'a, u8>,
}

border! {
    /// The host, as a plugin's side calls it.
    HostTable, HostTableRef, HostTableFields, HostOperations, &HostRef, host_call, retire_host,
        "host/drop";
    "host/open" open(name: RStr<'_>, how: u32) -> u32 = |host| {
        let how = match how {
            0 => Open::Read,
            1 => Open::Write,
            n => return Err(unknown("host/open", "open mode", n)),
        };
        host.open(name.as_str(), how).map(|file| file.0)
    };
    "host/close" close(file: u32) -> () = |host| {
        host.close(FileId(file));
        Ok(())
    };
    "host/list" list() -> RVec<u8> = |host| {
        write_doc("host/list", &host.list()?).map(RVec::from)
    };
    "host/read_batch" read_batch(reads: RSliceMut<'_, ReadRow<'_>>, within: u64) -> () = |host| {
        read_rows(host, reads.into_mut_slice(), duration(within))
    };
    "host/write_batch" write_batch(writes: RSlice<'_, WriteRow<'_>>, within: u64) -> () = |host| {
        let list: Vec<FileWrite<'_>> = writes
            .as_slice()
            .iter()
            .map(|w| FileWrite {
                file: FileId(w.file), offset: w.offset, bytes: w.bytes.as_slice(),
            })
            .collect();
        host.write_batch(&list, duration(within))
    };
    "host/sync" sync(files: RSlice<'_, u32>) -> () = |host| host.sync(files_in(files));
    "host/publish" publish(name: RStr<'_>, bytes: RSlice<'_, u8>) -> () = |host| {
        host.publish(name.as_str(), bytes.as_slice())
    };
    "host/truncate" truncate(file: u32, bytes: u64) -> () = |host| {
        host.truncate(FileId(file), bytes)
    };
    "host/remove" remove(name: RStr<'_>) -> () = |host| host.remove(name.as_str());
    "host/reserve" reserve(bytes: u64) -> () = |host| host.reserve(bytes);
    "host/release" release(bytes: u64) -> () = |host| {
        host.release(bytes);
        Ok(())
    };
    "host/event" event(name: RStr<'_>, took: u64, bytes: u64) -> () = |host| {
        host.event(name.as_str(), duration(took), bytes);
        Ok(())
    };
    "host/log" log(level: u32, line: RStr<'_>) -> () = |host| {
        host.log(level, line.as_str());
        Ok(())
    };
    "host/now" now() -> u64 = |host| Ok(nanos(host.now()));
}

fn read_rows(host: &HostRef, rows: &mut [ReadRow<'_>], within: Duration) -> Result<()> {
    let mut answers = Vec::with_capacity(rows.len());
    let mut list = Vec::with_capacity(rows.len());
    for row in rows {
        let ReadRow { offset, file, answered, into, done } = row;
        let before = receive(std::mem::replace(done, RResult::ROk(())));
        let into = into.as_mut_slice();
        list.push(FileRead { file: FileId(*file), offset: *offset, into, done: before });
        answers.push((answered, done));
    }
    let result = host.read_batch(&mut list, within);
    for (read, (answered, done)) in list.into_iter().zip(answers) {
        *answered = 1;
        if let Err(error) = read.done {
            *done = send(Err(error));
        }
    }
    result
}

/// The host on its way to a plugin. Unlike other objects it travels into a call that may be refused
/// before it is looked at, so it gives itself back.
#[repr(C)]
#[derive(StableAbi)]
pub struct HostObject {
    object: Object<HostTableRef>,
}

impl Drop for HostObject {
    fn drop(&mut self) {
        drop(ForeignHost::new(self.object, Maker::NONE));
    }
}

/// Wraps the host for one plugin instance.
pub fn lend(host: HostRef) -> HostObject {
    HostObject { object: Object { handle: expose_host(host), table: HostTable::REF } }
}

/// The host as a plugin sees it.
pub fn borrow(host: HostObject) -> HostRef {
    let object = std::mem::ManuallyDrop::new(host).object;
    Arc::new(ForeignHost::new(object, Maker::NONE))
}

/// The host behind the border.
pub type ForeignHost = Foreign<HostTableRef>;

// SAFETY: the object behind the handle is a `HostRef`, whose trait is `Sync`; `host_call` only
// shares it.
unsafe impl Sync for ForeignHost {}

impl Host for ForeignHost {
    fn open(&self, name: &str, how: Open) -> Result<FileId> {
        let how = match how {
            Open::Read => 0,
            Open::Write => 1,
        };
        cross!(self, open, RStr::from_str(name), how).map(FileId)
    }

    fn close(&self, file: FileId) {
        let _ = cross!(self, close, file.0);
    }

    fn list(&self) -> Result<Vec<(String, u64)>> {
        read_doc("host/list", &cross!(self, list)?)
    }

    fn read_batch(&self, reads: &mut [FileRead<'_>], within: Duration) -> Result<()> {
        let mut rows = Vec::with_capacity(reads.len());
        let mut answers = Vec::with_capacity(reads.len());
        for FileRead { file, offset, into, done } in reads.iter_mut() {
            rows.push(ReadRow {
                offset: *offset,
                file: file.0,
                answered: 0,
                into: RSliceMut::from_mut_slice(into),
                done: send(std::mem::replace(done, Ok(()))),
            });
            answers.push(done);
        }
        let result = cross!(self, read_batch, RSliceMut::from_mut_slice(&mut rows), nanos(within));
        for (done, row) in answers.into_iter().zip(rows) {
            *done = match &result {
                Err(error) if row.answered == 0 => Err(error.clone()),
                _ => receive(row.done),
            };
        }
        result
    }

    fn write_batch(&self, writes: &[FileWrite<'_>], within: Duration) -> Result<()> {
        let rows: Vec<WriteRow<'_>> = writes
            .iter()
            .map(|write| WriteRow {
                offset: write.offset,
                file: write.file.0,
                reserved: 0,
                bytes: RSlice::from_slice(write.bytes),
            })
            .collect();
        cross!(self, write_batch, RSlice::from_slice(&rows), nanos(within))
    }

    fn sync(&self, files: &[FileId]) -> Result<()> {
        cross!(self, sync, files_out(files))
    }

    fn publish(&self, name: &str, bytes: &[u8]) -> Result<()> {
        cross!(self, publish, RStr::from_str(name), RSlice::from_slice(bytes))
    }

    fn truncate(&self, file: FileId, bytes: u64) -> Result<()> {
        cross!(self, truncate, file.0, bytes)
    }

    fn remove(&self, name: &str) -> Result<()> {
        cross!(self, remove, RStr::from_str(name))
    }

    fn reserve(&self, bytes: u64) -> Result<()> {
        cross!(self, reserve, bytes)
    }

    fn release(&self, bytes: u64) {
        let _ = cross!(self, release, bytes);
    }

    fn event(&self, name: &str, took: Duration, bytes: u64) {
        let _ = cross!(self, event, RStr::from_str(name), nanos(took), bytes);
    }

    fn log(&self, level: u32, line: &str) {
        let _ = cross!(self, log, level, RStr::from_str(line));
    }

    fn now(&self) -> Duration {
        duration(cross!(self, now).unwrap_or(0))
    }
}
