//! Weights as f32 tensors: kept by `adapt`, or converted from their bytes a block at a time.

use crate::fault::{candle, invalid, unsupported};
use crate::limits::{BLOCK, KEPT};
use crate::ops::Operands;
use crate::region::Region;
use crate::tile::{tensor, values};
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use kvern_contract::{Result, Weight, WeightEncoding};

/// One matrix `[out][in]` whose bytes are there.
pub struct Matrix {
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    source: Source,
}

enum Source {
    Kept(Tensor),
    Stored { region: Region, encoding: WeightEncoding, transposed: bool },
}

/// Bytes of a value as stored; `None` where candle has no such tensor.
pub fn value_bytes(encoding: WeightEncoding) -> Option<u64> {
    match encoding {
        WeightEncoding::Bf16 | WeightEncoding::F16 => Some(2),
        WeightEncoding::F32 => Some(4),
        WeightEncoding::None | WeightEncoding::Int8 | WeightEncoding::Mxfp4 => None,
    }
}

/// Refuses forms that are not read here. *Errors* Unsupported, Invalid.
pub fn check(weight: &Weight) -> Result<()> {
    if value_bytes(weight.encoding).is_none() {
        return Err(unsupported(format!("weights in {:?} are not read here", weight.encoding)));
    }
    if weight.layout > KEPT {
        return Err(invalid(format!("layout {} is not this device's", weight.layout)));
    }
    if weight.outputs == 0 || weight.inputs == 0 {
        return Err(invalid(format!("a weight of {} by {}", weight.outputs, weight.inputs)));
    }
    Ok(())
}

fn block<T: WithDType + crate::region::Plain>(
    read: impl Fn(&mut Vec<T>) -> Result<()>,
    shape: (usize, usize),
) -> Result<Tensor> {
    let mut raw = Vec::<T>::with_capacity(shape.0 * shape.1);
    read(&mut raw)?;
    let tensor = Tensor::from_vec(raw, shape, &Device::Cpu).map_err(candle)?;
    tensor.to_dtype(DType::F32).map_err(candle)
}

impl Matrix {
    /// Checks that all of its bytes are there. *Errors* Invalid, Unsupported.
    pub fn bind(weight: &Weight, operands: &Operands<'_>) -> Result<Self> {
        check(weight)?;
        let (outputs, inputs) = (weight.outputs as usize, weight.inputs as usize);
        if weight.layout == KEPT {
            let tensor = operands.kept(weight.data.buffer)?;
            if tensor.dims() != [outputs, inputs] {
                let text = format!("{outputs} by {inputs} asked of a kept {:?}", tensor.dims());
                return Err(invalid(text));
            }
            return Ok(Matrix { outputs, inputs, source: Source::Kept(tensor) });
        }
        let each = value_bytes(weight.encoding).unwrap_or(0);
        let count = u64::from(weight.outputs) * u64::from(weight.inputs);
        let region = operands.region(weight.data, count.saturating_mul(each))?;
        let (encoding, transposed) = (weight.encoding, weight.layout == 1);
        Ok(Matrix { outputs, inputs, source: Source::Stored { region, encoding, transposed } })
    }

    /// Rows that one block may have.
    pub fn block_rows(&self) -> usize {
        (BLOCK / self.inputs.max(1)).max(1)
    }

    fn stored(
        &self,
        runs: impl Fn(usize) -> (u64, usize),
        count: usize,
        shape: (usize, usize),
        from: (&Region, WeightEncoding),
    ) -> Result<Tensor> {
        fn all<T: crate::region::Plain>(
            region: &Region,
            runs: &impl Fn(usize) -> (u64, usize),
            count: usize,
            to: &mut Vec<T>,
        ) -> Result<()> {
            let each = size_of::<T>() as u64;
            (0..count).try_for_each(|i| {
                let (start, length) = runs(i);
                region.append(start * each, length, to)
            })
        }
        let (region, encoding) = from;
        match encoding {
            WeightEncoding::Bf16 => block::<bf16>(|to| all(region, &runs, count, to), shape),
            WeightEncoding::F16 => block::<f16>(|to| all(region, &runs, count, to), shape),
            _ => block::<f32>(|to| all(region, &runs, count, to), shape),
        }
    }

    /// `count` rows from `from` on, f32 `[count][in]`. *Errors* Invalid.
    pub fn rows(&self, from: usize, count: usize) -> Result<Tensor> {
        match &self.source {
            Source::Kept(tensor) => tensor.narrow(0, from, count).map_err(candle),
            Source::Stored { region, encoding, transposed: false } => {
                let run = |_: usize| ((from * self.inputs) as u64, count * self.inputs);
                self.stored(run, 1, (count, self.inputs), (region, *encoding))
            }
            Source::Stored { region, encoding, transposed: true } => {
                let run = |input: usize| ((input * self.outputs + from) as u64, count);
                let shape = (self.inputs, count);
                let across = self.stored(run, self.inputs, shape, (region, *encoding))?;
                // Contiguous, so that its products are those of the same weight once kept.
                across.t().and_then(|rows| rows.contiguous()).map_err(candle)
            }
        }
    }

    /// Rows by number, f32 `[row][in]`; each must be below `outputs`. *Errors* Invalid.
    pub fn pick(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.outputs) {
            return Err(invalid(format!("row {id} of a table of {} rows", self.outputs)));
        }
        match &self.source {
            Source::Stored { region, encoding, transposed: false } => {
                let run = |i: usize| {
                    let id = ids.get(i).copied().unwrap_or(0) as usize;
                    ((id * self.inputs) as u64, self.inputs)
                };
                self.stored(run, ids.len(), (ids.len(), self.inputs), (region, *encoding))
            }
            Source::Stored { .. } => Err(invalid("a table of rows is stored by columns")),
            Source::Kept(tensor) => {
                let ids = Tensor::from_slice(ids, ids.len(), &Device::Cpu).map_err(candle)?;
                tensor.index_select(&ids, 0).map_err(candle)
            }
        }
    }

    /// All of it as one f32 tensor `[out][in]`, converted a block at a time. *Errors* Invalid.
    pub fn whole(&self) -> Result<Tensor> {
        let mut all = Vec::with_capacity(self.outputs * self.inputs);
        for from in (0..self.outputs).step_by(self.block_rows()) {
            let rows = self.rows(from, self.block_rows().min(self.outputs - from))?;
            values(&rows, |v| {
                all.extend_from_slice(v);
                Ok(())
            })?;
        }
        tensor(all, (self.outputs, self.inputs))
    }

    /// Whether it has `width` values. *Errors* Invalid.
    pub fn fits(&self, width: usize) -> Result<()> {
        if self.outputs.checked_mul(self.inputs) == Some(width) {
            return Ok(());
        }
        Err(invalid(format!("a weight of {} by {} for {width} values", self.outputs, self.inputs)))
    }

    /// A vector of `width` values, whatever way it lies. *Errors* Invalid.
    pub fn vector(&self, width: usize) -> Result<Tensor> {
        self.fits(width)?;
        self.whole()?.flatten_all().map_err(candle)
    }
}
