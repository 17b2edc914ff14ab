//! Where operands are laid out: one arena, as the reference sees it, with bytes between operands
//! that no op may read (as f32 they are no numbers) or write.

use super::reference::Image;
use crate::Random;
use half::{bf16, f16};
use kvern_contract::*;

/// The arena's buffer in ops as cases make them; no parameter has this number.
pub const ARENA: Buffer = Buffer(0x7e57_b0f5);
/// Bytes of the arena.
pub const BYTES: usize = 1 << 19;
/// What is in no operand: as f32, no number.
const NOBODYS: u8 = 0xff;

/// The arena and what the device declares.
pub struct Desk {
    /// The arena as it should be.
    pub image: Image,
    /// Numbers of this seed.
    pub random: Random,
    /// Operands are left out: for `supports`.
    pub dry: bool,
    /// Tables of words that devices must check, with their lengths.
    pub tables: Vec<(Slice, usize)>,
    /// Encodings of weights that the device declares.
    pub weights: Vec<WeightEncoding>,
    /// Encodings of pages that the device declares.
    pub kv: Vec<KvEncoding>,
    used: usize,
}

impl Desk {
    /// An empty one.
    pub fn new(description: &DeviceDescription) -> Desk {
        let mut image = Image::default();
        image.buffers.insert(ARENA.0, vec![NOBODYS; BYTES]);
        Desk {
            image,
            random: Random::new(0),
            dry: false,
            tables: Vec::new(),
            weights: description.weights.clone(),
            kv: description.kv.clone(),
            used: 0,
        }
    }

    /// Clears it, for another test of another seed.
    pub fn clear(&mut self, seed: u64) {
        self.random = Random::new(seed);
        self.tables.clear();
        self.used = 0;
        self.arena().fill(NOBODYS);
    }

    fn arena(&mut self) -> &mut Vec<u8> {
        self.image.buffers.entry(ARENA.0).or_default()
    }

    /// The arena's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.image.buffers.get(&ARENA.0).map_or(&[], Vec::as_slice)
    }

    /// Sets the arena's bytes.
    pub fn set(&mut self, bytes: Vec<u8>) {
        *self.arena() = bytes;
    }

    /// New room, with bytes of nobody's before it.
    pub fn room(&mut self, bytes: usize) -> Slice {
        if self.dry {
            return Slice::default();
        }
        let gap = 8 + 8 * self.random.below(4) as usize;
        let at = self.used.next_multiple_of(8) + gap;
        self.used = at + bytes;
        assert!(self.used <= BYTES - 64, "the case needs a larger arena");
        Slice { buffer: ARENA, offset: at as u64 }
    }

    /// Bytes in new room.
    pub fn put(&mut self, bytes: &[u8]) -> Slice {
        let at = self.room(bytes.len());
        if !self.dry {
            let from = at.offset as usize;
            self.arena()[from..from + bytes.len()].copy_from_slice(bytes);
        }
        at
    }

    /// Words in new room.
    pub fn words(&mut self, words: &[u32]) -> Slice {
        self.put(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>())
    }

    /// Words that a device must check.
    pub fn table(&mut self, words: &[u32]) -> Slice {
        let at = self.words(words);
        self.tables.push((at, words.len()));
        at
    }

    /// A number in -1..1.
    pub fn number(&mut self) -> f32 {
        (self.random.bits() >> 40) as f32 / 8_388_608.0 - 1.0
    }

    /// So many numbers.
    pub fn numbers(&mut self, count: u32) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }

    /// Given numbers in new room.
    pub fn given(&mut self, values: &[f32]) -> Slice {
        self.words(&values.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    }

    /// Numbers in new room.
    pub fn floats(&mut self, count: u32) -> Slice {
        let values = self.numbers(count);
        self.given(&values)
    }

    /// Numbers in new room, or none.
    pub fn maybe(&mut self, there: bool, count: u32) -> Slice {
        if there { self.floats(count) } else { Slice::default() }
    }

    /// A view in new room: values one after another, with `gap` floats after each group and row.
    pub fn view(&mut self, counts: [u32; 3], gap: u32) -> View {
        let [rows, groups, width] = counts;
        let group = width + gap;
        let row = groups * group + gap;
        View { at: self.floats(rows * row), row, group, step: 1 }
    }

    /// Room for so many floats that an op writes.
    pub fn out(&mut self, count: u32) -> Slice {
        self.room(4 * count as usize)
    }

    /// The n-th encoding of weights that the device declares.
    pub fn weight_encoding(&self, n: u64) -> WeightEncoding {
        let count = self.weights.len().max(1) as u64;
        self.weights.get((n % count) as usize).copied().unwrap_or(WeightEncoding::F32)
    }

    /// The n-th encoding of pages that the device declares.
    pub fn page_encoding(&self, n: u64) -> KvEncoding {
        let count = self.kv.len().max(1) as u64;
        self.kv.get((n % count) as usize).copied().unwrap_or(KvEncoding::F32)
    }

    fn stored(&mut self, encoding: KvEncoding, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..count {
            let x = self.number();
            match encoding {
                KvEncoding::F16 => bytes.extend(f16::from_f32(x).to_le_bytes()),
                KvEncoding::Bf16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
                KvEncoding::F32 => bytes.extend(x.to_le_bytes()),
                // -127 to 127, as the encoding has it.
                _ => bytes.push((127.0 * x) as i8 as u8),
            }
        }
        bytes
    }

    /// Scales that keep int8 values about 1.
    fn scales(&mut self, count: usize) -> Vec<u8> {
        let scale = |x: f32| (0.004 + 0.004 * x.abs()).to_le_bytes();
        (0..count).flat_map(|_| scale(self.number())).collect()
    }

    /// A stack of matrices, in new room.
    pub fn weight(
        &mut self,
        encoding: WeightEncoding,
        (outputs, inputs): (u32, u32),
        (stack, layout): (u32, u32),
    ) -> Weight {
        let count = (stack * outputs * inputs) as usize;
        let (mut data, mut scales) = (Vec::new(), Vec::new());
        match encoding {
            WeightEncoding::None => {}
            WeightEncoding::Bf16 => data = self.stored(KvEncoding::Bf16, count),
            WeightEncoding::F16 => data = self.stored(KvEncoding::F16, count),
            WeightEncoding::F32 => data = self.stored(KvEncoding::F32, count),
            WeightEncoding::Int8 => {
                data = (0..count).map(|_| (127.0 * self.number()) as i8 as u8).collect();
                scales = self.scales((stack * outputs) as usize);
            }
            WeightEncoding::Mxfp4 => {
                data = (0..count / 2).map(|_| self.random.bits() as u8).collect();
                scales = (0..count / 32).map(|_| 122 + self.random.below(4) as u8).collect();
            }
        }
        let data = self.put(&data);
        let scales = if scales.is_empty() { Slice::default() } else { self.put(&scales) };
        Weight { data, scales, encoding, outputs, inputs, layout, stride: 0 }
    }

    /// Bytes of a page with so many filled rows; rows that are not filled are zero.
    pub fn page(&mut self, encoding: KvEncoding, layer: &KvLayer, tokens: u32) -> Vec<u8> {
        let (heads, k, v) =
            (layer.kv_heads as usize, layer.key_dim as usize, layer.value_dim as usize);
        let mut bytes = self.stored(encoding, heads * 64 * (k + v));
        let size = bytes.len() / (heads * 64 * (k + v));
        for head in 0..heads {
            for t in tokens as usize..64 {
                bytes[(head * 64 + t) * k * size..][..k * size].fill(0);
                let values = heads * 64 * k * size;
                bytes[values + (head * 64 + t) * v * size..][..v * size].fill(0);
            }
        }
        let scales = (layer.page_bytes(encoding) as usize - bytes.len()) / 4;
        bytes.extend(self.scales(scales));
        bytes
    }
}
