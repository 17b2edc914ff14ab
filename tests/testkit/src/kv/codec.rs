//! Encodings of a strategy's own. How near a decoded page comes is the strategy's affair.

use super::trial::{Stop, Went, need, refused, spec, went};
use super::{Strategy, always};
use crate::double::MemoryStorage;
use crate::{Case, Check, Promise, Random, Subject};
use kvern_contract::*;
use kvern_storage::{Budget, NoSink, RootHost};
use std::sync::Arc;

const SAME: Promise = Promise::new("KvCodec::page_bytes", "Answer the same every time.");
const MOST: Promise =
    Promise::new("KvCodec::page_bytes", "Most bytes that a page of this layer takes.");
const ENCODES: Promise = Promise::new("KvCodec::encode", "Give the same bytes for the same page.");
const UNSUPPORTED: Promise = Promise::new("KvCodec::encode", "Unsupported (the page's encoding).");
const FILL: Promise = Promise::new("KvCodec::decode", "Fill all of `out`.");
const DAMAGED: Promise = Promise::new("KvCodec::decode", "Damaged.");

pub(super) fn cases() -> Vec<Case<Strategy>> {
    let codes = |name, promises, check| Case {
        skip: |strategy: &Strategy| {
            (!strategy.describe().capabilities.codec).then_some("it has no codec")
        },
        ..always(name, promises, check)
    };
    vec![
        codes("a_page_is_encoded_alike_in_the_bytes_that_were_said", &[SAME, MOST, ENCODES], alike),
        codes("a_form_that_is_not_known_is_unsupported", &[UNSUPPORTED], unsupported),
        codes("a_page_is_decoded_whole", &[FILL], whole),
        codes("bytes_that_are_no_page_are_damaged", &[DAMAGED], damaged),
    ]
}

fn open(mut strategy: Box<Strategy>) -> Went<Box<dyn KvCodec>> {
    let spec = spec(&*strategy)?;
    let storage = MemoryStorage::new();
    let host = RootHost::new(storage, "/root".into(), Budget::new(None), Arc::new(NoSink));
    let opened = went("open", strategy.open(&spec, host))?;
    opened.codec.ok_or_else(|| Stop::Wrong("it declares a codec, and opens none".into()))
}

/// Layers of a few shapes.
const LAYERS: [KvLayer; 3] = [
    KvLayer { kind: LayerKind::Full, key_dim: 4, value_dim: 3, kv_heads: 1 },
    KvLayer { kind: LayerKind::Full, key_dim: 16, value_dim: 8, kv_heads: 2 },
    KvLayer { kind: LayerKind::Window { tokens: 64 }, key_dim: 64, value_dim: 64, kv_heads: 1 },
];

/// A page of numbers near 1 in bf16, of 64 rows.
fn page(layer: &KvLayer, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let values = layer.page_bytes(KvEncoding::Bf16) / 2;
    let value = |_| {
        let sign = if random.one_in(2) { 0x80 } else { 0 };
        [random.bits() as u8, sign | 0x3f]
    };
    (0..values).flat_map(value).collect()
}

fn view<'a>(layer: &KvLayer, bytes: &'a [u8], encoding: KvEncoding) -> PageView<'a> {
    let key = PageKey { session: SessionId(1), layer: LayerIndex(0), part: Part::Page(3) };
    PageView { key, layer: *layer, encoding, tokens: PAGE_TOKENS, bytes }
}

/// A page as the codec writes it, cut to its length.
fn encoded(codec: &dyn KvCodec, layer: &KvLayer, bytes: &[u8]) -> Went<Vec<u8>> {
    let most = codec.page_bytes(layer) as usize;
    let mut out = vec![crate::double::POISON; most];
    let view = view(layer, bytes, KvEncoding::Bf16);
    let length = went("encode", codec.encode(&view, &mut out))?;
    need(length <= most, || format!("a page takes {length} bytes, and at most {most} were said"))?;
    out.truncate(length);
    Ok(out)
}

fn alike(subject: &Subject<'_, Strategy>) -> Check {
    let (codec, other) = (open(subject.instance()?)?, open(subject.instance()?)?);
    for layer in LAYERS {
        let most = codec.page_bytes(&layer);
        let same = codec.page_bytes(&layer) == most && other.page_bytes(&layer) == most;
        need(same && most > 0, || format!("a page of {layer:?} takes {most} bytes, and then not"))?;
        for seed in subject.seeds(6) {
            let bytes = page(&layer, seed);
            let one = encoded(&*codec, &layer, &bytes)?;
            // From several threads at once.
            let all = std::thread::scope(|scope| {
                let calls = [&codec, &codec, &other].map(|codec| {
                    scope.spawn(|| encoded(&**codec, &layer, &bytes).map_err(String::from))
                });
                calls.map(|call| call.join())
            });
            for again in all {
                let again = again.map_err(|_| "encode panics in a thread".to_owned())??;
                need(again == one, || format!("a page of {layer:?} is encoded in two ways"))?;
            }
            need(!one.is_empty(), || format!("a page of {layer:?} is encoded to nothing"))?;
        }
    }
    Ok(())
}

fn unsupported(subject: &Subject<'_, Strategy>) -> Check {
    let codec = open(subject.instance()?)?;
    for layer in LAYERS {
        let bytes = page(&layer, 1);
        let mut out = vec![0; codec.page_bytes(&layer) as usize];
        let answer = codec.encode(&view(&layer, &bytes, KvEncoding::Codec), &mut out);
        refused("encode of a codec's own form", &answer, &[ErrorKind::Unsupported])?;
        for encoding in [KvEncoding::F32, KvEncoding::F16] {
            let bytes = vec![0x3c; layer.page_bytes(encoding) as usize];
            let answer = codec.encode(&view(&layer, &bytes, encoding), &mut out);
            if answer.is_err() {
                refused("encode of another form", &answer, &[ErrorKind::Unsupported])?;
            }
        }
    }
    Ok(())
}

fn whole(subject: &Subject<'_, Strategy>) -> Check {
    let codec = open(subject.instance()?)?;
    for layer in LAYERS {
        for seed in subject.seeds(4) {
            let bytes = encoded(&*codec, &layer, &page(&layer, seed))?;
            let length = layer.page_bytes(KvEncoding::Bf16) as usize;
            let decoded = [0x00u8, 0xff, 0xa5].map(|before| {
                let mut out = vec![before; length];
                let answer = codec.decode(&bytes, &layer, KvEncoding::Bf16, &mut out);
                answer.map(|()| out)
            });
            let [one, two, three] = decoded.map(|answer| went("decode", answer));
            let (one, two, three) = (one?, two?, three?);
            need(one == two && one == three, || {
                let at = one.iter().zip(&two).position(|(a, b)| a != b).unwrap_or_default();
                format!("byte {at} of a decoded page of {layer:?} is what was there before")
            })?;
        }
    }
    Ok(())
}

fn damaged(subject: &Subject<'_, Strategy>) -> Check {
    let codec = open(subject.instance()?)?;
    for layer in LAYERS {
        let mut out = vec![0; layer.page_bytes(KvEncoding::Bf16) as usize];
        let nothing = codec.decode(&[], &layer, KvEncoding::Bf16, &mut out);
        refused("decode of nothing", &nothing, &[ErrorKind::Damaged])?;
        let right = encoded(&*codec, &layer, &page(&layer, 1))?;
        for seed in subject.seeds(30) {
            let mut random = Random::new(seed);
            let mut bytes = right.clone();
            match random.below(4) {
                0 => bytes.truncate(random.below(right.len() as u64) as usize),
                1 => bytes.extend_from_slice(&right),
                2 => bytes.fill(0xff),
                _ => bytes.iter_mut().for_each(|byte| *byte = random.bits() as u8),
            }
            let answer = codec.decode(&bytes, &layer, KvEncoding::Bf16, &mut out);
            if answer.is_err() {
                refused("decode of damaged bytes", &answer, &[ErrorKind::Damaged])?;
            }
        }
    }
    Ok(())
}
