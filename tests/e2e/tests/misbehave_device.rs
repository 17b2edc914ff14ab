//! Devices that lie, hang or crash: each is named in one line, and one that is slow is waited for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "misbehave/common.rs"]
mod common;

use common::{
    DEVICE, crashed, flags, generate, generate_where, hung, lanes, said, unavailable, with,
};
use kvern_e2e::Scratch;

const WHO: &str = "device `bad-device`";
const SHORT: [&str; 2] = ["--plugin-deadline", "2"];

fn ends(fault: &str, more: &[&str], code: Option<i32>, line: &str) {
    let scratch = Scratch::new();
    let ended = generate(&scratch, &with(flags(DEVICE, fault), more));
    let line = format!("kvern: {line}");
    assert_eq!((ended.code, said(&ended)), (code, vec![&*line]), "{fault}: {ended:?}");
    assert_eq!(ended.stdout, "", "{fault}");
}

#[test]
fn a_fixture_without_a_fault_runs_to_its_end() {
    let scratch = Scratch::new();
    let ended = generate(&scratch, &flags(DEVICE, ""));
    assert_eq!(ended.json()["token_ids"].as_array().unwrap().len(), 500);
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_device_that_is_slow_and_busy_is_waited_for() {
    let scratch = Scratch::new();
    let slow = ["--device-option", "sleep_ms=4000", "--context-tokens", "20"];
    let ended = generate(&scratch, &with(with(flags(DEVICE, "slow"), &SHORT), &slow));
    assert!(!ended.json()["token_ids"].as_array().unwrap().is_empty());
    assert_eq!(ended.stderr, "");
}

#[test]
fn an_op_that_is_refused_after_it_was_promised_ends_the_run_by_name() {
    ends("refuse-in-submit", &[], Some(1), &format!("{WHO}: submit: told to refuse in submit"));
}

#[test]
fn a_device_that_gives_no_memory_is_refused() {
    let scratch = Scratch::new();
    let ended = generate(&scratch, &flags(DEVICE, "nothing"));
    let line = ended.refused(1);
    let said = format!("kvern: device/alloc: {WHO} gave no memory where ");
    assert!(line.starts_with(&said) && line.ends_with(" bytes were asked"), "{line}");
}

#[test]
fn a_fence_that_failed_ends_the_run() {
    ends("failed", &[], Some(1), &format!("device/wait: {WHO} failed a step: Internal"));
}

#[test]
fn a_device_that_is_pending_for_ever_ends_the_run() {
    let told = format!(
        "device/wait: {WHO} has neither finished an op nor been busy in 2s: its fence stays pending"
    );
    let always = [&SHORT[..], &["--device-option", "times=0"]].concat();
    ends("pending", &always, Some(1), &told);
}

#[test]
fn a_device_that_hangs_is_ended_by_the_watchdog() {
    ends("hang-in-open", &SHORT, Some(1), &hung(WHO, "device", "device/open", 2));
    ends("hang-in-submit", &SHORT, Some(1), &hung(WHO, "device", "device/submit", 2));
    // It was told to come back in one second, and may be two late.
    ends("hang-in-wait", &SHORT, Some(1), &hung(WHO, "device", "device/wait", 3));
}

#[test]
fn a_device_that_crashes_is_named_before_the_process_ends_by_it() {
    for place in ["open", "supports", "alloc", "import", "submit", "wait"] {
        let operation = format!("device/{place}");
        let line = crashed(WHO, "device", &operation, "SIGSEGV");
        ends(&format!("null-in-{place}"), &[], None, &line);
    }
    ends("abort-in-submit", &[], None, &crashed(WHO, "device", "device/submit", "SIGABRT"));
}

#[test]
fn a_panic_is_an_error_with_the_devices_name() {
    for place in ["open", "submit", "wait"] {
        let told = format!("{WHO}: device/{place}: the plugin panicked: told to panic in {place}");
        ends(&format!("panic-in-{place}"), &[], Some(1), &told);
    }
}

#[test]
fn a_deadline_from_the_environment_counts() {
    let scratch = Scratch::new();
    let variable = [("KVERN_PLUGIN_DEADLINE", "2")];
    let ended = generate_where(&scratch, &flags(DEVICE, "hang-in-open"), &variable);
    let line = format!("kvern: {}", hung(WHO, "device", "device/open", 2));
    assert_eq!((ended.code, said(&ended)), (Some(1), vec![&*line]), "{ended:?}");
}

#[test]
fn a_device_that_crashes_or_hangs_costs_its_lanes_and_not_the_report() {
    let scratch = Scratch::new();
    for lane in lanes(&scratch, &flags(DEVICE, "null-in-submit")) {
        unavailable(&lane, &crashed(WHO, "device", "device/submit", "SIGSEGV"));
    }
    for lane in lanes(&scratch, &with(flags(DEVICE, "hang-in-submit"), &SHORT)) {
        unavailable(&lane, &hung(WHO, "device", "device/submit", 2));
    }
}
