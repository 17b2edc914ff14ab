//! Real files through the pread pool.
#![allow(clippy::unwrap_used)]

use kvern_contract::{ErrorKind, FileId, FileRead, FileWrite};
use kvern_storage::double::Random;
use kvern_storage::{OpenHow, RootLock, Service, Storage, remove_tree, tree_bytes};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

fn read(pool: &dyn Storage, file: FileId, offset: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    let mut reads = [FileRead { file, offset, into: &mut out, done: Ok(()) }];
    pool.read_batch(&mut reads, Duration::MAX).unwrap();
    out
}
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..bytes).map(|_| random.bits() as u8).collect()
}

#[test]
fn what_is_written_in_pieces_comes_back_with_and_without_a_deadline() {
    let dir = tempfile::tempdir().unwrap();
    for (threads, within) in [
        (3, Duration::MAX),
        (3, Duration::from_secs(60)),
        (0, Duration::MAX),
        (0, Duration::from_secs(60)),
    ] {
        let pool = Service::pool(threads);
        let path = dir.path().join(format!("{threads}-{}", within == Duration::MAX));
        let file = pool.open(&path, OpenHow::Write).unwrap();
        // Longer than two pieces, and no multiple of anything.
        let (long, short) = (noise((17 << 20) + 13, 1), noise(77, 2));
        let behind = long.len() as u64;
        pool.write_batch(
            &[
                FileWrite { file, offset: 0, bytes: &long },
                FileWrite { file, offset: behind, bytes: &short },
            ],
            within,
        )
        .unwrap();
        assert_eq!(pool.bytes(file).unwrap(), behind + 77);
        let (mut a, mut b, mut c) = (vec![0; long.len()], vec![0; 77], vec![0; 10]);
        let mut reads = [
            FileRead { file, offset: 0, into: &mut a, done: Ok(()) },
            FileRead { file, offset: behind, into: &mut b, done: Ok(()) },
            FileRead { file, offset: 9 << 20, into: &mut c, done: Ok(()) },
        ];
        pool.read_batch(&mut reads, within).unwrap();
        assert!(a == long && b == short && c == long[9 << 20..(9 << 20) + 10]);
        let counters = pool.counters();
        assert_eq!(counters.bytes_written, behind + 77);
        assert_eq!(counters.bytes_read, behind + 87);
        assert!(counters.reads >= 5 && counters.read_time > Duration::ZERO);
        assert_eq!(pool.path_kind(), if threads == 0 { "pread" } else { "pread-pool" });
    }
}

#[test]
fn a_file_that_ends_early_is_an_error_that_names_it_and_the_other_reads_succeed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("short");
    std::fs::write(&path, noise(1000, 3)).unwrap();
    let pool = Service::pool(2);
    for within in [Duration::MAX, Duration::from_secs(60)] {
        let file = pool.open(&path, OpenHow::Read).unwrap();
        let (mut a, mut b) = (vec![0; 100], vec![0; 100]);
        let mut reads = [
            FileRead { file, offset: 950, into: &mut a, done: Ok(()) },
            FileRead { file, offset: 900, into: &mut b, done: Ok(()) },
        ];
        let error = pool.read_batch(&mut reads, within).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Damaged);
        let expected = "short ends early: asked for 100 bytes at offset 950, got 50";
        assert!(error.message.contains(expected), "{}", error.message);
        assert!(reads[0].done.is_err() && reads[1].done.is_ok());
        assert_eq!(b, noise(1000, 3)[900..]);
    }
}

#[test]
fn memory_reads_like_a_file_and_counts_apart() {
    let pool = Service::pool(1);
    let file = pool.open_memory("model", b"0123456789").unwrap();
    assert_eq!(read(&*pool, file, 3, 4), b"3456");
    assert_eq!(pool.bytes(file).unwrap(), 10);
    let mut over = [0; 8];
    let mut reads = [FileRead { file, offset: 5, into: &mut over, done: Ok(()) }];
    let error = pool.read_batch(&mut reads, Duration::MAX).unwrap_err();
    assert!(error.message.contains("model ends early"), "{}", error.message);
    let write = FileWrite { file, offset: 0, bytes: b"x" };
    assert_eq!(pool.write_batch(&[write], Duration::MAX).unwrap_err().kind, ErrorKind::Invalid);
    let counters = pool.counters();
    assert_eq!((counters.memory_bytes, counters.bytes_read), (4, 0));
}

#[test]
fn a_missing_file_names_its_path_and_a_closed_id_is_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Service::pool(1);
    let error = pool.open(&dir.path().join("none"), OpenHow::Read).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message.contains("/none: no such file"), "{}", error.message);
    let file = pool.open(&dir.path().join("f"), OpenHow::Write).unwrap();
    pool.close(file);
    assert_eq!(pool.bytes(file).unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(pool.sync(&[file]).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn a_file_to_write_gets_its_directories_for_the_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Service::pool(1);
    let deep = dir.path().join("a/b");
    let file = pool.open(&deep.join("f"), OpenHow::Write).unwrap();
    pool.sync(&[file]).unwrap();
    for made in [dir.path().join("a"), deep.clone()] {
        assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }
    std::fs::write(dir.path().join("file"), b"").unwrap();
    let error = pool.open(&dir.path().join("file/x/y"), OpenHow::Write).unwrap_err();
    assert!(error.message.contains("file/x"), "{}", error.message);
}

#[test]
fn publish_replaces_whole_files_and_leaves_nothing_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Service::pool(1);
    let path = dir.path().join("root/identity");
    pool.publish(&path, b"one").unwrap();
    pool.publish(&path, b"second").unwrap();
    let list = pool.list(path.parent().unwrap()).unwrap();
    assert_eq!(list, vec![("identity".to_owned(), 6)]);
    assert_eq!(std::fs::read(&path).unwrap(), b"second");
    pool.remove(&path).unwrap();
    assert_eq!(pool.remove(&path).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn a_removed_file_stays_readable_through_its_id_and_truncate_cuts() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Service::pool(1);
    let path = dir.path().join("f");
    let file = pool.open(&path, OpenHow::Write).unwrap();
    pool.write_batch(&[FileWrite { file, offset: 0, bytes: b"abcdef" }], Duration::MAX).unwrap();
    pool.truncate(file, 3).unwrap();
    pool.remove(&path).unwrap();
    assert_eq!(pool.bytes(file).unwrap(), 3);
    assert_eq!(read(&*pool, file, 0, 3), b"abc");
}

const LOCK_DIR: &str = "KVERN_TEST_LOCK_DIR";

#[test]
fn a_root_has_one_writer_in_this_process_and_among_others() {
    // As the child: say whether the lock was free.
    if let Ok(dir) = std::env::var(LOCK_DIR) {
        match RootLock::take(dir.as_ref()) {
            Ok(_) => println!("lock: free"),
            Err(error) => println!("lock: {:?}", error.kind),
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let child = || {
        let name = "a_root_has_one_writer_in_this_process_and_among_others";
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let output = command.args([name, "--exact", "--nocapture"]).env(LOCK_DIR, &root);
        String::from_utf8(output.output().unwrap().stdout).unwrap()
    };
    let held = RootLock::take(&root).unwrap();
    assert_eq!(root.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let error = RootLock::take(&root).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.message.contains(root.to_str().unwrap()), "{}", error.message);
    assert!(child().contains("lock: Busy"));
    drop(held);
    assert!(child().contains("lock: free"));
    RootLock::take(&root).unwrap();
}

#[test]
fn a_tree_is_counted_and_removed_and_links_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir_all(dir.path().join("root/sub")).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("keep"), [0; 500]).unwrap();
    std::fs::write(dir.path().join("root/a"), [0; 100]).unwrap();
    std::fs::write(dir.path().join("root/sub/b"), [0; 23]).unwrap();
    let root = dir.path().join("root");
    std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
    assert_eq!(tree_bytes(&root), 123);
    remove_tree(&root).unwrap();
    remove_tree(&root).unwrap();
    assert!(!root.exists() && outside.join("keep").exists());
    assert_eq!(remove_tree("/".as_ref()).unwrap_err().kind, ErrorKind::Invalid);
}
