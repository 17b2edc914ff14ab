//! Slices of the contract's identities as slices of plain words: the same bytes under a type that
//! the border knows.
#![allow(unsafe_code)]

use abi_stable::StableAbi;
use abi_stable::std_types::RSlice;
use kvern_contract::{ChainHash, Fence, FileId, TokenKey};

/// A token key; the same bytes as the contract's.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct TokenRow {
    pub id: u32,
    pub reserved: u32,
    pub content: u64,
}

/// A chain hash as bytes.
pub type ChainRow = [u8; 16];

macro_rules! views { ($($contract:ty, $row:ty, $out:ident, $into:ident;)*) => { $(
    const _: () = assert!(
        size_of::<$contract>() == size_of::<$row>() && align_of::<$contract>() == align_of::<$row>()
    );
    /// Rows to words, without a copy.
    pub fn $out(rows: &[$contract]) -> RSlice<'_, $row> {
        // SAFETY: size and alignment are equal (asserted above). The contract's type is `repr(C)`
        // with the same fields, or has this one field, which then fills it; every bit pattern of
        // either is a value.
        RSlice::from_slice(unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), rows.len()) })
    }
    /// Words to rows, without a copy.
    pub fn $into(words: RSlice<'_, $row>) -> &[$contract] {
        let words = words.as_slice();
        // SAFETY: as above, the other way round.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) }
    }
)* } }
views! {
    TokenKey, TokenRow, keys_out, keys_in;
    ChainHash, ChainRow, chains_out, chains_in;
    FileId, u32, files_out, files_in;
    Fence, u64, fences_out, fences_in;
}
const _: () =
    assert!(std::mem::offset_of!(TokenKey, content) == std::mem::offset_of!(TokenRow, content));
const _: () = assert!(std::mem::offset_of!(TokenKey, id) == std::mem::offset_of!(TokenRow, id));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_goes_there_and_back() {
        let keys =
            [1u32, 2, 3].map(|id| TokenKey { id, reserved: 0, content: u64::from(id) << 40 });
        assert_eq!(keys_in(keys_out(&keys)), keys);
        assert_eq!(keys_out(&keys).as_slice()[2].content, 3 << 40);
        let chains = [ChainHash([7; 16]), ChainHash([9; 16])];
        assert_eq!(chains_in(chains_out(&chains)), chains);
        assert_eq!(fences_in(fences_out(&[Fence(3)])), [Fence(3)]);
        assert_eq!(files_out(&[FileId(5)]).as_slice(), [5]);
        assert!(keys_in(keys_out(&[])).is_empty());
    }
}
