//! A published record over a drive that loses power.
#![allow(clippy::unwrap_used)]

mod kit;

use kit::drive::host;
use kvern_contract::*;
use kvern_record::{publish, published};
use kvern_storage::double::MemoryStorage;
use std::path::Path;
use std::time::Duration;

const BYTES: usize = 5000;

/// Writes the page bytes of a turn, then publishes the turn's number.
fn turn(host: &HostRef, pages: FileId, turn: u8) -> Result<()> {
    let bytes = [turn; BYTES];
    let offset = u64::from(turn) * BYTES as u64;
    host.write_batch(&[FileWrite { file: pages, offset, bytes: &bytes }], Duration::MAX)?;
    publish(host, &[pages], "head", &[turn])
}

#[test]
fn a_cut_leaves_the_old_record_or_the_new_one_and_the_pages_that_it_names() {
    let mut cuts = 0;
    for seed in 0..20 {
        for event in 0.. {
            let storage = MemoryStorage::new();
            storage.fail_at(event);
            let first = host(storage.clone());
            let mut done = 0;
            let all = || -> Result<()> {
                let pages = first.open("pages", Open::Write)?;
                for number in 1..=4 {
                    turn(&first, pages, number)?;
                    done = number;
                }
                Ok(())
            };
            let ended = { all }();
            if !storage.is_off() {
                ended.unwrap();
                break;
            }
            storage.cut(seed << 16 | event);
            cuts += 1;
            let head = published(&host(storage.clone()), "head", 1).unwrap();
            let head = head.map_or(0, |payload| payload[0]);
            assert!(head == done || head == done + 1, "{head} after {done}");
            let pages = storage.contents(Path::new("/root/pages")).unwrap_or_default();
            for number in 1..=head {
                let from = usize::from(number) * BYTES;
                assert_eq!(pages.get(from..from + BYTES), Some(&[number; BYTES][..]), "{event}");
            }
        }
    }
    assert!(cuts > 300, "{cuts} cuts");
}

#[test]
fn a_failed_sync_publishes_nothing() {
    let storage = MemoryStorage::new();
    let host = host(storage.clone());
    let pages = host.open("pages", Open::Write).unwrap();
    turn(&host, pages, 1).unwrap();
    storage.fail_sync_at(storage.events() + 1);
    assert_eq!(turn(&host, pages, 2).unwrap_err().kind, ErrorKind::Io);
    assert_eq!(published(&host, "head", 1).unwrap(), Some(vec![1]));
}

#[test]
fn what_was_published_comes_back_whole_or_is_damage() {
    let storage = MemoryStorage::new();
    let host = host(storage.clone());
    assert_eq!(published(&host, "head", 100).unwrap(), None);
    publish(&host, &[], "head", b"some words").unwrap();
    assert_eq!(published(&host, "head", 10).unwrap().unwrap(), b"some words");
    let kind = |most| published(&host, "head", most).unwrap_err().kind;
    assert_eq!(kind(9), ErrorKind::Damaged, "longer than expected");
    storage.tamper(Path::new("/root/head"), |bytes| bytes[17] ^= 1);
    assert_eq!(kind(10), ErrorKind::Damaged);
    storage.tamper(Path::new("/root/head"), |bytes| bytes.truncate(3));
    assert_eq!(kind(10), ErrorKind::Damaged);
    assert_eq!(publish(&host, &[], "head", b"").unwrap_err().kind, ErrorKind::Invalid);
}
