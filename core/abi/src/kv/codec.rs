//! A codec over the border. Unlike the other objects it is called from several threads at once.
#![allow(unsafe_code)]

use super::rows::{LayerRow, ViewRow, encoding};
use crate::border::{Foreign, border, cross};
use crate::guard::{Handle, enter_shared, retire};
use crate::wire::AbiResult;
use abi_stable::std_types::{RSlice, RSliceMut};
use kvern_contract::*;

border! {
    /// A codec, as the host's side calls it.
    CodecTable, CodecTableRef, CodecTableFields, CodecOperations,
        &(dyn KvCodec + 'static), enter_shared, retire::<dyn KvCodec>, "kv/drop-codec";
    "kv/page_bytes" page_bytes(layer: LayerRow) -> u64 = |codec| {
        Ok(codec.page_bytes(&layer.layer("kv/page_bytes")?))
    };
    "kv/encode" encode(page: ViewRow<'_>, out: RSliceMut<'_, u8>) -> u64 = |codec| {
        let length = codec.encode(&page.view("kv/encode")?, out.into_mut_slice())?;
        Ok(length as u64)
    };
    "kv/decode" decode(bytes: RSlice<'_, u8>, layer: LayerRow, word: u32, out: RSliceMut<'_, u8>)
        -> () = |codec| {
        let layer = layer.layer("kv/decode")?;
        let encoding = encoding("kv/decode", word)?;
        codec.decode(bytes.as_slice(), &layer, encoding, out.into_mut_slice())
    };
}

/// A plugin's codec.
pub type ForeignCodec = Foreign<CodecTableRef>;

// SAFETY: the object behind the handle is a `dyn KvCodec`, whose trait is `Sync`; `enter_shared`
// only shares it.
unsafe impl Sync for ForeignCodec {}

impl KvCodec for ForeignCodec {
    /// 0, so no page at all, when the plugin panicked.
    fn page_bytes(&self, layer: &KvLayer) -> u64 {
        cross!(self, page_bytes, LayerRow::out(layer)).unwrap_or(0)
    }

    fn encode(&self, page: &PageView<'_>, out: &mut [u8]) -> Result<usize> {
        let room = out.len();
        let length = cross!(self, encode, ViewRow::out(page), RSliceMut::from_mut_slice(out))?;
        usize::try_from(length).ok().filter(|length| *length <= room).ok_or_else(|| {
            let message = format!("the codec says it wrote {length} bytes into {room}");
            Error::new(ErrorKind::Invalid, "kv/encode", message)
        })
    }

    fn decode(
        &self,
        bytes: &[u8],
        layer: &KvLayer,
        encoding: KvEncoding,
        out: &mut [u8],
    ) -> Result<()> {
        let (layer, word) = (LayerRow::out(layer), encoding_word(encoding));
        let out = RSliceMut::from_mut_slice(out);
        cross!(self, decode, RSlice::from_slice(bytes), layer, word, out)
    }
}
