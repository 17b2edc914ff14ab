//! Words that every contract shares: identities, shapes, encodings, tags, errors.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Tokens of a page, and the block that attention reduces over. Part of every stored format.
pub const PAGE_TOKENS: u32 = 64;
/// What every fallible call returns.
pub type Result<T> = std::result::Result<T, Error>;
/// A position in a session's history, or a count of its tokens.
pub type TokenIndex = u64;
macro_rules! ids { ($($(#[$d:meta])* $name:ident($inner:ty);)*) => { $(
    $(#[$d])*
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
    #[derive(serde::Serialize, serde::Deserialize)]
    pub struct $name(pub $inner);
)* } }
ids! {
    /// One history of tokens; chosen by the engine, unique in a process, never reused there: the next process
    /// counts from 1 again, so what is stored needs a name of the store's own.
    SessionId(u64); LayerIndex(u32); UnitId(u32);
    /// A file that the host opened for a plugin.
    FileId(u32);
    /// What `find` answered; valid until the store begins from it or the next `maintain`.
    FoundId(u64);
    /// 128 bits over a seed (weights digest, config, dtype, encoding, layout, format) and every token key up to
    /// a position. The host computes it; a plugin compares and stores it.
    ChainHash([u8; 16]);
}
/// What makes a row of KV what it is: the token, and the content behind it (0 for text).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[repr(C)]
pub struct TokenKey {
    pub id: u32,       // vocabulary id; a placeholder for audio or images
    pub reserved: u32, // unused, zero
    pub content: u64,  // digest of the audio or image that the placeholder stands for
}
/// Why a call failed. Closed inside an epoch; an unknown number from the border is `Internal`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u32)]
pub enum ErrorKind {
    Invalid = 1,     // the caller broke a guarantee, or an option is out of range
    Unsupported = 2, // valid, but this plugin does not do it
    NotFound = 3,    // no such session, file or answer
    Damaged = 4,     // bytes are there and wrong
    Mismatch = 5,    // the root belongs to another model, dtype, version or program
    Busy = 6,        // another writer has the root
    OutOfSpace = 7,  // the drive or the quota is full. A state, not a crash
    OverBudget = 8,  // a reservation did not fit
    Io = 9,          // the drive or the network said no
    Timeout = 10,    // not done in the time given
    Panicked = 11, // the plugin panicked and is poisoned; a host panic under its frame is `Internal`
    Internal = 12, // a bug
}
/// One shape of error, the same on both sides of the border.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,   // one line, lower case, with values and units
    pub operation: String, // the call that failed, as `kv/load`
    pub context: Vec<(String, String)>, // facts beside the message
}
impl Error {
    /// An error without context.
    pub fn new(kind: ErrorKind, operation: &str, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), operation: operation.into(), context: Vec::new() }
    }
}
impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.operation, self.message)
    }
}
impl std::error::Error for Error {}
/// A value of a manifest's `[options]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum OptionValue {
    Integer(i64),
    Float(f64),
    Text(String),
    Switch(bool), // the name carries the unit
}

/// Options by name, defaults of the manifest already filled in.
pub type Options = BTreeMap<String, OptionValue>;
/// How a layer remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LayerKind {
    Full, // attends to everything before it
    Window {
        tokens: u32,
    }, // attends to the last `tokens`, itself included
    /// Folds the past into a state, stored with the tail of inputs that its convolution needs; cannot be
    /// truncated, only set to a checkpoint.
    Recurrent {
        state_bytes: u64,
        conv_bytes: u64,
    },
    Transient, // keeps nothing between steps (an encoder)
}
/// One scale for each what, in int8 KV. K and V choose apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Granularity {
    Page,    // all of K, or all of V, in a page
    Channel, // a (kv head, channel), over the tokens of a page
    Token,   // a (kv head, token), over channels
}
/// Form of a page's bytes: K `[kv_head][token][key_dim]`, V `[kv_head][token][value_dim]`, then K's and V's
/// scales in f32. Rows that are not filled are zero, after a rewind too: scales and sums are over all 64.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum KvEncoding {
    F32,
    F16,
    Bf16,
    /// q = x / scale, half to even, -127..=127; scale = max|x| / 127, or 1.
    Int8 {
        key: Granularity,
        value: Granularity,
    },
    Codec, // only the strategy's `KvCodec` can read it; decoded before attention sees it
}
/// What one layer keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KvLayer {
    pub kind: LayerKind,
    pub key_dim: u32,
    pub value_dim: u32, // channels; K and V differ in some families
    pub kv_heads: u32,  // 0 for layers without
}
impl KvLayer {
    /// Bytes of a page in an encoding; 0 for `Codec`, whose codec knows.
    pub fn page_bytes(&self, encoding: KvEncoding) -> u64 {
        let (heads, tokens) = (u64::from(self.kv_heads), u64::from(PAGE_TOKENS));
        let (k, v) = (u64::from(self.key_dim), u64::from(self.value_dim));
        let (values, scales) =
            (heads * tokens * (k + v), |g, dim| [1, heads * dim, heads * tokens][g as usize]);
        match encoding {
            KvEncoding::F32 => values * 4,
            KvEncoding::F16 | KvEncoding::Bf16 => values * 2,
            KvEncoding::Int8 { key, value } => values + 4 * (scales(key, k) + scales(value, v)),
            KvEncoding::Codec => 0,
        }
    }
}
/// What a model keeps, layer by layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KvShape {
    pub layers: Vec<KvLayer>, // decoder layers in order
    pub hot: KvEncoding,      // encoding of hot pages
}
/// What the host checks after a load. A store keeps it with the page and gives it back unchanged. The chain
/// names every token up to the page's end, so a page of a rewound past cannot pass. Of a page it stored itself
/// the host wants that very tag: in a lossy history the same tokens may have had other bytes. Of a found one,
/// chain and place must be as its tokens say and the encoding hot or cold. The sum is taken over the bytes that
/// came, where they came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[repr(C)]
pub struct PageTag {
    pub chain: ChainHash,  // chain at the page's last filled token
    pub crc: u64,          // CRC-64/NVME of the encoded bytes
    pub first: TokenIndex, // position of the first row
    pub layer: u32,
    pub tokens: u32, // rows filled, 1 to 64; 0 for a recurrent state
    pub bytes: u32,
    pub encoding: u32, // encoded length; `encoding_word`
}
impl PageTag {
    /// The stored form, little endian, fields in order.
    pub fn to_bytes(&self) -> [u8; 48] {
        let mut out = [0; 48];
        out[..16].copy_from_slice(&self.chain.0);
        out[16..24].copy_from_slice(&self.crc.to_le_bytes());
        out[24..32].copy_from_slice(&self.first.to_le_bytes());
        for (i, w) in [self.layer, self.tokens, self.bytes, self.encoding].iter().enumerate() {
            out[32 + 4 * i..36 + 4 * i].copy_from_slice(&w.to_le_bytes());
        }
        out
    }
    /// The reverse; any bytes give a tag, and a wrong one fails the host's check.
    pub fn from_bytes(b: &[u8; 48]) -> Self {
        let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let chain = ChainHash(std::array::from_fn(|i| b[i]));
        let (layer, tokens, bytes, encoding) = (word(32), word(36), word(40), word(44));
        PageTag { chain, crc: long(16), first: long(24), layer, tokens, bytes, encoding }
    }
}
