//! What is told of a run is what happened, in the order in which it happened.

use super::doubles::{Keep, Policy};
use super::{Setup, bits, greedy, prose};
use crate::events::{Recorder, What};
use crate::{Engine, Progress, Span, Track, Watch};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

type Kept<T> = Arc<Mutex<Vec<T>>>;

/// Nothing stays but these layers; KV goes through a store and a few frames.
fn setup(layers: &[u32], watch: Watch) -> Setup {
    let offload = Policy { layers: Some(layers.to_vec()), head: false, ..Policy::everything() };
    let (kv, kv_budget) = (Box::new(Keep::store()), Some(13 * 32 * 1024));
    Setup { offload: Box::new(offload), kv, kv_budget, chunk: 64, watch, ..Setup::default() }
}

/// An engine whose spans are kept.
fn watched(layers: &[u32]) -> (Engine, Kept<Span>) {
    let spans: Kept<Span> = Arc::default();
    let kept = Arc::clone(&spans);
    let on_span = move |span| kept.lock().expect("spans").push(span);
    let watch = Watch { span: Some(Arc::new(on_span)), progress: None };
    (setup(layers, watch).load().expect("it loads"), spans)
}

fn end(span: &Span) -> Instant {
    span.start + span.took
}

fn arg(span: &Span, name: &str) -> u64 {
    let found = span.args.iter().find(|(key, _)| *key == name);
    found.unwrap_or_else(|| panic!("no {name}: {span:?}")).1
}

fn of<'a>(spans: &'a [Span], kind: &str) -> Vec<&'a Span> {
    spans.iter().filter(|s| s.kind == kind).collect()
}

fn holds(outer: &Span, inner: &Span) -> bool {
    outer.start <= inner.start && end(inner) <= end(outer)
}

#[test]
fn every_streamed_unit_has_arrived_before_it_is_computed_on_and_waits_are_those_of_the_report() {
    let (mut engine, spans) = watched(&[]);
    drop(engine.take_events());
    let loaded = spans.lock().expect("spans").drain(..).collect::<Vec<_>>();
    assert_eq!(of(&loaded, "load").len(), 1);
    greedy(&mut engine, &prose(200), 30).expect("it generates");
    let facts = engine.facts();
    let (events, spans) = (engine.take_events(), spans.lock().expect("spans").clone());
    let mut reads: BTreeMap<(String, u64), &Span> = BTreeMap::new();
    for read in of(&spans, "safetensor_read") {
        if read.name != "embedding rows" {
            let twice = reads.insert((read.name.clone(), arg(read, "sweep")), read);
            assert!(twice.is_none(), "read twice: {read:?}");
        }
    }
    let computed = of(&spans, "compute");
    // Rows of the embedding are read by themselves.
    assert!(computed.iter().any(|list| list.name == "embedding"));
    for list in computed.iter().filter(|list| list.name != "embedding") {
        let read = reads.get(&(list.name.clone(), arg(list, "sweep")));
        let read = read.unwrap_or_else(|| panic!("{list:?} was not read"));
        assert!(end(read) <= list.start, "{list:?} before {read:?}");
        assert!(read.took > Duration::ZERO && read.bytes > 0, "{read:?}");
    }
    let units: Vec<&str> = computed.iter().map(|s| s.name.as_str()).collect();
    assert!(units.contains(&"layer 5 mlp") && units.contains(&"head"), "{units:?}");
    let waited: Duration = of(&spans, "layer_load").iter().map(|s| s.took).sum();
    assert_eq!(waited, facts.stream.waited);
    let swept: u64 = of(&spans, "sweep").iter().map(|s| s.bytes).sum();
    assert_eq!(swept, facts.stream.streamed_bytes);
    // The profile is of the same operations.
    for kind in ["safetensor_read", "layer_load", "kvload", "kvsave"] {
        let told: Vec<_> = of(&spans, kind).iter().map(|s| (s.took, s.bytes)).collect();
        let counted = events.iter().filter(|e| e.name == kind).map(|e| (e.took, e.bytes));
        assert_eq!(told, counted.collect::<Vec<_>>(), "{kind}");
        assert!(!told.is_empty(), "no {kind}");
    }
}

#[test]
fn every_token_has_its_step_in_which_its_sweep_lies_and_in_that_what_is_computed() {
    let (mut engine, spans) = watched(&[0, 1, 2]);
    greedy(&mut engine, &prose(200), 30).expect("it generates");
    let spans = spans.lock().expect("spans").clone();
    let (steps, sweeps) = (of(&spans, "step"), of(&spans, "sweep"));
    // The last chunk of the prompt gives the first token.
    assert_eq!((steps.len(), sweeps.len()), (4 + 29, 4 + 29));
    for (step, sweep) in steps.iter().zip(&sweeps) {
        assert!(holds(step, sweep), "{sweep:?} outside of {step:?}");
        assert_eq!(arg(step, "step"), arg(sweep, "sweep"));
    }
    assert!(steps.windows(2).all(|two| end(two[0]) <= two[1].start));
    for list in of(&spans, "compute").into_iter().chain(of(&spans, "choose")) {
        let within = sweeps.iter().filter(|sweep| holds(sweep, list)).count();
        assert_eq!(within, 1, "{list:?}");
    }
    let prompt: Vec<_> = of(&spans, "prefill").iter().map(|s| arg(s, "rows")).collect();
    assert_eq!(prompt, [64, 64, 64, 8]);
    let tokens = of(&spans, "decode");
    assert_eq!(tokens.len(), 29);
    for (index, token) in tokens.iter().enumerate() {
        assert_eq!((arg(token, "first"), arg(token, "rows")), (200 + index as u64, 1));
        assert_eq!(token.name, format!("session 1: token {}", 201 + index));
    }
    let resident = of(&spans, "compute").iter().filter(|s| s.name.starts_with("layer 0")).count();
    assert!(resident > 0, "what stays is computed on too");
}

#[test]
fn pages_come_and_go_in_calls_of_their_store_and_are_waited_for_by_layer() {
    let (mut engine, spans) = watched(&[0, 1, 2, 3, 4, 5]);
    greedy(&mut engine, &prose(300), 20).expect("it generates");
    let facts = engine.facts().kv;
    let spans = spans.lock().expect("spans").clone();
    let sum = |kind: &str| of(&spans, kind).iter().map(|s| s.bytes).sum::<u64>();
    assert_eq!((sum("kvload"), sum("kvsave")), (facts.bytes_read, facts.bytes_written));
    assert!(facts.bytes_read > 0 && facts.bytes_written > 0, "{facts:?}");
    for (kind, call) in [("kvload", "kv/load"), ("kvsave", "kv/store")] {
        let calls = of(&spans, call);
        for pages in of(&spans, kind) {
            assert!(calls.iter().any(|call| holds(call, pages)), "{pages:?}");
            assert_eq!(pages.track, Track::Pages);
        }
    }
    let pages = |kind: &str| of(&spans, kind).iter().map(|s| arg(s, "pages")).sum::<u64>();
    assert_eq!((pages("page_wait"), pages("kvload")), (facts.pages_read, facts.pages_read));
    let waits = of(&spans, "page_wait");
    assert!((0..6).all(|n| waits.iter().any(|s| s.name == format!("layer {n} pages"))));
    // No list runs while the engine waits.
    let lists = of(&spans, "compute");
    for wait in spans.iter().filter(|s| s.track == Track::Waiting) {
        let beside = |list: &&&Span| list.start < end(wait) && wait.start < end(list);
        assert_eq!(lists.iter().find(beside), None, "{wait:?}");
    }
    for call in ["kv/begin", "kv/commit", "kv/end", "kv/report"] {
        assert!(of(&spans, call).iter().all(|s| s.track == Track::Store), "{call}");
    }
    assert!(!of(&spans, "kv/commit").is_empty());
}

#[test]
fn nothing_is_told_where_nobody_watches_and_operations_are_counted_all_the_same() {
    let recorder = Recorder::new(Arc::new(|_, _| ()), Watch::default());
    let never = || -> What { panic!("nobody watches") };
    assert_eq!(recorder.clock(), None);
    recorder.span("step", recorder.clock(), never);
    recorder.progress(|| panic!("nobody watches"));
    recorder.operation("kvload", (Instant::now(), Duration::from_millis(3)), 7, never);
    let events = recorder.take();
    assert_eq!((events.len(), events[0].bytes), (1, 7));
    assert_eq!((events[0].name.as_str(), events[0].took), ("kvload", Duration::from_millis(3)));
}

#[test]
fn watching_changes_no_bit() {
    let ids = prose(150);
    let plain = bits(&mut setup(&[1, 4], Watch::default()).load().expect("it loads"), &ids);
    let (mut engine, spans) = watched(&[1, 4]);
    assert!(bits(&mut engine, &ids).expect("it scores") == plain.expect("it scores"));
    let spans = spans.lock().expect("spans").clone();
    assert_eq!(of(&spans, "score").len(), 3, "150 rows in chunks of 64");
}

#[test]
fn progress_goes_from_nothing_to_all_of_it() {
    let told: Kept<Progress> = Arc::default();
    let kept = Arc::clone(&told);
    let on_progress = move |at| kept.lock().expect("progress").push(at);
    let watch = Watch { span: None, progress: Some(Arc::new(on_progress)) };
    let mut engine = setup(&[0, 1, 2], watch).load().expect("it loads");
    let loaded: Vec<Progress> = told.lock().expect("progress").drain(..).collect();
    let steps: Vec<(u64, u64)> = (loaded.iter())
        .map(|at| match at {
            Progress::Load { bytes, of } => (*bytes, *of),
            other => panic!("{other:?} in a load"),
        })
        .collect();
    assert!(steps.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 == two[1].1), "{steps:?}");
    let (first, last) = (steps[0], steps[steps.len() - 1]);
    assert!(first.0 == 0 && last.0 == last.1 && last.1 > 0, "{steps:?}");
    greedy(&mut engine, &prose(200), 5).expect("it generates");
    let told = told.lock().expect("progress").clone();
    let (mut prompt, mut swept, mut sweep) = (Vec::new(), 0, (0, 0));
    for at in told {
        match at {
            Progress::Prompt { tokens, of } => prompt.push((tokens, of)),
            Progress::Sweep { bytes, of } => sweep = (bytes, of),
            Progress::Swept => {
                swept += 1;
                assert!(sweep.0 == sweep.1 && sweep.1 > 0, "{sweep:?} at the end of a sweep");
            }
            Progress::Load { .. } => panic!("a load in a request"),
        }
    }
    prompt.dedup();
    let want = [(0, 200), (64, 200), (128, 200), (192, 200), (0, 0)];
    assert_eq!((prompt.as_slice(), swept), (&want[..], 4 + 4));
}
