//! The fixed structs that kv calls carry, and what they mean in the contract's types.

use crate::views::{ChainRow, TokenRow, chains_in, chains_out, keys_in, keys_out};
use crate::wire::{duration, kind_word, nanos, unknown, word_kind};
use abi_stable::StableAbi;
use abi_stable::std_types::{RSlice, RSliceMut, RVec};
use kvern_contract::*;

/// A page's tag.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct TagRow {
    pub chain: [u8; 16],
    pub crc: u64,
    pub first: u64,
    pub layer: u32,
    pub tokens: u32,
    pub bytes: u32,
    pub encoding: u32,
}

impl TagRow {
    pub const ZERO: TagRow =
        TagRow { chain: [0; 16], crc: 0, first: 0, layer: 0, tokens: 0, bytes: 0, encoding: 0 };

    pub fn out(tag: &PageTag) -> Self {
        let PageTag { chain, crc, first, layer, tokens, bytes, encoding } = *tag;
        TagRow { chain: chain.0, crc, first, layer, tokens, bytes, encoding }
    }

    pub fn tag(&self) -> PageTag {
        let TagRow { chain, crc, first, layer, tokens, bytes, encoding } = *self;
        PageTag { chain: ChainHash(chain), crc, first, layer, tokens, bytes, encoding }
    }
}

/// A page's key. `part` 0: the page of index `at`; 1: the state after `at` tokens.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct KeyRow {
    pub session: u64,
    pub at: u64,
    pub layer: u32,
    pub part: u32,
}

impl KeyRow {
    pub fn out(key: &PageKey) -> Self {
        let (part, at) = match key.part {
            Part::Page(index) => (0, u64::from(index)),
            Part::State { at } => (1, at),
        };
        KeyRow { session: key.session.0, at, layer: key.layer.0, part }
    }

    pub fn key(&self, operation: &str) -> Result<PageKey> {
        let part = match (self.part, u32::try_from(self.at)) {
            (0, Ok(index)) => Part::Page(index),
            (1, _) => Part::State { at: self.at },
            (part, _) => return Err(unknown(operation, "page part", part)),
        };
        Ok(PageKey { session: SessionId(self.session), layer: LayerIndex(self.layer), part })
    }
}

/// A page on its way out.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct PageRow<'a> {
    pub key: KeyRow,
    pub tag: TagRow,
    pub bytes: RSlice<'a, u8>,
}

impl<'a> PageRow<'a> {
    pub fn out(page: &PageRef<'a>) -> Self {
        PageRow {
            key: KeyRow::out(&page.key),
            tag: TagRow::out(&page.tag),
            bytes: RSlice::from_slice(page.bytes),
        }
    }

    pub fn page(&self) -> Result<PageRef<'a>> {
        let key = self.key.key("kv/store")?;
        Ok(PageRef { key, tag: self.tag.tag(), bytes: self.bytes.as_slice() })
    }
}

/// A verdict. `code` 0 missing, 1 at, 2 filled, 3 failed.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct VerdictRow {
    pub code: u32,
    pub error: u32,
    pub file: u32,
    pub reserved: u32,
    pub offset: u64,
    pub tag: TagRow,
}

impl VerdictRow {
    pub fn out(verdict: &Verdict) -> Self {
        let row =
            VerdictRow { code: 0, error: 0, file: 0, reserved: 0, offset: 0, tag: TagRow::ZERO };
        match verdict {
            Verdict::Missing => row,
            Verdict::At { file, offset, tag } => {
                VerdictRow { code: 1, file: file.0, offset: *offset, tag: TagRow::out(tag), ..row }
            }
            Verdict::Filled { tag } => VerdictRow { code: 2, tag: TagRow::out(tag), ..row },
            Verdict::Failed(kind) => VerdictRow { code: 3, error: kind_word(Some(*kind)), ..row },
        }
    }

    /// An unknown code is a failure of that page alone.
    pub fn verdict(&self) -> Verdict {
        match self.code {
            0 => Verdict::Missing,
            1 => Verdict::At { file: FileId(self.file), offset: self.offset, tag: self.tag.tag() },
            2 => Verdict::Filled { tag: self.tag.tag() },
            3 => Verdict::Failed(word_kind(self.error)),
            _ => Verdict::Failed(ErrorKind::Internal),
        }
    }
}

/// A page on its way in.
#[repr(C)]
#[derive(StableAbi)]
pub struct LoadRow<'a> {
    pub key: KeyRow,
    pub into: RSliceMut<'a, u8>,
    pub verdict: VerdictRow,
}

/// A prompt.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct PrefixRow<'a> {
    pub keys: RSlice<'a, TokenRow>,
    pub chains: RSlice<'a, ChainRow>,
}

impl<'a> PrefixRow<'a> {
    pub fn out(prefix: &Prefix<'a>) -> Self {
        PrefixRow { keys: keys_out(prefix.keys), chains: chains_out(prefix.chains) }
    }

    pub fn prefix(&self) -> Prefix<'a> {
        Prefix { keys: keys_in(self.keys), chains: chains_in(self.chains) }
    }
}

/// What `find` answered; `cost` is in nanoseconds where `has_cost` is 1.
#[repr(C)]
#[derive(StableAbi)]
pub struct FoundRow {
    pub id: u64,
    pub tokens: u64,
    pub bytes: u64,
    pub cost: u64,
    pub has_cost: u32,
    pub reserved: u32,
    pub note: RVec<u8>,
}

impl FoundRow {
    pub fn out(found: Found) -> Self {
        FoundRow {
            id: found.id.0,
            tokens: found.tokens,
            bytes: found.bytes,
            cost: found.cost.map_or(0, nanos),
            has_cost: u32::from(found.cost.is_some()),
            reserved: 0,
            note: found.note.into(),
        }
    }

    pub fn found(self) -> Found {
        Found {
            id: FoundId(self.id),
            tokens: self.tokens,
            bytes: self.bytes,
            cost: (self.has_cost != 0).then(|| duration(self.cost)),
            note: self.note.into_vec(),
        }
    }
}

/// Where a session starts. `code` 0 fresh, 1 stored (`id` is what was found), 2 fork (`id` is the
/// session).
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct OriginRow {
    pub id: u64,
    pub at: u64,
    pub code: u32,
    pub reserved: u32,
}

impl OriginRow {
    pub fn out(origin: &Origin) -> Self {
        let (code, id, at) = match *origin {
            Origin::Fresh => (0, 0, 0),
            Origin::Stored { found, at } => (1, found.0, at),
            Origin::Fork { of, at } => (2, of.0, at),
        };
        OriginRow { id, at, code, reserved: 0 }
    }

    pub fn origin(&self, operation: &str) -> Result<Origin> {
        Ok(match self.code {
            0 => Origin::Fresh,
            1 => Origin::Stored { found: FoundId(self.id), at: self.at },
            2 => Origin::Fork { of: SessionId(self.id), at: self.at },
            n => return Err(unknown(operation, "origin", n)),
        })
    }
}

/// A step's end.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct CommitRow<'a> {
    pub session: u64,
    pub tokens: u64,
    pub keys: RSlice<'a, TokenRow>,
    pub chains: RSlice<'a, ChainRow>,
    pub chain: ChainRow,
    pub note: RSlice<'a, u8>,
}

impl<'a> CommitRow<'a> {
    pub fn out(commit: &Commit<'a>) -> Self {
        CommitRow {
            session: commit.session.0,
            tokens: commit.tokens,
            keys: keys_out(commit.keys),
            chains: chains_out(commit.chains),
            chain: commit.chain.0,
            note: RSlice::from_slice(commit.note),
        }
    }

    pub fn commit(&self) -> Commit<'a> {
        Commit {
            session: SessionId(self.session),
            tokens: self.tokens,
            keys: keys_in(self.keys),
            chains: chains_in(self.chains),
            chain: ChainHash(self.chain),
            note: self.note.as_slice(),
        }
    }
}

/// What a layer keeps. `kind` 0 full, 1 window (`first` tokens), 2 recurrent (`first` state bytes,
/// `second` bytes of convolution), 3 transient.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct LayerRow {
    pub first: u64,
    pub second: u64,
    pub kind: u32,
    pub key_dim: u32,
    pub value_dim: u32,
    pub kv_heads: u32,
}

impl LayerRow {
    pub fn out(layer: &KvLayer) -> Self {
        let (kind, first, second) = match layer.kind {
            LayerKind::Full => (0, 0, 0),
            LayerKind::Window { tokens } => (1, u64::from(tokens), 0),
            LayerKind::Recurrent { state_bytes, conv_bytes } => (2, state_bytes, conv_bytes),
            LayerKind::Transient => (3, 0, 0),
        };
        let KvLayer { key_dim, value_dim, kv_heads, .. } = *layer;
        LayerRow { first, second, kind, key_dim, value_dim, kv_heads }
    }

    pub fn layer(&self, operation: &str) -> Result<KvLayer> {
        let kind = match (self.kind, u32::try_from(self.first)) {
            (0, _) => LayerKind::Full,
            (1, Ok(tokens)) => LayerKind::Window { tokens },
            (2, _) => LayerKind::Recurrent { state_bytes: self.first, conv_bytes: self.second },
            (3, _) => LayerKind::Transient,
            (n, _) => return Err(unknown(operation, "layer kind", n)),
        };
        let LayerRow { key_dim, value_dim, kv_heads, .. } = *self;
        Ok(KvLayer { kind, key_dim, value_dim, kv_heads })
    }
}

/// A page to look at.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct ViewRow<'a> {
    pub key: KeyRow,
    pub layer: LayerRow,
    pub encoding: u32,
    pub tokens: u32,
    pub bytes: RSlice<'a, u8>,
}

impl<'a> ViewRow<'a> {
    pub fn out(page: &PageView<'a>) -> Self {
        ViewRow {
            key: KeyRow::out(&page.key),
            layer: LayerRow::out(&page.layer),
            encoding: encoding_word(page.encoding),
            tokens: page.tokens,
            bytes: RSlice::from_slice(page.bytes),
        }
    }

    pub fn view(&self, operation: &str) -> Result<PageView<'a>> {
        Ok(PageView {
            key: self.key.key(operation)?,
            layer: self.layer.layer(operation)?,
            encoding: encoding(operation, self.encoding)?,
            tokens: self.tokens,
            bytes: self.bytes.as_slice(),
        })
    }
}

/// An encoding by its word.
pub fn encoding(operation: &str, word: u32) -> Result<KvEncoding> {
    encoding_of(word).ok_or_else(|| unknown(operation, "kv encoding", word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_comes_back() {
        let tag = PageTag {
            chain: ChainHash([3; 16]),
            crc: 4,
            first: 64,
            layer: 1,
            ..Default::default()
        };
        let verdicts = [
            Verdict::Missing,
            Verdict::At { file: FileId(2), offset: 1 << 40, tag },
            Verdict::Filled { tag },
            Verdict::Failed(ErrorKind::Damaged),
        ];
        for verdict in verdicts {
            assert_eq!(VerdictRow::out(&verdict).verdict(), verdict);
        }
    }

    #[test]
    fn a_number_that_means_nothing_is_an_error_and_no_panic() {
        let mut row = KeyRow { session: 1, at: 1 << 33, layer: 0, part: 0 };
        assert!(row.key("kv/load").is_err(), "a page index beyond its word");
        row.part = 9;
        assert_eq!(row.key("kv/load").unwrap_err().kind, ErrorKind::Invalid);
        let odd = OriginRow { id: 0, at: 0, code: 3, reserved: 0 };
        assert!(odd.origin("kv/begin").is_err());
        let odd = VerdictRow { code: 12, ..VerdictRow::out(&Verdict::Missing) };
        assert_eq!(odd.verdict(), Verdict::Failed(ErrorKind::Internal));
        assert!(encoding("kv/encode", 200).is_err());
    }

    #[test]
    fn layers_and_origins_come_back() {
        let kinds = [
            LayerKind::Full,
            LayerKind::Window { tokens: 128 },
            LayerKind::Recurrent { state_bytes: 1 << 34, conv_bytes: 5 },
            LayerKind::Transient,
        ];
        for kind in kinds {
            let layer = KvLayer { kind, key_dim: 64, value_dim: 32, kv_heads: 2 };
            assert_eq!(LayerRow::out(&layer).layer("x").unwrap(), layer);
        }
        let origins = [
            Origin::Fresh,
            Origin::Stored { found: FoundId(8), at: 64 },
            Origin::Fork { of: SessionId(3), at: 70 },
        ];
        for origin in origins {
            assert_eq!(OriginRow::out(&origin).origin("x").unwrap(), origin);
        }
    }
}
