//! A call that does not come back can be named, in this process and by another that reads its file.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Notes, library};
use kvern_abi::trail::{self, Call};
use kvern_abi::{Plugin, open};
use kvern_contract::*;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Whoever is in this operation, once somebody is.
fn somebody_in(operation: &str, look: impl Fn() -> Vec<Call>) -> Call {
    let start = Instant::now();
    loop {
        let found = look().into_iter().find(|call| call.operation == operation);
        if let Some(call) = found {
            return call;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "nobody is in {operation}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn store_that(fault: &str) -> Box<dyn KvStore> {
    let Plugin::Kv(mut strategy) = open(&library("kvern-fixture-bad-kv")).unwrap() else {
        panic!("it is a kv strategy");
    };
    let mut spec = common::store_spec(&[("fault", fault)]);
    spec.options.insert("times".into(), OptionValue::Integer(0));
    strategy.open(&spec, Notes::new()).unwrap().store.unwrap()
}

#[test]
fn a_call_that_never_returns_is_in_the_trail_and_in_its_file_while_it_hangs() {
    let room = tempfile::tempdir().unwrap();
    let file = room.path().join("trail");
    let refused = |path: &Path| trail::keep_in(path).unwrap_err().kind;
    // What is not meant for it is left as it is.
    let (precious, link) = (room.path().join("precious"), room.path().join("link"));
    std::fs::write(&precious, "words").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert_eq!(refused(&precious), ErrorKind::Invalid);
    assert_eq!(std::fs::read(&precious).unwrap(), b"words");
    assert_eq!(refused(&file), ErrorKind::NotFound);
    std::fs::write(&file, "").unwrap();
    assert_eq!(refused(&link), ErrorKind::Io);
    assert_eq!(refused(Path::new("/dev/null")), ErrorKind::Invalid);
    trail::keep_in(&file).unwrap();
    let kept = std::fs::metadata(&file).unwrap();
    assert!(kept.blocks() * 512 >= kept.len(), "its room is taken and cannot run out: {kept:?}");
    let mut flushes = store_that("hang-in-flush");
    assert_eq!(trail::calls(), [], "what has come back leaves nothing");
    std::thread::spawn(move || flushes.flush(SessionId(1)));
    let here = somebody_in("kv/flush", trail::calls);
    let there = somebody_in("kv/flush", || trail::read(&file).unwrap());
    assert_eq!(here, there);
    assert_eq!(trail::read_from(&File::open(&file).unwrap()).unwrap(), [there]);
    let path = library("kvern-fixture-bad-kv");
    assert_eq!(here.who(), format!("kv strategy `bad-kv` ({})", path.display()));
    assert_eq!((here.limit, here.host.as_deref(), here.struck), (None, None, None));
    let mut loads = store_that("hang-in-load");
    std::thread::spawn(move || loads.load(&mut [], Duration::from_millis(1500)));
    let load = somebody_in("kv/load", trail::calls);
    assert_eq!(load.limit, Some(Duration::from_millis(1500)));
    assert_ne!(load.thread, here.thread);
    assert_eq!(somebody_in("kv/flush", trail::calls), here, "it has not moved");
    let other = room.path().join("other");
    assert_eq!(trail::keep_in(&other).unwrap_err().kind, ErrorKind::Invalid, "it has begun");
    assert!(!other.exists());
}
