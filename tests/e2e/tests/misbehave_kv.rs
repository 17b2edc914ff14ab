//! KV strategies that lie, hang or crash: each is named in one line, and text is right or there is
//! none.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "misbehave/common.rs"]
mod common;

use common::{
    KV, crashed, fixture, flags, generate, generate_where, hung, lanes, said, same_text,
    unavailable, with,
};
use kvern_e2e::{Ended, Layout, Scratch};

const WHO: &str = "kv strategy `bad-kv`";

/// A budget that keeps a part of the history, and a short deadline.
const SMALL: [&str; 2] = ["--kv-budget", "512KiB"];
const SHORT: [&str; 2] = ["--plugin-deadline", "2"];

fn run(scratch: &Scratch, fault: &str, more: &[&str]) -> Ended {
    generate(scratch, &with(with(flags(KV, fault), &SMALL), more))
}

/// It ends with this code (`None` by a signal) and says this.
fn ends(fault: &str, more: &[&str], code: Option<i32>, lines: &[&str]) {
    let scratch = Scratch::new();
    let ended = run(&scratch, fault, more);
    assert_eq!((ended.code, said(&ended)), (code, lines.to_vec()), "{fault}: {ended:?}");
    assert_eq!(ended.stdout, "", "{fault}");
}

#[test]
fn a_fixture_without_a_fault_is_a_good_strategy() {
    let scratch = Scratch::new();
    let ended = run(&scratch, "", &[]);
    let state = same_text(&scratch, &ended);
    assert_eq!(ended.stderr, "");
    assert!(state["bytes_read"].as_u64().unwrap() > 0, "{state}");
    assert_eq!(state["recomputed_tokens"], 0);
}

#[test]
fn pages_that_are_wrong_are_counted_and_computed_again() {
    for fault in ["other-place", "stale", "stale-bytes", "unwritten", "corrupt"] {
        let scratch = Scratch::new();
        let ended = run(&scratch, fault, &["--kv-option", "times=3", "--kv-option", "after=2"]);
        let state = same_text(&scratch, &ended);
        assert_eq!(ended.stderr, "", "{fault}");
        assert_eq!(state["checksum_failures"], 3, "{fault}: {state}");
        assert!(state["recomputed_tokens"].as_u64().unwrap() > 0, "{fault}: {state}");
    }
}

#[test]
fn pages_that_are_nowhere_are_computed_again() {
    for fault in ["past-end", "unopened", "refuse-in-load", "lands-early", "forgets"] {
        let scratch = Scratch::new();
        let ended = run(&scratch, fault, &[]);
        let state = same_text(&scratch, &ended);
        assert_eq!(ended.stderr, "", "{fault}");
        assert_eq!(state["checksum_failures"], 0, "{fault}: {state}");
        assert!(state["recomputed_tokens"].as_u64().unwrap() > 0, "{fault}: {state}");
    }
}

#[test]
fn a_store_that_refuses_is_told_and_the_text_is_right() {
    for place in ["store", "commit", "begin"] {
        let scratch = Scratch::new();
        let ended = run(&scratch, &format!("refuse-in-{place}"), &[]);
        same_text(&scratch, &ended);
        let line = format!("kvern: warning: {WHO}: {place}: told to refuse in {place}");
        assert_eq!(said(&ended), [line]);
    }
}

#[test]
fn a_load_that_hangs_or_sleeps_costs_its_instance_and_no_token() {
    for fault in ["hang-in-load", "sleep-in-load"] {
        let scratch = Scratch::new();
        let ended = run(&scratch, fault, &[&SHORT[..], &["--kv-option", "sleep_ms=5000"]].concat());
        let state = same_text(&scratch, &ended);
        let line = format!(
            "kvern: warning: {WHO}: kv/load: it did not answer in 2s: what it held is computed \
             again"
        );
        assert_eq!(said(&ended), [line], "{fault}");
        assert!(state["recomputed_tokens"].as_u64().unwrap() > 0, "{fault}: {state}");
    }
}

#[test]
fn a_call_that_keeps_its_frames_for_ever_ends_a_run_that_needs_them() {
    for place in ["store", "begin", "commit"] {
        let lost = format!(
            "kvern: warning: {WHO}: kv/{place}: it did not answer in 2s: what it held is computed \
             again"
        );
        let full = format!(
            "kvern: kv/page: all 26 frames of 16384 bytes are in use and a step needs one more, \
             while calls of {WHO} that did not come back hold some: raise --kv-budget, or choose a \
             strategy with a store"
        );
        ends(&format!("hang-in-{place}"), &SHORT, Some(1), &[&lost, &full]);
    }
}

#[test]
fn a_store_that_is_lost_again_and_again_is_given_up() {
    let scratch = Scratch::new();
    let always = [&SHORT[..], &["--kv-option", "times=0"]].concat();
    let ended = run(&scratch, "hang-in-load", &always);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
    let gone = format!(
        "kvern: warning: {WHO}: kv/open: its store was lost 4 times and is not opened again: check \
         its drive"
    );
    assert!(said(&ended).contains(&gone.as_str()), "{ended:?}");
}

#[test]
fn a_store_that_hangs_at_the_end_is_left_behind() {
    for place in ["end", "drop"] {
        let scratch = Scratch::new();
        let ended = run(&scratch, &format!("hang-in-{place}"), &SHORT);
        same_text(&scratch, &ended);
        let line = format!("kvern: warning: {WHO}: kv/{place}: it did not end in 2s: left behind");
        assert_eq!(said(&ended), [line], "{place}");
    }
}

#[test]
fn what_the_engine_waits_for_is_ended_by_the_watchdog() {
    let told = |operation| format!("kvern: {}", hung(WHO, "kv", operation, 2));
    ends("hang-in-policy", &SHORT, Some(1), &[&told("kv/policy")]);
    let open = format!("kvern: {WHO}: kv/open: it did not open its root in 2s");
    ends("hang-in-open", &SHORT, Some(1), &[&open]);
    for (place, operation) in [("new", "kv/new"), ("describe", "kv/describe")] {
        let scratch = Scratch::new();
        let variable = [("KVERN_FIXTURE_FAULT", &*format!("hang-in-{place}"))];
        let ended = generate_where(&scratch, &with(flags(KV, ""), &SHORT), &variable);
        // It has not said its name yet.
        let line = format!("kvern: {}", hung("kv strategy", "kv", operation, 2));
        assert_eq!((ended.code, said(&ended)), (Some(1), vec![&*line]), "{ended:?}");
    }
}

#[test]
fn a_crash_is_named_before_the_process_ends_by_it() {
    for place in ["policy", "open", "begin", "load", "store", "commit", "end"] {
        for (fault, signal) in [("abort", "SIGABRT"), ("null", "SIGSEGV")] {
            let scratch = Scratch::new();
            let ended = run(&scratch, &format!("{fault}-in-{place}"), &[]);
            let line = crashed(WHO, "kv", &format!("kv/{place}"), signal);
            assert_eq!((ended.code, said(&ended)), (None, vec![&*format!("kvern: {line}")]));
        }
    }
    let scratch = Scratch::new();
    let birth = [("KVERN_FIXTURE_FAULT", "null-in-new")];
    let ended = generate_where(&scratch, &flags(KV, ""), &birth);
    let line = format!("kvern: {}", crashed("kv strategy", "kv", "kv/new", "SIGSEGV"));
    assert_eq!((ended.code, said(&ended)), (None, vec![&*line]), "{ended:?}");
}

#[test]
fn a_crash_leaves_nothing_that_the_next_run_does_not_clean_up() {
    let scratch = Scratch::new();
    assert_eq!(run(&scratch, "null-in-load", &[]).code, None);
    assert!(!scratch.files("cache").is_empty(), "the crash left its root");
    assert_eq!(run(&scratch, "", &[]).code, Some(0));
    assert_eq!(scratch.files("cache"), [""; 0].map(std::path::PathBuf::from));
}

#[test]
fn a_panic_is_an_error_with_the_plugins_name() {
    for place in ["policy", "open"] {
        let line =
            format!("kvern: {WHO}: kv/{place}: the plugin panicked: told to panic in {place}");
        ends(&format!("panic-in-{place}"), &[], Some(1), &[&line]);
    }
    for (fault, at, text) in [
        ("panic-in-load", "load", "told to panic in load"),
        ("panic-in-store", "store", "told to panic in store"),
        ("panic-in-begin", "begin", "told to panic in begin"),
        ("panic-on-answer", "load", "the host answered otherwise than expected"),
    ] {
        let scratch = Scratch::new();
        let ended = run(&scratch, fault, &[]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{fault}: {ended:?}");
        let lines = said(&ended);
        let lost = format!(
            "kvern: warning: {WHO}: kv/{at}: it has panicked: what it held is computed again"
        );
        assert!(lines.contains(&&*lost), "{fault}: {lines:?}");
        let last = format!(
            "kvern: kv/page: all 26 frames of 16384 bytes are in use and the store refused: kv/open: \
             the plugin panicked before, in kv/{at}: {text}; open it anew: raise --kv-budget, or \
             choose a strategy with a store"
        );
        assert_eq!(lines.last(), Some(&&*last), "{fault}");
    }
    for place in ["new", "describe"] {
        let scratch = Scratch::new();
        let birth = [("KVERN_FIXTURE_FAULT", &*format!("panic-in-{place}"))];
        let ended = generate_where(&scratch, &flags(KV, ""), &birth);
        let line = format!(
            "kvern: kv/{place}: {}: the plugin panicked: told to panic in {place}",
            fixture("kv").display()
        );
        assert_eq!((ended.code, said(&ended)), (Some(1), vec![&*line]), "{ended:?}");
    }
}

#[test]
fn a_panicked_store_is_done_without_where_memory_allows() {
    let scratch = Scratch::new();
    let ended = generate(&scratch, &flags(KV, "panic-in-store"));
    let state = same_text(&scratch, &ended);
    assert_eq!(state["bytes_read"], 0, "{state}");
    let panicked =
        format!("kvern: warning: {WHO}: kv/store: the plugin panicked: told to panic in store");
    assert_eq!(said(&ended).first(), Some(&&*panicked));
}

#[test]
fn a_lie_about_a_capability_is_refused() {
    let says = |text: &str| format!("kvern: {WHO}: kv/open: it says that {text}");
    ends("no-store", &[], Some(1), &[&says("it has a store and opened none")]);
    let exact = |text: &str| format!("kvern: kv/open: {WHO} says that it is exact, and {text}");
    ends("window", &[], Some(1), &[&exact("keeps a window of 4 and 64 tokens")]);
    ends("int8", &[], Some(1), &[&exact("keeps cold pages in int8, hot ones in bf16")]);
}

#[test]
fn a_description_that_is_not_its_manifests_is_refused() {
    let layout = Layout::new();
    let (from, to) = (fixture("kv"), layout.library("kvern_fixture_bad_kv"));
    std::fs::copy(from, &to).unwrap();
    let manifests = layout.scratch.at("share/kvern/manifests");
    let library = to.to_string_lossy().into_owned();
    let written = layout.kvern(["plugins", "manifest", &library, "--output", &manifests]);
    assert_eq!(written.code, Some(0), "{written:?}");
    let run = ["generate", "--prompt", "It was", "--kv-cache-strategy", "bad-kv"];
    assert_eq!(layout.kvern(run).code, Some(0), "as it was written");
    layout.edit("kv/bad-kv", "exact = true", "exact = false");
    let path = layout.manifest("kv/bad-kv");
    let text = std::fs::read_to_string(&path).unwrap();
    let line = 1 + text.lines().position(|line| line.starts_with("exact =")).unwrap();
    let told = format!(
        "kvern: {}:{line}: `capabilities.exact`: is false, but the library says true; write the \
         manifest again with `kvern plugins manifest`, or restore the library",
        path.canonicalize().unwrap().display()
    );
    assert_eq!(layout.kvern(run).refused(1), told);
}

#[test]
fn what_is_no_plugin_of_this_host_is_refused_by_name() {
    let (epoch, version) = (kvern_abi::EPOCH, env!("CARGO_PKG_VERSION"));
    let stamp = format!(
        "was built for epoch 999 (kvern-abi ), this host speaks epoch {epoch}: build it against \
         kvern-abi {version}"
    );
    let symbol = "is not a Kvern plugin: it has a stamp, but no symbol kvern_plugin_header".into();
    let layout = format!(
        "does not fit this host: its header carries no layout to check; build it against kvern-abi \
         {version}"
    );
    for (name, said) in [("stamp", stamp), ("missing_symbol", symbol), ("layout", layout)] {
        let scratch = Scratch::new();
        let library = fixture(name).to_string_lossy().into_owned();
        let ended = generate(&scratch, &with(Vec::new(), &["--kv", &library]));
        assert_eq!(ended.refused(1), format!("kvern: abi/open: {library} {said}"));
    }
}

#[test]
fn a_crash_costs_its_lane_alone() {
    let scratch = Scratch::new();
    // Each cold start begins one session, the warm runtime a second one.
    let fault = with(flags(KV, "null-in-begin"), &["--kv-option", "after=1", "--iterations", "2"]);
    let [cold, warm] = lanes(&scratch, &fault);
    assert_eq!(cold["status"], "measured", "{cold}");
    unavailable(&warm, &crashed(WHO, "kv", "kv/begin", "SIGSEGV"));
    assert_eq!(warm["details"]["returncode"], 139);
}

#[test]
fn a_hang_costs_its_lane_alone() {
    let scratch = Scratch::new();
    let [cold, warm] = lanes(&scratch, &with(flags(KV, "hang-in-policy"), &SHORT));
    unavailable(&cold, &hung(WHO, "kv", "kv/policy", 2));
    unavailable(&warm, &hung(WHO, "kv", "kv/policy", 2));
}
