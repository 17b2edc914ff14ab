//! The form of cold pages. A page that goes cold is encoded where it lies; attention then reads the
//! cold form, in memory or not, so that bits depend on the steps and never on the budget.
//!
//! int8 is symmetric: q = x / scale, half to even, in -127..=127; scale = max|x| / 127, or 1. One
//! scale a page, a (head, channel) over the page's tokens, or a (head, token) over its channels
//! (the granularities of KIVI, Liu et al. 2024).

use half::{bf16, f16};
use kvern_contract::{Granularity, KvEncoding, KvLayer, PAGE_TOKENS, encoding_of};

const TOKENS: usize = PAGE_TOKENS as usize;

/// Encodes a full page in place. A form that is not known here leaves the page as it is: the
/// policy was refused when the strategy was opened.
pub(crate) fn encode_in_place(frame: &mut [u8], layer: &KvLayer, from: u32, to: KvEncoding) {
    let Some(from) = encoding_of(from) else { return };
    let dims = [layer.key_dim as usize, layer.value_dim as usize];
    let heads = layer.kv_heads as usize;
    let values = read(frame, heads * TOKENS * (dims[0] + dims[1]), from);
    let (k, v) = values.split_at(heads * TOKENS * dims[0]);
    match to {
        KvEncoding::Int8 { key, value } => {
            let (mut scales, mut at) = (Vec::new(), 0);
            for (part, dim, granularity) in [(k, dims[0], key), (v, dims[1], value)] {
                let of = scale_of(dim, granularity);
                let part_scales = scales_of(part, heads, dim, granularity);
                for (i, x) in part.iter().enumerate() {
                    let q = (x / part_scales[of(i)]).round_ties_even().clamp(-127.0, 127.0);
                    frame[at + i] = (q as i8) as u8;
                }
                at += part.len();
                scales.extend(part_scales);
            }
            for (scale, to) in scales.iter().zip(frame[at..].chunks_exact_mut(4)) {
                to.copy_from_slice(&scale.to_le_bytes());
            }
        }
        plain => write(frame, &values, plain),
    }
}

/// Which scale a value has.
fn scale_of(dim: usize, granularity: Granularity) -> impl Fn(usize) -> usize {
    move |i| match granularity {
        Granularity::Page => 0,
        Granularity::Channel => i / (TOKENS * dim) * dim + i % dim,
        Granularity::Token => i / dim,
    }
}

fn scales_of(part: &[f32], heads: usize, dim: usize, granularity: Granularity) -> Vec<f32> {
    let count = match granularity {
        Granularity::Page => 1,
        Granularity::Channel => heads * dim,
        Granularity::Token => heads * TOKENS,
    };
    let (mut most, of) = (vec![0.0_f32; count], scale_of(dim, granularity));
    for (i, x) in part.iter().enumerate() {
        let most = &mut most[of(i)];
        *most = most.max(x.abs());
    }
    most.iter().map(|m| if *m == 0.0 { 1.0 } else { m / 127.0 }).collect()
}

fn read(frame: &[u8], count: usize, from: KvEncoding) -> Vec<f32> {
    let pair = |b: &[u8]| [b[0], b[1]];
    match from {
        KvEncoding::F32 => frame[..4 * count]
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        KvEncoding::F16 => frame[..2 * count]
            .chunks_exact(2)
            .map(|b| f16::from_le_bytes(pair(b)).to_f32())
            .collect(),
        _ => frame[..2 * count]
            .chunks_exact(2)
            .map(|b| bf16::from_le_bytes(pair(b)).to_f32())
            .collect(),
    }
}

fn write(frame: &mut [u8], values: &[f32], to: KvEncoding) {
    match to {
        KvEncoding::F32 => {
            let out = frame.chunks_exact_mut(4);
            values.iter().zip(out).for_each(|(x, to)| to.copy_from_slice(&x.to_le_bytes()));
        }
        KvEncoding::F16 => values
            .iter()
            .zip(frame.chunks_exact_mut(2))
            .for_each(|(x, to)| to.copy_from_slice(&f16::from_f32(*x).to_le_bytes())),
        _ => values
            .iter()
            .zip(frame.chunks_exact_mut(2))
            .for_each(|(x, to)| to.copy_from_slice(&bf16::from_f32(*x).to_le_bytes())),
    }
}

/// Whether the pager can encode this.
pub(crate) fn is_known(encoding: KvEncoding) -> bool {
    !matches!(encoding, KvEncoding::Codec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvern_contract::{LayerKind, encoding_word};

    #[test]
    fn int8_is_within_half_a_step_of_what_it_encodes_at_every_granularity() {
        let layer = KvLayer { kind: LayerKind::Full, key_dim: 3, value_dim: 5, kv_heads: 2 };
        let count = 2 * TOKENS * 8;
        let values: Vec<f32> =
            (0..count).map(|i| ((i * 7919) % 1013) as f32 / 100.0 - 5.0).collect();
        let all = [Granularity::Page, Granularity::Channel, Granularity::Token];
        for key in all {
            for value in all {
                let to = KvEncoding::Int8 { key, value };
                let size = layer.page_bytes(to).max(layer.page_bytes(KvEncoding::F32)) as usize;
                let mut frame = vec![0; size];
                write(&mut frame, &values, KvEncoding::F32);
                encode_in_place(&mut frame, &layer, encoding_word(KvEncoding::F32), to);
                let scales: Vec<f32> = frame[count..layer.page_bytes(to) as usize]
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect();
                let keys = 2 * TOKENS * 3;
                let key_scales = scales_of(&values[..keys], 2, 3, key).len();
                for (i, x) in values.iter().enumerate() {
                    let scale = match i.checked_sub(keys) {
                        None => scales[scale_of(3, key)(i)],
                        Some(i) => scales[key_scales + scale_of(5, value)(i)],
                    };
                    let back = f32::from(frame[i] as i8) * scale;
                    assert!((back - x).abs() <= scale * 0.5001, "{x} came back as {back}");
                }
            }
        }
    }
}
