//! Cutting a matrix into tiles that candle works on in one thread, and numbers into and out of
//! tensors.

use crate::fault::{candle, invalid};
use crate::limits::TILE;
use candle_core::{Device, Storage, Tensor, WithDType};
use kvern_contract::Result;

/// `count` of something from `from` on, lines and columns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tile {
    /// First line, and how many.
    pub line: u64,
    /// Lines of the tile.
    pub lines: usize,
    /// First column.
    pub column: usize,
    /// Columns of the tile.
    pub columns: usize,
}

/// Tiles of at most [`TILE`] elements that cover `lines` lines of `width`, in order.
pub fn tiles(lines: u64, width: usize) -> impl Iterator<Item = Tile> {
    let columns = width.min(TILE);
    let height = (TILE / columns.max(1)).max(1) as u64;
    let starts = if width == 0 { 0 } else { lines.div_ceil(height) };
    (0..starts).flat_map(move |i| {
        let line = i * height;
        (0..width).step_by(columns.max(1)).map(move |column| Tile {
            line,
            lines: height.min(lines - line) as usize,
            column,
            columns: columns.min(width - column),
        })
    })
}

/// An f32 tensor of the shape. *Errors* Internal when the count is another.
pub fn tensor<S: candle_core::shape::ShapeWithOneHole>(
    values: Vec<f32>,
    shape: S,
) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu).map_err(candle)
}

/// Shows a tensor's f32 values, row-major.
pub fn values<R>(tensor: &Tensor, see: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    values_of::<f32, R>(tensor, see)
}

/// Shows a tensor's values, row-major. *Errors* Internal when it holds another type.
pub fn values_of<T: WithDType, R>(
    tensor: &Tensor,
    see: impl FnOnce(&[T]) -> Result<R>,
) -> Result<R> {
    let tensor = tensor.contiguous().map_err(candle)?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(invalid("a tensor is not in host memory"));
    };
    let all = storage.as_slice::<T>().map_err(candle)?;
    let (from, to) = layout.contiguous_offsets().unwrap_or((0, 0));
    see(all.get(from..to).unwrap_or(&[]))
}
