//! A plugin that panics while it is made or described is refused, and the same library opens when
//! it no longer does. One test, alone in its process, because the fixture is told by an environment
//! variable.
#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use kvern_contract::ErrorKind;

const TOLD: &str = "KVERN_FIXTURE_PANIC";

#[test]
fn a_panic_at_birth_is_a_refusal_and_the_process_lives() {
    let path = common::library("kvern-fixture-bad-panics");
    for (place, operation) in [("new", "kv/new"), ("describe", "kv/describe")] {
        // SAFETY: this process has one test, and no other thread that reads its environment.
        unsafe { std::env::set_var(TOLD, place) };
        let error = kvern_abi::open(&path).unwrap_err();
        assert_eq!((error.kind, error.operation.as_str()), (ErrorKind::Panicked, operation));
        assert!(error.message.contains(&format!("told to panic in {place}")), "{error}");
        assert!(error.message.starts_with(&path.display().to_string()), "{error}");
    }
    // SAFETY: as above.
    unsafe { std::env::remove_var(TOLD) };
    assert_eq!(kvern_abi::open(&path).unwrap().kind(), kvern_abi::PluginKind::Kv);
}
