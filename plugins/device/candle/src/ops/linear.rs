//! Products with up to four weights, and what follows them.
//!
//! Outputs are cut into blocks of a weight's rows. Blocks are independent, so the pool's workers
//! share them; each converts its own block when the weight is not kept.

use super::{Operands, stray};
use crate::fault::{candle, invalid};
use crate::region::Region;
use crate::tile::{Tile, tensor, tiles, values};
use crate::weight::Matrix;
use candle_core::Tensor;
use kvern_contract::{Buffer, Epilogue, Op, Result};
use rayon::prelude::*;

/// A weight and its bias.
struct Factor {
    matrix: Matrix,
    bias: Option<Region>,
}

/// Runs `Linear`.
pub fn run(op: &Op, operands: &Operands<'_>) -> Result<()> {
    let Op::Linear { x, weights, biases, outs, rows, epilogue, .. } = *op else {
        return Err(stray(op));
    };
    let mut factors = Vec::with_capacity(4);
    for (i, weight) in weights.as_slice().iter().enumerate() {
        let matrix = Matrix::bind(weight, operands)?;
        let bias = biases.as_slice().get(i).filter(|bias| bias.buffer != Buffer(0));
        let bias = bias.map(|bias| operands.words(*bias, weight.outputs, 1)).transpose()?;
        factors.push(Factor { matrix, bias });
    }
    let inputs = factors.first().map_or(0, |factor| factor.matrix.inputs);
    let x = operands.words(x, rows, inputs as u64)?;
    let gated = matches!(epilogue, Epilogue::SiluGated | Epilogue::GeluTanhGated);
    let groups = factors.chunks(if gated { 2 } else { 1 });
    let given = outs.as_slice().len();
    if given < groups.len() {
        return Err(invalid(format!("{given} outputs for {} products", groups.len())));
    }
    let mut jobs = Vec::with_capacity(4);
    for (group, out) in groups.zip(outs.as_slice()) {
        let outputs = group.first().map_or(0, |factor| factor.matrix.outputs);
        jobs.push((group, operands.words(*out, rows, outputs as u64)?, outputs));
    }
    if operands.dry || rows == 0 {
        return Ok(());
    }
    let x = tensor(x.read(0, rows as usize * inputs)?, (rows as usize, inputs))?;
    let blocks: Vec<_> = jobs
        .iter()
        .flat_map(|(group, out, outputs)| {
            let step = group.first().map_or(1, |factor| factor.matrix.block_rows());
            (0..*outputs).step_by(step).map(move |from| Block {
                group,
                out: *out,
                outputs: *outputs,
                from,
                count: step.min(outputs - from),
            })
        })
        .collect();
    blocks.par_iter().try_for_each(|block| block.run(&x, epilogue))
}

/// Some of the outputs of one output buffer: no two blocks write the same bytes.
struct Block<'a> {
    group: &'a [Factor],
    out: Region,
    outputs: usize,
    from: usize,
    count: usize,
}

impl Block<'_> {
    fn run(&self, x: &Tensor, epilogue: Epilogue) -> Result<()> {
        let mut products = Vec::with_capacity(2);
        for factor in self.group {
            let rows = factor.matrix.rows(self.from, self.count)?;
            let product = rows.t().and_then(|across| x.matmul(&across)).map_err(candle)?;
            let bias = factor.bias.map(|bias| bias.read(4 * self.from as u64, self.count));
            let bias = bias.transpose()?.map(|bias| tensor(bias, (1, self.count))).transpose()?;
            products.push((product, bias));
        }
        for tile in tiles(x.dim(0).map_err(candle)? as u64, self.count) {
            let parts = products.iter().map(|(product, bias)| part(product, bias.as_ref(), tile));
            let parts = parts.collect::<candle_core::Result<Vec<_>>>().map_err(candle)?;
            let before = if epilogue == Epilogue::Add { Some(self.read(tile)?) } else { None };
            let done = finish(&parts, before, epilogue).map_err(candle)?;
            values(&done, |v| self.write(tile, v))?;
        }
        Ok(())
    }

    fn at(&self, tile: Tile, line: usize) -> u64 {
        let row = tile.line + line as u64;
        4 * (row * self.outputs as u64 + (self.from + tile.column) as u64)
    }

    fn read(&self, tile: Tile) -> Result<Tensor> {
        let mut all = Vec::with_capacity(tile.lines * tile.columns);
        for line in 0..tile.lines {
            self.out.append(self.at(tile, line), tile.columns, &mut all)?;
        }
        tensor(all, (tile.lines, tile.columns))
    }

    fn write(&self, tile: Tile, all: &[f32]) -> Result<()> {
        let lines = all.chunks_exact(tile.columns).enumerate();
        lines.into_iter().try_for_each(|(i, line)| self.out.write(self.at(tile, i), line))
    }
}

fn part(product: &Tensor, bias: Option<&Tensor>, tile: Tile) -> candle_core::Result<Tensor> {
    let lines = product.narrow(0, tile.line as usize, tile.lines)?;
    let part = lines.narrow(1, tile.column, tile.columns)?;
    match bias {
        Some(bias) => part.broadcast_add(&bias.narrow(1, tile.column, tile.columns)?),
        None => Ok(part),
    }
}

/// What follows the products of one output, on a tile of them.
fn finish(
    parts: &[Tensor],
    before: Option<Tensor>,
    epilogue: Epilogue,
) -> candle_core::Result<Tensor> {
    let [first, rest @ ..] = parts else { candle_core::bail!("no product") };
    match (epilogue, rest, before) {
        (Epilogue::Silu, ..) => first.silu(),
        (Epilogue::Gelu, ..) => first.gelu_erf(),
        (Epilogue::GeluTanh, ..) => first.gelu(),
        (Epilogue::SiluGated, [second], _) => first.silu()? * second,
        (Epilogue::GeluTanhGated, [second], _) => first.gelu()? * second,
        (Epilogue::Add, _, Some(before)) => before + first,
        (Epilogue::None, ..) => Ok(first.clone()),
        _ => candle_core::bail!("an epilogue without its operands"),
    }
}
