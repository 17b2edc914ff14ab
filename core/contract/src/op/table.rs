//! The table of ops. It makes the enum, its names and its encoding; a changed op is a new code.

use super::{Epilogue, Few, MapKind, NormKind, RouteKind, RowsKind, View, Words};
use crate::device::{Slice, Weight};
use crate::types::{Error, ErrorKind, Result};

macro_rules! ops { ($($(#[$d:meta])* $code:literal $name:ident {
    $($(#[$f:meta])* $field:ident: $type:ty),* $(,)?
})*) => {
    /// One operation. Every field is a parameter or a place; nothing is implied by order.
    ///
    /// Places are f32 and contiguous in the shape given, unless the field says otherwise; a place
    /// whose buffer is 0 is absent.
    #[derive(Clone, Copy, PartialEq, Debug)]
    pub enum Op { $($(#[$d])* $name { $($(#[$f])* $field: $type),* },)* }
    impl Op {
        /// For refusals.
        pub fn name(&self) -> &'static str {
            match self { $(Op::$name { .. } => stringify!($name),)* }
        }
        /// Appends code, length and words.
        pub fn put(&self, out: &mut Vec<u32>) {
            let at = out.len() + 1;
            match self {
                $(Op::$name { $($field),* } => { out.extend([$code, 0]); $($field.put(out);)* })*
            }
            out[at] = (out.len() - at - 1) as u32;
        }
        /// Takes one op off a list.
        ///
        /// # Errors
        /// Unsupported with the code, where no op has it; Invalid when cut short, or with words
        /// left over.
        pub fn take(list: &mut &[u32]) -> Result<Op> {
            let bad = |kind, code| Error::new(kind, "device/submit", format!("op code {code}"));
            let [code, length, rest @ ..] = *list else { return Err(bad(ErrorKind::Invalid, 0)) };
            let (code, length) = (*code, *length as usize);
            let mut w = rest.get(..length).ok_or_else(|| bad(ErrorKind::Invalid, code))?;
            *list = &rest[length..];
            let op = match code {
                $($code => (|| Some(Op::$name { $($field: <$type>::take(&mut w)?),* }))(),)*
                _ => return Err(bad(ErrorKind::Unsupported, code)),
            };
            op.filter(|_| w.is_empty()).ok_or_else(|| bad(ErrorKind::Invalid, code))
        }
    }
} }
ops! {
    /// Rows of a table by id, times `scale`.
    1 Embed {
        /// u32 `[row]`.
        ids: Slice,
        /// `[vocabulary][width]`: outputs is the vocabulary, inputs the width.
        table: Weight,
        /// `[row][width]`.
        out: Slice,
        /// Rows of the batch.
        rows: u32,
        /// What each value is multiplied by.
        scale: f32,
    }
    /// Norms `groups` of `width` in each row; per head: groups = heads. With `gate`, times
    /// silu(gate), last.
    2 Norm {
        /// `[row][group][width]`.
        x: View,
        /// `[width]`; none: 1.
        weight: Weight,
        /// `[width]`, or none.
        bias: Slice,
        /// `[row][group][width]`, or none.
        gate: View,
        /// `[row][group][width]`; may be `x`.
        out: View,
        /// What it divides by.
        kind: NormKind,
        /// Rows of the batch.
        rows: u32,
        /// Groups of a row.
        groups: u32,
        /// Values of a group.
        width: u32,
        /// Added under the root.
        eps: f32,
    }
    /// Up to four weights over one input, an f32 bias or none each, an output each. `Epilogue::Add`
    /// adds, bias and all.
    3 Linear {
        /// `[row][inputs]`.
        x: Slice,
        /// `[outputs][inputs]` each; all have the same inputs.
        weights: Few<Weight>,
        /// `[outputs]` each, or none.
        biases: Few<Slice>,
        /// `[row][outputs]` each.
        outs: Few<Slice>,
        /// Rows of the batch.
        rows: u32,
        /// What follows the products.
        epilogue: Epilogue,
        /// Of `Epilogue::Clamped`.
        limit: f32,
        /// Of `Epilogue::Clamped`.
        alpha: f32,
    }
    /// Rotates the first `rotary` channels of q (in place) and k by cos and sin tables, and writes
    /// K and V in `encoding` to frames. Scaled tables (linear, llama3, YaRN) are the engine's: here
    /// they are only read.
    4 RopeWrite {
        /// `[row][head][key_dim]`, rotated in place.
        q: Slice,
        /// `[row][kv_head][key_dim]`.
        k: Slice,
        /// `[row][kv_head][value_dim]`.
        v: Slice,
        /// u32 `[row]`.
        positions: Slice,
        /// `[position][rotary / 2]`, `table_rows` of them.
        cos: Slice,
        /// `[position][rotary / 2]`, `table_rows` of them.
        sin: Slice,
        /// [`RowWrite`](super::RowWrite) `[row]`.
        writes: Slice,
        /// The frames.
        pool: Slice,
        /// Rows of the batch.
        rows: u32,
        /// Query heads.
        heads: u32,
        /// Heads of K and V.
        kv_heads: u32,
        /// Channels of a key.
        key_dim: u32,
        /// Channels of a value.
        value_dim: u32,
        /// Channels that turn; 0: no rope.
        rotary: u32,
        /// Positions that the tables have.
        table_rows: u32,
        /// Pairs are neighbours (2i, 2i + 1), else halves (i, i + rotary / 2).
        interleaved: bool,
        /// Of the frames: [`encoding_word`](super::encoding_word).
        encoding: u32,
    }
    /// Queries against pages. State (m, l, a) is set by `first` (from `sinks`: m = sink, l = 1),
    /// read otherwise; none where one op is both and nobody reads it. `last` writes a / l to `out`,
    /// 0 where nothing was seen.
    5 Attention {
        /// `[row][head][key_dim]`.
        q: Slice,
        /// `[row][head][value_dim]`.
        out: Slice,
        /// `[row][head][2 + value_dim]`: m, l, a.
        state: Slice,
        /// [`SpanEntry`](super::SpanEntry) `[sequence]`.
        spans: Slice,
        /// [`PageEntry`](super::PageEntry), as spans name them.
        entries: Slice,
        /// u64 `[mask][kv_head]`, or none.
        masks: Slice,
        /// The frames.
        pool: Slice,
        /// `[head]`, or none.
        sinks: Slice,
        /// Spans.
        sequences: u32,
        /// Query heads.
        heads: u32,
        /// Heads of K and V.
        kv_heads: u32,
        /// Channels of a key.
        key_dim: u32,
        /// Channels of a value.
        value_dim: u32,
        /// What a score is multiplied by.
        scale: f32,
        /// Then scores become softcap tanh(s / softcap); 0: none.
        softcap: f32,
        /// Positions that a query sees, its own included; 0: all.
        window: u32,
        /// The `keep` first positions stay seen.
        keep: u32,
        /// A query sees nothing after itself.
        causal: bool,
        /// The first segment of the history.
        first: bool,
        /// The last segment.
        last: bool,
    }
    /// After `last`, with its state, over all that was visible at once (a second pass over K):
    /// probabilities summed over a sequence's rows and a kv head's query heads.
    6 AttentionMass {
        /// `[row][head][key_dim]`.
        q: Slice,
        /// `[row][head][2 + value_dim]`, of the attention before.
        state: Slice,
        /// `[entry][kv_head][64]`.
        out: Slice,
        /// [`SpanEntry`](super::SpanEntry) `[sequence]`.
        spans: Slice,
        /// [`PageEntry`](super::PageEntry), as spans name them.
        entries: Slice,
        /// u64 `[mask][kv_head]`, or none.
        masks: Slice,
        /// The frames.
        pool: Slice,
        /// Spans.
        sequences: u32,
        /// Query heads.
        heads: u32,
        /// Heads of K and V.
        kv_heads: u32,
        /// Channels of a key.
        key_dim: u32,
        /// Channels of a value.
        value_dim: u32,
        /// As in the attention before.
        scale: f32,
        /// As in the attention before.
        softcap: f32,
        /// As in the attention before.
        window: u32,
        /// As in the attention before.
        keep: u32,
        /// As in the attention before.
        causal: bool,
    }
    /// The `top` experts of each row, the largest first, ties to the lower id.
    7 Route {
        /// `[row][expert]`.
        logits: Slice,
        /// `[expert]`, or none.
        bias: Slice,
        /// u32 `[row][top]`, written.
        ids: Slice,
        /// `[row][top]`, written.
        weights: Slice,
        /// Rows of the batch.
        rows: u32,
        /// Experts there are.
        experts: u32,
        /// Experts of a row.
        top: u32,
        /// How scores become weights.
        kind: RouteKind,
        /// Weights of a row are divided by their sum.
        renormalise: bool,
        /// Then weights are multiplied by it.
        scale: f32,
    }
    /// Chosen experts over rows. A row's experts add in ascending id: waves of a few, ascending,
    /// give the bits of all at once. Biases go by id, not by slot. `Epilogue::Clamped` has no `up`.
    8 Experts {
        /// `[row][inputs]`.
        x: Slice,
        /// u32 `[row][top]`.
        ids: Slice,
        /// `[row][top]`.
        weights: Slice,
        /// u32 `[expert]`: where in the stacks an expert lies now, or `u32::MAX`: absent, skipped.
        slots: Slice,
        /// A stack of `[outputs][inputs]`.
        gate: Weight,
        /// A stack of `[outputs][inputs]`, or none.
        up: Weight,
        /// A stack of matrices from the hidden width back to the row's.
        down: Weight,
        /// `[expert][outputs]` of `gate`, or none.
        gate_bias: Slice,
        /// `[expert][outputs]` of `up`, or none.
        up_bias: Slice,
        /// `[expert][outputs]` of `down`, or none.
        down_bias: Slice,
        /// `[row][outputs]` of `down`.
        out: Slice,
        /// Rows of the batch.
        rows: u32,
        /// Experts of a row.
        top: u32,
        /// Experts there are.
        experts: u32,
        /// What joins gate and up.
        epilogue: Epilogue,
        /// Of `Epilogue::Clamped`.
        limit: f32,
        /// Of `Epilogue::Clamped`.
        alpha: f32,
        /// Starts `out` from zero, else it adds.
        first: bool,
    }
    /// Depthwise causal convolution, newest input last; silu after. A span at position 0 starts
    /// from zeros, whatever the state holds.
    9 Conv {
        /// `[row][channel]`.
        x: Slice,
        /// `[channel][kernel]`.
        weight: Weight,
        /// `[channel]`, or none.
        bias: Slice,
        /// `[slot][kernel - 1][channel]`: the last inputs, oldest first, so a rewind copies them
        /// from a log of `x`.
        state: Slice,
        /// [`SpanEntry`](super::SpanEntry) `[sequence]`.
        spans: Slice,
        /// `[row][channel]`.
        out: Slice,
        /// Spans.
        sequences: u32,
        /// Channels of a row.
        channels: u32,
        /// Inputs that an output sees.
        kernel: u32,
        /// Whether silu follows.
        silu: bool,
    }
    /// Gated delta rule, row by row: S *= exp(decay); S += k (beta (v - S'k))'; out = S'(scale q).
    /// q and k come normed; head h has key head h * key_heads / heads. k, v, decay and beta are a
    /// log from which a rewind replays, with no q and no `out`, to the same bits; Conv's x, decay
    /// and beta are a shorter one.
    10 Delta {
        /// `[row][key_head][key_dim]`, or none in a replay.
        q: View,
        /// `[row][key_head][key_dim]`.
        k: View,
        /// `[row][head][value_dim]`.
        v: View,
        /// `[row][head]`, a logarithm.
        decay: Slice,
        /// `[row][head]`.
        beta: Slice,
        /// S, `[slot][head][key_dim][value_dim]`, zeros at position 0.
        state: Slice,
        /// [`SpanEntry`](super::SpanEntry) `[sequence]`.
        spans: Slice,
        /// `[row][head][value_dim]`, or none in a replay.
        out: Slice,
        /// Spans.
        sequences: u32,
        /// Value heads.
        heads: u32,
        /// Heads of q and k.
        key_heads: u32,
        /// Channels of a key.
        key_dim: u32,
        /// Channels of a value.
        value_dim: u32,
        /// What q is multiplied by.
        scale: f32,
    }
    /// Element by element, over views.
    11 Map {
        /// `[row][group][width]`.
        a: View,
        /// `[row][group][width]`, or none where the kind has no b.
        b: View,
        /// `[row][group][width]`; may be `a` or `b`.
        out: View,
        /// What is computed.
        kind: MapKind,
        /// Rows of the batch.
        rows: u32,
        /// Groups of a row.
        groups: u32,
        /// Values of a group.
        width: u32,
        /// As the kind says.
        scalar: f32,
    }
    /// Rows by index.
    12 Rows {
        /// `[row][width]`.
        x: Slice,
        /// u32 `[row]`.
        indices: Slice,
        /// `[row][width]`.
        out: Slice,
        /// Which way they move.
        kind: RowsKind,
        /// Indices there are.
        rows: u32,
        /// Values of a row.
        width: u32,
    }
    /// The `top` largest of each row, descending, ties to the lower id.
    13 Top {
        /// `[row][width]`.
        logits: Slice,
        /// u32 `[row][top]`, written.
        ids: Slice,
        /// `[row][top]`, written.
        values: Slice,
        /// Rows of the batch.
        rows: u32,
        /// Values of a row.
        width: u32,
        /// How many are wanted.
        top: u32,
    }
    /// Delta's decay = -exp(a_log) softplus(a + dt_bias), a logarithm, and beta = sigmoid(b); heads
    /// = groups * width.
    14 DeltaGates {
        /// `[row][group][width]`.
        a: View,
        /// `[row][group][width]`.
        b: View,
        /// `[head]`.
        a_log: Slice,
        /// `[head]`.
        dt_bias: Slice,
        /// `[row][head]`, written.
        decay: Slice,
        /// `[row][head]`, written.
        beta: Slice,
        /// Rows of the batch.
        rows: u32,
        /// Groups of a row.
        groups: u32,
        /// Heads of a group.
        width: u32,
    }
}

#[cfg(test)]
mod tests;
