//! The ops, their parameters, and the words that carry them.
//!
//! One table makes the enum and its encoding. A list crosses the border as `[code, length, words…]`
//! a piece, so that an op which a device does not know is `Unsupported` by its code, never a wrong
//! enum. A changed op is a new code. Positions, lengths and tables live in buffers, so a list
//! repeats: keep it encoded, and decoded.
//!
//! Activations are f32. `rows` counts rows of the ragged batch; a row is one token of one sequence.
//!
//! **Attention has one order.** For each row and head, each page gives a partial alone: its largest
//! score m, l = sum of exp(s - m), a = sum of exp(s - m) v, over the rows that the query may see,
//! in row order (a vector unit: as if all 64 lanes took part, unseen ones as zero, never
//! multiplied). Partials fold into the carried (m, l, a) in ascending position, one after another;
//! a page where nothing is seen folds nothing. So any split between pages, and any spread of pages
//! over workers, gives the same bits; a tree of partials, or pinned pages first, would not.

#[macro_use]
mod words;
mod encoding;
mod entries;
mod modes;
mod table;

pub use {encoding::*, entries::*, modes::*, table::*, words::*};
