//! The second device: every product, sum and exponential is candle's, on its CPU backend.
//!
//! It keeps the device contract honest: what the engine asks must be answerable by a tensor library
//! that knows nothing of pages, ragged batches or streams. What is here is the way in and out
//! (ranges, views, pages, encodings) and the fold of page partials; the arithmetic in between is
//! tensors of f32.
//!
//! - Buffers are host memory; lists of ops wait in line and run inside `wait`.
//! - `adapt` keeps a resident weight as an f32 tensor (`layout` 2); a weight as stored is converted
//!   block by block at each use.
//! - candle may pick another kernel for another shape, so a row's bits depend on its neighbours:
//!   `row_invariant` is false.
//! - `threads` bounds the rayon pool that products run in. candle's own element-wise pool is sized
//!   by the environment alone, so no tensor that meets element-wise work here is large enough to
//!   wake it ([`limits::TILE`]).

mod device;
mod fault;
mod limits;
mod line;
mod memory;
mod ops;
mod region;
mod shape;
mod tile;
mod view;
mod weight;

pub use device::CandleDevice;

kvern_abi::export_device_backend!(CandleDevice);
