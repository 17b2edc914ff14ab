//! Guesses are verified many in a sweep and change nothing: not a token, a text, an end or a bit.

use super::batch::{Asked, alone, requests, run, several, tokens};
use super::doubles::{Fault, Keep, Policy};
use super::guesser::{How, Oracle};
use super::{Setup, bits, prose};
use crate::spec::{Finish, Flow, Outcome, Request};
use crate::step::{Next, StepAsk, Want};
use crate::{Engine, Ngram};
use kvern_contract::{Granularity, KvEncoding, KvWindow};
use kvern_model::{Model, Sampler, Sampling};
use std::time::Duration;

/// A frame of tiny-austen's pages in f32; it has 6 layers.
const FRAME: u64 = 2 * 64 * 64 * 4;

/// Prompts with the answers that each has.
fn whole(asked: &[Asked], answers: &[Vec<u32>]) -> Vec<Vec<u32>> {
    asked.iter().zip(answers).map(|(a, answer)| [&a.prompt[..], answer].concat()).collect()
}

fn store(frames: u64, sessions: u32, kv: Keep) -> Setup {
    Setup { kv: Box::new(kv), kv_budget: Some(frames * FRAME), sessions, ..Setup::default() }
}

/// What a batch guessed, and how much of it was right.
fn counts(ended: &[kvern_contract::Result<Outcome>]) -> (u64, u64) {
    let of = |e: &kvern_contract::Result<Outcome>| e.as_ref().expect("it generates").speculation;
    ended.iter().map(of).fold((0, 0), |sum, s| (sum.0 + s.proposed, sum.1 + s.accepted))
}

#[test]
fn guesses_right_or_wrong_change_no_token_alone_in_batches_or_over_a_store() {
    let asked = several(11);
    let want = alone(&asked);
    let texts = whole(&asked, &want);
    let setups: [fn() -> Setup; 7] = [
        || Setup { sessions: 1, ..Setup::default() },
        || Setup { sessions: 11, ..Setup::default() },
        || Setup { sessions: 3, chunk: 64, ..Setup::default() },
        || Setup { sessions: 11, chunk: 17, ..Setup::default() },
        || Setup { sessions: 2, chunk: 5, ..Setup::default() },
        || store(30, 4, Keep::store()),
        || store(10, 11, Keep::store()),
    ];
    for (index, setup) in setups.iter().enumerate() {
        let all = [How::Right, How::Mixed, How::First(2), How::Wrong, How::End];
        let some = if index % 4 == 1 { &all[..] } else { &all[..2] };
        for how in some.iter().copied() {
            let mut engine = setup().load().expect("it loads");
            engine.speculate(Box::new(Oracle::new(texts.clone(), how)), 7);
            let (ended, _) = run(&mut engine, &asked, 64);
            let (proposed, accepted) = counts(&ended);
            assert!(tokens(ended) == want, "setup {index}, {how:?}");
            assert!(proposed > 0, "setup {index}, {how:?}: nothing was guessed");
            match how {
                How::Wrong | How::End => assert_eq!(accepted, 0, "setup {index}, {how:?}"),
                How::Right => assert_eq!(accepted, proposed, "setup {index}"),
                _ => assert!(accepted > 0 && accepted < proposed, "setup {index}, {how:?}"),
            }
        }
        let mut engine = setup().load().expect("it loads");
        engine.speculate(Box::new(Ngram::new()), 7);
        assert!(tokens(run(&mut engine, &asked, 64).0) == want, "setup {index}, by lookup");
    }
}

#[test]
fn a_guesser_that_is_always_right_takes_as_few_sweeps_as_there_can_be() {
    let asked = vec![Asked { prompt: prose(3), new: 41, sampling: Sampling::greedy() }; 3];
    let want = alone(&asked);
    for most in [1, 4, 7] {
        let policy = Policy { layers: Some(vec![]), head: true, ..Policy::everything() };
        let setup = Setup { offload: Box::new(policy), sessions: 3, ..Setup::default() };
        let mut engine = setup.load().expect("it loads");
        engine.speculate(Box::new(Oracle::new(whole(&asked, &want), How::Right)), most);
        let before = engine.facts().stream.sweeps;
        let (ended, _) = run(&mut engine, &asked, 3);
        let sweeps = engine.facts().stream.sweeps - before;
        assert_eq!(sweeps, 41_u64.div_ceil(u64::from(most) + 1), "{most} guesses a step");
        for end in &ended {
            let told = end.as_ref().expect("it generates");
            assert_eq!(told.speculation.sweeps, sweeps);
            assert_eq!(told.inter_token.len(), 40, "a time for each token");
        }
        assert!(tokens(ended) == want);
    }
}

#[test]
fn verified_rows_have_the_bits_of_steps_of_one_row_and_cut_rows_leave_no_trace() {
    let ids = prose(400);
    let window = Some(KvWindow { first: 4, recent: 100 });
    let setups: [fn(Option<KvWindow>) -> Setup; 3] = [
        |window| Setup { kv: Box::new(Keep { window, ..Keep::resident() }), ..Setup::default() },
        |window| store(40, 1, Keep { window, ..Keep::store() }),
        |window| store(10, 1, Keep { window, ..Keep::store() }),
    ];
    for window in [None, window] {
        let mut plain = setups[0](window).load().expect("it loads");
        let want = bits(&mut plain, &ids).expect("it scores");
        for (index, setup) in setups.iter().enumerate() {
            let mut engine = setup(window).load().expect("it loads");
            let session = engine.begin().expect("a session");
            let (mut at, mut turn, mut back) = (0, 0, 0);
            while at < ids.len() {
                turn += 1;
                // A known token, right guesses, wrong ones; across pages too.
                let right = ids.len().min(at + 1 + turn % 9);
                let mut rows = ids[at..right].to_vec();
                rows.extend(std::iter::repeat_n(7, turn % 5));
                let ask = StepAsk { session, ids: &rows, want: Want::All };
                let lost = engine.step(&[ask], &mut |_, row, logits| {
                    let got: Vec<u32> = logits.iter().map(|x| x.to_bits()).collect();
                    assert!(got == want[at + row], "setup {index}, token {}", at + row);
                    Ok(if at + row + 1 < right { Next::Go } else { Next::Cut })
                });
                assert_eq!(lost.expect("it steps"), []);
                let held = engine.tokens(session).expect("its tokens");
                assert_eq!(held, ids[..held.len()], "no guess stays");
                assert!(held.len() <= right);
                back += usize::from(held.len() < right);
                at = held.len();
            }
            assert!(turn < 400, "setup {index} goes on");
            assert!(back == 0 || index == 2, "setup {index} went back {back} times");
        }
    }
}

#[test]
fn a_page_that_a_store_was_given_with_guesses_in_it_is_computed_again() {
    let ids = prose(200);
    let want = bits(&mut Setup::default().load().expect("it loads"), &ids).expect("it scores");
    let mut engine = store(14, 1, Keep::store()).load().expect("it loads");
    let session = engine.begin().expect("a session");
    let feed = |engine: &mut Engine, right: &[u32], wrong: usize| {
        let at = engine.tokens(session).expect("its tokens").len();
        let rows = [right, &vec![7; wrong]].concat();
        let ask = StepAsk { session, ids: &rows, want: Want::All };
        let done = engine.step(&[ask], &mut |_, row, logits| {
            let got: Vec<u32> = logits.iter().map(|x| x.to_bits()).collect();
            assert!(got == want[at + row], "token {}", at + row);
            Ok(if row + 1 < right.len() { Next::Go } else { Next::Cut })
        });
        assert_eq!(done.expect("it steps"), []);
        engine.tokens(session).expect("its tokens").len()
    };
    assert_eq!(feed(&mut engine, &ids[..10], 0), 10);
    // Guesses fill the second page and begin the third: in some layer the second is stored.
    let held = feed(&mut engine, &ids[10..120], 20);
    assert_eq!(held, 64, "the page with guesses is forgotten, the one before it stays");
    assert_eq!(feed(&mut engine, &ids[64..110], 0), 110);
    // Where the step began within that page, what the session had of it is forgotten too.
    assert_eq!(feed(&mut engine, &ids[110..112], 25), 64);
    assert_eq!(feed(&mut engine, &ids[64..], 0), 200);
    assert!(engine.facts().kv.pages_read > 0, "what is read again was stored again");
}

#[test]
fn pages_that_are_lost_are_computed_again_and_guesses_change_no_token() {
    let asked = several(5);
    let want = alone(&asked);
    let texts = whole(&asked, &want);
    for fault in [Fault::Flip, Fault::Missing, Fault::Never, Fault::Panic] {
        for how in [How::Right, How::Mixed] {
            let kv = Keep::with(&[(3, fault), (60, fault), (61, fault)]);
            let deadline = match fault {
                Fault::Never => Duration::from_millis(400),
                _ => Duration::from_secs(20),
            };
            let mut engine = Setup { deadline, ..store(20, 5, kv) }.load().expect("it loads");
            engine.speculate(Box::new(Oracle::new(texts.clone(), how)), 5);
            assert!(tokens(run(&mut engine, &asked, 5).0) == want, "{fault:?}, {how:?}");
            assert!(engine.facts().kv.recomputed_tokens > 0, "{fault:?}, {how:?}");
        }
    }
}

#[test]
fn lossy_histories_have_the_tokens_that_they_have_without_guesses_lost_pages_or_not() {
    let int8 = KvEncoding::Int8 { key: Granularity::Channel, value: Granularity::Token };
    let mut asked = several(4);
    asked.iter_mut().enumerate().for_each(|(i, a)| (a.prompt, a.new) = (prose(90 + i), 110));
    let load = |cold_after, window, faults: &[(u64, Fault)], frames| {
        let cold = Some((int8, cold_after));
        let kv = Keep { cold, window, ..Keep::with(faults) };
        store(frames, 4, kv).load().expect("it loads")
    };
    let recent = Some(KvWindow { first: 4, recent: 120 });
    for (cold_after, window) in [(0, None), (64, None), (64, recent)] {
        let mut engine = load(cold_after, window, &[], 300);
        let want = tokens(run(&mut engine, &asked, 4).0);
        for how in [How::Right, How::Mixed] {
            let faults = [(9, Fault::Flip), (30, Fault::Flip)];
            for (frames, faults) in [(300, &faults[..0]), (40, &faults[..0]), (40, &faults)] {
                let mut engine = load(cold_after, window, faults, frames);
                engine.speculate(Box::new(Oracle::new(whole(&asked, &want), how)), 6);
                let (ended, _) = run(&mut engine, &asked, 4);
                assert!(counts(&ended).0 > 0, "nothing was guessed");
                let told = format!("cold after {cold_after}, {window:?}, {how:?}, {frames} frames");
                assert!(tokens(ended) == want, "{told}");
            }
        }
    }
    assert!(tokens(run(&mut load(0, None, &[], 300), &asked, 4).0) != alone(&asked), "it is lossy");
}

/// One request on a session of its own: the outcome, what was streamed, what the session holds.
fn one(
    engine: &mut Engine,
    request: &Request<'_>,
    stop_after: usize,
) -> (Outcome, String, Vec<u32>) {
    let session = engine.begin().expect("a session");
    let (mut streamed, mut pieces) = (String::new(), 0);
    let done = engine.generate(session, request, &mut |piece| {
        streamed.push_str(piece);
        pieces += 1;
        if pieces == stop_after { Flow::Stop } else { Flow::Go }
    });
    let held = engine.tokens(session).expect("its tokens");
    engine.end(session).expect("it ends");
    (done.expect("it generates"), streamed, held)
}

/// tiny-austen, whose texts end with the word `of`.
fn ending() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(super::austen().join(name), dir.path().join(name)).expect("a copy");
    }
    let model = Model::open(&super::austen()).expect("it opens");
    let of = model.text().expect("a tokenizer").id("\u{120}of").expect("a word");
    let generation = format!("{{\"eos_token_id\": [0, {of}]}}");
    std::fs::write(dir.path().join("generation_config.json"), generation).expect("a file");
    dir
}

#[test]
fn an_end_within_a_run_of_guesses_is_the_end_that_there_is_without() {
    let dir = ending();
    let prompt = prose(30);
    let sampler = |sampling| Sampler::new(sampling).expect("a sampler");
    let request = |new, stop, seed| Request {
        prompt: &prompt,
        max_new_tokens: new,
        sampler: sampler(Sampling { temperature: 1.0, seed, ..Sampling::greedy() }),
        ignore_eos: seed % 2 == 0,
        stop,
    };
    let load = || Setup { context: Some(90), model: dir.path().into(), ..Setup::default() }.load();
    let mut plain = load().expect("it loads");
    let mut engine = load().expect("it loads");
    let stops = [vec![], vec!["the".to_string()], vec!["e w".into(), "ly".into()]];
    let mut finishes = Vec::new();
    for stop in &stops {
        for (new, stop_after) in [(1, 0), (2, 0), (9, 0), (500, 0), (500, 7)] {
            for seed in 0..6 {
                let request = request(new, &stop[..], seed);
                let want = one(&mut plain, &request, stop_after);
                let mut text = [&prompt[..], &want.0.token_ids].concat();
                // What follows an end is guessed too.
                text.extend([9; 8]);
                engine.speculate(Box::new(Oracle::new(vec![text], How::Right)), 6);
                let got = one(&mut engine, &request, stop_after);
                let told = format!("{stop:?}, {new} tokens, seed {seed}");
                assert_eq!((got.0.finish, &got.0.text), (want.0.finish, &want.0.text), "{told}");
                assert_eq!((&got.0.token_ids, &got.1), (&want.0.token_ids, &want.1), "{told}");
                assert_eq!(got.2, want.2, "{told}: what the session holds");
                let told = got.0.speculation;
                let fresh = got.0.token_ids.len() as u64;
                assert!(told.accepted <= told.proposed && told.sweeps + told.accepted >= fresh);
                finishes.push(got.0.finish);
            }
        }
    }
    let ways = [
        Finish::EndOfSequence,
        Finish::Length,
        Finish::StopString,
        Finish::Interrupted,
        Finish::ContextFull,
    ];
    for way in ways {
        assert!(finishes.contains(&way), "nothing ended by {way:?}");
    }
}

#[test]
fn no_token_is_sampled_twice_and_none_where_none_is_asked_for() {
    let asked = several(2);
    let mut engine = Setup::default().load().expect("it loads");
    let texts = whole(&asked, &alone(&asked));
    engine.speculate(Box::new(Oracle::new(texts, How::Right)), 4);
    let mut none = requests(&asked).remove(0);
    none.max_new_tokens = 0;
    let (outcome, _, held) = one(&mut engine, &none, 0);
    assert_eq!((outcome.token_ids.len(), outcome.speculation.proposed), (0, 0));
    assert_eq!(held, asked[0].prompt);
}
