//! The cpu device through its contract: against plain references within a tolerance, and against
//! itself, over instruction sets, threads, tiles and segments, bit by bit.
#![allow(clippy::unwrap_used)]

mod attention;
mod functions;
mod harm;
mod linear;
mod pages;
mod refusal;
mod rig;
mod small;
