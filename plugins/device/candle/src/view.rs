//! Strided views: lines of floats `[row][group]` in and out of buffers.

use crate::fault::invalid;
use crate::ops::Operands;
use crate::region::Region;
use crate::tile::Tile;
use kvern_contract::{Result, View};

/// A view whose whole extent was checked.
#[derive(Clone, Copy)]
pub struct Lines {
    region: Region,
    view: View,
    groups: u64,
}

impl Lines {
    /// Checks that `rows` by `groups` lines of `width` floats fit. *Errors* Invalid.
    pub fn bind(
        view: View,
        rows: u32,
        groups: u32,
        width: u32,
        operands: &Operands<'_>,
    ) -> Result<Self> {
        if view.step > 1 {
            return Err(invalid(format!("a view steps by {} floats, expected 0 or 1", view.step)));
        }
        let last = |count: u32, stride: u32| u128::from(count - 1) * u128::from(stride);
        let floats = if rows == 0 || groups == 0 || width == 0 {
            0
        } else {
            last(rows, view.row) + last(groups, view.group) + last(width, view.step) + 1
        };
        let bytes = u64::try_from(floats * 4).unwrap_or(u64::MAX);
        let region = operands.region(view.at, bytes)?;
        Ok(Lines { region, view, groups: u64::from(groups.max(1)) })
    }

    fn start(&self, line: u64) -> u64 {
        let (row, group) = (line / self.groups, line % self.groups);
        4 * (row * u64::from(self.view.row) + group * u64::from(self.view.group))
    }

    /// The values of a tile, line after line. *Errors* Invalid.
    pub fn read(&self, tile: Tile) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(tile.lines * tile.columns);
        for line in tile.line..tile.line + tile.lines as u64 {
            let at = self.start(line);
            if self.view.step == 1 {
                self.region.append(at + 4 * tile.column as u64, tile.columns, &mut values)?;
            } else {
                self.region.append(at, 1, &mut values)?;
                let value = values.last().copied().unwrap_or(0.0);
                values.extend(std::iter::repeat_n(value, tile.columns - 1));
            }
        }
        Ok(values)
    }

    /// Writes the values of a tile. *Errors* Invalid.
    pub fn write(&self, tile: Tile, values: &[f32]) -> Result<()> {
        for (i, line) in values.chunks_exact(tile.columns.max(1)).enumerate() {
            let at = self.start(tile.line + i as u64);
            if self.view.step == 1 {
                self.region.write(at + 4 * tile.column as u64, line)?;
            } else {
                self.region.write(at, &line[line.len() - 1..])?;
            }
        }
        Ok(())
    }
}
