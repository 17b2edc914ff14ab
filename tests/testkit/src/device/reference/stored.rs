//! Stored forms: weights and pages of K and V, as numbers.

use super::image::{Image, beyond, invalid, product, unsupported};
use half::{bf16, f16};
use kvern_contract::{
    Granularity, KvEncoding, KvLayer, LayerKind, PAGE_TOKENS, Result, Slice, Weight,
    WeightEncoding, encoding_of,
};

/// What an E2M1 nibble without its sign says.
const E2M1: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Bytes of data and of scales of one matrix. *Errors* Unsupported, Invalid.
fn sizes(weight: &Weight) -> Result<(u64, u64)> {
    let (outputs, inputs) = (weight.outputs, weight.inputs);
    let count = product(&[outputs, inputs])?;
    if weight.layout > 1 {
        return invalid(format!("layout {}", weight.layout));
    }
    match weight.encoding {
        WeightEncoding::Bf16 | WeightEncoding::F16 => Ok((2 * count, 0)),
        WeightEncoding::F32 => Ok((4 * count, 0)),
        _ if weight.layout == 1 => unsupported("scaled values by columns"),
        WeightEncoding::Int8 => Ok((count, 4 * u64::from(outputs))),
        WeightEncoding::Mxfp4 if inputs % 32 == 0 => Ok((count / 2, count / 32)),
        WeightEncoding::Mxfp4 => invalid(format!("{inputs} inputs in blocks of 32")),
        WeightEncoding::None => invalid("no weight"),
    }
}

/// Whether a weight is of a form that is read. *Errors* Unsupported, Invalid.
pub fn check(weight: &Weight) -> Result<()> {
    if weight.outputs == 0 || weight.inputs == 0 {
        return invalid(format!("a weight of {} by {}", weight.outputs, weight.inputs));
    }
    sizes(weight).map(drop)
}

/// Matrix `index` of a stack, `[out][in]`. *Errors* Unsupported, Invalid.
pub fn matrix(image: &Image, weight: &Weight, index: u32) -> Result<Vec<f64>> {
    check(weight)?;
    let (data, scales) = sizes(weight)?;
    let place = |at, own| {
        let stride = if weight.stride == 0 { own } else { weight.stride };
        let far = stride.checked_mul(u64::from(index));
        far.map_or_else(|| invalid("past an address space"), |far| beyond(at, far))
    };
    let bytes = image.bytes(place(weight.data, data)?, data)?;
    let scales = match scales {
        0 => &[][..],
        own => image.bytes(place(weight.scales, own)?, own)?,
    };
    let (outputs, inputs) = (weight.outputs as usize, weight.inputs as usize);
    let at = |output: usize, input: usize| match weight.layout {
        1 => input * outputs + output,
        _ => output * inputs + input,
    };
    let mut all = Vec::with_capacity(outputs * inputs);
    for output in 0..outputs {
        for input in 0..inputs {
            let n = at(output, input);
            all.push(match weight.encoding {
                WeightEncoding::Int8 => {
                    f64::from(bytes[n] as i8) * plain(KvEncoding::F32, scales, output)
                }
                WeightEncoding::Mxfp4 => {
                    let nibble = bytes[n / 2] >> (n % 2 * 4) & 15;
                    let sign = if nibble & 8 == 0 { 1.0 } else { -1.0 };
                    let scale = 2f64.powi(i32::from(scales[n / 32]) - 127);
                    sign * E2M1[usize::from(nibble & 7)] * scale
                }
                WeightEncoding::Bf16 => plain(KvEncoding::Bf16, bytes, n),
                WeightEncoding::F16 => plain(KvEncoding::F16, bytes, n),
                _ => plain(KvEncoding::F32, bytes, n),
            });
        }
    }
    Ok(all)
}

/// A weight as a vector. *Errors* Unsupported, Invalid: another length.
pub fn vector(image: &Image, weight: &Weight, width: u32) -> Result<Vec<f64>> {
    let weight = Weight { outputs: weight.outputs.max(1), inputs: weight.inputs.max(1), ..*weight };
    if product(&[weight.outputs, weight.inputs])? != u64::from(width) {
        return invalid(format!("{} by {} for {width} values", weight.outputs, weight.inputs));
    }
    matrix(image, &weight, 0)
}

/// Number `n` of plain ones; the bytes are there.
fn plain(encoding: KvEncoding, bytes: &[u8], n: usize) -> f64 {
    let at = |i: usize, size: usize| bytes[n * size + i];
    match encoding {
        KvEncoding::F16 => f16::from_le_bytes([at(0, 2), at(1, 2)]).to_f64(),
        KvEncoding::Bf16 => bf16::from_le_bytes([at(0, 2), at(1, 2)]).to_f64(),
        _ => f64::from(f32::from_le_bytes([at(0, 4), at(1, 4), at(2, 4), at(3, 4)])),
    }
}

/// Sizes of a page.
#[derive(Clone, Copy)]
pub struct Shape {
    pub kv_heads: u32,
    pub key_dim: u32,
    pub value_dim: u32,
}

impl Shape {
    /// Bytes of a page.
    pub fn bytes(&self, encoding: KvEncoding) -> Result<u64> {
        let Shape { kv_heads, key_dim, value_dim } = *self;
        product(&[kv_heads, PAGE_TOKENS, key_dim.max(value_dim), 16])?;
        let layer = KvLayer { kind: LayerKind::Full, key_dim, value_dim, kv_heads };
        Ok(layer.page_bytes(encoding))
    }
}

/// The encoding of a page that attention reads. *Errors* Unsupported.
pub fn encoding(word: u32) -> Result<KvEncoding> {
    match encoding_of(word) {
        Some(encoding) if encoding != KvEncoding::Codec => Ok(encoding),
        _ => unsupported(format!("pages of encoding {word}")),
    }
}

/// K `[kv_head][token][key_dim]` and V of a page. *Errors* Invalid.
pub fn page(
    image: &Image,
    at: Slice,
    encoding: KvEncoding,
    shape: Shape,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let bytes = image.bytes(at, shape.bytes(encoding)?)?;
    let Shape { kv_heads, key_dim, value_dim } = shape;
    let tokens = PAGE_TOKENS as usize;
    let heads = kv_heads as usize;
    let (kd, vd) = (key_dim as usize, value_dim as usize);
    let (keys, all) = (heads * tokens * kd, heads * tokens * (kd + vd));
    let KvEncoding::Int8 { key, value } = encoding else {
        let number = |n| plain(encoding, bytes, n);
        return Ok(((0..keys).map(number).collect(), (keys..all).map(number).collect()));
    };
    // Scales follow the values: K's, then V's.
    let scales = |granularity, dim| match granularity {
        Granularity::Page => 1,
        Granularity::Channel => heads * dim,
        Granularity::Token => heads * tokens,
    };
    let number = |n: usize, granularity, dim: usize, first: usize| {
        let (head, token, channel) = (n / dim / tokens, n / dim % tokens, n % dim);
        first
            + match granularity {
                Granularity::Page => 0,
                Granularity::Channel => head * dim + channel,
                Granularity::Token => head * tokens + token,
            }
    };
    let scale = |n| plain(KvEncoding::F32, &bytes[all..], n);
    let k = (0..keys).map(|n| f64::from(bytes[n] as i8) * scale(number(n, key, kd, 0)));
    let first = scales(key, kd);
    let v =
        (keys..all).map(|n| f64::from(bytes[n] as i8) * scale(number(n - keys, value, vd, first)));
    Ok((k.collect(), v.collect()))
}
