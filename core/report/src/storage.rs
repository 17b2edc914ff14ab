//! How bytes came from the drive during a request: which path ran and why, what it moved, what
//! computing waited for.

use crate::request::NullReasons;
use serde::{Deserialize, Serialize};

/// Reads of weights and KV together, and how weights that do not stay in memory were streamed.
/// Every key is always written. Counts are of the request alone.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Storage {
    /// What really ran: `direct` where weight files are read round the page cache, else `buffered`.
    pub read_path: String,
    /// Why.
    pub read_path_reason: String,
    /// What moved the bytes: `io_uring`, or `pread` for a pool of threads.
    pub io_path: String,
    /// Why not the ring; null where it ran or was not asked for.
    pub io_path_reason: Option<String>,
    /// Bytes read from files.
    pub bytes_read: u64,
    /// Of these, round the page cache.
    pub direct_bytes: u64,
    /// Of these, through the page cache by mapped huge pages that do not stay there.
    pub mapped_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Of these, into memory that the kernel knew beforehand.
    pub registered_reads: u64,
    /// Bytes that reached their place by way of another buffer.
    pub copied_bytes: u64,
    /// Reads that failed once and were tried again.
    pub retries: u64,
    /// Time in which at least one read was under way.
    pub read_ms: f64,
    /// Bytes read over that time; null where nothing was read.
    pub read_bytes_per_second: Option<f64>,
    /// What the drive gives at best; null where it was not probed.
    pub ceiling_bytes_per_second: Option<f64>,
    /// The rate over the ceiling; null where one is.
    pub fraction_of_ceiling: Option<f64>,
    /// Passes over the weights that began.
    pub sweeps: u64,
    /// Bytes of weights that a whole sweep streams.
    pub sweep_bytes: u64,
    /// Bytes of streamed weights that arrived.
    pub streamed_bytes: u64,
    /// Memory in which streamed weights take turns.
    pub staging_bytes: u64,
    /// Units that are under way while one is computed.
    pub read_ahead_units: u64,
    /// Time that computing waited for weights.
    pub waited_ms: f64,
    /// Tensors that are copied in memory every sweep, because their files have them at an odd
    /// place.
    pub misaligned_tensors: u64,
    /// Their bytes.
    pub misaligned_bytes: u64,
    /// Why what is null is null.
    pub null_reasons: NullReasons,
}
