//! Sizes that bound scratch memory and threads.

/// Elements of the largest tensor that meets element-wise work. From 65536 on candle hands such
/// work to a pool of its own, whose threads only the environment bounds.
pub const TILE: usize = 32 * 1024;

/// Elements of a weight that are f32 at one time, for each worker.
pub const BLOCK: usize = 512 * 1024;

/// Pages of one attention product.
pub const PAGES: usize = 32;

/// `Weight::layout` of a tensor that `adapt` keeps.
pub const KEPT: u32 = 2;

/// Alignment of device memory, in bytes.
pub const ALIGN: u64 = 64;

/// Alignment of staging memory, in bytes: fit for O_DIRECT.
pub const STAGING_ALIGN: u64 = 4096;

/// Failed fences that are remembered.
pub const FAILURES: usize = 1024;

const _: () = assert!(TILE < 64 * 1024, "candle's own pool would wake");
