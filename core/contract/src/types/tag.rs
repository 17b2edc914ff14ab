//! The tag that travels with a stored page, by which the host tells right bytes from wrong ones.

use super::{ChainHash, TokenIndex};
use serde::{Deserialize, Serialize};

/// What the host checks after a load. A store keeps it with the page and gives it back unchanged.
///
/// The chain names every token up to the page's end, so a page of a rewound past cannot pass. Of a
/// page it stored itself the host wants that very tag: in a lossy history the same tokens may have
/// had other bytes. Of a found one, chain and place must be as its tokens say and the encoding hot
/// or cold. The sum is taken over the bytes that came, where they came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[repr(C)]
pub struct PageTag {
    /// Chain at the page's last filled token.
    pub chain: ChainHash,
    /// CRC-64/NVME of the encoded bytes (NVM Express, NVM Command Set; reflected, polynomial
    /// `0xAD93D23594C93659`).
    pub crc: u64,
    /// Position of the first row.
    pub first: TokenIndex,
    /// Decoder layer, counted from 0.
    pub layer: u32,
    /// Rows filled, 1 to 64; 0 for a recurrent state.
    pub tokens: u32,
    /// Encoded length.
    pub bytes: u32,
    /// The number of the encoding: [`encoding_word`](crate::encoding_word).
    pub encoding: u32,
}

impl PageTag {
    /// Position after the last filled row.
    pub fn end(&self) -> TokenIndex {
        self.first.saturating_add(TokenIndex::from(self.tokens))
    }

    /// The stored form, little endian, fields in order.
    pub fn to_bytes(&self) -> [u8; 48] {
        let mut out = [0; 48];
        out[..16].copy_from_slice(&self.chain.0);
        out[16..24].copy_from_slice(&self.crc.to_le_bytes());
        out[24..32].copy_from_slice(&self.first.to_le_bytes());
        for (i, w) in [self.layer, self.tokens, self.bytes, self.encoding].iter().enumerate() {
            out[32 + 4 * i..36 + 4 * i].copy_from_slice(&w.to_le_bytes());
        }
        out
    }

    /// The reverse; any bytes give a tag, and a wrong one fails the host's check.
    pub fn from_bytes(b: &[u8; 48]) -> Self {
        let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let chain = ChainHash(std::array::from_fn(|i| b[i]));
        let (layer, tokens, bytes, encoding) = (word(32), word(36), word(40), word(44));
        PageTag { chain, crc: long(16), first: long(24), layer, tokens, bytes, encoding }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_survives_its_bytes_and_every_byte_counts() {
        let mut bytes: [u8; 48] =
            std::array::from_fn(|i| (i as u8).wrapping_mul(37).wrapping_add(5));
        let tag = PageTag::from_bytes(&bytes);
        assert_eq!(tag.to_bytes(), bytes);
        for i in 0..bytes.len() {
            bytes[i] ^= 0x40;
            assert_ne!(PageTag::from_bytes(&bytes), tag, "byte {i} is ignored");
            bytes[i] ^= 0x40;
        }
    }

    #[test]
    fn the_stored_form_is_little_endian_in_field_order() {
        let tag = PageTag {
            chain: ChainHash(*b"0123456789abcdef"),
            crc: 0x0807_0605_0403_0201,
            first: 0x100,
            layer: 2,
            tokens: 64,
            bytes: 0x0001_0000,
            encoding: 3,
        };
        let bytes = tag.to_bytes();
        assert_eq!(&bytes[..16], b"0123456789abcdef");
        assert_eq!(bytes[16..24], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[24..32], [0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[32..], [2, 0, 0, 0, 64, 0, 0, 0, 0, 0, 1, 0, 3, 0, 0, 0]);
    }
}
