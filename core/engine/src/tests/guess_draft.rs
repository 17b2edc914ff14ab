//! A model that guesses for another, and what sampling gives with guesses: the sampler's own
//! distribution.

use super::batch::{Asked, alone, run, several, tokens};
use super::doubles::Policy;
use super::{Setup, prose};
use crate::spec::{Flow, Request, Said};
use crate::{Draft, Engine, Guess, GuessAsk};
use kvern_contract::Result;
use kvern_model::{Sampler, Sampling, SynthDims, SynthSpec, synth};
use std::collections::BTreeMap;

/// A guesser of the same model, which thinks what the model thinks.
fn twin(sessions: u32, context: u64) -> Draft {
    let setup = Setup { sessions, context: Some(context), ..Setup::default() };
    Draft::new(setup.load().expect("it loads"))
}

#[test]
fn a_draft_that_thinks_alike_is_always_right_drawn_or_not() {
    let mut asked = several(6);
    asked[1].sampling.repetition_penalty = 1.3;
    let want = alone(&asked);
    for (sessions, context) in [(6, 2048), (2, 2048), (6, 300)] {
        let mut engine = Setup { sessions, ..Setup::default() }.load().expect("it loads");
        engine.speculate(Box::new(twin(sessions, context)), 5);
        for _ in 0..2 {
            let (ended, _) = run(&mut engine, &asked, 6);
            for (id, end) in ended.iter().enumerate() {
                let told = end.as_ref().expect("it generates").speculation;
                assert_eq!(told.accepted, told.proposed, "request {id}");
                assert!(told.proposed > 0 || asked[id].new < 3, "request {id}");
            }
            assert!(tokens(ended) == want);
        }
    }
}

#[test]
fn a_draft_that_thinks_otherwise_changes_no_token() {
    let dir = tempfile::tempdir().expect("a directory");
    let dims = SynthDims::parse(
        "hidden=32,inner=64,layers=2,heads=2,kv_heads=1,head_dim=16,vocabulary=2048",
    )
    .expect("sizes");
    let spec = SynthSpec { dims, seed: 3, shard_bytes: 1 << 30 };
    let model = dir.path().join("draft");
    synth(&spec, &model, None).expect("a model");
    let asked = several(6);
    let setup = Setup { model, sessions: 6, ..Setup::default() };
    let mut engine = Setup { sessions: 6, ..Setup::default() }.load().expect("it loads");
    engine.speculate(Box::new(Draft::new(setup.load().expect("it loads"))), 5);
    let (ended, _) = run(&mut engine, &asked, 6);
    let of = |e: &Result<crate::Outcome>| e.as_ref().expect("it generates").speculation;
    let (proposed, accepted) =
        ended.iter().map(of).fold((0, 0), |s, t| (s.0 + t.proposed, s.1 + t.accepted));
    assert!(proposed > 50 && accepted < proposed / 4, "{accepted} of {proposed}");
    assert!(tokens(ended) == alone(&asked));
}

#[test]
fn a_draft_goes_on_where_a_conversation_goes_on_and_never_past_its_context() {
    let text = prose(120);
    let sampler = Sampler::new(Sampling::greedy()).expect("greedy");
    let ask = |id, tokens, most| [GuessAsk { id, tokens, sampler: &sampler, most }];
    let mut draft = twin(1, 100);
    let first = draft.guess(&ask(0, &text[..40], 4)).expect("it guesses").remove(0);
    assert_eq!(first.len(), 4);
    // Accepted, refused, and another request: each time what is guessed is what is guessed anew.
    let mut refused = text[..40].to_vec();
    refused.extend([first[0], first[1], 9]);
    let other = &text[60..100];
    for (id, tokens) in [(0, &text[..50]), (0, &refused[..]), (1, &text[..45]), (2, other)] {
        if id > 0 {
            draft.ended(id - 1);
        }
        let want = twin(1, 100).guess(&ask(0, tokens, 6)).expect("it guesses");
        assert_eq!(draft.guess(&ask(id, tokens, 6)).expect("it guesses"), want);
    }
    draft.ended(2);
    for (tokens, most) in [(95, 5), (99, 1), (100, 0), (120, 0)] {
        let guessed = draft.guess(&ask(3, &text[..tokens], 9)).expect("it guesses").remove(0);
        assert_eq!(guessed.len(), most, "{tokens} tokens");
    }
}

/// Guesses one of the likeliest tokens, by turns: often right and often not.
struct Turns {
    likely: Vec<u32>,
    turn: usize,
}

impl Guess for Turns {
    fn guess(&mut self, asks: &[GuessAsk<'_>]) -> Result<Vec<Vec<u32>>> {
        let mut next = || {
            self.turn += 1;
            self.likely[self.turn % self.likely.len()]
        };
        Ok(asks.iter().map(|ask| (0..ask.most).map(|_| next()).collect()).collect())
    }
    fn ended(&mut self, _: usize) {}
}

/// Probabilities of the tokens that a sampler of this temperature and top-k may choose.
fn chances(engine: &mut Engine, tokens: &[u32], sampling: &Sampling) -> BTreeMap<u32, f64> {
    let (session, mut last) = (engine.begin().expect("a session"), Vec::new());
    let done = engine.score(session, tokens, &mut |_, row| {
        last = row.iter().copied().zip(0..).collect::<Vec<(f32, u32)>>();
        Ok(())
    });
    done.expect("it scores");
    engine.end(session).expect("it ends");
    last.sort_by(|a, b| b.0.total_cmp(&a.0));
    last.truncate(sampling.top_k as usize);
    let weight = |x: f32| f64::from(x / sampling.temperature).exp();
    let total: f64 = last.iter().map(|(x, _)| weight(*x)).sum();
    last.into_iter().map(|(x, id)| (id, weight(x) / total)).collect()
}

#[test]
fn sampling_with_guesses_follows_the_samplers_distribution() {
    let mut engine = Setup { sessions: 64, ..Setup::default() }.load().expect("it loads");
    let prompt = prose(6);
    let sampling = Sampling { temperature: 1.5, top_k: 5, ..Sampling::greedy() };
    let first = chances(&mut engine, &prompt, &sampling);
    let mut expected: BTreeMap<[u32; 2], f64> = BTreeMap::new();
    for (a, p) in &first {
        for (b, q) in chances(&mut engine, &[&prompt[..], &[*a]].concat(), &sampling) {
            expected.insert([*a, b], p * q);
        }
    }
    let likely = first.keys().copied().collect();
    engine.speculate(Box::new(Turns { likely, turn: 0 }), 1);
    const DRAWS: u64 = 4000;
    let request = |seed| Request {
        prompt: &prompt,
        max_new_tokens: 2,
        sampler: Sampler::new(Sampling { seed, ..sampling.clone() }).expect("a sampler"),
        ignore_eos: true,
        stop: &[],
    };
    let (mut seen, mut accepted, mut proposed) = (BTreeMap::new(), 0, 0);
    let done = engine.run((0..DRAWS).map(request), 64, &mut |_, said| {
        if let Said::Ended(outcome) = said {
            let outcome = outcome.expect("it generates");
            accepted += outcome.speculation.accepted;
            proposed += outcome.speculation.proposed;
            let pair = [outcome.token_ids[0], outcome.token_ids[1]];
            *seen.entry(pair).or_insert(0_u64) += 1;
        }
        Flow::Go
    });
    done.expect("it runs");
    assert_eq!(proposed, DRAWS);
    assert!(accepted > DRAWS / 20 && accepted < DRAWS / 2, "{accepted} guesses were right");
    assert!(seen.keys().all(|pair| expected.contains_key(pair)), "a pair that cannot be drawn");
    let distance = |pair: &[u32; 2], p: &f64| {
        let (found, expected) = (seen.get(pair).copied().unwrap_or(0) as f64, p * DRAWS as f64);
        (found - expected).powi(2) / expected
    };
    let chi: f64 = expected.iter().map(|(pair, p)| distance(pair, p)).sum();
    assert_eq!(expected.len(), 25);
    // 24 degrees of freedom: a right sampler exceeds this once in a thousand sets of seeds.
    assert!(chi < 51.2, "chi-square is {chi}");
}

#[test]
fn a_draft_saves_sweeps_of_streamed_weights() {
    let asked = vec![Asked { prompt: prose(40), new: 36, sampling: Sampling::greedy() }];
    let policy = Policy { layers: Some(vec![]), head: true, ..Policy::everything() };
    let mut engine = Setup { offload: Box::new(policy), ..Setup::default() }.load().expect("loads");
    engine.speculate(Box::new(twin(1, 2048)), 8);
    let before = engine.facts().stream;
    let (ended, _) = run(&mut engine, &asked, 1);
    let after = engine.facts().stream;
    assert_eq!(after.sweeps - before.sweeps, 4, "36 tokens, 9 a sweep");
    assert_eq!(after.streamed_bytes - before.streamed_bytes, 4 * after.sweep_bytes);
    assert!(tokens(ended) == alone(&asked));
}
