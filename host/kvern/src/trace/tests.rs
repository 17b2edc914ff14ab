use super::*;
use kvern_engine::Track;
use serde_json::Value;
use std::io::{Error, ErrorKind};
use std::sync::atomic::{AtomicU32, Ordering};

/// A file that takes `most` bytes in all, and can be cut.
#[derive(Clone)]
struct Small {
    bytes: Arc<Mutex<Vec<u8>>>,
    most: usize,
}

impl Small {
    fn new(most: usize) -> Small {
        Small { bytes: Arc::default(), most }
    }
    fn text(&self) -> String {
        String::from_utf8(self.bytes.lock().expect("bytes").clone()).expect("text")
    }
}

impl std::io::Write for Small {
    fn write(&mut self, more: &[u8]) -> std::io::Result<usize> {
        let mut bytes = self.bytes.lock().expect("bytes");
        let room = (self.most - bytes.len()).min(more.len());
        bytes.extend(&more[..room]);
        match room {
            0 if !more.is_empty() => Err(Error::new(ErrorKind::StorageFull, "no space left")),
            room => Ok(room),
        }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Out for Small {
    fn cut(&mut self, bytes: u64) -> std::io::Result<()> {
        self.bytes.lock().expect("bytes").truncate(bytes as usize);
        Ok(())
    }
}

fn span(track: Track, start: Instant, took: u64, name: &str) -> Span {
    let (took, args) = (Duration::from_micros(took), vec![("sweep", 7)]);
    Span { kind: "kind".into(), name: name.into(), track, start, took, bytes: 1000, args }
}

fn events(text: &str) -> Vec<Value> {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Text of spans, as it would be in a file.
fn written(spans: &[Span], origin: Instant) -> String {
    let mut format = Format::new(origin);
    let mut text = format.head();
    spans.iter().for_each(|span| format.span(span, &mut text));
    text + &format.tail()
}

#[test]
fn a_span_is_an_event_in_microseconds_with_its_rate_whatever_its_name_holds() {
    let origin = Instant::now();
    let name = "a \"name\"\n\\ \u{1} é";
    let span = span(Track::Reading, origin + Duration::from_micros(1500), 250, name);
    let events = events(&written(&[span], origin));
    let event = events.last().expect("an event");
    assert_eq!(event["name"], name);
    assert_eq!((&event["ph"], &event["cat"]), (&"X".into(), &"kind".into()));
    assert_eq!((&event["ts"], &event["dur"]), (&1500.0.into(), &250.0.into()));
    assert_eq!(event["args"]["sweep"], 7);
    assert_eq!(event["args"]["bytes"], 1000);
    assert_eq!(event["args"]["bytes_per_second"], 4_000_000);
    let named = events.iter().find(|e| e["name"] == "thread_name").expect("a name");
    assert_eq!((&named["args"]["name"], &named["tid"]), (&"weight reads".into(), &event["tid"]));
    assert!(events.iter().all(|e| e["pid"] == std::process::id()));
}

#[test]
fn spans_of_a_lane_never_overlap_and_steps_nest_in_one() {
    let origin = Instant::now();
    let at = |us| origin + Duration::from_micros(us);
    let reads = [(0, 10), (5, 10), (10, 3), (12, 9), (40, 1)];
    let mut spans: Vec<Span> =
        reads.iter().map(|(from, took)| span(Track::Reading, at(*from), *took, "r")).collect();
    spans.push(span(Track::Steps, at(2), 3, "sweep"));
    spans.push(span(Track::Steps, at(0), 20, "step"));
    let events = events(&written(&spans, origin));
    let tids = |name: &str| -> Vec<u64> {
        let named = events.iter().filter(|e| e["name"] == name && e["ph"] == "X");
        named.map(|e| e["tid"].as_u64().expect("a lane")).collect()
    };
    let lanes = tids("r");
    assert_eq!([lanes[0], lanes[2], lanes[4]], [lanes[0]; 3]);
    assert_eq!([lanes[1], lanes[3]], [lanes[0] + 1, lanes[0] + 2]);
    assert_eq!(tids("sweep"), tids("step"));
    let names: Vec<&Value> =
        events.iter().filter(|e| e["name"] == "thread_name").map(|e| &e["args"]["name"]).collect();
    assert_eq!(names, ["weight reads", "weight reads 2", "weight reads 3", "steps"]);
}

/// Writes so many spans into a file of so many bytes, and answers what became of it, and how often
/// it was warned.
fn run(most: usize, spans: usize) -> (String, u32) {
    let (small, warned) = (Small::new(most), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&warned);
    let failed = move |error: Error| {
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        count.fetch_add(1, Ordering::SeqCst);
    };
    let trace = Trace::into_file(Whole::new(small.clone()), Box::new(failed)).expect("a thread");
    let sink = trace.sink();
    let start = Instant::now();
    for index in 0..spans {
        sink(span(Track::Computing, start, 1, &format!("span {index}")));
        if index % 100 == 99 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    drop(trace);
    sink(span(Track::Computing, start, 1, "after the end"));
    (small.text(), warned.load(Ordering::SeqCst))
}

#[test]
fn a_timeline_is_whole_once_it_is_dropped() {
    let (text, warned) = run(usize::MAX, 1000);
    assert_eq!(warned, 0);
    let spans: Vec<Value> = events(&text).into_iter().filter(|e| e["ph"] == "X").collect();
    assert_eq!(spans.len(), 1000);
    for (index, span) in spans.iter().enumerate() {
        assert_eq!(span["name"], format!("span {index}"));
    }
}

#[test]
fn a_file_that_is_full_is_warned_of_once_and_ends_after_a_whole_event() {
    for most in [0, 1, 50, 200, 1000, 4321, 70_000] {
        let (text, warned) = run(most, 1000);
        assert_eq!(warned, 1, "{most} bytes");
        assert!(text.len() <= most);
        if text.is_empty() {
            continue;
        }
        // Where even the bracket finds no room it is left out, which the format allows.
        let closed = text.trim_end().trim_end_matches(']').trim_end().to_string() + "]";
        let events = events(&closed);
        assert!(events.iter().all(|e| e["pid"].is_u64()), "{most} bytes");
    }
    let (text, _) = run(70_000, 1000);
    assert!(events(&text).len() > 100, "what fits is kept, and closed");
}

#[test]
fn a_timeline_that_was_cut_between_pieces_still_reads() {
    let text = written(&[span(Track::Store, Instant::now(), 1, "one")], Instant::now());
    let cut = text.strip_suffix("\n]\n").expect("an end");
    assert!(serde_json::from_str::<Value>(cut).is_err());
    assert_eq!(events(&format!("{cut}]")), events(&text));
}

#[test]
fn spans_that_find_no_room_are_counted() {
    let shared = Shared::default();
    let start = Instant::now();
    for _ in 0..WAITING_MOST + 5 {
        shared.push(span(Track::Computing, start, 1, "x"));
    }
    let (spans, left_out) = shared.next().expect("some");
    assert_eq!((spans.len(), left_out), (WAITING_MOST, 5));
    let mut format = Format::new(start);
    let mut text = format.head();
    format.left_out(left_out, &mut text);
    let events = events(&(text + &format.tail()));
    assert_eq!(events.last().expect("an event")["args"]["spans"], 5);
    shared.lock().closed = true;
    assert!(shared.next().is_none(), "nothing is left");
}
