//! `--trace FILE`: a timeline of the run, written while it runs, that Perfetto and
//! chrome://tracing open.
//!
//! Spans wait in memory of a fixed size for a thread that writes them. The run never waits for the
//! file: what finds no room is left out and counted, and a file that cannot be written any more
//! costs one warning.

mod event;
mod file;

use crate::fail::{Failure, Outcome};
use crate::log;
use event::Format;
use file::{Out, Whole};
use kvern_engine::{OnSpan, Span};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most spans that wait to be written.
const WAITING_MOST: usize = 1 << 14;
/// How often waiting spans are written.
const PERIOD: Duration = Duration::from_millis(100);
/// Bytes of events that are written at once.
const PIECE: usize = 64 << 10;
/// How long the end of a run waits for the file.
const END_WAIT: Duration = Duration::from_secs(5);

/// A timeline that is being written. Dropped, it ends the file.
pub struct Trace {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Span>,
    /// Spans that found no room, since the last time that this was written.
    left_out: u64,
    /// Nothing more comes.
    closed: bool,
    /// Nothing more is written.
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, span: Span) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        if state.waiting.len() >= WAITING_MOST {
            state.left_out += 1;
            return;
        }
        state.waiting.push(span);
        if state.waiting.len() == WAITING_MOST / 2 {
            self.changed.notify_all();
        }
    }

    /// What waits, after a while; `None` at the end.
    fn next(&self) -> Option<(Vec<Span>, u64)> {
        let state = self.lock();
        let idle = |s: &mut State| !s.closed && s.waiting.len() < WAITING_MOST / 2;
        let waited = self.changed.wait_timeout_while(state, PERIOD, idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let (spans, left_out) = (std::mem::take(&mut state.waiting), state.left_out);
        state.left_out = 0;
        (!state.closed || !spans.is_empty() || left_out > 0).then_some((spans, left_out))
    }

    fn close(&self) {
        let mut state = self.lock();
        (state.closed, state.waiting) = (true, Vec::new());
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

impl Trace {
    /// Makes the file, and begins. *Errors*: it cannot be made.
    pub fn begin(path: &Path) -> Outcome<Trace> {
        let name = path.display().to_string();
        let file = File::create(path).map_err(|e| {
            Failure::new(format!("--trace {name}: {e}; name a file that can be written"))
        })?;
        Trace::into_file(
            Whole::new(file),
            Box::new(move |e| {
                log::line(2, &format!("--trace {name}: {e}: it ends here, and the run goes on"));
            }),
        )
    }

    fn into_file(
        file: Whole<impl Out + Send + 'static>,
        failed: Box<dyn Fn(std::io::Error) + Send>,
    ) -> Outcome<Trace> {
        let shared = Arc::new(Shared::default());
        let (from, format) = (Arc::clone(&shared), Format::new(Instant::now()));
        let run = move || {
            if let Err(error) = write(&from, format, file) {
                // First, so that nobody gathers spans meanwhile; the end waits for the warning.
                from.close();
                failed(error);
            }
            from.end();
        };
        let thread = std::thread::Builder::new().name("kvern-trace".into()).spawn(run);
        thread.map_err(|e| Failure::new(format!("--trace: no thread for it: {e}")))?;
        Ok(Trace { shared })
    }

    /// Takes spans.
    pub fn sink(&self) -> OnSpan {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |span| shared.push(span))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.changed.notify_all();
        let ends = |s: &mut State| !s.ended;
        // A file that takes longer than this is left as it is: the run has ended.
        drop(self.shared.changed.wait_timeout_while(state, END_WAIT, ends));
    }
}

/// Writes spans as they come, to the end.
fn write(from: &Shared, mut format: Format, mut file: Whole<impl Out>) -> std::io::Result<()> {
    file.add(&format.head())?;
    let mut text = String::new();
    while let Some((spans, left_out)) = from.next() {
        for span in spans {
            format.span(&span, &mut text);
            if text.len() >= PIECE {
                file.add(&text)?;
                text.clear();
            }
        }
        if left_out > 0 {
            format.left_out(left_out, &mut text);
        }
        file.add(&text)?;
        text.clear();
    }
    file.add(&format.tail())
}

#[cfg(test)]
mod tests;
