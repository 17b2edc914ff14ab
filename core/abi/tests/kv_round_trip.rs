//! A kv strategy behaves the same through the border as when it is called directly: one script, run
//! against the same code twice, with the answers and the host's log compared.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../../tests/fixtures/plugins/echo-kv/src/echo.rs"]
mod echo;

use common::{Notes, library, policy_ask, shape, store_spec, unsigned};
use kvern_abi::{Plugin, open};
use kvern_contract::*;
use std::time::Duration;

fn key(session: u64, part: Part) -> PageKey {
    PageKey { session: SessionId(session), layer: LayerIndex(7), part }
}

fn script_of_strategy(strategy: &mut dyn KvStrategy, out: &mut Vec<String>) -> Opened {
    let notes = Notes::new();
    out.push(format!("{:?}", strategy.describe()));
    out.push(format!("{:?}", strategy.policy(&policy_ask())));
    let unfit = PolicyAsk { context_tokens: 13, ..policy_ask() };
    out.push(format!("{:?}", strategy.policy(&unfit)));
    let failed = strategy.open(&store_spec(&[("fail", "")]), notes.clone());
    out.push(format!("{:?}", failed.err()));
    let none = strategy.open(&store_spec(&[("none", "")]), notes.clone()).unwrap();
    out.push(format!(
        "{:?}",
        (none.store.is_none(), none.attentive.is_none(), none.codec.is_none())
    ));
    out.extend(notes.take());
    strategy.open(&store_spec(&[("all", "yes")]), notes).unwrap()
}

fn script_of_store(store: &mut dyn KvStore, out: &mut Vec<String>) {
    let keys: Vec<_> = (0..70).map(|id| TokenKey { id, reserved: 0, content: 1 << 63 }).collect();
    let chains = [ChainHash([5; 16]), ChainHash(*b"sixteen bytes ok")];
    let prompts =
        [Prefix { keys: &keys, chains: &chains[..1] }, Prefix { keys: &keys[..3], chains: &[] }];
    out.push(format!("{:?}", store.find(&prompts)));
    let thirteen: Vec<_> = (0..13).map(|_| Prefix { keys: &keys[..1], chains: &[] }).collect();
    out.push(format!("{:?}", store.find(&thirteen)));
    for from in [
        Origin::Fresh,
        Origin::Stored { found: FoundId(u64::MAX), at: 192 },
        Origin::Fork { of: SessionId(4), at: 200 },
    ] {
        out.push(format!("{:?}", store.begin(SessionId(1), from)));
    }
    let tag = PageTag {
        chain: ChainHash([9; 16]),
        crc: u64::MAX - 1,
        first: 1 << 40,
        layer: 1,
        tokens: 2,
        bytes: 3,
        encoding: 255,
    };
    let bytes = [3u8, 1, 4, 1, 5];
    let parts = [Part::Page(u32::MAX), Part::State { at: 1 << 33 }];
    let pages = parts.map(|part| PageRef { key: key(2, part), tag, bytes: &bytes });
    out.push(format!("{:?}", store.store(&pages)));
    out.push(format!("{:?}", store.store(&[])));
    out.push(format!("{:?}", store.store(&[PageRef { key: key(13, parts[0]), tag, bytes: &[] }])));
    for session in [2, 13] {
        let mut frames = [[0u8; 6]; 6];
        let mut loads: Vec<_> = frames
            .iter_mut()
            .map(|into| PageLoad { key: key(session, parts[1]), into, verdict: Verdict::Missing })
            .collect();
        let result = store.load(&mut loads, Duration::from_millis(1500));
        let verdicts: Vec<_> = loads.iter().map(|load| load.verdict).collect();
        out.push(format!("{result:?} {verdicts:?} {frames:?}"));
    }
    let commit = |session| Commit {
        session: SessionId(session),
        tokens: 70,
        keys: &keys[..2],
        chains: &chains,
        chain: chains[1],
        note: b"noted",
    };
    out.push(format!("{:?}", store.commit(&[commit(3), commit(4)])));
    out.push(format!("{:?}", store.commit(&[commit(13)])));
    for session in [5, 13].map(SessionId) {
        out.push(format!("{:?}", store.rewind(session, 9)));
        out.push(format!("{:?}", store.flush(session)));
        out.push(format!("{:?}", store.end(session, session.0 == 5)));
    }
    out.push(format!("{:?}", store.maintain(Duration::from_micros(3))));
    out.push(format!("{:?}", store.report()));
}

fn script_of_attentive(it: &mut dyn KvAttentive, out: &mut Vec<String>) {
    out.push(format!("{:?}", it.begin(SessionId(1), None, &[])));
    out.push(format!("{:?}", it.begin(SessionId(2), Some(SessionId(0)), b"saved")));
    let encoding = KvEncoding::Int8 { key: Granularity::Token, value: Granularity::Page };
    for session in [1, 13] {
        let page = PageView {
            key: key(session, Part::Page(1)),
            layer: shape().layers[1],
            encoding,
            tokens: 64,
            bytes: &[1, 2, 3],
        };
        out.push(format!("{:?}", it.sealed(&page)));
        let ask = QueryAsk {
            session: SessionId(session),
            layer: LayerIndex(3),
            heads: 2,
            key_dim: 2,
            queries: &[0.5, -0.0, f32::INFINITY, 1e-40],
        };
        let mut mask = PageMask { words: vec![u64::MAX, 7], pages: 67 };
        let result = it.select(&ask, &mut mask);
        out.push(format!("{result:?} {mask:?}"));
        let heads = [
            HeadMass { positions: &[0, 5], mass: &[0.25, 0.75] },
            HeadMass { positions: &[], mass: &[] },
        ];
        let mass = AttentionMass {
            session: SessionId(session),
            layer: LayerIndex(3),
            queries: 4,
            heads: &heads,
        };
        let mut edits = RowEdits { drops: vec![(0, 3)] };
        let result = it.observe(&mass, &mut edits);
        out.push(format!("{result:?} {edits:?}"));
        out.push(format!("{:?}", it.rewind(SessionId(session), 8)));
        out.push(format!("{:?}", it.save(SessionId(session))));
        it.end(SessionId(session));
    }
}

fn script_of_codec(codec: &dyn KvCodec, out: &mut Vec<String>) {
    for layer in shape().layers {
        out.push(format!("{}", codec.page_bytes(&layer)));
    }
    for (session, tokens) in [(1, 64), (13, 64)] {
        let page = PageView {
            key: key(session, Part::Page(0)),
            layer: shape().layers[0],
            encoding: KvEncoding::F32,
            tokens,
            bytes: &[1, 2, 3],
        };
        let mut bytes = [0; 8];
        out.push(format!("{:?} {bytes:?}", codec.encode(&page, &mut bytes)));
        let mut empty = [0; 0];
        out.push(format!("{:?}", codec.encode(&page, &mut empty)));
    }
    for bytes in [&b"abc"[..], b""] {
        let mut decoded = [1; 4];
        let layer = shape().layers[2];
        let result = codec.decode(bytes, &layer, KvEncoding::Codec, &mut decoded);
        out.push(format!("{result:?} {decoded:?}"));
    }
}

fn script(strategy: &mut dyn KvStrategy) -> Vec<String> {
    let mut out = Vec::new();
    script_of_strategy(strategy, &mut out);
    let notes = Notes::new();
    let mut opened = strategy.open(&store_spec(&[]), notes.clone()).unwrap();
    script_of_store(&mut **opened.store.as_mut().unwrap(), &mut out);
    script_of_attentive(&mut **opened.attentive.as_mut().unwrap(), &mut out);
    script_of_codec(&**opened.codec.as_ref().unwrap(), &mut out);
    out.extend(notes.take());
    out
}

fn echo() -> Box<dyn KvStrategy> {
    match open(&library("kvern-fixture-echo-kv")).unwrap() {
        Plugin::Kv(strategy) => strategy,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_kv_call_is_the_same_through_the_border() {
    let direct = script(&mut echo::Echo);
    let through = unsigned(&script(&mut *echo()), "kv strategy `echo`");
    assert!(direct.len() > 80, "the script ran: {}", direct.len());
    for (at, (direct, through)) in direct.iter().zip(&through).enumerate() {
        assert_eq!(direct, through, "line {at}");
    }
    assert_eq!(direct.len(), through.len());
}

#[test]
fn an_error_brings_kind_message_operation_and_context() {
    let error = echo().open(&store_spec(&[("fail", "")]), Notes::new()).err().unwrap();
    assert_eq!(error.kind, ErrorKind::OutOfSpace);
    assert_eq!(error.to_string(), "kv/open: thirteen does not fit");
    assert_eq!(error.context[1].1, "\"\n\u{e9}");
    let sign = ("plugin".to_string(), "kv strategy `echo`".to_string());
    assert_eq!(error.context.last(), Some(&sign), "and the border says whose it is");
}

#[test]
fn a_codec_that_claims_more_than_the_buffer_is_refused() {
    let opened = echo().open(&store_spec(&[]), Notes::new()).unwrap();
    let page = PageView {
        key: key(1, Part::Page(0)),
        layer: shape().layers[0],
        encoding: KvEncoding::F32,
        tokens: 63,
        bytes: &[1],
    };
    let error = opened.codec.unwrap().encode(&page, &mut [0; 4]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains("5 bytes into 4"), "{error}");
}

#[test]
fn a_codec_serves_several_threads() {
    let opened = echo().open(&store_spec(&[]), Notes::new()).unwrap();
    let codec = opened.codec.unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for layer in shape().layers.repeat(50) {
                    codec.page_bytes(&layer);
                }
            });
        }
    });
}

#[test]
fn what_a_plugin_opened_outlives_it() {
    let mut strategy = echo();
    let notes = Notes::new();
    let opened = strategy.open(&store_spec(&[]), notes.clone()).unwrap();
    drop(strategy);
    let mut store = opened.store.unwrap();
    drop((opened.attentive, opened.codec));
    assert_eq!(store.rewind(SessionId(1), 10), Ok(5));
    drop(store);
    assert_eq!(std::sync::Arc::strong_count(&notes), 1, "the plugin gave the host back");
}

#[test]
fn calls_are_counted_in_both_directions() {
    let notes = Notes::new();
    let opened = echo().open(&store_spec(&[]), notes).unwrap();
    let mut store = opened.store.unwrap();
    let before = kvern_abi::crossings();
    store.flush(SessionId(1)).unwrap();
    assert!(kvern_abi::crossings() >= before + 2, "the call, and the log call under it");
}
