//! Rows of a table by id.

use super::{Operands, stray};
use crate::fault::candle;
use crate::tile::{tiles, values};
use crate::weight::Matrix;
use kvern_contract::{Op, Result};

/// Runs `Embed`.
pub fn run(op: &Op, operands: &Operands<'_>) -> Result<()> {
    let Op::Embed { ids, table, out, rows, scale } = *op else { return Err(stray(op)) };
    let table = Matrix::bind(&table, operands)?;
    let width = table.inputs;
    let ids = operands.words(ids, rows, 1)?;
    let out = operands.words(out, rows, width as u64)?;
    if operands.dry {
        return Ok(());
    }
    // A tile that spans the whole width: the first of each line range.
    for tile in tiles(u64::from(rows), width).filter(|tile| tile.column == 0) {
        let ids = ids.read::<u32>(4 * tile.line, tile.lines)?;
        let picked = table.pick(&ids)?.affine(f64::from(scale), 0.0).map_err(candle)?;
        values(&picked, |v| out.write(4 * tile.line * width as u64, v))?;
    }
    Ok(())
}
