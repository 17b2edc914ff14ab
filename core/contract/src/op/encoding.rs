//! Numbers of KV encodings, as tags, page entries and ops carry them. Part of every stored format.

use crate::types::{Granularity, KvEncoding};

const GRANULARITIES: [Granularity; 3] =
    [Granularity::Page, Granularity::Channel, Granularity::Token];

/// The number of an encoding in tags, entries and ops.
///
/// F32 1, F16 2, Bf16 3, Codec 255; Int8 16 + 4 key + value, with Page 0, Channel 1, Token 2.
pub fn encoding_word(encoding: KvEncoding) -> u32 {
    match encoding {
        KvEncoding::F32 => 1,
        KvEncoding::F16 => 2,
        KvEncoding::Bf16 => 3,
        KvEncoding::Int8 { key, value } => 16 + 4 * key as u32 + value as u32,
        KvEncoding::Codec => 255,
    }
}

/// The reverse; `None` for a number that no encoding has.
pub fn encoding_of(word: u32) -> Option<KvEncoding> {
    // Asked for every page entry: no search.
    let granularity = |two: u32| GRANULARITIES.get(two as usize).copied();
    match word {
        1 => Some(KvEncoding::F32),
        2 => Some(KvEncoding::F16),
        3 => Some(KvEncoding::Bf16),
        16..=26 => {
            let (key, value) = (granularity((word - 16) / 4)?, granularity(word % 4)?);
            Some(KvEncoding::Int8 { key, value })
        }
        255 => Some(KvEncoding::Codec),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_survives_its_number_and_only_thirteen_numbers_are_taken() {
        let taken: Vec<u32> = (0..1024).filter(|word| encoding_of(*word).is_some()).collect();
        assert_eq!(taken, [1, 2, 3, 16, 17, 18, 20, 21, 22, 24, 25, 26, 255]);
        for word in taken {
            assert_eq!(encoding_of(word).map(encoding_word), Some(word));
        }
        assert_eq!(encoding_of(u32::MAX), None);
    }

    #[test]
    fn numbers_stay_what_stored_pages_say_they_are() {
        let (key, value) = (Granularity::Channel, Granularity::Token);
        assert_eq!(encoding_of(22), Some(KvEncoding::Int8 { key, value }));
        assert_eq!(encoding_of(3), Some(KvEncoding::Bf16));
    }
}
