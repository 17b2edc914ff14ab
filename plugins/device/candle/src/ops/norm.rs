//! Norms of groups of values.

use super::{Operands, stray};
use crate::fault::candle;
use crate::tile::{tensor, tiles, values};
use crate::view::Lines;
use crate::weight::Matrix;
use candle_core::Tensor;
use kvern_contract::{Buffer, NormKind, Op, Result, WeightEncoding};

/// Runs `Norm`.
pub fn run(op: &Op, operands: &Operands<'_>) -> Result<()> {
    let Op::Norm { x, weight, bias, gate, out, kind, rows, groups, width, eps } = *op else {
        return Err(stray(op));
    };
    let bind = |view| Lines::bind(view, rows, groups, width, operands);
    let (x, out) = (bind(x)?, bind(out)?);
    let gate = (gate.at.buffer != Buffer(0)).then(|| bind(gate)).transpose()?;
    let matrix = (weight.encoding != WeightEncoding::None)
        .then(|| Matrix::bind(&weight, operands))
        .transpose()?;
    let bias = (bias.buffer != Buffer(0)).then(|| operands.words(bias, width, 1)).transpose()?;
    let columns = width as usize;
    if let Some(matrix) = &matrix {
        matrix.fits(columns)?;
    }
    if operands.dry {
        return Ok(());
    }
    let weight = matrix.map(|matrix| scale(&matrix, kind, columns)).transpose()?;
    let bias = bias.map(|bias| tensor(bias.read(0, columns)?, columns)).transpose()?;
    for tile in tiles(u64::from(rows) * u64::from(groups), columns) {
        let shape = (tile.lines, columns);
        let gate = gate.map(|gate| tensor(gate.read(tile)?, shape)).transpose()?;
        let x = tensor(x.read(tile)?, shape)?;
        let normed = norm(&x, kind, f64::from(eps))
            .and_then(|y| weight.iter().try_fold(y, |y, w| y.broadcast_mul(w)))
            .and_then(|y| bias.iter().try_fold(y, |y, b| y.broadcast_add(b)))
            .and_then(|y| gate.iter().try_fold(y, |y, g| y * g.silu()?))
            .map_err(candle)?;
        values(&normed, |v| out.write(tile, v))?;
    }
    Ok(())
}

fn scale(matrix: &Matrix, kind: NormKind, width: usize) -> Result<Tensor> {
    let weight = matrix.vector(width)?;
    if kind == NormKind::RmsPlusOne { (weight + 1.0).map_err(candle) } else { Ok(weight) }
}

/// Lines of `x` normed, without weight.
fn norm(x: &Tensor, kind: NormKind, eps: f64) -> candle_core::Result<Tensor> {
    let width = x.dim(1)? as f64;
    let squares = |x: &Tensor| x.sqr()?.sum_keepdim(1);
    match kind {
        NormKind::L2 => x.broadcast_div(&(squares(x)? + eps)?.sqrt()?),
        NormKind::Rms | NormKind::RmsPlusOne => {
            x.broadcast_div(&((squares(x)? / width)? + eps)?.sqrt()?)
        }
        NormKind::Layer => {
            let centred = x.broadcast_sub(&(x.sum_keepdim(1)? / width)?)?;
            centred.broadcast_div(&((squares(&centred)? / width)? + eps)?.sqrt()?)
        }
    }
}
