//! Weights that stay, weights that stream, and budgets: the same bits, or a refusal that says why.

use super::doubles::Policy;
use super::{Setup, bits, prose};
use std::sync::Arc;

fn policy(layers: &[u32], head: bool, read_ahead: u32) -> Box<Policy> {
    Box::new(Policy {
        layers: Some(layers.to_vec()),
        head,
        read_ahead,
        seen: Arc::default(),
        by_budget: false,
    })
}

#[test]
fn every_placement_gives_the_bits_of_everything_in_memory() {
    let ids = prose(150);
    let want = bits(&mut Setup::default().load().expect("it loads"), &ids).expect("it scores");
    for head in [true, false] {
        for layers in [&[0, 1, 2, 3, 4, 5][..], &[], &[0, 1], &[3, 4, 5], &[1, 4]] {
            for read_ahead in [0, 1] {
                let offload = policy(layers, head, read_ahead);
                let mut engine =
                    Setup { offload, chunk: 64, ..Setup::default() }.load().expect("it loads");
                let got = bits(&mut engine, &ids).expect("it scores");
                assert!(got == want, "layers {layers:?}, head {head}, ahead {read_ahead}");
                let facts = engine.facts().placement;
                assert_eq!(facts.indices, layers);
                assert_eq!(facts.streamed_bytes == 0, head && layers.len() == 6);
            }
        }
    }
}

#[test]
fn an_untied_embedding_that_stays_on_disk_is_read_row_by_row() {
    let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/models/llama-base");
    let ids: Vec<u32> = (0..100).map(|i| (i * 37) % 320).collect();
    let plain = Setup { model: model.clone(), ..Setup::default() };
    let want = bits(&mut plain.load().expect("it loads"), &ids).expect("it scores");
    let offload = policy(&[2], false, 1);
    let mut engine = Setup { model, offload, ..Setup::default() }.load().expect("it loads");
    assert!(bits(&mut engine, &ids).expect("it scores") == want);
}

#[test]
fn streamed_weights_are_read_once_a_sweep() {
    for head in [true, false] {
        let offload = policy(&[0, 1, 2], head, 1);
        let mut engine = Setup { offload, chunk: 50, ..Setup::default() }.load().expect("it loads");
        let before = engine.facts();
        let sweep = before.stream.sweep_bytes;
        assert_eq!(sweep, before.placement.streamed_bytes);
        bits(&mut engine, &prose(150)).expect("it scores");
        let after = engine.facts();
        assert_eq!(after.stream.sweeps, 3);
        assert_eq!(after.stream.streamed_bytes, 3 * sweep);
        // What is under way for the next sweep was under way for the first one as well; an
        // embedding's rows come beside it, and what reads are rounded to.
        let read = after.storage.bytes_read - before.storage.bytes_read;
        let rows = if head { 0 } else { 150 * 256 };
        let most = 3 * sweep + 3 * sweep / 100 + rows;
        assert!(read >= 3 * sweep - sweep / 2 && read <= most + sweep / 2, "{read} of {sweep}");
    }
}

#[test]
fn a_memory_budget_that_cannot_work_says_what_is_needed_and_that_much_works() {
    let short = Setup { memory_budget: Some(1024), context: Some(256), ..Setup::default() }.load();
    let said = short.err().expect("too small").to_string();
    assert!(said.contains("1024 bytes is too small"), "{said}");
    let least: u64 = said
        .split("at least ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|word| word.parse().ok())
        .expect("a figure");
    let offload = policy(&[], false, 1);
    let setup =
        Setup { memory_budget: Some(least), context: Some(256), offload, ..Setup::default() };
    let mut engine = setup.load().expect("the least is enough");
    bits(&mut engine, &prose(200)).expect("it scores");
    let facts = engine.facts();
    assert!(facts.budget_peak <= least, "{} of {least}", facts.budget_peak);
    let everything = Setup { memory_budget: Some(least), context: Some(256), ..Setup::default() };
    let said = everything.load().err().expect("weights do not fit").to_string();
    assert!(said.contains("more than the"), "{said}");
}

#[test]
fn a_policy_that_fills_what_it_is_offered_fits_every_budget_from_the_least_on() {
    let ids = prose(100);
    let want = bits(&mut Setup::default().load().expect("it loads"), &ids).expect("it scores");
    let small = |memory: u64, head: bool| {
        let policy = Policy { by_budget: true, head, ..Policy::everything() };
        let (memory_budget, context) = (Some(memory), Some(256));
        Setup { memory_budget, context, chunk: 64, offload: Box::new(policy), ..Setup::default() }
    };
    let said = small(1024, true).load().err().expect("too small").to_string();
    let figure = said.split("at least ").nth(1).and_then(|rest| rest.split(' ').next());
    let least: u64 = figure.and_then(|word| word.parse().ok()).expect("a figure");
    let mut kept = Vec::new();
    for more in (0..9).map(|n| n * 700_000) {
        for head in [true, false] {
            let mut engine = small(least + more, head).load().expect("it fits");
            assert!(bits(&mut engine, &ids).expect("it scores") == want, "{more} more, {head}");
            let facts = engine.facts();
            assert!(facts.budget_peak <= least + more, "{} of {}", facts.budget_peak, least + more);
            kept.extend(head.then_some(facts.placement.resident_bytes));
        }
    }
    assert!(kept.windows(2).all(|w| w[0] <= w[1]), "more memory keeps more: {kept:?}");
    assert!(kept[0] < kept[8]);
}
