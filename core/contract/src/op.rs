//! The ops, their parameters, and the words that carry them.
//!
//! One table makes the enum and its encoding. A list crosses the border as `[code, length, words…]` a piece, so
//! that an op which a device does not know is `Unsupported` by its code, never a wrong enum. A changed op is a
//! new code. Positions, lengths and tables live in buffers, so a list repeats: keep it encoded, and decoded.
//!
//! Activations are f32. `rows` counts rows of the ragged batch; a row is one token of one sequence.
//!
//! **Attention has one order.** For each row and head, each page gives a partial alone: its largest score m, l
//! = sum of exp(s - m), a = sum of exp(s - m) v, over the rows that the query may see, in row order (a vector
//! unit: as if all 64 lanes took part, unseen ones as zero, never multiplied). Partials fold into the carried
//! (m, l, a) in ascending position, one after another; a page where nothing is seen folds nothing. So any split
//! between pages, and any spread of pages over workers, gives the same bits; a tree of partials, or pinned
//! pages first, would not.

use crate::device::{Buffer, Slice, Weight, WeightEncoding};
use crate::types::*;

/// One sequence of a step, in a buffer; 32 bytes of little-endian words, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct SpanEntry {
    pub row: u32,
    pub rows: u32,     // rows of the batch that are this sequence's
    pub position: u32, // of the first of them
    pub entry: u32,
    pub entries: u32, // its page entries in this segment, ascending
    pub slot: u32,
    pub reserved: [u32; 2], // its place in recurrent and convolution state
}
/// One page that attention reads, in a buffer; 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct PageEntry {
    pub offset: u64, // of the frame, in the pool
    /// Position of its first row. A packed page (rows dropped) lies before every query: `packed` is 1, and only
    /// the mask decides.
    pub first: u32,
    pub tokens: u32,
    pub encoding: u32, // `encoding_word`; pages of one list may differ
    pub mask: u32,     // index of `kv_heads` u64 masks in `masks`, or `u32::MAX`: all rows
    pub packed: u32,
    pub reserved: u32,
}
/// Where a row's K and V go, in a buffer; 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct RowWrite {
    pub offset: u64,
    pub row: u32,
    pub reserved: u32,
}

const GRANULARITIES: [Granularity; 3] =
    [Granularity::Page, Granularity::Channel, Granularity::Token];

/// The number of an encoding in tags, entries and ops.
pub fn encoding_word(encoding: KvEncoding) -> u32 {
    match encoding {
        KvEncoding::F32 => 1,
        KvEncoding::F16 => 2,
        KvEncoding::Bf16 => 3,
        KvEncoding::Int8 { key, value } => 16 + 4 * key as u32 + value as u32,
        KvEncoding::Codec => 255,
    }
}

/// The reverse.
pub fn encoding_of(word: u32) -> Option<KvEncoding> {
    let int8 = |key: &Granularity| GRANULARITIES.map(|value| KvEncoding::Int8 { key: *key, value });
    let plain = [KvEncoding::F32, KvEncoding::F16, KvEncoding::Bf16, KvEncoding::Codec];
    GRANULARITIES.iter().flat_map(int8).chain(plain).find(|e| encoding_word(*e) == word)
}

/// Something that travels as words.
pub trait Words: Sized {
    /// Appends itself.
    fn put(&self, out: &mut Vec<u32>);
    /// Takes itself off the front; `None` when short or unknown.
    fn take(words: &mut &[u32]) -> Option<Self>;
}
macro_rules! words { ($($type:ty, $self:ident => $put:expr, $word:ident => $take:expr;)*) => { $(
    impl Words for $type {
        fn put(&$self, out: &mut Vec<u32>) { out.push($put) }
        fn take(words: &mut &[u32]) -> Option<Self> {
            let ($word, rest) = words.split_first()?;
            *words = rest;
            Some($take)
        }
    }
)* } }
words! {
    u32, self => *self, w => *w;
    f32, self => self.to_bits(), w => f32::from_bits(*w);
    bool, self => u32::from(*self), w => *w != 0;
}
impl Words for Slice {
    fn put(&self, out: &mut Vec<u32>) {
        out.extend([self.buffer.0, self.offset as u32, (self.offset >> 32) as u32]);
    }
    fn take(w: &mut &[u32]) -> Option<Self> {
        let (buffer, low, high) = (Buffer(u32::take(w)?), u32::take(w)?, u32::take(w)?);
        Some(Slice { buffer, offset: u64::from(low) | u64::from(high) << 32 })
    }
}
/// f32 values `[row][group][value]` inside something wider, by strides in floats; a stride of 0 repeats.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct View {
    pub at: Slice,
    pub row: u32,
    pub group: u32,
    pub step: u32, // from value to value: 1, or 0 for one value a group
}
impl Words for View {
    fn put(&self, out: &mut Vec<u32>) {
        self.at.put(out);
        out.extend([self.row, self.group, self.step]);
    }
    fn take(w: &mut &[u32]) -> Option<Self> {
        Some(View {
            at: Slice::take(w)?,
            row: u32::take(w)?,
            group: u32::take(w)?,
            step: u32::take(w)?,
        })
    }
}
impl Words for Weight {
    fn put(&self, out: &mut Vec<u32>) {
        self.data.put(out);
        self.scales.put(out);
        out.extend([self.encoding as u32, self.layout, self.outputs, self.inputs]);
        out.extend([self.stride as u32, (self.stride >> 32) as u32]);
    }
    fn take(w: &mut &[u32]) -> Option<Self> {
        let (data, scales) = (Slice::take(w)?, Slice::take(w)?);
        use WeightEncoding::*;
        let encoding = *[None, Bf16, F16, F32, Int8, Mxfp4].get(u32::take(w)? as usize)?;
        let (layout, outputs, inputs) = (u32::take(w)?, u32::take(w)?, u32::take(w)?);
        let stride = u64::from(u32::take(w)?) | u64::from(u32::take(w)?) << 32;
        Some(Weight { data, scales, encoding, layout, outputs, inputs, stride })
    }
}
/// Up to four of something, inline: an op allocates nothing.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Few<T> {
    items: [T; 4],
    count: u32,
}
impl<T: Copy + Default> Few<T> {
    /// The first four of `items`.
    pub fn of(items: &[T]) -> Self {
        let mut few = Few { items: [T::default(); 4], count: items.len().min(4) as u32 };
        few.items.iter_mut().zip(items).for_each(|(to, from)| *to = *from);
        few
    }
    /// Those there are.
    pub fn as_slice(&self) -> &[T] {
        self.items.get(..self.count as usize).unwrap_or(&[])
    }
}
impl<T: Words + Copy + Default> Words for Few<T> {
    fn put(&self, out: &mut Vec<u32>) {
        out.push(self.count);
        self.as_slice().iter().for_each(|x| x.put(out));
    }
    fn take(w: &mut &[u32]) -> Option<Self> {
        let mut few = Few { items: [T::default(); 4], count: u32::take(w)? };
        for item in few.items.get_mut(..few.count as usize)? {
            *item = T::take(w)?;
        }
        Some(few)
    }
}

macro_rules! modes { ($($(#[$d:meta])* $name:ident { $($word:ident = $code:literal),* $(,)? })*) => { $(
    $(#[$d])*
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[repr(u32)]
    pub enum $name { $($word = $code),* }
    impl Words for $name {
        fn put(&self, out: &mut Vec<u32>) { out.push(*self as u32) }
        fn take(w: &mut &[u32]) -> Option<Self> {
            match u32::take(w)? { $($code => Some($name::$word),)* _ => None }
        }
    }
)* } }
modes! {
    /// What a norm divides by, and whether its weight is w or 1 + w. L2: x / sqrt(sum of squares + eps).
    NormKind { Rms = 1, RmsPlusOne = 2, Layer = 3, L2 = 4 }
    /// What follows the products. Gated: act(first) * second, into the first output. `Clamped` is gpt-oss's, of
    /// one weight, even rows gate and odd rows up: g = min(gate, limit), u = clamp(up, -limit, limit), then
    /// (u + 1) g sigmoid(alpha g).
    Epilogue { None = 0, Silu = 1, Gelu = 2, GeluTanh = 3, SiluGated = 4, GeluTanhGated = 5, Clamped = 6, Add = 7 }
    /// How router scores become weights. A router's `bias` takes part in the choice, not in the weights.
    RouteKind { SoftmaxThenTop = 1, TopThenSoftmax = 2, SigmoidThenTop = 3 }
    /// a + scalar b; a b; scalar a; a sigmoid(b); a silu(b); scalar tanh(a / scalar); a.
    MapKind { Add = 1, Mul = 2, Scale = 3, SigmoidMul = 4, SiluMul = 5, Softcap = 6, Copy = 7 }
    /// Gather reads rows by index; scatter writes them, or adds.
    RowsKind { Gather = 1, Scatter = 2, ScatterAdd = 3 }
}

macro_rules! ops { ($($(#[$d:meta])* $code:literal $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
    /// One operation. Every field is a parameter or a place; nothing is implied by order.
    #[derive(Clone, Copy, PartialEq, Debug)]
    pub enum Op { $($(#[$d])* $name { $($field: $type),* },)* }
    impl Op {
        /// For refusals.
        pub fn name(&self) -> &'static str { match self { $(Op::$name { .. } => stringify!($name),)* } }
        /// Appends code, length and words.
        pub fn put(&self, out: &mut Vec<u32>) {
            let at = out.len() + 1;
            match self { $(Op::$name { $($field),* } => { out.extend([$code, 0]); $($field.put(out);)* })* }
            out[at] = (out.len() - at - 1) as u32;
        }
        /// Takes one op off a list. *Errors* Unsupported with the code; Invalid when cut short.
        pub fn take(list: &mut &[u32]) -> Result<Op> {
            let bad = |kind, code| Error::new(kind, "device/submit", format!("op code {code}"));
            let (code, length) = match *list { [c, n, ..] => (*c, *n as usize), _ => return Err(bad(ErrorKind::Invalid, 0)) };
            let mut w = list.get(2..2 + length).ok_or_else(|| bad(ErrorKind::Invalid, code))?;
            *list = &list[2 + length..];
            let op = match code {
                $($code => (|| Some(Op::$name { $($field: <$type>::take(&mut w)?),* }))(),)*
                _ => return Err(bad(ErrorKind::Unsupported, code)),
            };
            op.filter(|_| w.is_empty()).ok_or_else(|| bad(ErrorKind::Invalid, code))
        }
    }
} }
ops! {
    /// Rows of a table by id (u32 `[row]`), times `scale`.
    1 Embed { ids: Slice, table: Weight, out: Slice, rows: u32, scale: f32 }
    /// Norms `groups` of `width` in each row; per head: groups = heads. No weight: 1. With `gate`, times
    /// silu(gate), last. `out` may be `x`.
    2 Norm { x: View, weight: Weight, bias: Slice, gate: View, out: View, kind: NormKind, rows: u32, groups: u32, width: u32, eps: f32 }
    /// Weights over one input, an f32 bias or none each, an output each. `Add` adds, bias and all.
    3 Linear { x: Slice, weights: Few<Weight>, biases: Few<Slice>, outs: Few<Slice>, rows: u32, epilogue: Epilogue, limit: f32, alpha: f32 }
    /// Rotates the first `rotary` channels of q (in place) and k by cos and sin tables (f32 `[position][rotary
    /// / 2]`, `table_rows` of them), and writes K and V in `encoding` to frames: positions u32 `[row]`, writes
    /// `RowWrite[row]`. rotary 0: no rope.
    4 RopeWrite { q: Slice, k: Slice, v: Slice, positions: Slice, cos: Slice, sin: Slice, writes: Slice, pool: Slice, rows: u32, heads: u32, kv_heads: u32, key_dim: u32, value_dim: u32, rotary: u32, table_rows: u32, interleaved: bool, encoding: u32 }
    /// q f32 `[row][head][key_dim]` against pages. State f32 `[row][head][2 + value_dim]` (m, l, a), set by
    /// `first` (from `sinks` f32 `[head]`: m = sink, l = 1), read otherwise; none where one op is both
    /// and nobody reads it. `last` writes a / l to `out`. window 0: none; the `keep` first stay seen.
    5 Attention { q: Slice, out: Slice, state: Slice, spans: Slice, entries: Slice, masks: Slice, pool: Slice, sinks: Slice, sequences: u32, heads: u32, kv_heads: u32, key_dim: u32, value_dim: u32, scale: f32, softcap: f32, window: u32, keep: u32, causal: bool, first: bool, last: bool }
    /// After `last`, with its state, over all that was visible at once (a second pass over K): probabilities
    /// summed over a sequence's rows and a kv head's query heads, into f32 `[entry][kv_head][64]`.
    6 AttentionMass { q: Slice, state: Slice, out: Slice, spans: Slice, entries: Slice, masks: Slice, pool: Slice, sequences: u32, heads: u32, kv_heads: u32, key_dim: u32, value_dim: u32, scale: f32, softcap: f32, window: u32, keep: u32, causal: bool }
    /// The `top` experts of each row: ids u32 and weights f32 `[row][top]`, ties to the lower id.
    7 Route { logits: Slice, bias: Slice, ids: Slice, weights: Slice, rows: u32, experts: u32, top: u32, kind: RouteKind, renormalise: bool, scale: f32 }
    /// Chosen experts over rows. `slots` u32 `[expert]` says where in the stacks an expert lies now, or
    /// `u32::MAX`: absent, skipped. `first` starts `out` from zero, else it adds. A row's experts add in
    /// ascending id: waves of a few, ascending, give the bits of all at once. Biases f32 `[expert][..]`, by id,
    /// not by slot. `Clamped` has no `up`.
    8 Experts { x: Slice, ids: Slice, weights: Slice, slots: Slice, gate: Weight, up: Weight, down: Weight, gate_bias: Slice, up_bias: Slice, down_bias: Slice, out: Slice, rows: u32, top: u32, experts: u32, epilogue: Epilogue, limit: f32, alpha: f32, first: bool }
    /// Depthwise causal convolution, weight `[channel][kernel]`, newest input last; silu after. State f32
    /// `[slot][kernel - 1][channel]`: the last inputs, oldest first, so a rewind copies them from a log of `x`.
    /// A span at position 0 starts from zeros, whatever the state holds.
    9 Conv { x: Slice, weight: Weight, bias: Slice, state: Slice, spans: Slice, out: Slice, sequences: u32, channels: u32, kernel: u32, silu: bool }
    /// Gated delta rule, row by row; S f32 `[slot][head][key_dim][value_dim]`, zeros at position 0. S *=
    /// exp(decay); S += k (beta (v - S'k))'; out = S'(scale q). q and k come normed; head h has key head h *
    /// key_heads / heads. k, v, decay and beta are a log from which a rewind replays, with no q and no `out`,
    /// to the same bits; Conv's x, decay and beta are a shorter one.
    10 Delta { q: View, k: View, v: View, decay: Slice, beta: Slice, state: Slice, spans: Slice, out: Slice, sequences: u32, heads: u32, key_heads: u32, key_dim: u32, value_dim: u32, scale: f32 }
    /// Element by element, over views; `out` may be `a` or `b`.
    11 Map { a: View, b: View, out: View, kind: MapKind, rows: u32, groups: u32, width: u32, scalar: f32 }
    /// Rows by index (u32 `[row]`).
    12 Rows { x: Slice, indices: Slice, out: Slice, kind: RowsKind, rows: u32, width: u32 }
    /// The `top` largest of each row, descending, ties to the lower id: ids u32, values f32.
    13 Top { logits: Slice, ids: Slice, values: Slice, rows: u32, width: u32, top: u32 }
    /// Delta's decay = -exp(a_log) softplus(a + dt_bias), a logarithm, and beta = sigmoid(b), f32
    /// `[row][head]`; a_log and dt_bias f32 `[head]`; heads = groups * width.
    14 DeltaGates { a: View, b: View, a_log: Slice, dt_bias: Slice, decay: Slice, beta: Slice, rows: u32, groups: u32, width: u32 }
}
