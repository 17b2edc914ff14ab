//! Ops with their places resolved to addresses and every extent checked: what the workers run.
//!
//! Whoever builds a task promises that its pointers are good for what its numbers say, for as long
//! as the task's list is pending; `check` is where that is made true. What tables hold (ids,
//! positions, page entries) is known only when the task runs: `Task::plan` reads it once, on one
//! worker, before anything goes through it.
#![allow(unsafe_code)]

use kvern_contract::{Epilogue, KvEncoding, MapKind, NormKind, RowsKind};

/// Where numbers of a matrix are, and in which form.
#[derive(Clone, Copy)]
pub(crate) enum Dtype {
    Bf16,
    F16,
    F32,
}

/// f32 values by strides in floats.
#[derive(Clone, Copy)]
pub(crate) struct Strided {
    pub at: *mut f32,
    pub row: usize,
    pub group: usize,
    pub step: usize, // 0 or 1
}

impl Strided {
    /// Where a group of a row starts.
    pub fn start(&self, row: usize, group: usize) -> *mut f32 {
        self.at.wrapping_add(row * self.row + group * self.group)
    }
}

pub(crate) struct Embed {
    pub ids: *const u32,
    pub table: *const u8,
    pub dtype: Dtype,
    pub vocabulary: usize,
    pub width: usize,
    pub out: *mut f32,
    pub rows: usize,
    pub scale: f32,
}

pub(crate) struct Norm {
    pub x: Strided,
    pub weight: Option<(*const u8, Dtype)>,
    pub bias: *const f32, // null: none
    pub gate: Option<Strided>,
    pub out: Strided,
    pub kind: NormKind,
    pub rows: usize,
    pub groups: usize,
    pub width: usize,
    pub eps: f32,
}

/// One weight of a product.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub weight: *const u8,
    pub dtype: Dtype,
    pub outputs: usize,
    pub bias: *const f32, // null: none
    pub out: *mut f32,    // null for the second of a gated pair
}

pub(crate) struct Linear {
    pub x: *const f32,
    pub inputs: usize,
    pub rows: usize,
    pub parts: [Part; 4],
    pub count: usize,
    pub epilogue: Epilogue,
}

impl Linear {
    /// Whether two weights make one output.
    pub fn gated(&self) -> bool {
        matches!(self.epilogue, Epilogue::SiluGated | Epilogue::GeluTanhGated)
    }

    /// Parts that have an output of their own.
    pub fn outs(&self) -> &[Part] {
        &self.parts[..if self.gated() { 1 } else { self.count.min(4) }]
    }
}

pub(crate) struct Rope {
    pub q: *mut f32,
    pub k: *const f32,
    pub v: *const f32,
    pub positions: *const u32,
    pub cos: *const f32,
    pub sin: *const f32,
    pub writes: *const u8,
    pub pool: *mut u8,
    pub pool_bytes: u64,
    pub page_bytes: u64,
    pub rows: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub rotary: usize,
    pub table_rows: usize,
    pub interleaved: bool,
    pub encoding: KvEncoding, // a plain one
}

pub(crate) struct Attention {
    pub q: *const f32,
    pub out: *mut f32,
    pub state: *mut f32, // null: none
    /// Rows that fit in all of the above.
    pub rows: u64,
    pub spans: *const u8,
    pub sequences: usize,
    pub entries: *const u8,
    pub entry_count: u64,
    pub masks: *const u8,
    pub mask_count: u64, // sets of `kv_heads` masks
    pub pool: *const u8,
    pub pool_bytes: u64,
    pub sinks: *const f32, // null: none
    pub heads: usize,
    pub kv_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub scale: f32,
    pub softcap: f32,
    pub window: u32,
    pub keep: u32,
    pub causal: bool,
    pub first: bool,
    pub last: bool,
}

pub(crate) struct Map {
    pub a: Strided,
    pub b: Strided, // `a` again where the kind has no second
    pub out: Strided,
    pub kind: MapKind,
    pub rows: usize,
    pub groups: usize,
    pub width: usize,
    pub scalar: f32,
}

pub(crate) struct Rows {
    pub x: *const f32,
    pub indices: *const u32,
    pub out: *mut f32,
    pub kind: RowsKind,
    pub rows: usize,
    pub width: usize,
    /// Rows of the side that indices point into.
    pub bound: u64,
}

pub(crate) struct Top {
    pub logits: *const f32,
    pub ids: *mut u32,
    pub values: *mut f32,
    pub rows: usize,
    pub width: usize,
    pub top: usize,
}

pub(crate) struct Move {
    pub from: *const u8,
    pub to: *mut u8,
    pub bytes: usize,
}

/// One op, or one copy, ready to run.
pub(crate) enum Task {
    Embed(Embed),
    Norm(Norm),
    Linear(Linear),
    Rope(Rope),
    Attention(Attention),
    Map(Map),
    Rows(Rows),
    Top(Top),
    Move(Move),
}

// SAFETY: a task is addresses and numbers; the workers split its elements between them, and the
// contract lets nobody else touch its buffers until its fence is waited for.
unsafe impl Send for Task {}
// SAFETY: as above; a task itself is never written after it is built.
unsafe impl Sync for Task {}

/// How a task whose work depends on its tables runs; made by one worker, read by all.
#[derive(Clone, Copy, Default)]
pub(crate) struct Plan {
    /// Passes with a barrier behind each.
    pub phases: usize,
    /// Blocks of rows (attention whose pages are not spread).
    pub units: usize,
    /// Pages of a sequence that one round spreads over workers (attention); 0: not spread.
    pub pages: usize,
    /// Rows of a block, and rows of all sequences (attention).
    pub rows: usize,
    pub total: usize,
}

/// Floats of scratch that a task uses.
#[derive(Clone, Copy, Default)]
pub(crate) struct Need {
    pub own: usize,    // each worker
    pub shared: usize, // all together
}
