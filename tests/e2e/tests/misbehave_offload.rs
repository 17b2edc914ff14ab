//! Offload policies that lie, hang or crash: each is named in one line, before a weight is read.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "misbehave/common.rs"]
mod common;

use common::{OFFLOAD, crashed, flags, generate, hung, lanes, said, same_text, unavailable, with};
use kvern_e2e::Scratch;

const WHO: &str = "offload policy `bad-offload`";
const SHORT: [&str; 2] = ["--plugin-deadline", "2"];

fn ends(fault: &str, more: &[&str], code: Option<i32>, line: &str) {
    let scratch = Scratch::new();
    let ended = generate(&scratch, &with(flags(OFFLOAD, fault), more));
    let line = format!("kvern: {line}");
    assert_eq!((ended.code, said(&ended)), (code, vec![&*line]), "{fault}: {ended:?}");
    assert_eq!(ended.stdout, "", "{fault}");
}

#[test]
fn a_fixture_without_a_fault_is_a_good_policy() {
    let scratch = Scratch::new();
    let ended = generate(&scratch, &with(flags(OFFLOAD, ""), &["--memory-budget", "7MiB"]));
    same_text(&scratch, &ended);
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_policy_that_moves_a_unit_to_the_disk_changes_no_text() {
    let scratch = Scratch::new();
    let ended = generate(&scratch, &flags(OFFLOAD, "fickle"));
    same_text(&scratch, &ended);
}

#[test]
fn a_placement_that_is_none_is_refused_by_the_unit() {
    let told = |text: &str| format!("offload/plan: {WHO} {text}");
    ends("twice", &[], Some(1), &told("placed layer 0 attention twice"));
    ends("missing", &[], Some(1), &told("left out head"));
    ends("unknown", &[], Some(1), &told("placed unit 20; there are 0 to 12"));
    let nowhere = "placed layer 0 attention on the device, which has no memory of its own";
    ends("no-tier", &[], Some(1), &told(nowhere));
}

#[test]
fn a_placement_over_the_budget_is_refused_with_both_numbers() {
    let scratch = Scratch::new();
    let flags = with(flags(OFFLOAD, "over-budget"), &["--memory-budget", "7MiB"]);
    let ended = generate(&scratch, &flags);
    let line = ended.refused(1);
    assert!(line.starts_with(&format!("kvern: offload/plan: {WHO} keeps ")), "{line}");
    assert!(line.contains(", more than the ") && line.ends_with(" that the budget has"), "{line}");
}

#[test]
fn a_refusal_and_a_panic_have_the_policys_name() {
    ends("refuse-in-plan", &[], Some(1), &format!("{WHO}: plan: told to refuse in plan"));
    let panicked = format!("{WHO}: offload/plan: the plugin panicked: told to panic in plan");
    ends("panic-in-plan", &[], Some(1), &panicked);
}

#[test]
fn a_plan_that_hangs_or_crashes_ends_the_run_by_name() {
    ends("hang-in-plan", &SHORT, Some(1), &hung(WHO, "offload", "offload/plan", 2));
    ends("abort-in-plan", &[], None, &crashed(WHO, "offload", "offload/plan", "SIGABRT"));
    ends("null-in-plan", &[], None, &crashed(WHO, "offload", "offload/plan", "SIGSEGV"));
}

#[test]
fn a_plan_that_crashes_costs_its_lanes_and_not_the_report() {
    let scratch = Scratch::new();
    for lane in lanes(&scratch, &flags(OFFLOAD, "null-in-plan")) {
        unavailable(&lane, &crashed(WHO, "offload", "offload/plan", "SIGSEGV"));
    }
}
