//! What the border's tests share: fixtures built by cargo, and a host that writes down what it is
//! asked.
#![allow(dead_code)]

use kvern_contract::*;
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

const PACKAGES: [&str; 10] = [
    "kvern-fixture-echo-kv",
    "kvern-fixture-echo-device",
    "kvern-fixture-bad-kv",
    "kvern-fixture-bad-panics",
    "kvern-fixture-bad-stamp",
    "kvern-fixture-bad-missing-symbol",
    "kvern-fixture-bad-layout",
    "kvern-kv-resident",
    "kvern-offload-prefix",
    "kvern-offload-suffix",
];

/// The library of a package. Its path is what cargo says it just built, never a guess among old
/// files.
pub fn library(package: &str) -> PathBuf {
    static BUILT: OnceLock<HashMap<String, PathBuf>> = OnceLock::new();
    BUILT.get_or_init(build).get(package).expect("cargo names a library of the package").clone()
}

fn build() -> HashMap<String, PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--quiet", "--message-format=json"]);
    for package in PACKAGES {
        command.args(["-p", package]);
    }
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found = HashMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap();
        let is_library = message["target"]["kind"].to_string().contains("cdylib");
        if message["reason"] != "compiler-artifact" || !is_library {
            continue;
        }
        let package = PACKAGES
            .iter()
            .find(|package| message["target"]["name"].as_str() == Some(&package.replace('-', "_")));
        let files = message["filenames"].as_array().unwrap().iter().filter_map(|f| f.as_str());
        let file = files.into_iter().find(|file| file.ends_with(".so"));
        if let (Some(package), Some(file)) = (package, file) {
            found.insert(package.to_string(), PathBuf::from(file));
        }
    }
    found
}

/// What was said through the border, without whose errors they were: the border adds that.
pub fn unsigned(said: &[String], plugin: &str) -> Vec<String> {
    let sign = format!("(\"plugin\", {plugin:?})");
    assert!(said.iter().any(|line| line.contains(&sign)), "an error says whose it is");
    let plain = |line: &String| line.replace(&format!(", {sign}"), "").replace(&sign, "");
    said.iter().map(plain).collect()
}

/// A host that answers by rule, keeps the log, and panics when it is asked for `u64::MAX` bytes.
#[derive(Default)]
pub struct Notes {
    pub lines: Mutex<Vec<String>>,
}

impl Notes {
    pub fn new() -> Arc<Notes> {
        Arc::default()
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock().unwrap())
    }

    fn note(&self, line: String) {
        self.lines.lock().unwrap().push(line);
    }
}

fn no(kind: ErrorKind, operation: &str, message: &str) -> Error {
    Error {
        context: vec![("asked".into(), operation.into())],
        ..Error::new(kind, operation, message)
    }
}

impl Host for Notes {
    fn open(&self, name: &str, how: Open) -> Result<FileId> {
        self.note(format!("host open {name:?} {how:?}"));
        match how {
            Open::Read => Err(no(ErrorKind::NotFound, "host/open", "there is no such file")),
            Open::Write => Ok(FileId(name.len() as u32)),
        }
    }

    fn close(&self, file: FileId) {
        self.note(format!("host close {file:?}"));
    }

    fn list(&self) -> Result<Vec<(String, u64)>> {
        Ok(vec![("a \"name\"".into(), u64::MAX), (String::new(), 0)])
    }

    fn read_batch(&self, reads: &mut [FileRead<'_>], within: Duration) -> Result<()> {
        if within == Duration::from_nanos(u64::MAX) || within == Duration::MAX {
            return Err(no(ErrorKind::Timeout, "host/read", "not now"));
        }
        for read in reads.iter_mut() {
            self.note(format!(
                "host read {:?} {} {:?} {within:?}",
                read.file, read.offset, read.into
            ));
            read.into.fill(0xab);
            if read.offset > 1 << 30 {
                read.done = Err(no(ErrorKind::Io, "host/read", "past the end"));
            }
        }
        Ok(())
    }

    fn write_batch(&self, writes: &[FileWrite<'_>], within: Duration) -> Result<()> {
        for write in writes {
            self.note(format!("host write {:?} {} {:?}", write.file, write.offset, write.bytes));
        }
        Err(no(ErrorKind::OutOfSpace, "host/write", &format!("full after {within:?}")))
    }

    fn sync(&self, files: &[FileId]) -> Result<()> {
        self.note(format!("host sync {files:?}"));
        Ok(())
    }

    fn publish(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.note(format!("host publish {name} {bytes:?}"));
        Ok(())
    }

    fn truncate(&self, file: FileId, bytes: u64) -> Result<()> {
        self.note(format!("host truncate {file:?} {bytes}"));
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.note(format!("host remove {name}"));
        Err(no(ErrorKind::NotFound, "host/remove", "it never was"))
    }

    fn reserve(&self, bytes: u64) -> Result<()> {
        if bytes == u64::MAX {
            panic!("the budget overflowed");
        }
        self.note(format!("host reserve {bytes}"));
        Ok(())
    }

    fn release(&self, bytes: u64) {
        self.note(format!("host release {bytes}"));
    }

    fn event(&self, name: &str, took: Duration, bytes: u64) {
        self.note(format!("host event {name} {took:?} {bytes}"));
    }

    fn log(&self, level: u32, line: &str) {
        self.note(format!("log {level} {line}"));
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(123_456_789_012_345)
    }
}

/// A policy's ask with something in every field.
pub fn policy_ask() -> PolicyAsk {
    PolicyAsk {
        options: Options::from([("pages".into(), OptionValue::Integer(i64::MIN))]),
        shape: shape(),
        accelerator: true,
        budget_bytes: u64::MAX,
        context_tokens: 131_072,
        lifecycle: Lifecycle::Persistent,
    }
}

/// Layers of every kind.
pub fn shape() -> KvShape {
    let layer = |kind, kv_heads| KvLayer { kind, key_dim: 64, value_dim: 32, kv_heads };
    KvShape {
        layers: vec![
            layer(LayerKind::Full, 2),
            layer(LayerKind::Window { tokens: 512 }, 1),
            layer(LayerKind::Recurrent { state_bytes: 1 << 35, conv_bytes: 3 }, 0),
            layer(LayerKind::Transient, 0),
        ],
        hot: KvEncoding::Bf16,
    }
}

/// A store's spec with something in every field; `options` by name.
pub fn store_spec(options: &[(&str, &str)]) -> StoreSpec {
    let options = options.iter().map(|(k, v)| (k.to_string(), OptionValue::Text(v.to_string())));
    StoreSpec {
        identity: vec![("weights".into(), "ab\"c".into()), ("dtype".into(), "bf16".into())],
        shape: shape(),
        cold: KvEncoding::Int8 { key: Granularity::Page, value: Granularity::Channel },
        policy: KvPolicy {
            policy_id: "test".into(),
            flush: None,
            retain: Threshold { tokens: Some(8), bytes: Some(9) },
            window: Some(KvWindow { first: 4, recent: 60 }),
            keep_rows: None,
            cold: KvEncoding::F16,
            cold_after: 64,
            store_partial: true,
        },
        lifecycle: Lifecycle::RuntimeScoped,
        quota_bytes: Some(1 << 60),
        io_align: 4096,
        step_pages: 3,
        read_only: false,
        options: options.collect(),
    }
}
