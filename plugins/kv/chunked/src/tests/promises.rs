//! One promise a test.

use super::kit::drive::*;
use super::{ask, open, open_as, spec};
use crate::Chunked;
use kvern_contract::*;
use kvern_storage::double::{FaultPlan, Faults, MemoryStorage};
use std::time::Duration;

const A: SessionId = SessionId(1);

#[test]
fn the_description_and_the_default_policy_are_the_presets() {
    let description = Chunked.describe();
    assert_eq!(description.name, "chunked");
    assert_eq!(description.persistence_format, "chunked-manifest");
    assert_eq!(description.cold_store_format, None);
    let of = |accelerator| Chunked.policy(&ask(description.options.clone(), accelerator)).unwrap();
    let (host, card) = (of(false), of(true));
    assert_eq!(host.flush, Some(Threshold { tokens: Some(128), bytes: Some(8 << 20) }));
    assert_eq!(card.flush, Some(Threshold { tokens: Some(64), bytes: Some(4 << 20) }));
    assert_eq!(
        (host.policy_id.as_str(), card.policy_id.as_str()),
        ("cpu-balanced", "cuda-balanced")
    );
    assert_eq!(host.retain.tokens, Some(0));
    assert_eq!((host.cold, host.cold_after, host.window), (KvEncoding::F32, 0, None));
}

#[test]
fn an_option_out_of_range_is_refused_with_its_name_and_range() {
    let with = |name: &str, value| {
        let options = Options::from([(name.to_owned(), value)]);
        Chunked.policy(&ask(options, false)).unwrap_err()
    };
    let error = with("flush_tokens", OptionValue::Integer(0));
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert_eq!(error.message, "option flush_tokens is 0, not a whole number of 1 to 1073741824");
    let error = with("flush_bytes", OptionValue::Text("8 MiB".into()));
    assert!(error.message.starts_with("option flush_bytes is \"8 MiB\""), "{}", error.message);
    let error = with("flush_token", OptionValue::Integer(1));
    assert!(error.message.contains("there is accelerator_flush_bytes"), "{}", error.message);
    let error = with("store_partial", OptionValue::Integer(1));
    assert_eq!(error.message, "option store_partial is 1, not true or false");
    let options = Options::from([("flush_tokens".to_owned(), OptionValue::Integer(256))]);
    let policy = Chunked.policy(&ask(options, false)).unwrap();
    assert_eq!(policy.flush.unwrap().tokens, Some(256));
}

#[test]
fn pages_of_a_call_lie_side_by_side_by_layer_and_aligned() {
    let storage = MemoryStorage::new();
    let mut store = open(storage.clone()).unwrap();
    let keys = tokens(1, 256);
    store.begin(A, Origin::Fresh).unwrap();
    super::kit::drive::store(&mut *store, &sealed(A, &keys, 0..4)).unwrap();
    for layer in PAGED {
        let mut frame = vec![0; 4096];
        let mut offsets = Vec::new();
        for page in 0..4 {
            let key = PageKey { session: A, layer: LayerIndex(layer), part: Part::Page(page) };
            let mut loads = [PageLoad { key, into: &mut frame, verdict: Verdict::Missing }];
            store.load(&mut loads, Duration::MAX).unwrap();
            let Verdict::At { offset, .. } = loads[0].verdict else { panic!("not stored") };
            offsets.push(offset);
        }
        // A page has 1280 bytes, and the drive's unit is 512.
        assert!(offsets.iter().all(|offset| offset % 512 == 0), "{offsets:?}");
        assert!(offsets.windows(2).all(|pair| pair[1] - pair[0] == 1536), "{offsets:?}");
    }
    let report = store.report();
    assert_eq!(report.persisted_layer_count, 2);
    assert_eq!(report.persisted_tokens, 512);
    assert_eq!(report.persisted_artifact_count, 2);
    assert_eq!(report.live_bytes, 8 * 1280);
    // The file ends with the last page.
    assert_eq!(report.dead_bytes, 7 * 256);
}

#[test]
fn another_models_root_is_a_mismatch_that_names_the_part() {
    let storage = MemoryStorage::new();
    drop(open(storage.clone()).unwrap());
    let mut spec = spec();
    spec.identity[0].1 = "bb".into();
    let error = open_as(&spec, storage).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Mismatch);
    assert!(error.message.contains("weights: it says aa, this run bb"), "{}", error.message);
}

#[test]
fn a_full_drive_or_quota_stores_nothing_and_loses_nothing() {
    let faults = Faults::new(MemoryStorage::new(), FaultPlan::default());
    let mut limited = spec();
    limited.quota_bytes = Some(40_000);
    let mut store = open_as(&limited, faults.clone()).unwrap();
    let keys = tokens(1, 64 * 20);
    filled(&mut *store, A, &keys[..128]);
    store.flush(A).unwrap();
    let over = super::kit::drive::store(&mut *store, &sealed(A, &keys, 2..20)).unwrap_err();
    assert_eq!(over.kind, ErrorKind::OutOfSpace);
    assert!(over.message.contains("quota is 40000"), "{}", over.message);
    faults.set(FaultPlan { space_bytes: Some(2000), ..FaultPlan::default() });
    let full = super::kit::drive::store(&mut *store, &sealed(A, &keys, 2..4)).unwrap_err();
    assert_eq!(full.kind, ErrorKind::OutOfSpace);
    let key = PageKey { session: A, layer: LayerIndex(0), part: Part::Page(2) };
    assert!(load(&mut *store, &*faults, key).is_none(), "none of them counts as stored");
    faults.set(FaultPlan::default());
    super::kit::drive::store(&mut *store, &sealed(A, &keys, 2..4)).unwrap();
    commit(&mut *store, A, &keys[..256], 128).unwrap();
    store.flush(A).unwrap();
    assert!(all_right(&mut *store, &*faults, A, &keys[..256]));
}
