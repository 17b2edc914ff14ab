//! What is not a plugin of this host is refused in one line, whatever it is, and nothing of it
//! runs.
#![allow(clippy::unwrap_used)]

mod common;

use common::library;
use kvern_abi::{Plugin, PluginKind, open, read_stamp};
use kvern_contract::{Error, ErrorKind, KvStrategy};
use std::path::{Path, PathBuf};

fn refused(path: &Path) -> Error {
    let error = open(path).expect_err("it is no plugin of this host");
    assert!(!error.message.contains('\n'), "{error}");
    assert!(error.message.contains(&path.display().to_string()), "names the file: {error}");
    error
}

/// Not a plugin at all, and why.
fn no_plugin(path: &Path, why: &str) {
    let error = refused(path);
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    assert!(error.message.contains("is not a Kvern plugin: "), "{error}");
    assert!(error.message.contains(why), "expected {why:?}: {error}");
    assert_eq!(read_stamp(path).map(|_| ()).unwrap_err(), error);
}

fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (room, path)
}

/// A copy of a good plugin whose stamp was changed: `at` counts from the stamp's first byte.
fn stamped(package: &str, at: usize, value: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let mut bytes = std::fs::read(library(package)).unwrap();
    let magic = b"kvern-plugin\0\r\n\x1a";
    let start = bytes.windows(16).position(|w| w == magic).unwrap();
    // The magic may be in the library twice (the adapter knows it too): change every stamp.
    let starts: Vec<_> = (start..bytes.len() - 16)
        .filter(|i| {
            bytes[*i..*i + 16] == magic[..] && bytes[*i + 16..*i + 20] == 192u32.to_le_bytes()
        })
        .collect();
    assert!(!starts.is_empty());
    for start in starts {
        bytes[start + at..start + at + value.len()].copy_from_slice(value);
    }
    file("libchanged.so", &bytes)
}

#[test]
fn a_missing_file_is_not_found() {
    let error = refused(Path::new("/nonexistent/libmine.so"));
    assert_eq!(error.kind, ErrorKind::NotFound);
}

#[test]
fn files_that_are_no_libraries_are_refused_by_what_they_are() {
    let (_room, path) = file("libtext.so", b"INPUT(libm.so.6)\n");
    no_plugin(&path, "it is a text file");
    no_plugin(path.parent().unwrap(), "it is a directory");
    no_plugin(Path::new("/dev/null"), "it is not a regular file");
    let (_room, path) = file("libempty.so", b"");
    no_plugin(&path, "it is empty");
    let (_room, path) = file("libnoise.so", &[0x00, 0x01, 0xfe, 0xff].repeat(100));
    no_plugin(&path, "it is not an ELF library");
    no_plugin(&std::env::current_exe().unwrap(), "it has no symbol kvern_plugin_stamp");
}

#[test]
fn a_library_that_is_no_plugin_is_refused_without_loading_it() {
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps();
    let paths = mapped.lines().filter_map(|line| line.split_whitespace().nth(5));
    let folder = Path::new(paths.into_iter().find(|path| path.contains("libc.so")).unwrap());
    let folder = folder.parent().unwrap();
    let candidates = ["libm.so.6", "libresolv.so.2", "libthread_db.so.1"];
    let not_loaded = |name: &&&str| folder.join(name).exists() && !mapped.contains(**name);
    let name = candidates.iter().find(not_loaded).expect("a system library that is not loaded");
    no_plugin(&folder.join(name), "it has no symbol kvern_plugin_stamp");
    assert!(!maps().contains(name), "{name} was loaded");
}

#[test]
fn an_object_of_another_machine_is_refused() {
    let mut head = vec![0; 52];
    head[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    head[16..20].copy_from_slice(&[3, 0, 3, 0]); // ET_DYN, i386
    let (_room, path) = file("lib32.so", &head);
    no_plugin(&path, "it is a 32-bit library, this host is 64-bit");
    let good = std::fs::read(library("kvern-kv-resident")).unwrap();
    let mut other = good.clone();
    other[18] = 183;
    let (_room, path) = file("libarm.so", &other);
    no_plugin(&path, "it was built for ELF machine 183");
    let mut object = good.clone();
    object[16] = 1;
    let (_room, path) = file("libobject.so", &object);
    no_plugin(&path, "not a shared library");
    let mut big_endian = good;
    big_endian[5] = 2;
    let (_room, path) = file("libbig.so", &big_endian);
    no_plugin(&path, "byte order");
}

#[test]
fn a_copy_cut_short_anywhere_is_refused() {
    let good = std::fs::read(library("kvern-kv-resident")).unwrap();
    let (_room, path) = file("libcut.so", &[]);
    let mut lengths: Vec<usize> = (0..200).collect();
    lengths.extend((1..400).map(|i| good.len() * i / 400));
    lengths.extend((1..70).map(|i| good.len() - i));
    for length in lengths {
        std::fs::write(&path, &good[..length]).unwrap();
        let error = refused(&path);
        assert_eq!(error.kind, ErrorKind::Unsupported, "at {length}: {error}");
    }
    std::fs::write(&path, &good).unwrap();
    assert_eq!(open(&path).unwrap().kind(), PluginKind::Kv, "and whole it opens");
}

#[test]
fn a_table_larger_than_any_plugins_is_refused_unread() {
    let mut bytes = std::fs::read(library("kvern-kv-resident")).unwrap();
    let word = |bytes: &[u8], at: usize| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
    };
    let (table, count) = (word(&bytes, 40), u16::from_le_bytes([bytes[60], bytes[61]]));
    let dynsym = (0..usize::from(count)).map(|i| table + i * 64).find(|at| bytes[at + 4] == 11);
    let size = dynsym.unwrap() + 32;
    bytes[size..size + 8].copy_from_slice(&(1u64 << 30).to_le_bytes());
    let (_room, path) = file("libsparse.so", &bytes);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 31).unwrap();
    no_plugin(&path, "its tables are larger than any plugin's");
}

#[test]
fn a_library_replaced_under_its_path_is_refused_not_taken_for_the_old_one() {
    let (room, path) = file("libone.so", &std::fs::read(library("kvern-kv-resident")).unwrap());
    for _ in 0..2 {
        assert_eq!(open(&path).unwrap().kind(), PluginKind::Kv);
    }
    let other = room.path().join("libother.so");
    std::fs::copy(library("kvern-fixture-echo-kv"), &other).unwrap();
    std::fs::rename(&other, &path).unwrap();
    let error = refused(&path);
    assert_eq!(error.kind, ErrorKind::Mismatch);
    assert!(error.message.contains("was replaced"), "{error}");
}

#[test]
fn headers_full_of_noise_are_refused_or_harmless() {
    let good = std::fs::read(library("kvern-kv-resident")).unwrap();
    let (_room, path) = file("libnoise.so", &[]);
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..300 {
        let mut bytes = good.clone();
        for _ in 0..8 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bytes[(seed >> 8) as usize % 64] = seed as u8;
        }
        std::fs::write(&path, &bytes).unwrap();
        let _ = read_stamp(&path);
    }
}

#[test]
fn a_plugin_of_another_epoch_is_refused_before_it_is_loaded() {
    let path = library("kvern-fixture-bad-stamp");
    let error = refused(&path);
    assert_eq!(error.kind, ErrorKind::Mismatch);
    assert!(error.message.contains("epoch 999"), "{error}");
    assert!(error.message.contains("this host speaks epoch 1: build it against"), "{error}");
    assert_eq!(read_stamp(&path).unwrap().epoch(), 999);
}

#[test]
fn each_field_of_the_stamp_is_compared() {
    for (at, value, why) in [
        (20, 2u32.to_le_bytes().to_vec(), "epoch 2"),
        (28, 2u32.to_le_bytes().to_vec(), "panic = \"abort\""),
        (32, b"riscv64".to_vec(), "riscv64"),
        (100, 4u32.to_le_bytes().to_vec(), "other sizes"),
    ] {
        let (_room, path) = stamped("kvern-kv-resident", at, &value);
        let error = refused(&path);
        assert_eq!(error.kind, ErrorKind::Mismatch, "{error}");
        assert!(error.message.contains(why), "expected {why:?}: {error}");
    }
    let (_room, path) = stamped("kvern-kv-resident", 24, &9u32.to_le_bytes());
    assert!(refused(&path).message.contains("kind 9 is unknown"));
    let (_room, path) = stamped("kvern-kv-resident", 0, b"K");
    no_plugin(&path, "its stamp is not a stamp");
}

#[test]
fn a_stamp_that_lies_about_the_kind_is_caught_by_the_layout() {
    let (_room, path) = stamped("kvern-kv-resident", 24, &2u32.to_le_bytes());
    assert_eq!(read_stamp(&path).unwrap().kind(), Ok(PluginKind::Offload));
    let error = refused(&path);
    assert_eq!(error.kind, ErrorKind::Mismatch);
    assert!(error.message.contains("its tables differ"), "{error}");
}

#[test]
fn a_stamp_without_a_header_is_refused() {
    let error = refused(&library("kvern-fixture-bad-missing-symbol"));
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("a stamp, but no symbol kvern_plugin_header"), "{error}");
}

#[test]
fn a_header_that_hides_its_layout_is_refused() {
    let error = refused(&library("kvern-fixture-bad-layout"));
    assert_eq!(error.kind, ErrorKind::Mismatch);
    assert!(error.message.contains("carries no layout"), "{error}");
}

#[test]
fn plugins_of_one_kind_work_side_by_side() {
    let kv = |package: &str| -> Box<dyn KvStrategy> {
        match open(&library(package)).unwrap() {
            Plugin::Kv(strategy) => strategy,
            other => panic!("{other:?}"),
        }
    };
    let three = [kv("kvern-kv-resident"), kv("kvern-fixture-echo-kv"), kv("kvern-kv-resident")];
    let names: Vec<_> = three.iter().map(|strategy| strategy.describe().name).collect();
    assert_eq!(names, ["resident", "echo", "resident"]);
    for (package, name) in [("kvern-offload-prefix", "prefix"), ("kvern-offload-suffix", "suffix")]
    {
        let Plugin::Offload(policy) = open(&library(package)).unwrap() else { panic!("{package}") };
        assert_eq!(policy.describe().name, name);
    }
}
