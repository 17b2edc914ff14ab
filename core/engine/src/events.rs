//! Timed events: what the storage service, the store and the weight pipeline did, for the report.

use kvern_storage::HostSink;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::spec::LogLine;

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

/// Where events gather until somebody takes them; past [`EVENTS_KEPT`] the oldest half goes.
pub(crate) struct Recorder {
    events: Mutex<Vec<Event>>,
    log: LogLine,
}

/// Most events kept between two takes: a bound on memory, not a sample size.
const EVENTS_KEPT: usize = 1 << 18;

impl Recorder {
    pub(crate) fn new(log: LogLine) -> Arc<Self> {
        Arc::new(Recorder { events: Mutex::new(Vec::new()), log })
    }
    pub(crate) fn record(&self, name: &str, took: Duration, bytes: u64) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() >= EVENTS_KEPT {
            events.drain(..EVENTS_KEPT / 2);
        }
        events.push(Event { name: name.into(), took, bytes });
    }
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl HostSink for Recorder {
    fn event(&self, name: &str, took: Duration, bytes: u64) {
        self.record(name, took, bytes);
    }
    fn log(&self, level: u32, line: &str) {
        (self.log)(level, line);
    }
}
