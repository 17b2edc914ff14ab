//! What a model keeps of its history, layer by layer, and the forms a page of it may have.

use super::{Error, ErrorKind, PAGE_TOKENS, Result};
use serde::{Deserialize, Serialize};

/// How a layer remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LayerKind {
    /// Attends to everything before it.
    Full,
    /// Attends to the last `tokens`, itself included.
    Window {
        /// Width of the window in tokens.
        tokens: u32,
    },
    /// Folds the past into a state, stored with the tail of inputs that its convolution needs;
    /// cannot be truncated, only set to a checkpoint.
    Recurrent {
        /// Bytes of the state.
        state_bytes: u64,
        /// Bytes of the convolution's last inputs.
        conv_bytes: u64,
    },
    /// Keeps nothing between steps (an encoder).
    Transient,
}

/// One scale for each what, in int8 KV. K and V choose apart: KIVI (Liu and others, 2024) found
/// keys to want a scale a channel and values a scale a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Granularity {
    /// All of K, or all of V, in a page: 1 scale.
    Page,
    /// A (kv head, channel), over the tokens of a page: `[kv_head][dim]` scales.
    Channel,
    /// A (kv head, token), over channels: `[kv_head][token]` scales.
    Token,
}

/// Form of a page's bytes: K `[kv_head][token][key_dim]`, V `[kv_head][token][value_dim]`, then K's
/// and V's scales in f32 (int8 alone has them). K is after rope. Rows that are not filled are zero,
/// after a rewind too: scales and sums are over all 64.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum KvEncoding {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of an f32, rounded half to even.
    Bf16,
    /// q = x / scale, half to even, -127..=127; scale = max|x| / 127, or 1 where all are zero.
    Int8 {
        /// What one scale of K covers.
        key: Granularity,
        /// What one scale of V covers.
        value: Granularity,
    },
    /// Only the strategy's `KvCodec` can read it; decoded before attention sees it.
    Codec,
}

/// What one layer keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KvLayer {
    /// How it remembers.
    pub kind: LayerKind,
    /// Channels of a key; K and V differ in some families.
    pub key_dim: u32,
    /// Channels of a value.
    pub value_dim: u32,
    /// Heads of K and V; 0 for layers without.
    pub kv_heads: u32,
}

impl KvLayer {
    /// Bytes of a page in an encoding; 0 for `Codec`, whose codec knows.
    pub fn page_bytes(&self, encoding: KvEncoding) -> u64 {
        let (heads, tokens) = (u64::from(self.kv_heads), u64::from(PAGE_TOKENS));
        let (k, v) = (u64::from(self.key_dim), u64::from(self.value_dim));
        let values = heads * tokens * (k + v);
        let scales = |granularity, dim| match granularity {
            Granularity::Page => 1,
            Granularity::Channel => heads * dim,
            Granularity::Token => heads * tokens,
        };
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
    /// Decoder layers in order.
    pub layers: Vec<KvLayer>,
    /// Encoding of hot pages, which the device writes.
    pub hot: KvEncoding,
}

impl KvShape {
    /// For strategies that keep no recurrent states.
    ///
    /// # Errors
    /// Unsupported: names the first recurrent layer.
    pub fn without_recurrence(&self, operation: &str) -> Result<()> {
        let recurrent = |layer: &KvLayer| matches!(layer.kind, LayerKind::Recurrent { .. });
        let Some(layer) = self.layers.iter().position(recurrent) else { return Ok(()) };
        let text = format!("layer {layer} is recurrent, and this strategy keeps no states");
        Err(Error::new(ErrorKind::Unsupported, operation, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2 kv heads of 16 + 8 channels: 2 * 64 * 24 = 3072 values a page.
    const LAYER: KvLayer =
        KvLayer { kind: LayerKind::Full, key_dim: 16, value_dim: 8, kv_heads: 2 };

    fn int8(key: Granularity, value: Granularity) -> u64 {
        LAYER.page_bytes(KvEncoding::Int8 { key, value })
    }

    #[test]
    fn a_page_of_floats_has_its_values_and_nothing_else() {
        assert_eq!(LAYER.page_bytes(KvEncoding::F32), 3072 * 4);
        assert_eq!(LAYER.page_bytes(KvEncoding::F16), 3072 * 2);
        assert_eq!(LAYER.page_bytes(KvEncoding::Bf16), 3072 * 2);
    }

    #[test]
    fn an_int8_page_has_its_values_and_a_float_for_every_scale() {
        use Granularity::{Channel, Page, Token};
        assert_eq!(int8(Page, Page), 3072 + 4 * 2);
        assert_eq!(int8(Channel, Token), 3072 + 4 * (2 * 16 + 2 * 64));
        assert_eq!(int8(Token, Channel), 3072 + 4 * (2 * 64 + 2 * 8));
    }

    #[test]
    fn a_page_without_kv_heads_and_a_page_of_a_codec_have_no_bytes_of_their_own() {
        let none = KvLayer { kv_heads: 0, kind: LayerKind::Transient, ..LAYER };
        assert_eq!(none.page_bytes(KvEncoding::F32), 0);
        assert_eq!(LAYER.page_bytes(KvEncoding::Codec), 0);
    }
}
