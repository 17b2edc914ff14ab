//! The form of one record: magic u32, length u32, checksum u64, payload; little endian.
//!
//! The checksum covers the record's own offset and length before the payload, so that an old record
//! that lies elsewhere, whole or in part, is nothing.

use crc_fast::{CrcAlgorithm, Digest};
use kvern_contract::{Error, ErrorKind, Result};

/// First word of every record: `KVRJ`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"KVRJ");
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 16;
/// Longest payload: a length above is damage, not a wish.
pub const RECORD_BYTES_MAX: usize = 1 << 30;

/// CRC-64/NVME, the checksum of tags and records.
pub fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

fn record_checksum(offset: u64, payload: &[u8]) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(&offset.to_le_bytes());
    digest.update(&(payload.len() as u64).to_le_bytes());
    digest.update(payload);
    digest.finalize()
}

/// The bytes of a record that will lie at `offset` bytes into its file.
/// *Errors* Invalid: an empty payload, or one longer than [`RECORD_BYTES_MAX`].
pub fn write_record(offset: u64, payload: &[u8]) -> Result<Vec<u8>> {
    if payload.is_empty() || payload.len() > RECORD_BYTES_MAX {
        let text = format!("a payload has 1 to {RECORD_BYTES_MAX} bytes, not {}", payload.len());
        return Err(Error::new(ErrorKind::Invalid, "record/write", text));
    }
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
    out.extend(MAGIC.to_le_bytes());
    out.extend((payload.len() as u32).to_le_bytes());
    out.extend(record_checksum(offset, payload).to_le_bytes());
    out.extend(payload);
    Ok(out)
}

/// Length of the payload that a header promises, if it is a header: 1 to [`RECORD_BYTES_MAX`]
/// bytes.
pub(crate) fn payload_bytes(header: &[u8; HEADER_BYTES]) -> Option<usize> {
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let bytes = word(4) as usize;
    (word(0) == MAGIC && (1..=RECORD_BYTES_MAX).contains(&bytes)).then_some(bytes)
}

/// The payload of the record that starts `bytes`, which lie at `offset` in their file; `None`
/// unless it is whole and as it was written there.
pub fn read_record(offset: u64, bytes: &[u8]) -> Option<&[u8]> {
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
    let payload = bytes.get(HEADER_BYTES..HEADER_BYTES + payload_bytes(header)?)?;
    let stored = u64::from_le_bytes(*header.last_chunk()?);
    (stored == record_checksum(offset, payload)).then_some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_64_nvme() {
        assert_eq!(checksum(b"123456789"), 0xae8b_1486_0a79_9888);
    }

    #[test]
    fn a_record_comes_back_and_any_flipped_bit_or_missing_byte_makes_it_nothing() {
        let bytes = write_record(512, b"some tokens and pages").unwrap();
        assert_eq!(read_record(512, &bytes), Some(&b"some tokens and pages"[..]));
        assert_eq!(read_record(513, &bytes), None, "a record is whole only where it was written");
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_record(512, &bad), None, "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(read_record(512, &bytes[..cut]), None, "{cut} bytes");
        }
        assert!(write_record(0, b"").is_err());
    }
}
