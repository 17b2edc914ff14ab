//! History that does not fit: read back from a store, cold in int8, behind a window. The bits are
//! those of everything in memory, or for lossy forms those of any other budget.

use super::doubles::Keep;
use super::{Setup, bits, greedy, prose};
use kvern_contract::{Granularity, KvEncoding, KvWindow};

/// A frame of tiny-austen's pages in f32: 2 heads, 64 tokens, 64 channels of K and V.
const FRAME: u64 = 2 * 64 * 64 * 4;

fn with(kv: Keep, frames: Option<u64>, kv_dtype: KvEncoding, chunk: u32) -> Setup {
    let scale = if kv_dtype == KvEncoding::F32 { 1 } else { 2 };
    let kv_budget = frames.map(|n| n * FRAME / scale);
    Setup { kv: Box::new(kv), kv_budget, kv_dtype, chunk, ..Setup::default() }
}

#[test]
fn history_read_back_from_a_store_gives_the_bits_of_history_in_memory() {
    let ids = prose(1000);
    for dtype in [KvEncoding::F32, KvEncoding::Bf16, KvEncoding::F16] {
        let mut engine = with(Keep::resident(), None, dtype, 512).load().expect("it loads");
        let want = bits(&mut engine, &ids).expect("it scores");
        for (frames, chunk) in [(10, 512), (13, 64), (32, 512), (60, 200), (95, 512)] {
            let mut engine =
                with(Keep::store(), Some(frames), dtype, chunk).load().expect("it loads");
            let got = bits(&mut engine, &ids).expect("it scores");
            assert!(got == want, "{dtype:?}, {frames} frames, chunks of {chunk}");
            let facts = engine.facts().kv;
            assert!(facts.pages_read > 0 && facts.bytes_read > 0, "nothing was read back");
            assert_eq!((facts.checksum_failures, facts.recomputed_tokens), (0, 0));
        }
    }
}

#[test]
fn decoding_over_a_store_gives_the_tokens_of_decoding_in_memory() {
    let prompt = prose(40);
    let mut engine = Setup::default().load().expect("it loads");
    let want = greedy(&mut engine, &prompt, 400).expect("it generates");
    let mut engine = with(Keep::store(), Some(12), KvEncoding::F32, 512).load().expect("it loads");
    assert_eq!(greedy(&mut engine, &prompt, 400).expect("it generates"), want);
    assert!(engine.facts().kv.pages_read > 1000, "every step reads back");
}

#[test]
fn a_budget_below_the_least_is_refused_with_the_least_and_the_least_works() {
    let ids = prose(400);
    let least = 10;
    let short = with(Keep::store(), Some(least - 1), KvEncoding::F32, 512).load();
    let said = short.err().expect("too small").to_string();
    assert!(said.contains(&format!("at least {} bytes", least * FRAME)), "{said}");
    let mut engine =
        with(Keep::store(), Some(least), KvEncoding::F32, 512).load().expect("it loads");
    bits(&mut engine, &ids).expect("it scores");
    let resident = with(Keep::resident(), Some(100), KvEncoding::F32, 512).load();
    assert!(resident.is_err(), "a context of 2048 tokens takes 192 frames");
}

#[test]
fn cold_pages_in_int8_have_the_same_bits_under_every_budget() {
    let ids = prose(1000);
    let int8 = KvEncoding::Int8 { key: Granularity::Channel, value: Granularity::Token };
    let lossy = |has_store| Keep { has_store, cold: Some((int8, 192)), ..Keep::resident() };
    let run = |kv: Keep, frames| {
        let mut engine = with(kv, frames, KvEncoding::Bf16, 64).load().expect("it loads");
        let rows = bits(&mut engine, &ids).expect("it scores");
        (rows, engine.facts().kv)
    };
    let (want, _) = run(lossy(false), None);
    let (resident, _) = run(Keep::resident(), None);
    assert!(want[..192] == resident[..192], "nothing is cold at first");
    assert!(want[900..] != resident[900..], "cold pages are read in int8");
    let mut worst: f32 = 0.0;
    for (a, b) in want.iter().flatten().zip(resident.iter().flatten()) {
        worst = worst.max((f32::from_bits(*a) - f32::from_bits(*b)).abs());
    }
    assert!(worst < 1.0, "int8 moves logits by {worst}");
    for frames in [50, 64, 90] {
        let (got, facts) = run(lossy(true), Some(frames));
        assert!(got == want, "{frames} frames");
        assert!(facts.pages_read > 0, "nothing was read back");
    }
}

#[test]
fn a_window_sees_its_tokens_alone_and_frees_the_others() {
    let ids = prose(700);
    let window = Some(KvWindow { first: 4, recent: 100 });
    let run = |has_store, frames, chunk| {
        let kv = Keep { has_store, window, ..Keep::resident() };
        let mut engine = with(kv, frames, KvEncoding::F32, chunk).load().expect("it loads");
        let session = engine.begin().expect("a session");
        let mut rows: Vec<Vec<u32>> = Vec::new();
        let done = engine.score(session, &ids, &mut |_, row| {
            rows.push(row.iter().map(|x| x.to_bits()).collect());
            Ok(())
        });
        done.expect("it scores");
        (rows, engine.facts().kv)
    };
    let (want, facts) = run(false, None, 512);
    assert!(facts.evicted_tokens > 0 && facts.resident_tokens < 6 * 700, "{facts:?}");
    let mut full = Setup::default().load().expect("it loads");
    let full = bits(&mut full, &ids).expect("it scores");
    assert!(want[..100] == full[..100] && want[400] != full[400]);
    for chunk in [1, 64] {
        assert!(run(false, None, chunk).0 == want, "chunks of {chunk}");
    }
}

#[test]
fn a_rewind_behind_a_window_starts_again_where_the_window_has_nothing_left() {
    let ids = prose(500);
    let window = Some(KvWindow { first: 4, recent: 100 });
    let kv = Keep { window, ..Keep::resident() };
    let mut engine = with(kv, None, KvEncoding::F32, 64).load().expect("it loads");
    let want = bits(&mut engine, &ids).expect("it scores");
    let session = engine.begin().expect("a session");
    engine.score(session, &ids, &mut |_, _| Ok(())).expect("it scores");
    let landed = engine.rewind(session, 300).expect("it goes back");
    assert_eq!(landed, 0, "what row 300 would see is gone");
    let mut rows: Vec<Vec<u32>> = Vec::new();
    let mut keep = |_: usize, row: &[f32]| {
        rows.push(row.iter().map(|x| x.to_bits()).collect());
        Ok(())
    };
    engine.score(session, &ids, &mut keep).expect("it scores");
    assert!(rows == want);
    let near = engine.rewind(session, 490).expect("it goes back");
    assert_eq!(near, 490, "the last page is still there");
}

#[test]
fn a_lossy_history_that_loses_a_page_is_computed_again_to_the_same_bits() {
    let ids = prose(900);
    let int8 = KvEncoding::Int8 { key: Granularity::Channel, value: Granularity::Token };
    let run = |faults: &[(u64, super::doubles::Fault)]| {
        let kv = Keep { cold: Some((int8, 192)), ..Keep::with(faults) };
        let mut engine = with(kv, Some(60), KvEncoding::Bf16, 128).load().expect("it loads");
        let session = engine.begin().expect("a session");
        let mut rows: Vec<Vec<u32>> = Vec::new();
        // Steps of uneven lengths: other steps would be other bits.
        for part in [&ids[..130], &ids[130..137], &ids[137..700], &ids[700..]] {
            let mut keep = |_: usize, row: &[f32]| {
                rows.push(row.iter().map(|x| x.to_bits()).collect());
                Ok(())
            };
            engine.score(session, part, &mut keep).expect("it scores");
        }
        (rows, engine.facts().kv)
    };
    let (want, _) = run(&[]);
    let (got, facts) = run(&[(7, super::doubles::Fault::Flip), (40, super::doubles::Fault::Flip)]);
    assert!(facts.recomputed_tokens > 0 && facts.checksum_failures > 0, "{facts:?}");
    assert!(got == want);
}
