//! The ledger: every run's payload and summary, found again by what makes runs comparable.
//!
//! `records/<time>-<kind>.json` holds a run, `index.jsonl` one line a run (append only, locked),
//! `latest/` the newest run of a key. A half-written last line is completed with a line end before
//! the next one is appended.

use crate::compare::{Comparison, compare};
use crate::document::{compact, parse, pretty};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// One run, as it is recorded.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// UTC, RFC 3339.
    pub generated_at: String,
    /// `report` or `probe-<mode>`.
    pub run_kind: String,
    /// What must be equal for two runs to be compared.
    pub comparison_key: Map<String, Value>,
    /// Label and address of the codebase.
    pub codebase: Map<String, Value>,
    /// The machine.
    pub host: Map<String, Value>,
    /// Branch and commit.
    pub git: Map<String, Value>,
    /// A few numbers that stand for the run.
    pub summary: Map<String, Value>,
    /// Against the newest earlier run of the key; null for the first.
    pub comparison_to_previous: Option<Comparison>,
    /// The whole report or probe.
    pub payload: Value,
}

/// What recording gave.
#[derive(Clone, PartialEq, Debug)]
pub struct Recorded {
    /// The record.
    pub path: PathBuf,
    /// Against the newest earlier run of the key.
    pub comparison: Option<Comparison>,
}

/// Records a run under `root`, which is created; `stamp` is its time, sortable and without colons.
/// The error is one line that names the path.
pub fn record(root: &Path, mut run: Run, stamp: &str) -> Result<Recorded, String> {
    let at = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    let (records, latest) = (root.join("records"), root.join("latest"));
    for dir in [&records, &latest] {
        fs::create_dir_all(dir).map_err(|e| at(dir, e))?;
    }
    let index_path = root.join("index.jsonl");
    let mut index = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(&index_path)
        .map_err(|e| at(&index_path, e))?;
    // Held until `index` is dropped: lookup, record and index line of one run are one step to other
    // processes.
    index.lock().map_err(|e| at(&index_path, e))?;

    let key = compact(&run.comparison_key)?;
    let newest = latest.join(format!("{}.json", hex(&Sha256::digest(key.as_bytes()))));
    run.comparison_to_previous =
        previous(&newest, &mut index, &key).map(|summary| compare(&run.summary, &summary));
    let path = free_path(&records, stamp, &run.run_kind);
    publish(&path, &pretty(&run)?).map_err(|e| at(&path, e))?;
    let line = index_line(&run, &path)?;
    append(&mut index, &line).map_err(|e| at(&index_path, e))?;
    publish(&newest, &line).map_err(|e| at(&newest, e))?;
    Ok(Recorded { path, comparison: run.comparison_to_previous })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The summary of the newest run of a key: `latest` holds it, else the index does, read from its
/// end.
fn previous(newest: &Path, index: &mut File, key: &str) -> Option<Map<String, Value>> {
    let summary = |line: &str| {
        let value: Value = parse(line).ok()?;
        let same = compact(value.get("comparison_key")?).ok()? == key;
        if same { value.get("summary")?.as_object().cloned() } else { None }
    };
    if let Some(found) = fs::read_to_string(newest).ok().and_then(|text| summary(&text)) {
        return Some(found);
    }
    let mut text = Vec::new();
    index.seek(SeekFrom::Start(0)).ok()?;
    index.read_to_end(&mut text).ok()?;
    String::from_utf8_lossy(&text).lines().rev().find_map(summary)
}

/// A name that no other run has: two runs of one instant get a number each.
fn free_path(records: &Path, stamp: &str, kind: &str) -> PathBuf {
    let plain = records.join(format!("{stamp}-{kind}.json"));
    if !plain.exists() {
        return plain;
    }
    let numbered = (2u32..).map(|n| records.join(format!("{stamp}-{n}-{kind}.json")));
    numbered.into_iter().find(|p| !p.exists()).unwrap_or(plain)
}

/// The index line of a run: its record's path instead of its payload.
fn index_line(run: &Run, path: &Path) -> Result<String, String> {
    let mut value = serde_json::to_value(run).map_err(|e| e.to_string())?;
    if let Some(map) = value.as_object_mut() {
        map.shift_remove("payload");
        map.insert("record_path".into(), path.to_string_lossy().into());
    }
    compact(&value)
}

fn append(index: &mut File, line: &str) -> std::io::Result<()> {
    let length = index.seek(SeekFrom::End(0))?;
    let mut text = String::new();
    if length > 0 {
        index.seek(SeekFrom::Start(length - 1))?;
        let mut end = [0];
        index.read_exact(&mut end)?;
        if end != *b"\n" {
            text.push('\n');
        }
    }
    text.push_str(line);
    text.push('\n');
    // One write in append mode: a line is whole or cut short, never mixed with another's.
    index.write_all(text.as_bytes())?;
    index.sync_data()
}

/// Writes a file whole or not at all.
fn publish(path: &Path, text: &str) -> std::io::Result<()> {
    let partial = path.with_extension(format!("{}.part", std::process::id()));
    let mut file = File::create(&partial)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // The first error is the one to tell; a leftover is only untidy.
        let _ = fs::remove_file(&partial);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(model: &str, load_ms: f64) -> Run {
        let map = |value: Value| value.as_object().cloned().unwrap_or_default();
        Run {
            generated_at: "2026-01-01T00:00:00Z".into(),
            run_kind: "report".into(),
            comparison_key: map(json!({"model_reference": model})),
            codebase: Map::new(),
            host: Map::new(),
            git: Map::new(),
            summary: map(json!({"load_ms": load_ms})),
            comparison_to_previous: None,
            payload: json!({"big": true}),
        }
    }

    fn root(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("kvern-ledger-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn only_runs_of_one_key_meet() {
        let root = root("meet");
        assert_eq!(record(&root, run("a", 1.0), "t1").unwrap().comparison, None);
        assert_eq!(record(&root, run("b", 9.0), "t2").unwrap().comparison, None);
        let third = record(&root, run("a", 2.0), "t3").unwrap();
        assert_eq!(third.comparison.unwrap().potential_regressions, ["load_ms"]);
        assert_eq!(fs::read_to_string(root.join("index.jsonl")).unwrap().lines().count(), 3);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_half_written_line_harms_no_other() {
        let root = root("half");
        record(&root, run("a", 1.0), "t1").unwrap();
        let index = root.join("index.jsonl");
        fs::write(&index, fs::read_to_string(&index).unwrap() + "{\"comparison_").unwrap();
        fs::remove_dir_all(root.join("latest")).unwrap();
        let next = record(&root, run("a", 1.0), "t2").unwrap();
        assert!(next.comparison.is_some());
        let text = fs::read_to_string(&index).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(parse::<Value>(lines[2]).is_ok());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn two_runs_of_one_instant_keep_a_record_each() {
        let root = root("instant");
        let first = record(&root, run("a", 1.0), "t").unwrap();
        let second = record(&root, run("a", 1.0), "t").unwrap();
        assert_ne!(first.path, second.path);
        assert!(first.path.exists() && second.path.exists());
        fs::remove_dir_all(root).unwrap();
    }
}
