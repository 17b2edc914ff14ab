//! Element by element.

use super::{Operands, stray};
use crate::fault::candle;
use crate::tile::{tensor, tiles, values};
use crate::view::Lines;
use candle_core::Tensor;
use kvern_contract::{MapKind, Op, Result};

/// Runs `Map`.
pub fn run(op: &Op, operands: &Operands<'_>) -> Result<()> {
    let Op::Map { a, b, out, kind, rows, groups, width, scalar } = *op else {
        return Err(stray(op));
    };
    let bind = |view| Lines::bind(view, rows, groups, width, operands);
    let (a, out) = (bind(a)?, bind(out)?);
    let one = matches!(kind, MapKind::Scale | MapKind::Softcap | MapKind::Copy);
    let b = if one { None } else { Some(bind(b)?) };
    if operands.dry {
        return Ok(());
    }
    for tile in tiles(u64::from(rows) * u64::from(groups), width as usize) {
        let count = tile.lines * tile.columns;
        let a = tensor(a.read(tile)?, count)?;
        let b = b.map(|b| tensor(b.read(tile)?, count)).transpose()?;
        let mapped = map(&a, b.as_ref(), kind, f64::from(scalar)).map_err(candle)?;
        values(&mapped, |v| out.write(tile, v))?;
    }
    Ok(())
}

fn map(a: &Tensor, b: Option<&Tensor>, kind: MapKind, scalar: f64) -> candle_core::Result<Tensor> {
    match (kind, b) {
        (MapKind::Add, Some(b)) => a + (b * scalar)?,
        (MapKind::Mul, Some(b)) => a * b,
        (MapKind::SigmoidMul, Some(b)) => a / (b.neg()?.exp()? + 1.0)?,
        (MapKind::SiluMul, Some(b)) => a * b.silu()?,
        (MapKind::Scale, _) => a * scalar,
        (MapKind::Softcap, _) => (a / scalar)?.tanh()? * scalar,
        (MapKind::Copy, _) => Ok(a.clone()),
        _ => candle_core::bail!("a map of two operands got one"),
    }
}
