//! Samples of every op: the n-th takes the n-th of every mode, of odd and even shapes, and numbers
//! of its seed.

mod attention;
mod experts;
mod plain;
mod recurrent;

pub use attention::{attention, mass, parts, rope_write, rows_of};
pub use experts::{experts, route, waves};
pub use plain::{embed, linear, map, norm, rows, top};
pub use recurrent::{conv, delta, gates, steps};

use super::bench::Make;

/// Every op, with how many of its samples meet all of its modes.
pub const ALL: [(&str, Make, u32); 14] = [
    ("Embed", embed, 12),
    ("Norm", norm, 48),
    ("Linear", linear, 48),
    ("RopeWrite", rope_write, 24),
    ("Attention", attention, 36),
    ("AttentionMass", mass, 12),
    ("Route", route, 24),
    ("Experts", experts, 20),
    ("Conv", conv, 16),
    ("Delta", delta, 12),
    ("Map", map, 28),
    ("Rows", rows, 9),
    ("Top", top, 12),
    ("DeltaGates", gates, 6),
];

/// One of a few, by number.
fn of<T: Copy>(few: &[T], n: u64) -> T {
    few[(n % few.len() as u64) as usize]
}
