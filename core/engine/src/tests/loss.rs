//! Stores that lie, refuse, sleep or die: every page is computed again, and no bit differs.

use super::doubles::{Fault, Keep};
use super::{Setup, bits, prose};
use std::time::Duration;

const FRAMES: u64 = 20 * 2 * 64 * 64 * 4;

fn run(kv: Keep, deadline: Duration) -> kvern_contract::Result<(Vec<Vec<u32>>, crate::CacheFacts)> {
    let kv = Box::new(kv);
    let setup = Setup { kv, kv_budget: Some(FRAMES), deadline, chunk: 128, ..Setup::default() };
    let mut engine = setup.load()?;
    let rows = bits(&mut engine, &prose(700))?;
    Ok((rows, engine.facts().kv))
}

fn want() -> Vec<Vec<u32>> {
    bits(&mut Setup::default().load().expect("it loads"), &prose(700)).expect("it scores")
}

#[test]
fn what_comes_back_wrong_is_counted_and_computed_again() {
    let want = want();
    for fault in [Fault::Flip, Fault::OtherPage, Fault::OldTag, Fault::Unwritten] {
        for at in [1, 20, 57] {
            let kv = Keep::with(&[(at, fault), (at + 9, fault)]);
            let (got, facts) = run(kv, Duration::from_secs(20)).expect("it scores");
            assert!(got == want, "{fault:?} at page {at}");
            assert!(facts.checksum_failures >= 1, "{fault:?} at page {at}: {facts:?}");
            assert!(facts.recomputed_tokens > 0, "{fault:?} at page {at}: {facts:?}");
        }
    }
}

#[test]
fn what_is_missing_or_refused_is_computed_again() {
    let want = want();
    for fault in [Fault::Missing, Fault::Refuse] {
        let (got, facts) = run(Keep::with(&[(1, fault), (33, fault)]), Duration::from_secs(20))
            .expect("it scores");
        assert!(got == want, "{fault:?}");
        assert!(facts.recomputed_tokens > 0 && facts.checksum_failures == 0, "{facts:?}");
    }
}

#[test]
fn a_store_that_sleeps_dies_or_never_answers_is_opened_anew() {
    let want = want();
    let late = Fault::Sleep(Duration::from_millis(900));
    for fault in [late, Fault::Never, Fault::Panic] {
        let kv = Keep::with(&[(5, fault)]);
        let (got, facts) = run(kv, Duration::from_millis(300)).expect("it scores");
        assert!(got == want, "{fault:?}");
        assert!(facts.recomputed_tokens > 0, "{fault:?}: {facts:?}");
    }
}

#[test]
fn a_store_that_always_lies_ends_the_request_and_says_so() {
    let faults: Vec<_> = (1..10_000).map(|at| (at, Fault::Flip)).collect();
    let error = run(Keep::with(&faults), Duration::from_secs(20)).expect_err("no page is right");
    assert_eq!(error.kind, kvern_contract::ErrorKind::Damaged, "{error}");
    assert!(error.to_string().contains("lost"), "{error}");
}

#[test]
fn a_full_drive_goes_on_in_memory_until_memory_ends_too() {
    let kv = Keep { full_after: Some(30), ..Keep::store() };
    let error = run(kv, Duration::from_secs(20)).expect_err("nothing fits anywhere");
    assert_eq!(error.kind, kvern_contract::ErrorKind::OverBudget, "{error}");
    assert!(error.to_string().contains("no space left"), "{error}");
    let kv = Box::new(Keep { full_after: Some(0), ..Keep::store() });
    let mut engine = Setup { kv, ..Setup::default() }.load().expect("it loads");
    assert!(bits(&mut engine, &prose(700)).expect("memory is enough") == want());
}
