//! Many requests in one batch: each has the tokens that it has alone, whoever its neighbours are,
//! and what goes wrong with one is its own.

use super::doubles::{Fault, Keep, Policy};
use super::{Setup, prose};
use crate::Engine;
use crate::spec::{Finish, Flow, Outcome, Request, Said};
use kvern_contract::{ErrorKind, Result};
use kvern_model::{Sampler, Sampling};
use std::time::Duration;

/// A frame of tiny-austen's pages in f32; it has 6 layers.
const FRAME: u64 = 2 * 64 * 64 * 4;

/// What a test asks for: a prompt and how many new tokens.
#[derive(Clone)]
pub(super) struct Asked {
    pub prompt: Vec<u32>,
    pub new: u32,
    pub sampling: Sampling,
}

/// Prompts of uneven lengths, some drawn and some greedy.
pub(super) fn several(count: usize) -> Vec<Asked> {
    let text = prose(1500);
    let one = |i: usize| {
        let (at, length) = (i * 97 % 1200, [3, 70, 130, 1, 64, 200][i % 6]);
        let drawn =
            Sampling { temperature: 0.9, top_p: 0.95, seed: i as u64, ..Sampling::greedy() };
        Asked {
            prompt: text[at..at + length].to_vec(),
            new: [20, 9, 70, 1, 33][i % 5],
            sampling: if i.is_multiple_of(2) { Sampling::greedy() } else { drawn },
        }
    };
    (0..count).map(one).collect()
}

pub(super) fn requests(asked: &[Asked]) -> Vec<Request<'_>> {
    fn one(asked: &Asked) -> Request<'_> {
        Request {
            prompt: &asked.prompt,
            max_new_tokens: asked.new,
            sampler: Sampler::new(asked.sampling.clone()).expect("a sampler"),
            ignore_eos: true,
            stop: &[],
        }
    }
    asked.iter().map(one).collect()
}

/// Runs them in one batch: how each ended, and in which order.
pub(super) fn run(
    engine: &mut Engine,
    asked: &[Asked],
    most: usize,
) -> (Vec<Result<Outcome>>, Vec<usize>) {
    let mut ended: Vec<Option<Result<Outcome>>> = asked.iter().map(|_| None).collect();
    let mut texts = vec![String::new(); asked.len()];
    let mut order = Vec::new();
    let done = engine.run(requests(asked), most, &mut |id, said| {
        match said {
            Said::Text(text) => texts[id].push_str(text),
            Said::Ended(outcome) => {
                assert!(ended[id].is_none(), "a request ends once");
                ended[id] = Some(outcome);
                order.push(id);
            }
        }
        Flow::Go
    });
    let ended: Vec<_> = ended.into_iter().map(|e| e.expect("each ends")).collect();
    if let Err(error) = done {
        assert!(ended.iter().any(|e| e.as_ref().err() == Some(&error)), "{error}");
    }
    for (text, end) in texts.iter().zip(&ended) {
        assert!(end.as_ref().map_or(true, |e| e.text == *text), "what is streamed is what is said");
    }
    assert_eq!(engine.facts().kv.resident_tokens, 0, "every session has ended");
    (ended, order)
}

pub(super) fn tokens(ended: Vec<Result<Outcome>>) -> Vec<Vec<u32>> {
    ended.into_iter().map(|e| e.expect("it generates").token_ids).collect()
}

/// The tokens that each has alone.
pub(super) fn alone(asked: &[Asked]) -> Vec<Vec<u32>> {
    let mut engine = Setup::default().load().expect("it loads");
    asked
        .iter()
        .map(|one| tokens(run(&mut engine, std::slice::from_ref(one), 1).0).remove(0))
        .collect()
}

fn store(frames: u64, sessions: u32, kv: Keep) -> Setup {
    Setup { kv: Box::new(kv), kv_budget: Some(frames * FRAME), sessions, ..Setup::default() }
}

#[test]
fn sequences_have_the_tokens_that_each_has_alone_in_any_batch_and_order() {
    let asked = several(11);
    let want = alone(&asked);
    let setups = [
        Setup { sessions: 11, ..Setup::default() },
        Setup { sessions: 3, chunk: 64, ..Setup::default() },
        Setup { sessions: 11, chunk: 5, ..Setup::default() },
        // Memory for two contexts of many sessions.
        Setup { sessions: 8, kv_budget: Some(2 * 192 * FRAME), ..Setup::default() },
        store(30, 4, Keep::store()),
        store(10, 11, Keep::store()),
    ];
    for (index, setup) in setups.into_iter().enumerate() {
        let mut engine = setup.load().expect("it loads");
        assert!(tokens(run(&mut engine, &asked, 64).0) == want, "setup {index}");
        let mut back: Vec<Asked> = asked.clone();
        back.reverse();
        let mut got = tokens(run(&mut engine, &back, 5).0);
        got.reverse();
        assert!(got == want, "setup {index}, the last first");
    }
}

#[test]
fn a_batch_takes_the_sweeps_of_its_longest_and_frees_places_for_those_that_wait() {
    let asked: Vec<Asked> = several(6)
        .into_iter()
        .map(|a| Asked { prompt: a.prompt[..1].to_vec(), new: 8, ..a })
        .collect();
    let policy = Policy { layers: Some(vec![]), head: true, ..Policy::everything() };
    let setup = Setup { offload: Box::new(policy), sessions: 6, ..Setup::default() };
    let mut engine = setup.load().expect("it loads");
    let before = engine.facts().stream;
    run(&mut engine, &asked, 6);
    let after = engine.facts().stream;
    assert_eq!(after.sweeps - before.sweeps, 8, "sweeps for six answers of 8 tokens");
    assert_eq!(after.streamed_bytes - before.streamed_bytes, 8 * after.sweep_bytes);
    // One that ends early makes room for the third, which ends before the longer one.
    let mut uneven = asked[..3].to_vec();
    (uneven[0].new, uneven[1].new, uneven[2].new) = (30, 2, 3);
    let (_, order) = run(&mut engine, &uneven, 2);
    assert_eq!(order, [1, 2, 0]);
}

#[test]
fn prompts_that_have_frames_to_stay_in_all_join_in_one_step() {
    let asked: Vec<Asked> =
        several(6).into_iter().map(|a| Asked { prompt: prose(3), new: 8, ..a }).collect();
    // A frame for the one page of each session in each of 6 layers, and no more.
    let mut engine =
        Setup { context: Some(12), ..store(36, 6, Keep::store()) }.load().expect("it loads");
    let before = engine.facts().stream.sweeps;
    run(&mut engine, &asked, 6);
    assert_eq!(engine.facts().stream.sweeps - before, 8);
}

#[test]
fn prompts_that_fill_no_page_join_in_one_step_where_pages_go_to_a_store() {
    let asked: Vec<Asked> =
        several(6).into_iter().map(|a| Asked { prompt: prose(3), new: 8, ..a }).collect();
    // A frame for the last page of each session in each of 6 layers, and few beside them.
    let mut engine = store(50, 6, Keep::store()).load().expect("it loads");
    let before = engine.facts().stream.sweeps;
    run(&mut engine, &asked, 6);
    assert_eq!(engine.facts().stream.sweeps - before, 8);
}

#[test]
fn prompts_ride_along_with_rows_that_decode() {
    let mut asked = several(2);
    (asked[0].prompt, asked[0].new) = (prose(2), 40);
    (asked[1].prompt, asked[1].new) = (prose(300), 2);
    let mut engine = Setup { sessions: 2, chunk: 16, ..Setup::default() }.load().expect("it loads");
    let (ended, order) = run(&mut engine, &asked, 2);
    assert_eq!(order, [1, 0], "a prompt of 20 steps ends while the other decodes");
    let second = ended[1].as_ref().expect("it generates");
    assert_eq!((second.chunk_tokens, second.chunk_count), (15, 21), "a row of each step decodes");
}

#[test]
fn a_page_that_is_lost_sends_its_own_sequence_back_and_no_other() {
    let asked = several(5);
    let want = alone(&asked);
    for fault in [Fault::Flip, Fault::Missing, Fault::Never, Fault::Panic] {
        let kv = Keep::with(&[(3, fault), (60, fault), (61, fault)]);
        let deadline = match fault {
            Fault::Never => Duration::from_millis(400),
            _ => Duration::from_secs(20),
        };
        let setup = Setup { deadline, ..store(20, 5, kv) };
        let mut engine = setup.load().expect("it loads");
        assert!(tokens(run(&mut engine, &asked, 5).0) == want, "{fault:?}");
        assert!(engine.facts().kv.recomputed_tokens > 0, "{fault:?}");
    }
}

#[test]
fn a_store_that_always_lies_ends_who_needs_it_and_serves_who_does_not() {
    let mut asked = several(3);
    asked[0].prompt.truncate(20);
    asked[0].new = 30;
    (asked[1].prompt, asked[1].new) = (prose(400), 60);
    (asked[2].prompt, asked[2].new) = (prose(450), 60);
    let faults: Vec<_> = (1..10_000).map(|at| (at, Fault::Flip)).collect();
    let mut engine = store(30, 3, Keep::with(&faults)).load().expect("it loads");
    let (ended, _) = run(&mut engine, &asked, 3);
    assert_eq!(ended[0].as_ref().expect("it fits").token_ids, alone(&asked[..1])[0]);
    for end in &ended[1..] {
        assert_eq!(end.as_ref().expect_err("no page is right").kind, ErrorKind::Damaged);
    }
}

#[test]
fn what_is_wrong_with_one_request_is_told_and_the_others_are_served() {
    let mut asked = several(5);
    asked[1].prompt = prose(1500);
    asked[2].prompt = vec![1_000_000];
    asked[3].prompt.clear();
    let setup = Setup { sessions: 5, context: Some(300), ..Setup::default() };
    let mut engine = setup.load().expect("it loads");
    let (ended, _) = run(&mut engine, &asked, 5);
    let said = |i: usize| ended[i].as_ref().err().map(ToString::to_string).unwrap_or_default();
    assert!(said(1).contains("1500 tokens") && said(1).contains("context of 300"), "{}", said(1));
    assert!(said(2).contains("1000000") && said(3).contains("no tokens"), "{}", said(2));
    let good = [asked[0].clone(), asked[4].clone()];
    for (got, want) in [0, 4].into_iter().zip(alone(&good)) {
        assert_eq!(ended[got].as_ref().expect("it generates").token_ids, want);
    }
}

#[test]
fn one_request_can_be_stopped_and_all_can_be() {
    let mut asked = several(4);
    asked.iter_mut().for_each(|a| a.new = 50);
    let mut engine = Setup { sessions: 2, ..Setup::default() }.load().expect("it loads");
    let want = alone(&asked);
    let mut stop = |when: Flow| {
        let mut count = 0;
        let mut ended: Vec<Option<Outcome>> = vec![None; 4];
        let done = engine.run(requests(&asked), 2, &mut |id, said| match said {
            Said::Text(_) if id == 1 => {
                count += 1;
                if count == 5 { when } else { Flow::Go }
            }
            Said::Text(_) => Flow::Go,
            Said::Ended(outcome) => {
                ended[id] = outcome.ok();
                Flow::Go
            }
        });
        done.expect("it runs");
        ended.into_iter().map(|e| e.expect("each ends")).collect::<Vec<_>>()
    };
    let one = stop(Flow::Stop);
    for (id, outcome) in one.iter().enumerate() {
        let finish = if id == 1 { Finish::Interrupted } else { Finish::Length };
        assert_eq!(outcome.finish, finish);
        assert!(want[id].starts_with(&outcome.token_ids));
    }
    let all = stop(Flow::StopAll);
    assert!(all.iter().all(|o| o.finish == Finish::Interrupted));
    assert!(all[0].token_ids.len() >= 3 && want[0].starts_with(&all[0].token_ids));
    assert!(all[2].token_ids.is_empty() && all[3].token_ids.is_empty(), "these never ran");
}

#[test]
fn where_memory_ends_all_the_same_the_last_waits_until_another_has_left() {
    let mut asked = several(3);
    asked.iter_mut().enumerate().for_each(|(i, a)| (a.prompt, a.new) = (prose(120 + i), 60));
    let want = alone(&asked);
    // The store is full at once: 26 frames for pages hold a session of 3 in 6 layers, and
    // no two.
    let kv = Keep { full_after: Some(0), ..Keep::store() };
    let mut engine = store(32, 3, kv).load().expect("it loads");
    let (ended, order) = run(&mut engine, &asked, 3);
    assert_eq!(order, [0, 1, 2]);
    assert!(tokens(ended) == want);
    assert!(engine.facts().kv.recomputed_tokens > 0, "nobody had to wait");
    // One that does not fit alone says why, and the others are served.
    asked[1].prompt = prose(400);
    let (ended, _) = run(&mut engine, &asked, 3);
    let error = ended[1].as_ref().expect_err("400 tokens do not fit");
    assert!(error.kind == ErrorKind::OverBudget && error.to_string().contains("no space left"));
    assert_eq!(ended[0].as_ref().expect("it fits").token_ids, want[0]);
    assert_eq!(ended[2].as_ref().expect("it fits").token_ids, want[2]);
}

#[test]
fn prompts_that_join_take_no_more_pages_together_than_there_are_frames_for() {
    let mut asked = several(2);
    (asked[0].prompt, asked[0].new) = (prose(700), 30);
    (asked[1].prompt, asked[1].new) = (prose(690), 2);
    let want = alone(&asked);
    // 26 frames for pages: 11 of the first prompt in a layer, and few more of the second's. With as
    // many as a step has rows for, the last layers would find none, and the second would have to
    // wait until the first has left.
    let setup = Setup { chunk: 1216, ..store(32, 2, Keep::store()) };
    let mut engine = setup.load().expect("it loads");
    let (ended, order) = run(&mut engine, &asked, 2);
    assert_eq!(order, [1, 0]);
    assert!(tokens(ended) == want);
}
