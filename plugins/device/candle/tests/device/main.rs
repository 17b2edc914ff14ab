//! The candle device against plain sums in f64, and against what it must refuse.

#![allow(clippy::unwrap_used)]

mod attention;
mod harness;
mod linear;
mod queue;
mod ranges;
mod rope;
mod small;
mod threads;
mod vectors;
