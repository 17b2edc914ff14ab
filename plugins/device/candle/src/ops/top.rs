//! The largest values of each row. A choice, not arithmetic: nothing is computed, so nothing is
//! candle's.

use super::{Operands, stray};
use kvern_contract::{Op, Result};
use std::cmp::Ordering;

/// Runs `Top`.
pub fn run(op: &Op, operands: &Operands<'_>) -> Result<()> {
    let Op::Top { logits, ids, values, rows, width, top } = *op else { return Err(stray(op)) };
    let logits = operands.words(logits, rows, u64::from(width))?;
    let ids = operands.words(ids, rows, u64::from(top))?;
    let values = operands.words(values, rows, u64::from(top))?;
    if operands.dry || top == 0 {
        return Ok(());
    }
    for row in 0..u64::from(rows) {
        let line = logits.read::<f32>(4 * row * u64::from(width), width as usize)?;
        let chosen = largest(&line, top as usize);
        let at = 4 * row * u64::from(top);
        ids.write(at, &chosen)?;
        let of = |id: &u32| line.get(*id as usize).copied().unwrap_or(f32::NAN);
        values.write(at, &chosen.iter().map(of).collect::<Vec<f32>>())?;
    }
    Ok(())
}

/// Descending, ties to the lower id, what is no number last.
fn largest(line: &[f32], top: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| {
        let of = |id: &u32| line.get(*id as usize).copied().unwrap_or(f32::NAN);
        let (x, y) = (of(a), of(b));
        let by_value = y.partial_cmp(&x).unwrap_or_else(|| x.is_nan().cmp(&y.is_nan()));
        if by_value == Ordering::Equal { a.cmp(b) } else { by_value }
    };
    let mut ids: Vec<u32> = (0..line.len() as u32).collect();
    if top < ids.len() {
        ids.select_nth_unstable_by(top - 1, order);
        ids.truncate(top);
    }
    ids.sort_unstable_by(order);
    ids
}
