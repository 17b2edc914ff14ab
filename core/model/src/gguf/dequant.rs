//! GGUF's block encodings, turned into f32 in the reference's order of operations, then into bf16.

use half::{bf16, f16};

/// How a tensor's elements are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Encoding {
    pub const KNOWN: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K";

    /// The encoding of a file's type number.
    pub fn of(code: u32) -> Option<Encoding> {
        Some(match code {
            0 => Encoding::F32,
            1 => Encoding::F16,
            2 => Encoding::Q4_0,
            3 => Encoding::Q4_1,
            6 => Encoding::Q5_0,
            7 => Encoding::Q5_1,
            8 => Encoding::Q8_0,
            12 => Encoding::Q4K,
            13 => Encoding::Q5K,
            14 => Encoding::Q6K,
            30 => Encoding::Bf16,
            _ => return None,
        })
    }

    /// What to call a type number that is not known here.
    pub fn name_of(code: u32) -> String {
        const NAMES: [(u32, &str); 21] = [
            (9, "Q8_1"),
            (10, "Q2_K"),
            (11, "Q3_K"),
            (15, "Q8_K"),
            (16, "IQ2_XXS"),
            (17, "IQ2_XS"),
            (18, "IQ3_XXS"),
            (19, "IQ1_S"),
            (20, "IQ4_NL"),
            (21, "IQ3_S"),
            (22, "IQ2_S"),
            (23, "IQ4_XS"),
            (24, "I8"),
            (25, "I16"),
            (26, "I32"),
            (27, "I64"),
            (28, "F64"),
            (29, "IQ1_M"),
            (34, "TQ1_0"),
            (35, "TQ2_0"),
            (39, "MXFP4"),
        ];
        let known = NAMES.iter().find(|(n, _)| *n == code);
        known.map_or_else(|| format!("of type {code}"), |(_, name)| (*name).to_string())
    }

    /// Elements of a block; a row is whole blocks.
    pub fn elements(self) -> u64 {
        match self {
            Encoding::F32 | Encoding::F16 | Encoding::Bf16 => 1,
            Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q5_0 | Encoding::Q5_1 | Encoding::Q8_0 => {
                32
            }
            Encoding::Q4K | Encoding::Q5K | Encoding::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> u64 {
        match self {
            Encoding::F32 => 4,
            Encoding::F16 | Encoding::Bf16 => 2,
            Encoding::Q4_0 => 18,
            Encoding::Q4_1 => 20,
            Encoding::Q5_0 => 22,
            Encoding::Q5_1 => 24,
            Encoding::Q8_0 => 34,
            Encoding::Q4K => 144,
            Encoding::Q5K => 176,
            Encoding::Q6K => 210,
        }
    }

    /// Appends the elements of whole blocks as bf16, little endian, rounded to nearest even.
    pub fn to_bf16(self, packed: &[u8], out: &mut Vec<u8>) {
        let mut values = [0f32; 256];
        let elements = self.elements() as usize;
        for block in packed.chunks_exact(self.bytes() as usize) {
            self.unpack(block, &mut values);
            for value in &values[..elements] {
                out.extend(bf16::from_f32(*value).to_le_bytes());
            }
        }
    }

    /// One block into f32.
    fn unpack(self, block: &[u8], out: &mut [f32; 256]) {
        match self {
            Encoding::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            Encoding::F16 => out[0] = half_at(block, 0),
            Encoding::Bf16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
            Encoding::Q4_0 => {
                let (d, packed) = (half_at(block, 0), &block[2..]);
                each(out, |i| d * f32::from(nibble(packed, i) as i8 - 8));
            }
            Encoding::Q4_1 => {
                let (d, m, packed) = (half_at(block, 0), half_at(block, 2), &block[4..]);
                each(out, |i| d * f32::from(nibble(packed, i)) + m);
            }
            Encoding::Q5_0 => {
                let (d, high, packed) = (half_at(block, 0), &block[2..6], &block[6..]);
                each(out, |i| d * f32::from((nibble(packed, i) | bit(high, i) << 4) as i8 - 16));
            }
            Encoding::Q5_1 => {
                let (d, m) = (half_at(block, 0), half_at(block, 2));
                let (high, packed) = (&block[4..8], &block[8..]);
                each(out, |i| d * f32::from(nibble(packed, i) | bit(high, i) << 4) + m);
            }
            Encoding::Q8_0 => {
                let d = half_at(block, 0);
                each(out, |i| f32::from(block[2 + i] as i8) * d);
            }
            Encoding::Q4K => unpack_k(block, &[], &block[16..], out),
            Encoding::Q5K => unpack_k(block, &block[16..48], &block[48..], out),
            Encoding::Q6K => unpack_6k(block, out),
        }
    }
}

/// Q4_K and Q5_K: eight groups of 32 with scales and minima of six bits; `high` holds the fifth
/// bits, if any.
fn unpack_k(block: &[u8], high: &[u8], packed: &[u8], out: &mut [f32; 256]) {
    let (d, dmin, scales) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    for group in 0..8 {
        let (scale, minimum) = match group {
            0..4 => (scales[group] & 63, scales[group + 4] & 63),
            _ => (
                scales[group + 4] & 15 | scales[group - 4] >> 6 << 4,
                scales[group + 4] >> 4 | scales[group] >> 6 << 4,
            ),
        };
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        for i in 0..32 {
            let low = packed[group / 2 * 32 + i] >> (group % 2 * 4) & 15;
            let fifth = high.get(i).map_or(0, |byte| byte >> group & 1);
            out[group * 32 + i] = scale * f32::from(low | fifth << 4) - minimum;
        }
    }
}

/// Q6_K: four low bits, two high ones, a signed scale for each 16.
fn unpack_6k(block: &[u8], out: &mut [f32; 256]) {
    let (low, high, scales, d) =
        (&block[..128], &block[128..192], &block[192..208], half_at(block, 208));
    for (i, value) in out.iter_mut().enumerate() {
        let (part, inside) = (i / 128, i % 128);
        let four = low[part * 64 + inside % 64] >> (inside / 64 * 4) & 15;
        let two = high[part * 32 + inside % 32] >> (inside / 32 * 2) & 3;
        let scale = d * f32::from(scales[i / 16] as i8);
        *value = scale * f32::from((four | two << 4) as i8 - 32);
    }
}

/// Fills the 32 elements of a small block.
fn each(out: &mut [f32; 256], value: impl Fn(usize) -> f32) {
    out.iter_mut().take(32).enumerate().for_each(|(i, x)| *x = value(i));
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Element `i` of 32 in 16 bytes: the low nibbles come first.
fn nibble(packed: &[u8], i: usize) -> u8 {
    packed[i % 16] >> (i / 16 * 4) & 15
}

fn bit(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 8] >> (i % 8) & 1
}
