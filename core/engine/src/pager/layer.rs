//! One layer of one step: frames for the rows it writes, the pages it reads, in ascending position,
//! and those that must be loaded first, a batch at a time.

use super::frames::Frame;
use super::page::{Kept, Page, Rows, first_of};
use super::store::{Answer, Ask, In, Silence};
use super::tag::Damage;
use super::{Pager, Place};
use crate::events::{Track, What};
use kvern_contract::{
    Error, ErrorKind, LayerIndex, PAGE_TOKENS, PageEntry, PageKey, Part, Result, RowWrite,
    SessionId, encoding_word,
};
use std::collections::BTreeMap;
use std::time::Instant;

/// Pages that one call of attention reads: some are in memory, the others a load brings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segment {
    /// (index in the batch, page), ascending in each session.
    pub pages: Vec<(usize, usize)>,
    /// Those of them that have no frame.
    pub missing: Vec<(usize, usize)>,
}

/// A load that was asked for, and the frames that it fills.
#[derive(Debug)]
pub(crate) struct Ticket {
    number: u64,
    frames: BTreeMap<(usize, usize), Frame>,
    pages: Vec<PageKey>,
}

/// Commits before pages are given again to a store that has refused some.
const PATIENCE: u32 = 64;

/// What a load brought.
pub(super) type Came = Vec<(PageKey, std::result::Result<(), Damage>)>;

/// A page of a session that is lost: the session goes back to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lost {
    pub session: SessionId,
    /// The first position of the page.
    pub position: u64,
}

impl Pager {
    /// Whether `open_layer` can be had without taking a frame from a page or waiting for the store.
    pub(crate) fn has_room(&self, layer: usize, batch: &[Rows]) -> bool {
        let new = |rows: &Rows| {
            let have = self.sessions.get(&rows.session).map_or(0, |s| s.layers[layer].len());
            rows.pages().end.saturating_sub(have) as u32
        };
        batch.iter().map(new).sum::<u32>() <= self.frames.available()
    }

    /// Frames for the rows that this layer writes. *Caller*: unless `has_room`, has waited for all
    /// work that reads or writes frames. *Errors* OverBudget; the store's, when it must be waited
    /// for.
    pub(crate) fn open_layer(&mut self, layer: usize, batch: &[Rows]) -> Result<()> {
        for rows in batch {
            while self.session(rows.session)?.layers[layer].len() < rows.pages().end {
                let frame = self.free_frame()?;
                let hot = self.hot;
                self.session_mut(rows.session)?.layers[layer].push(Page::new(frame, hot));
            }
        }
        Ok(())
    }

    /// Where a batch's rows go in a layer, in the order of the batch.
    pub(crate) fn row_writes(&self, layer: usize, batch: &[Rows]) -> Result<Vec<RowWrite>> {
        let mut writes = Vec::new();
        for rows in batch {
            let pages = &self.session(rows.session)?.layers[layer];
            for position in rows.position..rows.position + u64::from(rows.rows) {
                let page = pages.get((position / u64::from(PAGE_TOKENS)) as usize);
                let frame = page.and_then(|p| p.frame).ok_or_else(no_frame)?;
                writes.push(RowWrite {
                    offset: self.frames.offset(frame),
                    row: (position % u64::from(PAGE_TOKENS)) as u32,
                    reserved: 0,
                });
            }
        }
        Ok(writes)
    }

    /// What this layer's attention reads, cut so that each part's missing pages fit the ring.
    pub(crate) fn segments(
        &self,
        layer: usize,
        batch: &[Rows],
        lost: &[Option<Lost>],
    ) -> Result<Vec<Segment>> {
        let mut segments = vec![Segment::default()];
        let batch_pages = self.frames.batch();
        for (index, rows) in batch.iter().enumerate().filter(|(i, _)| lost[*i].is_none()) {
            for (number, page) in self.session(rows.session)?.layers[layer].iter().enumerate() {
                if page.gone || number >= rows.pages().end {
                    continue;
                }
                let mut last = segments.len() - 1;
                if page.frame.is_none() {
                    if segments[last].missing.len() == batch_pages {
                        segments.push(Segment::default());
                        last += 1;
                    }
                    segments[last].missing.push((index, number));
                }
                segments[last].pages.push((index, number));
            }
        }
        Ok(segments)
    }

    /// Entries of one sequence in a segment, ascending.
    pub(crate) fn entries(
        &self,
        layer: usize,
        rows: &Rows,
        index: usize,
        segment: &Segment,
        loaded: Option<&Ticket>,
    ) -> Result<Vec<PageEntry>> {
        let pages = &self.session(rows.session)?.layers[layer];
        let entry = |&(index, number): &(usize, usize)| {
            let page = &pages[number];
            let ring = loaded.and_then(|t| t.frames.get(&(index, number)).copied());
            let frame = page.frame.or(ring).ok_or_else(no_frame)?;
            Ok(PageEntry {
                offset: self.frames.offset(frame),
                first: first_of(number) as u32,
                tokens: rows.filled(number),
                encoding: encoding_word(page.encoding),
                mask: u32::MAX,
                packed: 0,
                reserved: 0,
            })
        };
        segment.pages.iter().filter(|(i, _)| *i == index).map(entry).collect()
    }

    /// Asks the store for a segment's missing pages, of sessions that are not lost. *Caller*: the
    /// frames of all loads but the last are released. *Errors* Internal where nothing is stored;
    /// Timeout when lost calls hold the ring.
    pub(crate) fn start_load(
        &mut self,
        layer: usize,
        batch: &[Rows],
        segment: &Segment,
        lost: &[Option<Lost>],
    ) -> Result<Option<Ticket>> {
        let number = self.ticket();
        let missing: Vec<(usize, usize)> =
            segment.missing.iter().copied().filter(|(i, _)| lost[*i].is_none()).collect();
        if missing.is_empty() {
            return Ok(None);
        }
        let ring = self.frames.take_ring(missing.len());
        if ring.len() < missing.len() {
            self.frames.give_ring(ring);
            let text = "calls that never returned hold the memory that pages stream through";
            return Err(Error::new(ErrorKind::Timeout, "kv/load", text));
        }
        self.live.insert(number, ring.clone());
        let mut ticket = Ticket { number, frames: BTreeMap::new(), pages: Vec::new() };
        let mut pages = Vec::new();
        for ((index, number), frame) in missing.iter().zip(ring) {
            ticket.frames.insert((*index, *number), frame);
            let session = batch[*index].session;
            let page = &self.session(session)?.layers[layer][*number];
            let want = page.tag.ok_or_else(no_frame)?;
            ticket.pages.push(key(session, layer, *number));
            pages.push(In {
                key: key(session, layer, *number),
                want,
                read_as: page.encoding,
                layer: self.layers[layer],
                frame: self.frames.lend(frame)?,
            });
        }
        // The store answers for what is late before the engine gives the store up.
        self.tell(Ask::Load { ticket: ticket.number, pages, within: self.deadline / 2 });
        Ok(Some(ticket))
    }

    /// Waits for a load, as long as the store answers anything before its deadline. A page without
    /// a good answer is lost; a store that does not answer is given up, and all it held is lost.
    pub(crate) fn finish_load(&mut self, ticket: &Ticket) -> Result<Vec<Lost>> {
        let began = self.events.clock();
        let mut lost = Vec::new();
        let mut until = Instant::now() + self.deadline;
        while ticket.number > self.void && !self.came.contains_key(&ticket.number) {
            match self.listen(until.saturating_duration_since(Instant::now())) {
                // What was asked before this load is done, and time runs for what comes next.
                Ok(()) => until = Instant::now() + self.deadline,
                Err(silence) => lost = self.replace_store(silence)?,
            }
        }
        self.events.span("page_wait", began, || {
            let layer = ticket.pages.first().map_or(0, |key| key.layer.0);
            let what = What::new(Track::Waiting, format!("layer {layer} pages"));
            what.arg("pages", ticket.pages.len() as u64)
        });
        let came = self.came.remove(&ticket.number).unwrap_or_default();
        for key in &ticket.pages {
            let Part::Page(number) = key.part else { continue };
            let verdict = came.iter().find(|(k, _)| k == key).map(|(_, verdict)| *verdict);
            match verdict {
                Some(Ok(())) => {
                    let page = self.page((key.session, key.layer.0 as usize, number as usize));
                    let bytes = page.and_then(|p| p.tag).map_or(0, |t| u64::from(t.bytes));
                    self.counts.pages_read += 1;
                    self.counts.bytes_read += bytes;
                }
                damage => {
                    if matches!(damage, Some(Err(Damage::Tag | Damage::Bytes))) {
                        self.counts.checksum_failures += 1;
                    }
                    let position = first_of(number as usize);
                    lost.push(Lost { session: key.session, position });
                }
            }
        }
        Ok(lost)
    }

    /// Gives a load's frames back. *Caller*: has waited for all work that reads them.
    pub(crate) fn release(&mut self, ticket: Ticket) {
        self.release_ring(ticket.number);
    }

    /// Gives the frames of loads back that no step waits for any more.
    pub(super) fn abandon_loads(&mut self) {
        for number in self.live.keys().copied().collect::<Vec<_>>() {
            self.release_ring(number);
        }
        self.came.clear();
    }

    fn release_ring(&mut self, number: u64) {
        for frame in self.live.remove(&number).unwrap_or_default() {
            match self.frames.lend(frame) {
                Ok(_home) => self.frames.give_ring([frame]),
                // A call has it still: it is free when the call brings it home.
                Err(_lent) => self.lent.push(frame),
            }
        }
    }

    /// The device's fence has passed a layer's writes: pages that filled are sealed by it.
    pub(crate) fn fenced(&mut self, layer: usize, batch: &[Rows]) -> Result<()> {
        for rows in batch {
            let pages = &mut self.session_mut(rows.session)?.layers[layer];
            for number in rows.pages() {
                if let Some(page) = pages.get_mut(number) {
                    page.rows = page.rows.max(rows.filled(number));
                }
            }
        }
        Ok(())
    }

    pub(super) fn page(&self, place: Place) -> Option<&Page> {
        self.sessions.get(&place.0).and_then(|s| s.layers[place.1].get(place.2))
    }

    pub(super) fn page_mut(&mut self, place: Place) -> Option<&mut Page> {
        self.sessions.get_mut(&place.0).and_then(|s| s.layers[place.1].get_mut(place.2))
    }

    /// Takes one answer, waiting at most `within`.
    pub(super) fn listen(
        &mut self,
        within: std::time::Duration,
    ) -> std::result::Result<(), Silence> {
        let Some(store) = &self.store else { return Err(Silence::Gone) };
        match store.answer(within)? {
            Answer::Stored { ticket, done } => self.stored(ticket, done),
            Answer::Loaded { ticket, pages } => {
                self.came.insert(ticket, pages);
            }
            Answer::Report(report) => {
                self.report = report;
                self.reports = self.reports.saturating_sub(1);
            }
            Answer::Failed(error) => self.events_log(&error),
        }
        Ok(())
    }

    pub(super) fn events_log(&self, error: &Error) {
        let name = self.home.as_ref().map_or("", |home| home.name());
        let line = format!("kv strategy `{name}`: {error}");
        kvern_storage::HostSink::log(self.events.as_ref(), 2, &line);
    }

    /// What the store has answered for pages given to it.
    fn stored(&mut self, ticket: u64, done: Result<()>) {
        let places = self.going.remove(&ticket).unwrap_or_default();
        match &done {
            Ok(()) => self.refused = None,
            Err(error) => {
                self.events_log(error);
                self.refused = Some(error.clone());
                self.patience = PATIENCE;
            }
        }
        for place in places {
            let Some(page) = self.page_mut(place) else { continue };
            let bytes = page.tag.map_or(0, |t| u64::from(t.bytes));
            page.kept = if done.is_ok() { Kept::Stored } else { Kept::Here };
            if done.is_ok() {
                self.counts.bytes_written += bytes;
                self.evictable.push(place);
            }
        }
    }
}

pub(super) fn key(session: SessionId, layer: usize, number: usize) -> PageKey {
    PageKey { session, layer: LayerIndex(layer as u32), part: Part::Page(number as u32) }
}

fn no_frame() -> Error {
    Error::new(ErrorKind::Internal, "kv/page", "a page that a step needs has no frame and no tag")
}
