//! The cpu device: every op in native Rust, on AVX-512, on AVX2 with FMA, or on plain scalars,
//! with the same bits on each.
//!
//! **One order.** Sixteen virtual f32 lanes carry every sum: lane i takes elements i, i + 16, i +
//! 32 and so on, ascending, by fused multiply-add; then lanes fold by halves (the lane 8 above is
//! added, then 4, then 2, then the last). AVX-512 keeps the lanes in one register, AVX2 in two, the
//! scalar path in an array. A row of a product is such a sum alone, so neither the rows beside it,
//! nor the tile it falls in, nor the worker that takes it, nor the instruction set changes a bit:
//! `row_invariant` holds by construction, and the tests compare paths with `==`.
//!
//! Work runs inside `wait`: its caller is worker 0, the others spin briefly between lists and then
//! sleep. A deadline is looked at between lists, so `wait` may overrun it by one list.

pub use device::CpuDevice;

mod attention_check;
mod check;
mod device;
mod exec;
mod kernels;
mod memory;
mod pool;
mod task;

kvern_abi::export_device_backend!(CpuDevice);
