//! Fills on doubles: one after another on their caller's thread, some of them spoiled or kept.

use super::faults::{FaultPlan, Faults};
use crate::fault::{ends_early, failed_twice};
use crate::fill::{Fill, FillTicket, Filling, Priority};
use crate::meter::lock;
use crate::region::Lease;
use kvern_contract::{FileId, FileRead, Result};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What goes wrong with one try of a fill.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FillFault {
    /// The drive fails. A fill is tried once more, as [`crate::Storage::fill`] promises.
    Eio,
    /// The file ends in the middle of it.
    Short,
    /// One bit comes flipped, and nothing is said.
    Flip,
    /// It does not come before [`Faults::release`]; until then the drive may write to its memory.
    Hold,
}

/// A read that the drive keeps.
pub(super) struct Kept {
    fill: Fill,
    priority: Priority,
    ticket: FillTicket,
}

/// Reads one after another, by `read`; `name` is a file's, for messages.
pub(super) fn one_by_one(
    fills: Vec<Fill>,
    name: impl Fn(FileId) -> Arc<str>,
    mut read: impl FnMut(Fill, FillTicket),
) -> Filling {
    let reads: Vec<_> = fills.iter().map(|fill| (name(fill.file), fill.offset)).collect();
    let (filling, tickets) = Filling::new(reads, Arc::default());
    fills.into_iter().zip(tickets).for_each(|(fill, ticket)| read(fill, ticket));
    filling
}

impl Faults {
    /// Starts fills, and spoils or keeps those that the plan names.
    pub(super) fn start(&self, fills: Vec<Fill>, priority: Priority) -> Filling {
        one_by_one(
            fills,
            |file| self.name(file),
            |fill, ticket| {
                self.one(Kept { fill, priority, ticket });
            },
        )
    }

    fn one(&self, kept: Kept) {
        let mut fault = self.next_try();
        if fault == Some(FillFault::Hold) {
            kept.ticket.began(kept.fill.offset);
            lock(&self.kept).push(kept);
            return;
        }
        let Kept { fill, priority, ticket } = kept;
        let (file, offset) = (fill.file, fill.offset);
        let name = self.name(file);
        self.wait(Duration::MAX, |_| false);
        if fault == Some(FillFault::Eio) {
            fault = self.next_try();
            lock(&self.state).retries += 1;
        }
        let done = match fault {
            Some(FillFault::Eio) => {
                let error = io::Error::from_raw_os_error(libc::EIO);
                Err(failed_twice(Path::new(&*name), offset, &error))
            }
            Some(FillFault::Short) => {
                let asked = fill.into.len() as u64;
                Err(ends_early(&name, offset, asked, asked / 2))
            }
            other => self.inner_fill(fill, priority).and_then(|mut lease| {
                if let (Some(FillFault::Flip), Some(byte)) = (other, lease.first_mut()) {
                    *byte ^= 1;
                }
                let mut read = FileRead { file, offset, into: &mut lease, done: Ok(()) };
                self.spoil(&mut read);
                read.done.map(|()| lease)
            }),
        };
        ticket.answer(done);
    }

    /// What happens to the next try.
    fn next_try(&self) -> Option<FillFault> {
        let mut state = lock(&self.state);
        state.tries += 1;
        let FaultPlan { fills, hold_reads, .. } = &state.plan;
        let named = fills.iter().find(|(at, _)| *at == state.tries).map(|(_, fault)| *fault);
        named.or(hold_reads.then_some(FillFault::Hold))
    }

    fn inner_fill(&self, fill: Fill, priority: Priority) -> Result<Lease> {
        let mut done = self.inner.fill(vec![fill], priority).wait(Duration::MAX);
        done.remove(0)
    }

    /// Lets kept reads come.
    pub(super) fn let_go(&self) {
        let kept = std::mem::take(&mut *lock(&self.kept));
        for Kept { fill, priority, ticket } in kept {
            let offset = fill.offset;
            let done = self.inner_fill(fill, priority);
            ticket.ended(offset);
            ticket.answer(done);
        }
    }
}
