//! What a run does, as it does it: spans for whoever watches, and of these the operations that the
//! report's profile counts. Where nobody watches, a span costs a branch.

use crate::spec::LogLine;
use kvern_storage::HostSink;
use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One operation, from its submission to its completion.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// What it was, as the report spells it: `kvload`, `kvsave`, `layer_load`, ...
    pub name: String,
    /// How long it took.
    pub took: Duration,
    /// Bytes that it moved.
    pub bytes: u64,
}

/// Something that took a while.
#[derive(Clone, PartialEq, Debug)]
pub struct Span {
    /// Its kind: what the report counts by its name there, the rest as [`Track`] says.
    pub kind: Cow<'static, str>,
    /// What it was, for people: `layer 3 mlp`.
    pub name: String,
    /// Among what it belongs.
    pub track: Track,
    /// When it began.
    pub start: Instant,
    /// How long it took.
    pub took: Duration,
    /// Bytes that it moved; 0 where it moved none.
    pub bytes: u64,
    /// More about it.
    pub args: Vec<(&'static str, u64)>,
}

/// What belongs together on a timeline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Track {
    /// `load`; `step`, and in it `sweep`, and in that `choose`: what is done with logits.
    Steps,
    /// A session's part of a step: `prefill`, `decode`, `score`. Several at once.
    Tokens,
    /// `compute`: lists of ops that the device runs.
    Computing,
    /// What the engine waits for or does while the device does nothing: `layer_load` (a unit's
    /// weights), `row_wait` (rows of an embedding), `page_wait` (pages of a layer), `frame_wait`
    /// (memory for a page), `cool` (pages that are encoded).
    Waiting,
    /// `safetensor_read`: weights, from submission to arrival. Several at once.
    Reading,
    /// `kvload`, `kvsave`: pages that a store gives and takes.
    Pages,
    /// The calls of a store, as `kv/commit`.
    Store,
    /// What plugins tell, by their own names. Several at once.
    Plugins,
}

/// How far something is that may take long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Weights that stay: bytes in memory, of how many.
    Load {
        /// So far.
        bytes: u64,
        /// In all.
        of: u64,
    },
    /// Tokens of the prompts that run: computed, of how many. All of them ends it.
    Prompt {
        /// So far.
        tokens: u64,
        /// In all.
        of: u64,
    },
    /// A sweep: bytes of streamed weights that were in memory, of how many.
    Sweep {
        /// So far.
        bytes: u64,
        /// In all; 0 where nothing is streamed.
        of: u64,
    },
    /// The sweep is over.
    Swept,
}

/// Takes spans. Called from several threads, and must not keep them waiting.
pub type OnSpan = Arc<dyn Fn(Span) + Send + Sync>;
/// Takes progress, on the engine's thread, and must not keep it waiting.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// Who watches a run.
#[derive(Clone, Default)]
pub struct Watch {
    /// Every span; `None`: none is made.
    pub span: Option<OnSpan>,
    /// How far things are.
    pub progress: Option<OnProgress>,
}

/// What a span is, besides its kind and its times.
pub(crate) struct What {
    pub track: Track,
    pub name: String,
    pub bytes: u64,
    pub args: Vec<(&'static str, u64)>,
}

impl What {
    pub(crate) fn new(track: Track, name: impl Into<String>) -> Self {
        What { track, name: name.into(), bytes: 0, args: Vec::new() }
    }
    pub(crate) fn bytes(self, bytes: u64) -> Self {
        What { bytes, ..self }
    }
    pub(crate) fn arg(mut self, name: &'static str, value: u64) -> Self {
        self.args.push((name, value));
        self
    }
}

/// Where spans go, and where operations gather until somebody takes them; past [`EVENTS_KEPT`] the
/// oldest half goes.
pub(crate) struct Recorder {
    events: Mutex<Vec<Event>>,
    watch: Watch,
    log: LogLine,
}

/// Most events kept between two takes: a bound on memory, not a sample size.
const EVENTS_KEPT: usize = 1 << 18;

impl Recorder {
    pub(crate) fn new(log: LogLine, watch: Watch) -> Arc<Self> {
        Arc::new(Recorder { events: Mutex::new(Vec::new()), watch, log })
    }

    /// Now, where spans are wanted.
    pub(crate) fn clock(&self) -> Option<Instant> {
        self.watch.span.as_ref().map(|_| Instant::now())
    }

    /// Something that the timeline alone shows began at `start`, as [`Recorder::clock`] gave it,
    /// and ends now.
    pub(crate) fn span(
        &self,
        kind: &'static str,
        start: Option<Instant>,
        what: impl FnOnce() -> What,
    ) {
        if let Some(start) = start {
            self.tell(kind.into(), start, start.elapsed(), what);
        }
    }

    /// An operation that the report counts too.
    pub(crate) fn operation(
        &self,
        kind: &'static str,
        (start, took): (Instant, Duration),
        bytes: u64,
        what: impl FnOnce() -> What,
    ) {
        self.tell(kind.into(), start, took, || what().bytes(bytes));
        self.count(Event { name: kind.into(), took, bytes });
    }

    /// Says how far something is.
    pub(crate) fn progress(&self, at: impl FnOnce() -> Progress) {
        if let Some(progress) = &self.watch.progress {
            progress(at());
        }
    }

    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn tell(
        &self,
        kind: Cow<'static, str>,
        start: Instant,
        took: Duration,
        what: impl FnOnce() -> What,
    ) {
        if let Some(on_span) = &self.watch.span {
            let What { track, name, bytes, args } = what();
            on_span(Span { kind, name, track, start, took, bytes, args });
        }
    }

    fn count(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() >= EVENTS_KEPT {
            events.drain(..EVENTS_KEPT / 2);
        }
        events.push(event);
    }
}

impl HostSink for Recorder {
    /// What a plugin tells has just ended.
    fn event(&self, name: &str, took: Duration, bytes: u64) {
        let now = Instant::now();
        let start = now.checked_sub(took).unwrap_or(now);
        let what = || What::new(Track::Plugins, name).bytes(bytes);
        self.tell(name.to_owned().into(), start, took, what);
        self.count(Event { name: name.into(), took, bytes });
    }
    fn log(&self, level: u32, line: &str) {
        (self.log)(level, line);
    }
}
