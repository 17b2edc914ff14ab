//! The cpu device through its contract: against plain references within a tolerance, and against itself, over
//! instruction sets, threads, tiles and segments, bit by bit.

mod attention;
mod linear;
mod refusal;
mod rig;
mod small;
