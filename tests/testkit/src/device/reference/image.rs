//! Memory as the reference sees it: buffers of bytes, every access checked; and what an op writes.

use kvern_contract::{Buffer, Error, ErrorKind, Result, Slice, View};
use std::collections::BTreeMap;

/// Buffers by their numbers.
#[derive(Clone, Default)]
pub struct Image {
    /// Bytes of each.
    pub buffers: BTreeMap<u32, Vec<u8>>,
}

/// What an op puts in a place.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Write {
    /// Where.
    pub to: Slice,
    /// What.
    pub value: Value,
}

/// A value, and the size of the terms that it was summed from: what rounding is relative to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Value {
    /// An f32.
    Float { value: f64, terms: f64 },
    /// An f16.
    Half { value: f64, terms: f64 },
    /// A bf16.
    Bf16 { value: f64, terms: f64 },
    /// Four bytes, as they are.
    Word(u32),
}

impl Value {
    /// Its bytes, rounded half to even.
    pub fn bytes(&self) -> Vec<u8> {
        match *self {
            Value::Float { value, .. } => (value as f32).to_le_bytes().to_vec(),
            Value::Half { value, .. } => half::f16::from_f32(value as f32).to_le_bytes().to_vec(),
            Value::Bf16 { value, .. } => half::bf16::from_f32(value as f32).to_le_bytes().to_vec(),
            Value::Word(word) => word.to_le_bytes().to_vec(),
        }
    }
}

/// An f32 of which rounding is relative to itself.
pub fn float(value: f64) -> Value {
    Value::Float { value, terms: value.abs() }
}

pub fn invalid<T>(line: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Invalid, "device/submit", line))
}

pub fn unsupported<T>(line: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "device/submit", line))
}

/// A product of sizes. *Errors* Invalid: beyond an address space.
pub fn product(sizes: &[u32]) -> Result<u64> {
    let all = sizes.iter().try_fold(1u64, |all, size| all.checked_mul(u64::from(*size)));
    all.filter(|n| *n < 1 << 48).map_or_else(|| invalid("larger than an address space"), Ok)
}

/// The place `bytes` further on.
pub fn beyond(at: Slice, bytes: u64) -> Result<Slice> {
    match at.offset.checked_add(bytes) {
        Some(offset) => Ok(Slice { offset, ..at }),
        None => invalid("past the end of an address space"),
    }
}

/// Whether there is such an operand.
pub fn is_there(at: Slice) -> bool {
    at.buffer != Buffer(0)
}

impl Image {
    /// Bytes of a place. *Errors* Invalid.
    pub fn bytes(&self, at: Slice, bytes: u64) -> Result<&[u8]> {
        let whole = self.buffers.get(&at.buffer.0);
        let range = at.offset.checked_add(bytes).map(|end| at.offset as usize..end as usize);
        let found = whole.zip(range).and_then(|(whole, range)| whole.get(range));
        found.map_or_else(
            || {
                let (buffer, offset) = (at.buffer.0, at.offset);
                invalid(format!("{bytes} bytes at {offset} of buffer {buffer} are not there"))
            },
            Ok,
        )
    }

    /// u32 of a place; none of nothing. *Errors* Invalid.
    pub fn words(&self, at: Slice, sizes: &[u32]) -> Result<Vec<u32>> {
        let count = product(sizes)?;
        if count == 0 {
            return Ok(Vec::new());
        }
        let bytes = self.bytes(at, count * 4)?;
        Ok(bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect())
    }

    /// f32 of a place. *Errors* Invalid.
    pub fn floats(&self, at: Slice, sizes: &[u32]) -> Result<Vec<f64>> {
        let words = self.words(at, sizes)?;
        Ok(words.into_iter().map(|word| f64::from(f32::from_bits(word))).collect())
    }

    /// f32 of a place that may be none: then `otherwise`. *Errors* Invalid.
    pub fn floats_or(&self, at: Slice, sizes: &[u32], otherwise: f64) -> Result<Vec<f64>> {
        match is_there(at) {
            true => self.floats(at, sizes),
            false => Ok(vec![otherwise; product(sizes)? as usize]),
        }
    }

    /// The place of every value of a view, by row, group and value. *Errors* Invalid.
    pub fn places(&self, view: &View, counts: [u32; 3], write: bool) -> Result<Vec<Slice>> {
        let strides = [view.row, view.group, view.step];
        if view.step > 1 {
            return invalid(format!("a view steps by {} floats", view.step));
        }
        if write && counts.iter().zip(strides).any(|(count, stride)| *count > 1 && stride == 0) {
            return invalid("a view that is written puts values in one place");
        }
        if counts.contains(&0) {
            return Ok(Vec::new());
        }
        let far = |i: usize| u64::from(counts[i] - 1) * u64::from(strides[i]);
        let floats = far(0).saturating_add(far(1)).saturating_add(far(2)).saturating_add(1);
        self.bytes(view.at, floats.saturating_mul(4))?;
        let [rows, groups, width] = counts;
        let mut places = Vec::new();
        for row in 0..rows {
            for group in 0..groups {
                for value in 0..width {
                    let far = [row, group, value].map(u64::from).into_iter().zip(strides);
                    let floats: u64 = far.map(|(n, stride)| n * u64::from(stride)).sum();
                    places.push(beyond(view.at, 4 * floats)?);
                }
            }
        }
        Ok(places)
    }

    /// f32 of a view. *Errors* Invalid.
    pub fn view(&self, view: &View, counts: [u32; 3]) -> Result<Vec<f64>> {
        let places = self.places(view, counts, false)?;
        places.into_iter().map(|at| Ok(self.floats(at, &[1])?[0])).collect()
    }

    /// Writes values one after another. *Errors* Invalid.
    pub fn row(
        &self,
        at: Slice,
        values: impl IntoIterator<Item = Value>,
        out: &mut Vec<Write>,
    ) -> Result<()> {
        let mut to = at;
        for value in values {
            out.push(Write { to, value });
            to = beyond(to, value.bytes().len() as u64)?;
        }
        self.bytes(at, to.offset - at.offset).map(drop)
    }

    /// Puts writes in their places, in order. *Errors* Invalid: nothing is written.
    pub fn apply(&mut self, writes: &[Write]) -> Result<()> {
        for Write { to, value } in writes {
            self.bytes(*to, value.bytes().len() as u64)?;
        }
        for Write { to, value } in writes {
            let (bytes, at) = (value.bytes(), to.offset as usize);
            if let Some(buffer) = self.buffers.get_mut(&to.buffer.0) {
                buffer[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        Ok(())
    }
}
