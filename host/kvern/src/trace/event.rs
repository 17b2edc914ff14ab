//! Spans as events of a timeline, in the JSON array format of the Trace Event Format: whoever reads
//! it does not need the closing bracket, so that a file that was cut between events still opens.

use kvern_engine::{Span, Track};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Numbers of a track's lanes are this far from those of the next track.
const LANES: u64 = 1000;

/// What is known of the events so far.
pub struct Format {
    /// When the timeline begins.
    origin: Instant,
    process: u32,
    /// Of each track the lanes, each with the end of its last span: spans of a lane never overlap.
    lanes: BTreeMap<Track, Vec<Instant>>,
    first: bool,
}

#[derive(Serialize)]
struct Event<'a> {
    name: &'a str,
    cat: &'a str,
    ph: &'a str,
    /// Microseconds.
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    pid: u32,
    tid: u64,
    args: Map<String, Value>,
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

/// What a track is called.
fn title(track: Track) -> &'static str {
    match track {
        Track::Steps => "steps",
        Track::Tokens => "tokens",
        Track::Computing => "computing",
        Track::Waiting => "waiting",
        Track::Reading => "weight reads",
        Track::Pages => "page loads and writes",
        Track::Store => "store calls",
        Track::Plugins => "told by plugins",
    }
}

impl Format {
    /// Of a timeline that begins at `origin`.
    pub fn new(origin: Instant) -> Format {
        let process = std::process::id();
        Format { origin, process, lanes: BTreeMap::new(), first: true }
    }

    /// The beginning of the file.
    pub fn head(&mut self) -> String {
        let mut text = String::from("[\n");
        self.about("process_name", 0, json!("kvern"), &mut text);
        text
    }

    /// The end of the file.
    pub fn tail(&self) -> String {
        "\n]\n".into()
    }

    /// Adds a span.
    pub fn span(&mut self, span: &Span, text: &mut String) {
        let tid = self.lane(span, text);
        let mut args: Map<String, Value> =
            span.args.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        if span.bytes > 0 {
            args.insert("bytes".into(), span.bytes.into());
            let seconds = span.took.as_secs_f64();
            // Others took their time for something else than moving bytes.
            if matches!(span.track, Track::Reading | Track::Pages) && seconds > 0.0 {
                let rate = (span.bytes as f64 / seconds).round();
                args.insert("bytes_per_second".into(), (rate as u64).into());
            }
        }
        let event = Event {
            name: &span.name,
            cat: &span.kind,
            ph: "X",
            ts: micros(span.start.saturating_duration_since(self.origin)),
            dur: Some(micros(span.took)),
            pid: self.process,
            tid,
            args,
        };
        self.add(&event, text);
    }

    /// Adds that spans are missing from here.
    pub fn left_out(&mut self, count: u64, text: &mut String) {
        let event = Event {
            name: "spans were left out: they came faster than the file takes them",
            cat: "left_out",
            ph: "i",
            ts: micros(self.origin.elapsed()),
            dur: None,
            pid: self.process,
            tid: 0,
            args: Map::from_iter([("spans".to_string(), count.into())]),
        };
        self.add(&event, text);
    }

    /// The lane of a span: the first one that is free by then. Steps have one, in which they nest.
    fn lane(&mut self, span: &Span, text: &mut String) -> u64 {
        let lanes = self.lanes.entry(span.track).or_default();
        let nest = span.track == Track::Steps;
        let free = lanes.iter().position(|end| nest || *end <= span.start);
        let lane = free.unwrap_or(lanes.len());
        let end = span.start + span.took;
        match lanes.get_mut(lane) {
            Some(last) => *last = end,
            None => lanes.push(end),
        }
        let tid = LANES * (span.track as u64 + 1) + lane as u64;
        if free.is_none() {
            let title = match lane {
                0 => title(span.track).to_string(),
                more => format!("{} {}", title(span.track), more + 1),
            };
            self.about("thread_name", tid, json!(title), text);
            self.about("thread_sort_index", tid, json!(tid), text);
        }
        tid
    }

    fn about(&mut self, what: &str, tid: u64, value: Value, text: &mut String) {
        let key = if what.ends_with("index") { "sort_index" } else { "name" };
        let args = Map::from_iter([(key.to_string(), value)]);
        let (ts, dur, pid) = (0.0, None, self.process);
        self.add(&Event { name: what, cat: "about", ph: "M", ts, dur, pid, tid, args }, text);
    }

    fn add(&mut self, event: &Event<'_>, text: &mut String) {
        // Numbers and text are always JSON.
        let Ok(line) = serde_json::to_string(event) else { return };
        if !std::mem::replace(&mut self.first, false) {
            text.push_str(",\n");
        }
        text.push_str(&line);
    }
}
