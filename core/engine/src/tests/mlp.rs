//! Feed-forward blocks in chunks of rows: the same bits, in less memory.

use super::doubles::Policy;
use super::{Setup, bits, prose};
use std::path::Path;

/// Bytes of tiny-austen's gate and up activations, a row.
const ROW: u64 = 2 * 512 * 4;

#[test]
fn a_feed_forward_block_in_chunks_of_rows_gives_the_bits_of_all_rows_at_once() {
    let odd =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/llama-odd-sizes");
    let ids: Vec<u32> = (0..90).map(|i| (i * 37) % 97).collect();
    for (model, ids) in [(super::austen(), prose(300)), (odd, ids)] {
        let with = |mlp_rows| Setup { model: model.clone(), mlp_rows, ..Setup::default() };
        let mut engine = with(None).load().expect("it loads");
        let want = bits(&mut engine, &ids).expect("it scores");
        let chunks = engine.facts().mlp_chunks;
        assert_eq!((chunks.mode(), chunks.rows), ("adaptive-headroom", 16384));
        for rows in [1, 7, 64, 299, 300, 5000] {
            let mut engine = with(Some(rows)).load().expect("it loads");
            assert!(bits(&mut engine, &ids).expect("it scores") == want, "chunks of {rows}");
            let chunks = engine.facts().mlp_chunks;
            assert_eq!((chunks.mode(), chunks.rows), ("explicit-rows", rows));
        }
    }
}

/// With so much memory, and the least that works: as the refusal says it.
fn small(memory: u64, mlp_rows: Option<u32>) -> Setup {
    let (memory_budget, context) = (Some(memory), Some(1024));
    let offload = Box::new(Policy { by_budget: true, ..Policy::everything() });
    Setup { memory_budget, context, mlp_rows, offload, ..Setup::default() }
}

fn least(mlp_rows: Option<u32>) -> u64 {
    let said = small(1024, mlp_rows).load().err().expect("too small").to_string();
    let figure = said.split("at least ").nth(1).and_then(|rest| rest.split(' ').next());
    figure.and_then(|word| word.parse().ok()).expect("a figure")
}

#[test]
fn a_tight_budget_keeps_a_large_prefill_chunk_and_cuts_its_feed_forward_blocks() {
    let ids = prose(600);
    let want = bits(&mut Setup::default().load().expect("it loads"), &ids).expect("it scores");
    let adaptive = least(None);
    assert_eq!(least(Some(512)) - adaptive, 511 * ROW, "asked for all rows, less is refused");
    let mut seen = Vec::new();
    for more in [0, 1 << 20, 1 << 22, 1 << 26] {
        let mut engine = small(adaptive + more, None).load().expect("it fits");
        assert_eq!(engine.rows_most, 512, "the prefill chunk is as large as without a budget");
        assert!(bits(&mut engine, &ids).expect("it scores") == want, "{more} more than the least");
        let facts = engine.facts();
        assert!(facts.budget_peak <= adaptive + more, "{} of {more} more", facts.budget_peak);
        assert_eq!(facts.mlp_chunks.mode(), "adaptive-headroom");
        seen.push(facts.mlp_chunks.rows);
    }
    assert_eq!(seen[..3], [1, 8, 32], "a thirty-second of the headroom");
    assert_eq!(seen[3], 512);
}
