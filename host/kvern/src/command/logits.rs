//! Logits as a safetensors file, row by row, published when the last one is there.

use crate::fail::{Failure, Outcome};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file of `logits`, f32 `[ids, vocabulary]`, that is being written beside its place.
pub struct LogitsFile {
    place: PathBuf,
    partial: PathBuf,
    file: Option<BufWriter<File>>,
    vocabulary: u64,
    missing: u64,
}

impl LogitsFile {
    /// Begins a file of `ids` rows of `vocabulary` values.
    pub fn create(place: &Path, ids: u64, vocabulary: u64) -> Outcome<LogitsFile> {
        let mut name = place.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".part{}", std::process::id()));
        let partial = place.with_file_name(name);
        let told = |e: std::io::Error| Failure::new(format!("{}: {e}", place.display()));
        let bytes = ids.checked_mul(vocabulary).and_then(|n| n.checked_mul(4));
        let bytes = bytes.ok_or_else(|| Failure::new("the logits would not fit any file"))?;
        let header = format!(
            "{{\"logits\":{{\"dtype\":\"F32\",\"shape\":[{ids},{vocabulary}],\
             \"data_offsets\":[0,{bytes}]}}}}"
        );
        // Padded, so that values start at a multiple of 8.
        let padded = header.len().next_multiple_of(8);
        let file = File::create(&partial).map_err(told)?;
        let mut out = LogitsFile {
            place: place.into(),
            partial,
            file: Some(BufWriter::with_capacity(1 << 20, file)),
            vocabulary,
            missing: ids,
        };
        out.write(&(padded as u64).to_le_bytes())?;
        out.write(format!("{header:padded$}").as_bytes())?;
        Ok(out)
    }

    fn write(&mut self, bytes: &[u8]) -> Outcome<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(bytes).map_err(|e| Failure::new(format!("{}: {e}", self.place.display())))
    }

    /// Appends a row.
    pub fn row(&mut self, logits: &[f32]) -> Outcome<()> {
        if logits.len() as u64 != self.vocabulary || self.missing == 0 {
            return Err(Failure::new(format!(
                "a row of {} logits came, expected {} of {}",
                logits.len(),
                self.missing,
                self.vocabulary
            )));
        }
        self.missing -= 1;
        let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.write(&bytes)
    }

    /// Puts the file in its place.
    pub fn publish(mut self) -> Outcome<()> {
        let told = |e: std::io::Error| Failure::new(format!("{}: {e}", self.place.display()));
        if self.missing > 0 {
            return Err(Failure::new(format!("{} rows of logits are missing", self.missing)));
        }
        if let Some(file) = self.file.take() {
            file.into_inner().map_err(|e| told(e.into_error()))?.sync_all().map_err(told)?;
        }
        std::fs::rename(&self.partial, &self.place).map_err(told)
    }
}

impl Drop for LogitsFile {
    fn drop(&mut self) {
        // Published, it is not there any more; else nothing half-written may stay.
        let _ = std::fs::remove_file(&self.partial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("kvern-logits-{name}-{}.safetensors", std::process::id()))
    }

    #[test]
    fn the_file_says_what_it_holds() {
        let place = place("whole");
        let mut file = LogitsFile::create(&place, 2, 3).unwrap();
        file.row(&[1.0, 2.0, 3.0]).unwrap();
        file.row(&[4.0, 5.0, 6.0]).unwrap();
        file.publish().unwrap();
        let bytes = std::fs::read(&place).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!((header % 8, bytes.len()), (0, 8 + header + 24));
        let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        assert_eq!(json["logits"]["shape"], serde_json::json!([2, 3]));
        assert_eq!(bytes[8 + header + 20..], 6.0f32.to_le_bytes());
        std::fs::remove_file(place).unwrap();
    }

    #[test]
    fn a_file_that_is_not_whole_leaves_nothing() {
        let place = place("half");
        let mut file = LogitsFile::create(&place, 2, 3).unwrap();
        assert!(file.row(&[1.0]).is_err());
        let partial = file.partial.clone();
        assert!(file.publish().is_err());
        assert!(!place.exists() && !partial.exists());
    }
}
