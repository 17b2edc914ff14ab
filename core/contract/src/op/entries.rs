//! Rows of the tables that ops read from buffers: sequences, pages, places to write.
//!
//! All are little-endian words in field order, without padding.

/// One sequence of a step, in a buffer; 32 bytes of little-endian words, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct SpanEntry {
    /// First row of the batch that is this sequence's.
    pub row: u32,
    /// Rows of the batch that are this sequence's.
    pub rows: u32,
    /// Position of the first of them.
    pub position: u32,
    /// Index of its first [`PageEntry`] in this segment.
    pub entry: u32,
    /// Its page entries in this segment, ascending by position.
    pub entries: u32,
    /// Its place in recurrent and convolution state.
    pub slot: u32,
    /// Zero.
    pub reserved: [u32; 2],
}

/// One page that attention reads, in a buffer; 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct PageEntry {
    /// Of the frame, in the pool, in bytes.
    pub offset: u64,
    /// Position of its first row. A packed page (rows dropped) lies before every query: `packed` is
    /// 1, and only the mask decides.
    pub first: u32,
    /// Rows filled, 1 to 64.
    pub tokens: u32,
    /// [`encoding_word`](super::encoding_word); pages of one list may differ.
    pub encoding: u32,
    /// Index of `kv_heads` u64 masks in `masks`, or `u32::MAX`: all rows. Bit n is row n; set: it
    /// is seen.
    pub mask: u32,
    /// 1 for a packed page, else 0.
    pub packed: u32,
    /// Zero.
    pub reserved: u32,
}

/// Where a row's K and V go, in a buffer; 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct RowWrite {
    /// Of the frame, in the pool, in bytes.
    pub offset: u64,
    /// Row of the page, 0 to 63.
    pub row: u32,
    /// Zero.
    pub reserved: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_sizes_that_devices_index_by() {
        assert_eq!(size_of::<SpanEntry>(), 32);
        assert_eq!(size_of::<PageEntry>(), 32);
        assert_eq!(size_of::<RowWrite>(), 16);
    }
}
