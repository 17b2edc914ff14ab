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
    for fault in [late, Fault::Never, Fault::Panic, Fault::Poison] {
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

#[test]
fn a_store_that_hangs_at_the_first_of_many_parts_is_opened_anew_too() {
    let least = 10 * 2 * 64 * 64 * 4;
    let kv = Box::new(Keep::with(&[(1, Fault::Never)]));
    let deadline = Duration::from_millis(300);
    let kv_budget = Some(least + 2 * 2 * 64 * 64 * 4);
    let setup = Setup { kv, kv_budget, deadline, chunk: 64, ..Setup::default() };
    let mut engine = setup.load().expect("it loads");
    assert!(bits(&mut engine, &prose(700)).expect("it scores") == want());
}

#[test]
fn where_a_lost_store_cannot_be_opened_anew_memory_alone_goes_on_and_nothing_is_made_up() {
    let kv = Keep::with(&[(5, Fault::Never)]);
    *kv.opens.lock().expect("opens") = 1;
    let deadline = Duration::from_millis(300);
    let kv_budget = Some(FRAMES);
    let setup = Setup { kv: Box::new(kv), kv_budget, deadline, chunk: 128, ..Setup::default() };
    let mut engine = setup.load().expect("it loads");
    let error = bits(&mut engine, &prose(700)).expect_err("700 tokens do not fit 20 frames");
    assert_eq!(error.kind, kvern_contract::ErrorKind::OverBudget, "{error}");
    assert!(error.to_string().contains("does not open"), "{error}");
    engine.end(kvern_contract::SessionId(1)).expect("the session that did not fit");
    let short = bits(&mut engine, &prose(60)).expect("60 tokens fit");
    assert!(short == want()[..60], "and are right");
}

#[test]
fn a_rewind_while_pages_are_on_their_way_leaves_every_page_usable() {
    let ids = prose(700);
    let kv = Box::new(Keep::store());
    let setup = Setup { kv, kv_budget: Some(FRAMES), chunk: 128, ..Setup::default() };
    let mut engine = setup.load().expect("it loads");
    let session = engine.begin().expect("a session");
    for _ in 0..5 {
        engine.score(session, &ids[..192], &mut |_, _| Ok(())).expect("it scores");
        assert_eq!(engine.rewind(session, 64).expect("it goes back"), 64);
        engine.rewind(session, 0).expect("it goes back");
    }
    engine.score(session, &ids[..192], &mut |_, _| Ok(())).expect("it scores");
    assert_eq!(engine.rewind(session, 64).expect("it goes back"), 64);
    let mut rows: Vec<Vec<u32>> = Vec::new();
    let mut keep = |_: usize, row: &[f32]| {
        rows.push(row.iter().map(|x| x.to_bits()).collect());
        Ok(())
    };
    engine.score(session, &ids[64..], &mut keep).expect("it scores");
    assert!(rows == want()[64..]);
}
