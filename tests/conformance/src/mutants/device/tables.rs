//! Ops whose tables are read wrong: each reads a changed copy.

use super::super::Mutant;
use super::{Broken, Device, mutants, whole};
use kvern_contract::*;
use kvern_testkit::Promise;
use kvern_testkit::device::memory::{peek, poke};

/// A copy of words in new memory, changed; the place itself where there is none.
fn changed(inner: &mut Device, at: &mut Slice, words: usize, change: impl Fn(&mut Vec<u32>)) {
    let Some(span) = inner.span(at.buffer) else { return };
    // As many as there are: a table without a length goes on to its buffer's end.
    let words = words.min(span.bytes.saturating_sub(at.offset) as usize / 4);
    let mut bytes = vec![0; 4 * words];
    if peek(span, at.offset, &mut bytes).is_err() {
        return;
    }
    let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let mut all: Vec<u32> = bytes.chunks_exact(4).map(word).collect();
    change(&mut all);
    let bytes: Vec<u8> = all.iter().flat_map(|word| word.to_le_bytes()).collect();
    let Ok(buffer) = inner.alloc(bytes.len() as u64, Space::Staging) else { return };
    if let Some(span) = inner.span(buffer)
        && poke(span, 0, &bytes).is_ok()
    {
        *at = Slice { buffer, offset: 0 };
    }
}

/// Longer than any table of entries here.
const ENTRIES: usize = 8 * 20;

/// A change of every page entry of an attention.
fn entries(inner: &mut Device, op: &mut Op, change: impl Fn(&mut [u32], &[u32])) {
    if let Op::Attention { entries, .. } = op {
        changed(inner, entries, ENTRIES, |all| {
            let first = all[..8].to_vec();
            all.chunks_exact_mut(8).for_each(|entry| change(entry, &first));
        });
    }
}

/// A change of every span.
fn spans(inner: &mut Device, op: &mut Op, change: impl Fn(&mut [u32])) {
    if let Op::Attention { spans, sequences, .. }
    | Op::Conv { spans, sequences, .. }
    | Op::Delta { spans, sequences, .. } = op
    {
        let words = 8 * *sequences as usize;
        changed(inner, spans, words, |all| all.chunks_exact_mut(8).for_each(&change));
    }
}

/// No span begins at 0.
fn later(inner: &mut Device, op: &mut Op) {
    spans(inner, op, |span| span[2] = span[2].max(1));
}

/// Rows by index: one of the buffer where it is past its end.
pub fn clamped(inner: &mut Device, op: &mut Op) {
    if let Op::Rows { indices, rows, .. } = op {
        changed(inner, indices, *rows as usize, |all| {
            all.iter_mut().for_each(|index| *index = (*index).min(39));
        });
    }
}

/// Of ties the higher id: the first two of a row change places where they are as large.
fn swapped(inner: &mut Device, queue: Queue, ops: &[Op], after: &[Fence]) -> Result<Fence> {
    let fence = inner.submit(queue, ops, after)?;
    for op in ops {
        if let Op::Top { ids, values, rows, top: 2.., .. } = op {
            super::finish(inner, fence)?;
            let (Some(ids_at), Some(values_at)) =
                (inner.span(ids.buffer), inner.span(values.buffer))
            else {
                continue;
            };
            let top = match op {
                Op::Top { top, .. } => u64::from(*top),
                _ => 0,
            };
            for row in 0..u64::from(*rows) {
                let (mut two, mut tied) = ([0; 8], [0; 8]);
                peek(values_at, values.offset + 4 * row * top, &mut tied)?;
                peek(ids_at, ids.offset + 4 * row * top, &mut two)?;
                if tied[..4] == tied[4..] {
                    two.rotate_left(4);
                    poke(ids_at, ids.offset + 4 * row * top, &two)?;
                }
            }
        }
    }
    Ok(fence)
}

/// Attention that divides by a sum of nothing.
fn unseen(inner: &mut Device, queue: Queue, ops: &[Op], after: &[Fence]) -> Result<Fence> {
    let fence = inner.submit(queue, ops, after)?;
    for op in ops {
        if let Op::Attention { out, heads, value_dim, masks, last: true, .. } = op
            && masks.buffer != Buffer(0)
        {
            super::finish(inner, fence)?;
            let Some(span) = inner.span(out.buffer) else { continue };
            // Row 0 is nobody's: the first sequence begins at row 1.
            let row = 4 * u64::from(*heads * *value_dim);
            let mut first = [0; 4];
            peek(span, out.offset + row, &mut first)?;
            if first == [0; 4] {
                poke(span, out.offset + row, &f32::NAN.to_le_bytes())?;
            }
        }
    }
    Ok(fence)
}

pub fn mutants() -> Vec<Mutant<Device>> {
    mutants! {
        "Op::Top" "The `top` largest of each row, descending, ties to the lower id.":
            "ties to the higher", submit: swapped;
        "Op::Attention" "0 where nothing was seen.": "it is no number", submit: unseen;
        "KvEncoding::Bf16" "The upper half of an f32, rounded half to even.": "cut off",
            op: |inner, op| if let Op::RopeWrite { v, rows, kv_heads, value_dim, .. } = op {
                let words = (*rows * *kv_heads * *value_dim) as usize;
                changed(inner, v, words, |all| all.iter_mut().for_each(|x| *x &= 0xffff_0000));
            };
        "PageEntry::encoding" "pages of one list may differ": "all are the first's",
            op: |inner, op| entries(inner, op, |entry, first| entry[4] = first[4]);
        "DeviceDescription::kv" "Encodings of KV pages that it reads": "bf16 is read as f16",
            op: |inner, op| entries(inner, op, |entry, _| if entry[4] == 3 { entry[4] = 2 });
        "PageEntry::mask" "Bit n is row n; set: it is seen.": "all rows are seen",
            op: |inner, op| entries(inner, op, |entry, _| entry[5] = u32::MAX);
        "PageEntry::first" "`packed` is 1, and only the mask decides.": "the window does too",
            op: |inner, op| entries(inner, op, |entry, _| entry[6] = 0);
        "PageEntry::tokens" "Rows filled, 1 to 64.": "all are",
            op: |inner, op| entries(inner, op, |entry, _| entry[3] = 64);
        "SpanEntry::position" "Position of the first of them.": "one less",
            op: |inner, op| spans(inner, op, |span| span[2] = span[2].saturating_sub(1));
        "Op::Experts" "Biases go by id, not by slot.": "by another id",
            op: |inner, op| if let Op::Experts { down_bias, down, experts, .. } = op {
                let (width, words) = (down.outputs, *experts * down.outputs);
                changed(inner, down_bias, words as usize, |all| all.rotate_left(width as usize));
            };
        "Op::Experts" "or `u32::MAX`: absent, skipped": "absent is the first",
            op: |inner, op| if let Op::Experts { slots, experts, .. } = op {
                changed(inner, slots, *experts as usize, |all| {
                    all.iter_mut().filter(|slot| **slot == u32::MAX).for_each(|slot| *slot = 0);
                });
            };
        "Op::Conv" "A span at position 0 starts from zeros, whatever the state holds.":
            "it goes on", op: later;
        "Op::Conv" "the last inputs, oldest first": "none are kept",
            op: |inner, op| if let Op::Conv { state, channels, kernel, .. } = op {
                let words = 3 * *channels * (*kernel - 1);
                changed(inner, state, words as usize, |_| ());
            };
        "Op::Delta" "`[slot][head][key_dim][value_dim]`, zeros at position 0.": "it goes on",
            op: later;
    }
}
