//! What the store has, counted: pages that several sessions share are counted once.

use crate::history::{History, Piece};
use kvern_contract::*;
use std::collections::{BTreeMap, BTreeSet};

/// Sums over these histories, in a `chunks` file of `file_bytes` bytes. Dead is what no history
/// names, padding included.
pub(crate) fn report<'a>(
    histories: impl Iterator<Item = &'a History>,
    file_bytes: u64,
) -> KvReport {
    let mut pieces: BTreeMap<u64, (u32, Piece)> = BTreeMap::new();
    for history in histories {
        let placed = history.pieces.iter();
        pieces.extend(placed.map(|(&(layer, _), &piece)| (piece.offset, (layer, piece))));
    }
    let layers: BTreeSet<u32> = pieces.values().map(|(layer, _)| *layer).collect();
    let chunks: BTreeSet<u64> = pieces.values().map(|(_, piece)| piece.chunk).collect();
    let sum = |of: fn(&PageTag) -> u32| -> u64 {
        pieces.values().map(|(_, piece)| u64::from(of(&piece.tag))).sum()
    };
    let live_bytes = sum(|tag| tag.bytes);
    KvReport {
        persisted_layer_count: layers.len() as u64,
        persisted_tokens: sum(|tag| tag.tokens),
        persisted_artifact_count: chunks.len() as u64,
        live_bytes,
        dead_bytes: file_bytes.saturating_sub(live_bytes),
        ..KvReport::default()
    }
}
