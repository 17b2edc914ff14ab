//! A drive that does not answer, a host that is taken away, and calls that no engine would make: no
//! panic, and no call that stays.

use super::model::*;
use super::trial::*;
use super::{Strategy, stored};
use crate::double::FaultPlan;
use crate::{Case, Check, Promise, Subject};
use kvern_contract::*;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

const WITHIN: Promise =
    Promise::new("KvStore::load", "Past `within`: `Failed(Timeout)` for what is not there.");
const CALLS: Promise =
    Promise::new("KvStore::load", "In verdicts; a call that fails counts for all.");
const GIVEN_UP: Promise = Promise::new(
    "KvStrategy::open",
    "An instance that does not answer is given up: from then on its `HostRef` answers Timeout to \
     everything, and the root may be opened again while the lost call is still out.",
);
const BLOCKS: Promise = Promise::new("KvStore", "It may block on host storage, not on the engine.");
const BROKEN: Promise = Promise::new(
    "ErrorKind::Invalid",
    "The caller broke a guarantee, or an option is out of range.",
);

pub(super) fn cases() -> Vec<Case<Strategy>> {
    vec![
        stored("a_load_from_a_silent_drive_ends_with_its_time", &[WITHIN, CALLS], silent),
        stored("a_call_that_waits_for_the_drive_goes_on_with_it", &[BLOCKS], held),
        stored(
            "an_instance_whose_host_is_gone_fails_and_leaves_the_root_alone",
            &[GIVEN_UP],
            given_up,
        ),
        stored(
            "a_call_that_breaks_a_guarantee_is_no_panic_and_harms_no_other_session",
            &[BROKEN],
            broken,
        ),
    ]
}

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);

/// Longer than any call may stay that should be back by now.
const PATIENCE: Duration = Duration::from_secs(20);

fn silent(subject: &Subject<'_, Strategy>) -> Check {
    let (memory, faults) = faulty();
    let mut trial = Trial::on(subject.instance()?, (memory, faults.clone()))?;
    let known = trial.fill(A, &text(1, 0, 400))?;
    went("flush", trial.store.flush(A))?;
    let seen = known.pages.iter().filter(|((_, page), _)| trial.rules.sees(*page, 400));
    let asked: Vec<(PageKey, PageTag)> =
        seen.map(|((layer, page), tag)| (key(A, *layer, *page), *tag)).collect();
    let length = longest(&trial.rules);
    let mut frames: Vec<_> = asked.iter().map(|_| crate::double::Frame::new(length)).collect();
    let mut loads: Vec<PageLoad<'_>> = (asked.iter().zip(&mut frames))
        .map(|((key, _), frame)| PageLoad {
            key: *key,
            into: frame.lent(),
            verdict: Verdict::Missing,
        })
        .collect();
    faults.set(FaultPlan { hold_reads: true, ..FaultPlan::default() });
    let (back, came) = channel();
    let (store, lent) = (&mut trial.store, &mut loads);
    let (answer, in_time) = std::thread::scope(|scope| {
        let call = scope.spawn(move || {
            let answer = store.load(lent, Duration::from_millis(50));
            let _ = back.send(());
            answer
        });
        let in_time = came.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout);
        faults.release();
        (call.join(), in_time)
    });
    need(in_time, || "a load of 50 ms from a silent drive is not back after 20 s".into())?;
    let answer = answer.map_err(|_| "a load from a silent drive panics".to_owned())?;
    let verdicts: Vec<Verdict> = loads.iter().map(|load| load.verdict).collect();
    match answer {
        Err(error) => need(error.kind == ErrorKind::Timeout, || {
            format!("a load from a silent drive fails with {:?}: {error}", error.kind)
        })?,
        Ok(()) => {
            for (((key, tag), verdict), frame) in asked.iter().zip(verdicts).zip(&frames) {
                match verdict {
                    Verdict::Failed(ErrorKind::Timeout) => {}
                    Verdict::At { tag: came, .. } => {
                        right(*key, tag, Ok((came, trial.read(*key, verdict)?)))?;
                    }
                    Verdict::Filled { tag: came } => {
                        let bytes = frame.bytes()[..tag.bytes as usize].to_vec();
                        right(*key, tag, Ok((came, bytes)))?;
                    }
                    other => {
                        return Err(format!(
                            "{key:?} is {other:?}, on a drive that did not answer"
                        ));
                    }
                }
            }
        }
    }
    // Once the drive answers, everything is there.
    trial.check(A, &known)?;
    Ok(())
}

fn held(subject: &Subject<'_, Strategy>) -> Check {
    let (memory, faults) = faulty();
    let mut trial = Trial::on(subject.instance()?, (memory, faults.clone()))?;
    let keys = text(1, 0, 200);
    trial.begin(A, Origin::Fresh)?;
    let mut known = Known { keys: keys.clone(), ..Known::default() };
    went("commit", trial.commit(A, &keys, 0))?;
    faults.set(FaultPlan { hold_writes: true, ..FaultPlan::default() });
    let (back, came) = channel();
    let call = std::thread::scope(|scope| {
        let call = scope.spawn(|| {
            let stored = trial.put_all(A, &mut known, false);
            let flushed = stored.and_then(|()| went("flush", trial.store.flush(A)));
            let _ = back.send(());
            flushed.map_err(String::from)
        });
        // It waits, or has nothing to wait for; then it waits some more.
        let mut patience = 2000;
        while faults.held() == 0 && patience > 0 && came.try_recv().is_err() {
            std::thread::sleep(Duration::from_millis(1));
            patience -= 1;
        }
        std::thread::sleep(Duration::from_millis(50));
        faults.release();
        call.join()
    });
    call.map_err(|_| "a call panics on a slow drive".to_owned())??;
    trial.check(A, &known)?;
    went("flush", trial.store.flush(A))?;
    Ok(())
}

fn given_up(subject: &Subject<'_, Strategy>) -> Check {
    let storage = crate::double::MemoryStorage::new();
    let mut lost = Trial::on(subject.instance()?, storage.clone())?;
    let base = lost.fill(A, &text(1, 0, 200))?;
    went("flush", lost.store.flush(A))?;
    let more = lost.fill(B, &text(2, 0, 200))?;
    lost.root.revoke();
    // Opened again while the lost instance is still there.
    let mut trial = Trial::on(subject.instance()?, storage.clone())?;
    let flushed = lost.store.flush(B);
    if lost.persistent {
        need(flushed.is_err(), || "a flush succeeds without a host".into())?;
    }
    let tag = lost.rules.tag(&more.keys, 0, 2);
    let _ = lost.store(&[(key(B, 0, 2), tag)]);
    let _ = lost.store.begin(SessionId(3), Origin::Fork { of: A, at: 64 });
    let _ = lost.commit(B, &text(2, 0, 250), 200);
    let _ = (lost.store.rewind(B, 64), lost.store.maintain(Duration::from_secs(1)));
    let mut frame = crate::double::Frame::new(longest(&lost.rules));
    let mut loads = [PageLoad { key: key(A, 0, 0), into: frame.lent(), verdict: Verdict::Missing }];
    let _ = lost.store.load(&mut loads, Duration::from_millis(50));
    let chains = chains(&base.keys);
    let _ = lost.store.find(&[Prefix { keys: &base.keys, chains: &chains }]);
    let _ = (lost.store.end(A, false), lost.store.end(B, true), lost.store.report());
    let next = trial.fill(A, &text(4, 0, 200))?;
    drop(lost);
    trial.check(A, &next)?;
    if trial.persistent {
        went("flush", trial.store.flush(A))?;
        let (found, flushed) =
            (trial.verified(SessionId(9), &base.keys)?, base.gives(&trial.rules, &base.keys));
        need(found >= flushed, || {
            format!("{found} of {flushed} tokens that the lost instance flushed are found")
        })?;
    }
    Ok(())
}

/// A store need not know a caller's mistakes: no call panics, and sessions of callers that keep
/// their guarantees are right.
fn broken(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    trial.fill(A, &text(1, 0, 200))?;
    let known = trial.fill(B, &text(2, 0, 200))?;
    let tag = trial.rules.tag(&known.keys, 0, 0);
    let bytes = bytes_of(tag.chain, 0, tag.bytes);
    let mut answers = Vec::new();
    for key in [key(A, 0, u32::MAX), key(A, u32::MAX, 0), key(SessionId(50), 0, 0)] {
        for (tokens, first, cut) in
            [(PAGE_TOKENS, 0, 0), (65, 0, 0), (u32::MAX, u64::MAX, 0), (PAGE_TOKENS, 0, 1)]
        {
            let tag = PageTag { tokens, first, ..tag };
            let bytes = &bytes[..bytes.len() - cut];
            answers.push(trial.store.store(&[PageRef { key, tag, bytes }]));
        }
    }
    answers.push(trial.store.flush(SessionId(50)));
    answers.push(trial.store.begin(A, Origin::Fresh));
    let found = trial.find(&known.keys)?.id;
    let origins = [
        Origin::Fork { of: A, at: 201 },
        Origin::Fork { of: A, at: u64::MAX },
        Origin::Fork { of: SessionId(50), at: 0 },
        Origin::Stored { found, at: u64::MAX },
    ];
    for (n, from) in (60..).zip(origins) {
        answers.push(trial.store.begin(SessionId(n), from));
    }
    answers.push(trial.store.rewind(A, u64::MAX).map(drop));
    answers.push(trial.store.maintain(Duration::MAX));
    for answer in answers {
        let panicked = answer.as_ref().is_err_and(|error| error.kind == ErrorKind::Panicked);
        need(!panicked, || format!("a call that breaks a guarantee is a panic: {answer:?}"))?;
    }
    trial.check(B, &known)?;
    Ok(())
}
