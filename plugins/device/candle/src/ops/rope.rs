//! Rotates queries and keys, and writes K and V to their frames.
//!
//! Work goes by lines, a (row, head) each; a line's cosines are those of its row's position.

use super::{Operands, stray};
use crate::fault::{candle, invalid};
use crate::region::{Plain, Region};
use crate::tile::{Tile, tensor, tiles, values, values_of};
use candle_core::{DType, Tensor, WithDType};
use half::{bf16, f16};
use kvern_contract::{KvEncoding, Op, PAGE_TOKENS, Result, encoding_of};

/// What turns a line.
struct Rope {
    positions: Option<(Region, Region, Region)>,
    half: usize,
    table_rows: u32,
    interleaved: bool,
}

/// Runs `RopeWrite`.
pub fn run(op: &Op, operands: &Operands<'_>) -> Result<()> {
    let Op::RopeWrite { rows, heads, kv_heads, key_dim, value_dim, .. } = *op else {
        return Err(stray(op));
    };
    let Op::RopeWrite { q, k, v, positions, cos, sin, writes, pool, .. } = *op else {
        return Err(stray(op));
    };
    let Op::RopeWrite { rotary, table_rows, interleaved, encoding, .. } = *op else {
        return Err(stray(op));
    };
    let (key, value) = (u64::from(key_dim), u64::from(value_dim));
    let q = operands.words(q, rows, u64::from(heads) * key)?;
    let k = operands.words(k, rows, u64::from(kv_heads) * key)?;
    let v = operands.words(v, rows, u64::from(kv_heads) * value)?;
    let turn = if rotary == 0 {
        None
    } else {
        let table = |slice| operands.words(slice, table_rows, u64::from(rotary / 2));
        Some((operands.words(positions, rows, 1)?, table(cos)?, table(sin)?))
    };
    let half = rotary as usize / 2;
    let rope = Rope { positions: turn, half, table_rows, interleaved };
    let frames = Frames {
        writes: operands.words(writes, rows, 4)?,
        pool: operands.rest(pool)?,
        heads: u64::from(kv_heads),
        key,
        value,
        encoding,
    };
    if operands.dry {
        return Ok(());
    }
    if rotary > 0 {
        for tile in lines(rows, heads, key_dim) {
            let turned = rope.turn(&read(&q, tile, key)?, tile, u64::from(heads))?;
            values(&turned, |all| q.write(4 * tile.line * key, all))?;
        }
    }
    for tile in lines(rows, kv_heads, key_dim) {
        let turned = rope.turn(&read(&k, tile, key)?, tile, frames.heads)?;
        frames.write(&turned, tile, false)?;
    }
    for tile in lines(rows, kv_heads, value_dim) {
        frames.write(&read(&v, tile, value)?, tile, true)?;
    }
    Ok(())
}

/// Whole lines: a head's channels fit in one tile.
fn lines(rows: u32, heads: u32, width: u32) -> impl Iterator<Item = Tile> {
    tiles(u64::from(rows) * u64::from(heads), width as usize)
}

fn read(from: &Region, tile: Tile, width: u64) -> Result<Tensor> {
    let count = tile.lines * tile.columns;
    tensor(from.read(4 * tile.line * width, count)?, (tile.lines, tile.columns))
}

impl Rope {
    fn turn(&self, x: &Tensor, tile: Tile, heads: u64) -> Result<Tensor> {
        let Some((positions, cos, sin)) = &self.positions else { return Ok(x.clone()) };
        let (mut c, mut s) = (Vec::new(), Vec::new());
        for line in tile.line..tile.line + tile.lines as u64 {
            let at = positions.read::<u32>(4 * (line / heads), 1)?.first().copied().unwrap_or(0);
            if at >= self.table_rows {
                let text = format!("position {at} with rope tables of {} rows", self.table_rows);
                return Err(invalid(text));
            }
            let from = 4 * u64::from(at) * self.half as u64;
            cos.append(from, self.half, &mut c)?;
            sin.append(from, self.half, &mut s)?;
        }
        let shape = (tile.lines, self.half);
        self.rotate(x, &tensor(c, shape)?, &tensor(s, shape)?).map_err(candle)
    }

    /// `x` f32 `[line][channel]`, cosines and sines `[line][half]`.
    fn rotate(&self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> candle_core::Result<Tensor> {
        let (count, width) = x.dims2()?;
        let (half, rotary) = (self.half, 2 * self.half);
        let turning = x.narrow(1, 0, rotary)?;
        let (a, b) = if self.interleaved {
            let pairs = turning.reshape((count, half, 2))?;
            (pairs.narrow(2, 0, 1)?.squeeze(2)?, pairs.narrow(2, 1, 1)?.squeeze(2)?)
        } else {
            (turning.narrow(1, 0, half)?, turning.narrow(1, half, half)?)
        };
        let first = ((&a * cos)? - (&b * sin)?)?;
        let second = ((&b * cos)? + (&a * sin)?)?;
        let turned = if self.interleaved {
            Tensor::stack(&[first, second], 2)?.reshape((count, rotary))?
        } else {
            Tensor::cat(&[first, second], 1)?
        };
        if rotary == width {
            return Ok(turned);
        }
        Tensor::cat(&[turned, x.narrow(1, rotary, width - rotary)?], 1)
    }
}

/// Where K and V of each row go.
struct Frames {
    writes: Region,
    pool: Region,
    heads: u64,
    key: u64,
    value: u64,
    encoding: u32,
}

impl Frames {
    /// Writes lines of K, or of V behind all of K.
    fn write(&self, lines: &Tensor, tile: Tile, value: bool) -> Result<()> {
        let cast = |dtype| lines.to_dtype(dtype).map_err(candle);
        match encoding_of(self.encoding) {
            Some(KvEncoding::F16) => self.put::<f16>(&cast(DType::F16)?, tile, value),
            Some(KvEncoding::Bf16) => self.put::<bf16>(&cast(DType::BF16)?, tile, value),
            _ => self.put::<f32>(lines, tile, value),
        }
    }

    fn put<T: WithDType + Plain>(&self, lines: &Tensor, tile: Tile, value: bool) -> Result<()> {
        let each = size_of::<T>() as u64;
        let tokens = u64::from(PAGE_TOKENS);
        let keys = self.heads * tokens * self.key * each;
        let bytes = keys + self.heads * tokens * self.value * each;
        let (base, width) = if value { (keys, self.value) } else { (0, self.key) };
        values_of::<T, _>(lines, |all| {
            for (i, line) in all.chunks_exact(tile.columns).enumerate() {
                let number = tile.line + i as u64;
                let (row, head) = (number / self.heads, number % self.heads);
                let write = self.writes.read::<u64>(16 * row, 2)?;
                let (offset, at) = match write[..] {
                    [offset, word] => (offset, word & u64::from(u32::MAX)),
                    _ => (u64::MAX, 0),
                };
                if at >= tokens {
                    return Err(invalid(format!("row {at} of a page of {tokens}")));
                }
                let frame = self.pool.part(offset, bytes)?;
                frame.write(base + (head * tokens + at) * width * each, line)?;
            }
            Ok(())
        })
    }
}
