//! Rows by index: gather, scatter, scatter and add.

use super::{Operands, stray};
use crate::fault::{candle, invalid};
use crate::tile::{tensor, tiles, values};
use kvern_contract::{Op, Result, RowsKind};

/// Runs `Rows`. Rows go one after another, so an index may come twice.
pub fn run(op: &Op, operands: &Operands<'_>) -> Result<()> {
    let Op::Rows { x, indices, out, kind, rows, width } = *op else { return Err(stray(op)) };
    let indices = operands.words(indices, rows, 1)?;
    let gather = kind == RowsKind::Gather;
    let dense = operands.words(if gather { out } else { x }, rows, u64::from(width))?;
    let sparse = operands.rest(if gather { x } else { out })?;
    if operands.dry {
        return Ok(());
    }
    let bytes = 4 * u64::from(width);
    for row in 0..u64::from(rows) {
        let index = indices.read::<u32>(4 * row, 1)?.first().copied().unwrap_or(0);
        let there = sparse
            .part(u64::from(index).saturating_mul(bytes), bytes)
            .map_err(|_| invalid(format!("index {index} is past the rows' end")))?;
        let here = dense.part(row * bytes, bytes)?;
        match kind {
            RowsKind::Gather => here.copy_from(&there)?,
            RowsKind::Scatter => there.copy_from(&here)?,
            RowsKind::ScatterAdd => {
                for tile in tiles(1, width as usize) {
                    let (at, count) = (4 * tile.column as u64, tile.columns);
                    let (a, b) = (there.read(at, count)?, here.read(at, count)?);
                    let sum = (tensor(a, count)? + tensor(b, count)?).map_err(candle)?;
                    values(&sum, |v| there.write(at, v))?;
                }
            }
        }
    }
    Ok(())
}
