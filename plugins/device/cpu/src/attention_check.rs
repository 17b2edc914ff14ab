//! Extents of the ops that touch pages: RopeWrite and Attention.

use crate::check::{Places, Refusal, invalid, unsupported};
use crate::kernels;
use crate::task::{Attention, Need, Rope, Task};
use kvern_contract::{KvLayer, LayerKind, Op, PageEntry, RowWrite, SpanEntry, encoding_of};

/// Heads and channels above this are no model's, and keep every size far from overflow.
const MOST: u32 = 1 << 16;

/// Scratch of an attention, or why it does not run here.
pub(crate) fn supported(op: &Op, workers: usize) -> Result<Need, Refusal> {
    let Op::Attention { heads, kv_heads, key_dim, value_dim, .. } = *op else {
        return unsupported("this op");
    };
    if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 {
        return invalid(format!("{heads} heads over {kv_heads} kv heads"));
    }
    if key_dim == 0 || value_dim == 0 || heads.max(key_dim).max(value_dim) > MOST {
        return invalid(format!("{heads} heads of {key_dim} and {value_dim} channels"));
    }
    let [heads, kv_heads, kd, vd] = [heads, kv_heads, key_dim, value_dim].map(|n| n as usize);
    Ok(kernels::attention::need(heads, kv_heads, kd, vd, workers > 1))
}

pub(crate) fn rope(op: &Op, places: &Places<'_>) -> Result<Task, Refusal> {
    let Op::RopeWrite {
        q,
        k,
        v,
        positions,
        cos,
        sin,
        writes,
        pool,
        rows,
        heads,
        kv_heads,
        key_dim,
        value_dim,
        rotary,
        table_rows,
        interleaved,
        encoding,
    } = *op
    else {
        return unsupported("this op");
    };
    if heads.max(kv_heads).max(key_dim).max(value_dim) > MOST {
        return invalid(format!("{heads} heads of {key_dim} and {value_dim} channels"));
    }
    let Some(encoding) = encoding_of(encoding) else { return unsupported("this encoding") };
    let [n, h, kvh, kd, vd] = [rows, heads, kv_heads, key_dim, value_dim].map(u64::from);
    let layer = KvLayer { kind: LayerKind::Full, key_dim, value_dim, kv_heads };
    // What no row or head needs may be none.
    let turned = if rotary > 0 { n } else { 0 };
    let table = [if rotary > 0 { u64::from(table_rows) } else { 0 }, u64::from(rotary / 2), 4];
    let kept = if kvh > 0 { n } else { 0 };
    let want = |what, place, sizes: &[u64]| match sizes.contains(&0) {
        true => places.maybe(what, place, sizes),
        false => places.at(what, place, sizes),
    };
    let (pool, pool_bytes) = match kept {
        0 => (std::ptr::null_mut(), 0),
        _ => places.rest("the pool", pool)?,
    };
    Ok(Task::Rope(Rope {
        q: want("q", q, &[n, h, kd, 4])?.cast(),
        k: want("k", k, &[n, kvh, kd, 4])?.cast(),
        v: want("v", v, &[n, kvh, vd, 4])?.cast(),
        positions: want("positions", positions, &[turned, 4])?.cast(),
        cos: want("cos", cos, &table)?.cast(),
        sin: want("sin", sin, &table)?.cast(),
        writes: want("writes", writes, &[kept, size_of::<RowWrite>() as u64])?,
        pool,
        pool_bytes,
        page_bytes: layer.page_bytes(encoding),
        rows: rows as usize,
        heads: heads as usize,
        kv_heads: kv_heads as usize,
        key_dim: key_dim as usize,
        value_dim: value_dim as usize,
        rotary: rotary as usize,
        table_rows: table_rows as usize,
        interleaved,
        encoding,
    }))
}

pub(crate) fn attention(op: &Op, places: &Places<'_>) -> Result<Task, Refusal> {
    let Op::Attention {
        q,
        out,
        state,
        spans,
        entries,
        masks,
        pool,
        sinks,
        sequences,
        heads,
        kv_heads,
        key_dim,
        value_dim,
        scale,
        softcap,
        window,
        keep,
        causal,
        first,
        last,
    } = *op
    else {
        return unsupported("this op");
    };
    let [h, kd, vd] = [heads, key_dim, value_dim].map(u64::from);
    let kept = state.buffer.0 != 0;
    let whole = first && last;
    if !kept && !whole {
        return invalid("no state, and not both first and last");
    }
    // How many rows there are is the spans' to say: they may say as many as fit everywhere.
    let (q, rest) = places.rest("q", q)?;
    let mut rows = rest / (h * kd * 4);
    let (mut out_at, mut state_at) = (std::ptr::null_mut(), std::ptr::null_mut());
    if last {
        let (at, rest) = places.rest("out", out)?;
        (out_at, rows) = (at, rows.min(rest / (h * vd * 4)));
    }
    if kept {
        let (at, rest) = places.rest("the state", state)?;
        (state_at, rows) = (at, rows.min(rest / (h * (2 + vd) * 4)));
    }
    let none = (std::ptr::null_mut(), 0);
    let optional = |what, place: kvern_contract::Slice| match place.buffer.0 {
        0 => Ok(none),
        _ => places.rest(what, place),
    };
    let (entries, entry_bytes) = optional("the entries", entries)?;
    let (masks, mask_bytes) = optional("the masks", masks)?;
    let (pool, pool_bytes) = optional("the pool", pool)?;
    let span_bytes = size_of::<SpanEntry>() as u64;
    Ok(Task::Attention(Attention {
        q: q.cast(),
        out: out_at.cast(),
        state: state_at.cast(),
        rows,
        spans: places.at("the spans", spans, &[u64::from(sequences), span_bytes])?,
        sequences: sequences as usize,
        entries,
        entry_count: (entry_bytes / size_of::<PageEntry>() as u64).min(u64::from(u32::MAX)),
        masks,
        mask_count: mask_bytes / (8 * u64::from(kv_heads)),
        pool,
        pool_bytes,
        sinks: places.maybe("the sinks", sinks, &[h, 4])?.cast(),
        heads: heads as usize,
        kv_heads: kv_heads as usize,
        key_dim: key_dim as usize,
        value_dim: value_dim as usize,
        scale,
        softcap,
        window,
        keep,
        causal,
        first,
        last,
    }))
}
