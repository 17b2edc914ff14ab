//! Guessers that fail or break their word, and memory that guesses lack: no request changes.

use super::batch::{alone, run, several, tokens};
use super::doubles::Keep;
use super::guesser::{How, Oracle};
use super::{Setup, prose};
use crate::Engine;
use std::sync::{Arc, Mutex};

/// A frame of tiny-austen's pages in f32.
const FRAME: u64 = 2 * 64 * 64 * 4;

/// An engine, and what it logs.
fn logged(setup: Setup) -> (Engine, Arc<Mutex<Vec<String>>>) {
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let (mut spec, _cache) = setup.spec().expect("a spec");
    let to = Arc::clone(&lines);
    spec.log = Arc::new(move |_, line| to.lock().expect("lines").push(line.into()));
    (Engine::load(spec).expect("it loads"), lines)
}

#[test]
fn a_guesser_that_fails_or_breaks_its_word_is_told_once_and_not_asked_again() {
    let asked = several(5);
    let want = alone(&asked);
    let texts: Vec<Vec<u32>> =
        asked.iter().zip(&want).map(|(a, w)| [&a.prompt[..], w].concat()).collect();
    let faults = [
        (How::Fail, "does not guess"),
        (How::TooLong, "guessed where"),
        (How::TooMany, "guesses came for"),
        (How::Unknown, "token id 2048"),
    ];
    for (how, said) in faults {
        for from in [0, 3] {
            let (mut engine, lines) = logged(Setup { sessions: 5, ..Setup::default() });
            let mut oracle = Oracle::new(texts.clone(), how);
            oracle.from = from;
            let calls = Arc::clone(&oracle.calls);
            engine.speculate(Box::new(oracle), 4);
            assert!(tokens(run(&mut engine, &asked, 5).0) == want, "{how:?} after {from}");
            assert!(tokens(run(&mut engine, &asked, 5).0) == want, "{how:?}, and again");
            assert_eq!(*calls.lock().expect("calls"), from + 1, "{how:?} after {from}");
            let lines = lines.lock().expect("lines");
            assert_eq!(lines.len(), 1, "{how:?}: {lines:?}");
            assert!(lines[0].contains(said) && lines[0].contains("go on"), "{}", lines[0]);
        }
    }
}

#[test]
fn where_guesses_have_no_memory_the_answer_goes_on_without_them() {
    // A store that takes nothing, and frames for a page in each of 6 layers, and two more: a
    // second page is never to be had.
    let mut asked = several(1);
    asked[0].prompt = prose(30);
    asked[0].new = 35;
    let want = alone(&asked);
    let texts = vec![[&asked[0].prompt[..], &want[0]].concat()];
    for how in [How::Right, How::Wrong, How::Mixed] {
        let kv = Box::new(Keep { full_after: Some(0), ..Keep::store() });
        let setup = Setup { kv, kv_budget: Some(10 * FRAME), ..Setup::default() };
        let (mut engine, _) = logged(setup);
        // Past the answer's end too: its last page ends with it.
        engine.speculate(Box::new(Oracle::new(texts.clone(), how)), 9);
        assert!(tokens(run(&mut engine, &asked, 1).0) == want, "{how:?}");
    }
}
