//! What the store has, counted: pages that several sessions share are counted once.

use crate::store::Spot;
use kvern_contract::*;
use kvern_record::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// Sums over these entries, in a `chunks` file of `file_bytes` bytes. Dead is what none of them
/// names, padding included.
pub(crate) fn report<'a>(
    entries: impl Iterator<Item = (LayerIndex, &'a Entry<Spot>)>,
    file_bytes: u64,
) -> KvReport {
    let placed = entries.map(|(layer, entry)| (entry.place.offset, (layer, entry)));
    let pages: BTreeMap<u64, _> = placed.collect();
    let layers: BTreeSet<_> = pages.values().map(|(layer, _)| *layer).collect();
    let chunks: BTreeSet<u64> = pages.values().map(|(_, entry)| entry.place.chunk).collect();
    let sum = |of: fn(&PageTag) -> u32| -> u64 {
        pages.values().map(|(_, entry)| u64::from(of(&entry.tag))).sum()
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
