//! Attention over pages: which queries meet which page, in what order the partials fold.
//!
//! Partials fold in the order of a sequence's entries, which ascend. Where there is work for every
//! worker, a worker takes a block of rows of one kv head through all its pages. Where there is not
//! (a row or two against a long history), pages are spread over workers: partials go to shared
//! scratch, then fold in the same order.
#![allow(unsafe_code)]
// Kernels: every body is pointer arithmetic under the promise that its function states.
#![allow(unsafe_op_in_unsafe_fn)]

use super::lanes::{LANES, Lanes};
use super::overlap::{Range, apart};
use super::page::{self, Fold, Partials, Queries, Side, TOKENS};
use crate::exec::Worker;
use crate::task::{Attention, Dtype, Need, Plan};
use kvern_contract::{
    ErrorKind, Granularity, KvEncoding, KvLayer, LayerKind, PageEntry, SpanEntry, encoding_of,
};

/// Queries of a block, unless one row's heads are more.
const QUERIES: usize = 48;
/// Partials that shared scratch holds.
const SLOTS: usize = 1024;
/// Queries whose pages are spread over workers.
const SPREAD: usize = SLOTS / 8;

/// Scratch of an attention with these heads and dims.
pub(crate) fn need(heads: usize, kv_heads: usize, kd: usize, vd: usize, shared: bool) -> Need {
    let queries = QUERIES.max(heads / kv_heads.max(1));
    let own = page::scratch(queries, kd, vd) + 2 * queries * (2 + vd);
    Need { own, shared: if shared { (SLOTS + SPREAD) * (2 + vd) } else { 0 } }
}

unsafe fn span(task: &Attention, index: usize) -> SpanEntry {
    task.spans.cast::<SpanEntry>().add(index).read_unaligned()
}

unsafe fn entry(task: &Attention, index: usize) -> PageEntry {
    task.entries.cast::<PageEntry>().add(index).read_unaligned()
}

/// The encoding of an entry that the pool really holds.
fn readable(task: &Attention, entry: &PageEntry) -> Option<KvEncoding> {
    let encoding = encoding_of(entry.encoding).filter(|e| *e != KvEncoding::Codec)?;
    let layer = KvLayer {
        kind: LayerKind::Full,
        key_dim: task.key_dim as u32,
        value_dim: task.value_dim as u32,
        kv_heads: task.kv_heads as u32,
    };
    let end = entry.offset.checked_add(layer.page_bytes(encoding))?;
    let masked = entry.mask == u32::MAX || u64::from(entry.mask) < task.mask_count;
    let sound = end <= task.pool_bytes && entry.tokens <= TOKENS as u32 && entry.packed <= 1;
    (sound && masked).then_some(encoding)
}

/// Refuses answers and states of these rows that would lie over spans or entries. *Errors* Invalid.
fn clear_of_tables(
    task: &Attention,
    taken: &[(u64, u64)],
    entries: usize,
) -> Result<(), ErrorKind> {
    let tables = [
        Range::of(task.spans, task.sequences * size_of::<SpanEntry>()),
        Range::of(task.entries, entries * size_of::<PageEntry>()),
    ];
    let (answer, state) = (task.heads * task.value_dim, task.heads * (2 + task.value_dim));
    for (out, width) in [(task.out, answer), (task.state, state)] {
        for (from, to) in taken.iter().filter(|_| !out.is_null()) {
            let at = out.wrapping_add(*from as usize * width);
            apart(Range::of(at, (to - from) as usize * width * 4), &tables)?;
        }
    }
    Ok(())
}

/// Checks spans and entries, and decides how they are spread. *Errors* Invalid.
pub(crate) fn plan(task: &Attention, workers: usize) -> Result<Plan, ErrorKind> {
    let (mut taken, mut entries, mut most, mut listed) = (Vec::new(), 0u32, 0u32, 0u64);
    for index in 0..task.sequences {
        // SAFETY: `check` made sure of this many spans.
        let span = unsafe { span(task, index) };
        let end = u64::from(span.row) + u64::from(span.rows);
        let last = u64::from(span.entry) + u64::from(span.entries);
        if end > task.rows || last > task.entry_count {
            return Err(ErrorKind::Invalid);
        }
        if span.rows > 0 {
            taken.push((u64::from(span.row), end));
        }
        (entries, most) = (entries.max(span.entries), most.max(span.rows));
        listed = listed.max(last);
        for at in span.entry..span.entry + span.entries {
            // SAFETY: within `entry_count`, which `check` made sure of.
            let entry = unsafe { entry(task, at as usize) };
            readable(task, &entry).ok_or(ErrorKind::Invalid)?;
        }
    }
    taken.sort_unstable();
    if taken.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err(ErrorKind::Invalid);
    }
    clear_of_tables(task, &taken, listed as usize)?;
    let total: u64 = taken.iter().map(|(from, to)| to - from).sum();
    let tall = (QUERIES / (task.heads / task.kv_heads)).max(1);
    let blocks = |rows: usize| -> usize {
        let count = |(from, to): &(u64, u64)| (*to - *from).div_ceil(rows as u64) as usize;
        taken.iter().map(count).sum::<usize>() * task.kv_heads
    };
    let enough = 4 * workers;
    let queries = total * task.heads as u64;
    let spread = workers > 1
        && blocks(tall) < enough
        && entries >= 4
        && most as usize <= tall
        && queries > 0
        && queries <= SPREAD as u64;
    if spread {
        let pages = SLOTS / queries as usize;
        let phases = 2 * (entries as usize).div_ceil(pages);
        return Ok(Plan { phases, units: 0, pages, rows: tall, total: total as usize });
    }
    let mut rows = tall;
    while workers > 1 && rows > 1 && blocks(rows) < enough {
        rows = rows.div_ceil(2);
    }
    Ok(Plan { phases: 1, units: blocks(rows), pages: 0, rows, total: total as usize })
}

/// The lowest `n` bits.
fn low(n: i64) -> u64 {
    match n {
        ..=0 => 0,
        64.. => u64::MAX,
        n => (1 << n) - 1,
    }
}

/// Tokens of a page that a query at `position` sees.
unsafe fn visible(task: &Attention, entry: &PageEntry, position: u64, head: usize) -> u64 {
    let mut seen = low(i64::from(entry.tokens));
    if entry.packed == 0 {
        let (first, position) = (i64::from(entry.first), position as i64);
        if task.causal {
            seen &= low(position + 1 - first);
        }
        if task.window > 0 {
            let from = position + 1 - i64::from(task.window);
            seen &= !low(from - first) | low(i64::from(task.keep) - first);
        }
    }
    if entry.mask != u32::MAX {
        let at = entry.mask as usize * task.kv_heads + head;
        seen &= task.masks.cast::<u64>().add(at).read_unaligned();
    }
    seen
}

/// K and V of a kv head in a page. The plan has checked the entry.
unsafe fn sides(task: &Attention, entry: &PageEntry, head: usize) -> Option<(Side, Side)> {
    let encoding = encoding_of(entry.encoding)?;
    let (dtype, bytes) = match encoding {
        KvEncoding::F32 => (Some(Dtype::F32), 4),
        KvEncoding::F16 => (Some(Dtype::F16), 2),
        KvEncoding::Bf16 => (Some(Dtype::Bf16), 2),
        KvEncoding::Int8 { .. } | KvEncoding::Codec => (None, 1),
    };
    let (kd, vd, heads) = (task.key_dim, task.value_dim, task.kv_heads);
    let frame = task.pool.add(entry.offset as usize);
    let values = frame.add(heads * TOKENS * kd * bytes);
    let data = |base: *const u8, dim| base.wrapping_add(head * TOKENS * dim * bytes);
    let none = std::ptr::null();
    let side = |data, dim| Side { data, dtype, scales: none, token: 0, channel: 0, dim };
    let (mut k, mut v) = (side(data(frame, kd), kd), side(data(values, vd), vd));
    if let KvEncoding::Int8 { key, value } = encoding {
        let mut scales = values.add(heads * TOKENS * vd).cast::<f32>();
        for (side, by) in [(&mut k, key), (&mut v, value)] {
            let (count, at, token, channel) = match by {
                Granularity::Page => (1, 0, 0, 0),
                Granularity::Channel => (heads * side.dim, head * side.dim, 0, 1),
                Granularity::Token => (heads * TOKENS, head * TOKENS, 1, 0),
            };
            (side.scales, side.token, side.channel) = (scales.wrapping_add(at), token, channel);
            scales = scales.wrapping_add(count);
        }
    }
    Some((k, v))
}

/// A worker's part of a pass. The caller has a checked and planned task and scratch of `need`.
#[inline(always)]
pub(crate) unsafe fn attention<V: Lanes>(task: &Attention, worker: &Worker<'_>) {
    if worker.plan.pages == 0 {
        let units = worker.plan.units;
        while let Some(range) = worker.next(units, 1) {
            // Later rows see more: the longest go first.
            block::<V>(task, worker, units - 1 - range.start);
        }
    } else if worker.phase.is_multiple_of(2) {
        spread::<V>(task, worker);
    } else {
        gather::<V>(task, worker);
    }
}

/// The state that a query starts from.
unsafe fn start(task: &Attention, row: usize, head: usize, state: *mut f32) {
    let width = 2 + task.value_dim;
    if !task.first {
        let from = task.state.add((row * task.heads + head) * width);
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), state.cast(), width * 4);
        return;
    }
    let (m, l) = match task.sinks.is_null() {
        true => (f32::NEG_INFINITY, 0.0),
        false => (task.sinks.add(head).read_unaligned(), 1.0),
    };
    state.write_unaligned(m);
    state.add(1).write_unaligned(l);
    std::ptr::write_bytes(state.add(2).cast::<u8>(), 0, task.value_dim * 4);
}

/// Where the state ends: with the next segment, and in `out` after the last.
#[inline(always)]
unsafe fn finish<V: Lanes>(task: &Attention, row: usize, head: usize, state: *const f32) {
    let (width, query) = (2 + task.value_dim, row * task.heads + head);
    if !task.state.is_null() {
        let to = task.state.add(query * width);
        std::ptr::copy_nonoverlapping(state.cast::<u8>(), to.cast(), width * 4);
    }
    if !task.last {
        return;
    }
    let (l, a) = (state.add(1).read_unaligned(), state.add(2));
    let out = task.out.add(query * task.value_dim);
    let mut at = 0;
    while at < task.value_dim {
        let n = LANES.min(task.value_dim - at);
        // A query that saw nothing answers nothing: 0 / 0 would spread.
        let v = match l == 0.0 {
            true => V::zero(),
            false => super::norm::read::<V>(a, 1, at, n).div(V::splat(l)),
        };
        super::norm::write(v, out, 1, at, n);
        at += n;
    }
}

/// A block of rows of one kv head through all its pages.
#[inline(always)]
unsafe fn block<V: Lanes>(task: &Attention, worker: &Worker<'_>, mut unit: usize) {
    let (group, tall, vd) = (task.heads / task.kv_heads, worker.plan.rows, task.value_dim);
    let width = 2 + vd;
    let mut index = 0;
    let span = loop {
        let span = span(task, index);
        let units = (span.rows as usize).div_ceil(tall) * task.kv_heads;
        if unit < units {
            break span;
        }
        unit -= units;
        index += 1;
    };
    let (head, from) = (unit % task.kv_heads, unit / task.kv_heads * tall);
    let rows = tall.min(span.rows as usize - from);
    let first = span.row as usize + from;
    let most = QUERIES.max(group);
    let partials = worker.own.add(page::scratch(most, task.key_dim, vd));
    let states = partials.add(most * width);
    for i in 0..rows * group {
        start(task, first + i / group, head * group + i % group, states.add(i * width));
    }
    let to = Partials { to: partials, row: group * width };
    let mut seen = [0u64; QUERIES];
    for at in span.entry..span.entry + span.entries {
        let entry = entry(task, at as usize);
        let mut any = 0;
        for (row, seen) in seen.iter_mut().enumerate().take(rows) {
            let position = u64::from(span.position) + (from + row) as u64;
            *seen = visible(task, &entry, position, head);
            any |= *seen;
        }
        let (Some((k, v)), true) = (sides(task, &entry, head), any != 0) else { continue };
        let queries = queries(task, first, head, &seen[..rows]);
        let next = next(task, &span, at + 1, head);
        page::partials::<V>(&queries, k, v, next, &to, worker.own);
        for i in 0..rows * group {
            if seen[i / group] != 0 {
                let (state, partial) = (states.add(i * width), partials.add(i * width));
                V::call(Fold { state, partial, value_dim: vd });
            }
        }
    }
    for i in 0..rows * group {
        finish::<V>(task, first + i / group, head * group + i % group, states.add(i * width));
    }
}

unsafe fn queries<'a>(task: &Attention, row: usize, head: usize, seen: &'a [u64]) -> Queries<'a> {
    let group = task.heads / task.kv_heads;
    Queries {
        q: task.q.add((row * task.heads + head * group) * task.key_dim),
        row: task.heads * task.key_dim,
        group,
        seen,
        scale: task.scale,
        softcap: task.softcap,
    }
}

/// Where K of a head starts in the page of an entry; nowhere after the last.
unsafe fn next(task: &Attention, span: &SpanEntry, at: u32, head: usize) -> *const u8 {
    if at >= span.entry + span.entries {
        return std::ptr::null();
    }
    sides(task, &entry(task, at as usize), head).map_or(std::ptr::null(), |(k, _)| k.data)
}

/// Entries of a span that a round takes.
fn round_of(span: &SpanEntry, worker: &Worker<'_>) -> std::ops::Range<usize> {
    let (from, count) = (worker.phase / 2 * worker.plan.pages, span.entries as usize);
    from.min(count)..count.min(from + worker.plan.pages)
}

/// Partials of a round's pages into shared scratch `[page][query][2 + value_dim]`.
#[inline(always)]
unsafe fn spread<V: Lanes>(task: &Attention, worker: &Worker<'_>) {
    let mut units = 0;
    for index in 0..task.sequences {
        units += round_of(&span(task, index), worker).len() * task.kv_heads;
    }
    // A few pages of one head at a time, so that what is asked for ahead is this worker's.
    let chunk = worker.share(units, 4).min(4);
    while let Some(range) = worker.next(units, chunk) {
        for unit in range {
            spread_one::<V>(task, worker, unit);
        }
    }
}

/// One page of one kv head, counted over sequences, then heads, then pages.
#[inline(always)]
unsafe fn spread_one<V: Lanes>(task: &Attention, worker: &Worker<'_>, mut unit: usize) {
    let (group, width) = (task.heads / task.kv_heads, 2 + task.value_dim);
    let (mut index, mut before) = (0, 0);
    let (span, round) = loop {
        let span = span(task, index);
        let round = round_of(&span, worker);
        if unit < round.len() * task.kv_heads {
            break (span, round);
        }
        unit -= round.len() * task.kv_heads;
        before += span.rows as usize;
        index += 1;
    };
    let (page, head, rows) = (unit % round.len(), unit / round.len(), span.rows as usize);
    let at = span.entry + (round.start + page) as u32;
    let entry = entry(task, at as usize);
    let mut seen = [0u64; QUERIES];
    let mut any = 0;
    for (row, seen) in seen.iter_mut().enumerate().take(rows) {
        *seen = visible(task, &entry, u64::from(span.position) + row as u64, head);
        any |= *seen;
    }
    let (Some((k, v)), true) = (sides(task, &entry, head), any != 0) else { return };
    let slot = (page * worker.plan.total + before) * task.heads + head * group;
    let to = Partials { to: worker.shared.add(slot * width), row: task.heads * width };
    let queries = queries(task, span.row as usize, head, &seen[..rows]);
    let next = next(task, &span, at + 1, head);
    page::partials::<V>(&queries, k, v, next, &to, worker.own);
}

/// Folds a round's partials, query by query.
#[inline(always)]
unsafe fn gather<V: Lanes>(task: &Attention, worker: &Worker<'_>) {
    let (group, width) = (task.heads / task.kv_heads, 2 + task.value_dim);
    let total = worker.plan.total * task.heads;
    let carried = worker.shared.add(SLOTS * width);
    while let Some(range) = worker.next(total, worker.share(total, 1)) {
        for query in range {
            let (mut row, head, mut index) = (query / task.heads, query % task.heads, 0);
            let span = loop {
                let span = span(task, index);
                if row < span.rows as usize {
                    break span;
                }
                row -= span.rows as usize;
                index += 1;
            };
            let state = carried.add(query * width);
            let place = span.row as usize + row;
            if worker.phase == 1 {
                start(task, place, head, state);
            }
            let round = round_of(&span, worker);
            for (page, at) in round.enumerate() {
                let entry = entry(task, span.entry as usize + at);
                let position = u64::from(span.position) + row as u64;
                if visible(task, &entry, position, head / group) != 0 {
                    let slot = page * total + query;
                    let partial = worker.shared.add(slot * width);
                    V::call(Fold { state, partial, value_dim: task.value_dim });
                }
            }
            if worker.phase + 1 == worker.plan.phases {
                finish::<V>(task, place, head, state);
            }
        }
    }
}
