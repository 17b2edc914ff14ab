//! Which ops run here, by their parameters alone, and what scratch they take.

use crate::fault::{invalid, unsupported};
use crate::limits::{BLOCK, PAGES, TILE};
use crate::weight;
use kvern_contract::*;

/// Refuses an op that does not run here. *Errors* Unsupported, Invalid.
pub fn check(op: &Op) -> Result<()> {
    match op {
        Op::Embed { table, .. } => {
            weight::check(table)?;
            ensure(table.layout != 1, "a table of rows stored by columns")
        }
        Op::Norm { weight, width, groups, .. } => {
            ensure(*groups > 0 && *width > 0, "a norm over nothing")?;
            ensure(*width as usize <= TILE, "a norm over more than 32768 values")?;
            if weight.encoding != WeightEncoding::None { weight::check(weight) } else { Ok(()) }
        }
        Op::Linear { weights, biases, epilogue, .. } => {
            linear(weights.as_slice(), biases.as_slice(), *epilogue)
        }
        Op::RopeWrite { key_dim, value_dim, rotary, encoding, .. } => {
            ensure(
                rotary % 2 == 0 && rotary <= key_dim,
                "a rope over an odd part of the channels",
            )?;
            ensure(key_dim.max(value_dim) <= &(TILE as u32), "a head of more than 32768 channels")?;
            plain(*encoding)
        }
        Op::Attention { heads, kv_heads, key_dim, value_dim, .. } => {
            let some = *kv_heads > 0 && *heads > 0 && *key_dim > 0 && *value_dim > 0;
            ensure(some && heads.is_multiple_of(*kv_heads), "attention with uneven or no heads")?;
            ensure(*heads <= TILE as u32 / PAGE_TOKENS, "attention over more than 512 heads")
        }
        Op::Map { .. } | Op::Rows { .. } => Ok(()),
        Op::Top { width, top, .. } => ensure(top <= width, "more top values than there are"),
        other => Err(unsupported(format!("{} does not run on candle", other.name()))),
    }
    .map_err(|mut error| {
        error.context.push(("op".into(), op.name().into()));
        error
    })
}

fn ensure(holds: bool, found: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(invalid(found)) }
}

/// Encodings that pages are read and written in.
pub fn plain(encoding: u32) -> Result<()> {
    match encoding_of(encoding) {
        Some(KvEncoding::F32 | KvEncoding::F16 | KvEncoding::Bf16) => Ok(()),
        _ => Err(unsupported(format!("pages in encoding {encoding} are not read here"))),
    }
}

fn linear(weights: &[Weight], biases: &[Slice], epilogue: Epilogue) -> Result<()> {
    let first = weights.first().ok_or_else(|| invalid("a product with no weight"))?;
    for weight in weights {
        weight::check(weight)?;
        ensure(weight.inputs == first.inputs, "weights of one input that differ in its width")?;
    }
    ensure(biases.len() <= weights.len(), "more biases than weights")?;
    match epilogue {
        Epilogue::Clamped => Err(unsupported("a clamped gate does not run on candle")),
        Epilogue::SiluGated | Epilogue::GeluTanhGated => {
            let two = weights.iter().all(|w| w.outputs == first.outputs) && weights.len() == 2;
            ensure(two, "a gate needs two weights of one shape")
        }
        _ => Ok(()),
    }
}

/// Bytes of scratch beside the operands, for `rows` rows and `threads` workers: an upper bound.
pub fn workspace(op: &Op, rows: u32, threads: u32) -> u64 {
    let (rows, threads) = (u64::from(rows), u64::from(threads.max(1)));
    // Element-wise work keeps a handful of tiles alive at a time.
    let tiles = 12 * 4 * TILE as u64;
    match op {
        Op::Linear { weights, .. } => {
            let inputs = weights.as_slice().first().map_or(0, |w| u64::from(w.inputs));
            // The raw and the f32 form of a block, the second of a gated pair, and each one's
            // product.
            let block = inputs.max(BLOCK as u64);
            let products = 3 * rows.saturating_mul(block.div_ceil(inputs.max(1)));
            let each = 8 * 2 * block + 4 * products + tiles;
            4 * rows.saturating_mul(inputs) + threads * each
        }
        Op::Attention { heads, key_dim, value_dim, .. } => {
            let (heads, key, value) =
                (u64::from(*heads), u64::from(*key_dim), u64::from(*value_dim));
            let pages = PAGES as u64 * heads * u64::from(PAGE_TOKENS) * (key + value) * 8;
            let partials = TILE as u64 / u64::from(PAGE_TOKENS) * value * 4 * 2 + tiles;
            let queries = rows.saturating_mul(heads * (key + 2 + value) * 4);
            queries.saturating_add(pages + threads * partials)
        }
        Op::Embed { table, .. } => tiles + 8 * u64::from(table.inputs),
        Op::RopeWrite { heads, kv_heads, key_dim, value_dim, .. } => {
            let row = u64::from(*heads.max(kv_heads)) * u64::from(*key_dim.max(value_dim));
            tiles + 12 * 4 * row
        }
        Op::Top { width, .. } => 16 * u64::from(*width),
        _ => tiles,
    }
}
