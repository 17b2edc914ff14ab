//! How parameters travel: as little-endian u32 words, each type by one rule.

use crate::device::{Buffer, Slice, Weight, WeightEncoding};

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

/// Low word, high word.
fn put_long(long: u64, out: &mut Vec<u32>) {
    out.extend([long as u32, (long >> 32) as u32]);
}

fn take_long(w: &mut &[u32]) -> Option<u64> {
    let (low, high) = (u32::take(w)?, u32::take(w)?);
    Some(u64::from(low) | u64::from(high) << 32)
}

impl Words for Slice {
    fn put(&self, out: &mut Vec<u32>) {
        out.push(self.buffer.0);
        put_long(self.offset, out);
    }
    fn take(w: &mut &[u32]) -> Option<Self> {
        Some(Slice { buffer: Buffer(u32::take(w)?), offset: take_long(w)? })
    }
}

/// f32 values `[row][group][value]` inside something wider, by strides in floats; a stride of 0
/// repeats.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// The first value; buffer 0: there is no such operand.
    pub at: Slice,
    /// Floats from row to row.
    pub row: u32,
    /// Floats from group to group.
    pub group: u32,
    /// Floats from value to value: 1, or 0 for one value a group.
    pub step: u32,
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
        put_long(self.stride, out);
    }
    fn take(w: &mut &[u32]) -> Option<Self> {
        let (data, scales) = (Slice::take(w)?, Slice::take(w)?);
        use WeightEncoding::*;
        let encoding = *[None, Bf16, F16, F32, Int8, Mxfp4].get(u32::take(w)? as usize)?;
        let (layout, outputs, inputs) = (u32::take(w)?, u32::take(w)?, u32::take(w)?);
        Some(Weight { data, scales, encoding, layout, outputs, inputs, stride: take_long(w)? })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    const AT: Slice = Slice { buffer: Buffer(7), offset: 0x0000_0002_0000_0001 };

    /// Words as expected, and the value back from them, from no shorter list, with the rest left
    /// alone.
    fn check<T: Words + PartialEq + Debug>(value: T, words: &[u32]) {
        let mut out = Vec::new();
        value.put(&mut out);
        assert_eq!(out, words);
        for short in 0..words.len() {
            assert_eq!(T::take(&mut &words[..short]), None, "{short} of {} words", words.len());
        }
        out.push(99);
        let mut list = out.as_slice();
        assert_eq!(T::take(&mut list), Some(value));
        assert_eq!(list, [99]);
    }

    #[test]
    fn plain_values_take_one_word() {
        check(5u32, &[5]);
        check(-0.5f32, &[0xbf00_0000]);
        check(true, &[1]);
        check(false, &[0]);
    }

    #[test]
    fn places_take_their_words_in_order() {
        check(AT, &[7, 1, 2]);
        check(View { at: AT, row: 3, group: 4, step: 1 }, &[7, 1, 2, 3, 4, 1]);
        let weight = Weight {
            data: AT,
            scales: Slice { buffer: Buffer(8), offset: 64 },
            encoding: WeightEncoding::Mxfp4,
            outputs: 11,
            inputs: 12,
            layout: 1,
            stride: 1 << 32,
        };
        check(weight, &[7, 1, 2, 8, 64, 0, 5, 1, 11, 12, 0, 1]);
    }

    #[test]
    fn a_weight_of_an_unknown_encoding_is_refused() {
        let mut words = [7, 1, 2, 8, 64, 0, 5, 1, 11, 12, 0, 1];
        words[6] = 6;
        assert_eq!(Weight::take(&mut words.as_slice()), None);
    }

    #[test]
    fn few_travel_with_their_count_and_five_are_refused() {
        check(Few::<u32>::of(&[]), &[0]);
        check(Few::of(&[4u32, 5, 6]), &[3, 4, 5, 6]);
        assert_eq!(Few::of(&[1u32, 2, 3, 4, 5]).as_slice(), [1, 2, 3, 4]);
        assert_eq!(Few::<u32>::take(&mut [5, 1, 2, 3, 4, 5].as_slice()), None);
        assert_eq!(Few::<u32>::take(&mut [u32::MAX, 1, 2].as_slice()), None);
    }
}
