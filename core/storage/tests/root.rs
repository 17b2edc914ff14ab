//! A plugin's host over its root.
#![allow(clippy::unwrap_used)]

use kvern_contract::{ErrorKind, FileId, FileRead, FileWrite, Host, Open};
use kvern_storage::double::{FaultPlan, Faults, MemoryStorage};
use kvern_storage::{Budget, NoSink, RootHost, Service, Storage};
use std::sync::Arc;
use std::time::Duration;

fn host_over(storage: Arc<dyn Storage>, budget: &Arc<Budget>) -> Arc<RootHost> {
    RootHost::new(storage, "/roots/kv_cache_x".into(), budget.clone(), Arc::new(NoSink))
}
fn put(host: &dyn Host, file: FileId, bytes: &[u8]) -> kvern_contract::Result<()> {
    host.write_batch(&[FileWrite { file, offset: 0, bytes }], Duration::MAX)
}

#[test]
fn names_are_one_component_and_never_the_hosts_own() {
    let host = host_over(MemoryStorage::new(), &Budget::new(None));
    for name in ["", ".", "..", "a/b", "/a", "a\\b", ".hidden", "lock", "a\0b"] {
        assert_eq!(host.open(name, Open::Write).unwrap_err().kind, ErrorKind::Invalid, "{name:?}");
        assert_eq!(host.publish(name, b"").unwrap_err().kind, ErrorKind::Invalid, "{name:?}");
        assert_eq!(host.remove(name).unwrap_err().kind, ErrorKind::Invalid, "{name:?}");
    }
    assert!(host.open("pages..1", Open::Write).is_ok());
}

#[test]
fn ids_are_the_storages_and_other_files_are_out_of_reach() {
    let storage = MemoryStorage::new();
    let host = host_over(storage.clone(), &Budget::new(None));
    let foreign = storage.open("/weights".as_ref(), kvern_storage::OpenHow::Write).unwrap();
    assert_eq!(put(&*host, foreign, b"x").unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(host.truncate(foreign, 0).unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(host.sync(&[foreign]).unwrap_err().kind, ErrorKind::NotFound);
    let mut byte = [0];
    let mut reads = [FileRead { file: foreign, offset: 0, into: &mut byte, done: Ok(()) }];
    assert!(host.read_batch(&mut reads, Duration::MAX).is_err() && reads[0].done.is_err());
    assert!(host.file_of(foreign).is_err());

    let file = host.open("chunks", Open::Write).unwrap();
    put(&*host, file, b"pages").unwrap();
    assert_eq!(host.open("chunks", Open::Write).unwrap_err().kind, ErrorKind::Busy);
    host.close(file);
    assert_eq!(put(&*host, file, b"late").unwrap_err().kind, ErrorKind::NotFound);
    // An `At` that was returned before the close still reads.
    let mut bytes = [0; 5];
    let file = host.file_of(file).unwrap();
    let mut reads = [FileRead { file, offset: 0, into: &mut bytes, done: Ok(()) }];
    storage.read_batch(&mut reads, Duration::MAX).unwrap();
    assert_eq!(&bytes, b"pages");
    assert!(host.open("chunks", Open::Write).is_ok());
    drop(host);
    assert_eq!(storage.bytes(file).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn a_revoked_host_answers_timeout_and_does_nothing() {
    let storage = MemoryStorage::new();
    let budget = Budget::new(Some(100));
    let host = host_over(storage.clone(), &budget);
    let file = host.open("f", Open::Write).unwrap();
    put(&*host, file, b"kept").unwrap();
    host.reserve(60).unwrap();
    host.revoke();
    let kinds = [
        put(&*host, file, b"lost").unwrap_err().kind,
        host.open("g", Open::Write).unwrap_err().kind,
        host.list().unwrap_err().kind,
        host.sync(&[file]).unwrap_err().kind,
        host.publish("h", b"").unwrap_err().kind,
        host.truncate(file, 0).unwrap_err().kind,
        host.remove("f").unwrap_err().kind,
        host.reserve(1).unwrap_err().kind,
    ];
    assert!(kinds.iter().all(|&kind| kind == ErrorKind::Timeout), "{kinds:?}");
    let mut bytes = [9; 4];
    let mut reads = [FileRead { file, offset: 0, into: &mut bytes, done: Ok(()) }];
    assert_eq!(host.read_batch(&mut reads, Duration::MAX).unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(reads[0].done.as_ref().unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(bytes, [9; 4]);
    assert_eq!(storage.contents("/roots/kv_cache_x/f".as_ref()).unwrap(), b"kept");
    assert!(host.quiet(Duration::ZERO));
    drop(host);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_revoked_host_is_quiet_only_when_its_last_call_has_left() {
    let plan = FaultPlan { hold_writes: true, ..FaultPlan::default() };
    let faults = Faults::new(MemoryStorage::new(), plan);
    let host = host_over(faults.clone(), &Budget::new(None));
    let file = host.open("f", Open::Write).unwrap();
    let caller = {
        let host = host.clone();
        std::thread::spawn(move || put(&*host, file, b"x"))
    };
    while faults.held() == 0 {
        std::thread::yield_now();
    }
    host.revoke();
    assert!(!host.quiet(Duration::from_millis(5)));
    faults.release();
    assert!(host.quiet(Duration::MAX));
    caller.join().unwrap().unwrap();
}

#[test]
fn a_plugin_reserves_under_its_roots_name_and_gives_back_no_more_than_it_took() {
    let budget = Budget::new(Some(100));
    budget.reserve("frames", 30).unwrap();
    let host = host_over(MemoryStorage::new(), &budget);
    host.reserve(50).unwrap();
    assert_eq!(budget.holders()[0], ("kv_cache_x".to_owned(), 50));
    assert_eq!(host.reserve(30).unwrap_err().kind, ErrorKind::OverBudget);
    host.release(1000);
    assert_eq!(budget.used(), 30);
}

#[test]
fn the_list_is_sorted_and_hides_what_is_the_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let pool = Service::pool(1);
    let host = RootHost::new(pool, root.clone(), Budget::new(None), Arc::new(NoSink));
    assert_eq!(host.list().unwrap(), vec![]);
    let _lock = kvern_storage::RootLock::take(&root).unwrap();
    host.publish("identity", b"12345").unwrap();
    let file = host.open("chunks", Open::Write).unwrap();
    put(&*host, file, b"123").unwrap();
    host.sync(&[file]).unwrap();
    let list = host.list().unwrap();
    assert_eq!(list, vec![("chunks".to_owned(), 3), ("identity".to_owned(), 5)]);
    let before = host.now();
    assert!(host.now() >= before);
}
