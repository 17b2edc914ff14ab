//! What a page is called outside memory, and the check of what comes back.

use kvern_contract::{ErrorKind, PAGE_TOKENS, PageTag};

/// CRC-64/NVME.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

/// Why a page that came back is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Damage {
    /// The store does not have it.
    Missing,
    /// The store, or the drive, could not give it.
    Failed(ErrorKind),
    /// Its tag is another page's.
    Tag,
    /// Its bytes are not what was stored.
    Bytes,
}

/// Holds what came against what was stored. The tag must be the very one: in a lossy history the
/// same tokens may have had other bytes.
pub(crate) fn check(want: &PageTag, got: &PageTag, frame: &[u8]) -> Result<(), Damage> {
    if got != want || got.tokens > PAGE_TOKENS {
        return Err(Damage::Tag);
    }
    match frame.get(..got.bytes as usize) {
        Some(bytes) if checksum(bytes) == want.crc => Ok(()),
        _ => Err(Damage::Bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_tag_and_every_byte_of_a_page_is_checked() {
        let frame: Vec<u8> = (0..=255).collect();
        let want = PageTag {
            crc: checksum(&frame[..200]),
            first: 64,
            layer: 2,
            tokens: 64,
            bytes: 200,
            encoding: 3,
            ..PageTag::default()
        };
        assert_eq!(check(&want, &want, &frame), Ok(()));
        let edits: [fn(&mut PageTag); 6] = [
            |t| t.chain.0[7] ^= 1,
            |t| t.first += 64,
            |t| t.layer += 1,
            |t| t.tokens -= 1,
            |t| t.encoding += 1,
            |t| t.crc ^= 1,
        ];
        for edit in edits {
            let mut got = want;
            edit(&mut got);
            assert_eq!(check(&want, &got, &frame), Err(Damage::Tag));
        }
        for at in 0..200 {
            let mut bent = frame.clone();
            bent[at] ^= 4;
            assert_eq!(check(&want, &want, &bent), Err(Damage::Bytes));
        }
        let beyond = PageTag { bytes: 300, ..want };
        assert_eq!(check(&beyond, &beyond, &frame), Err(Damage::Bytes));
    }
}
