//! GGUF files become Hugging Face directories: weights in bf16, tokenizer, template, and a config
//! that opens.

mod config;
mod dequant;
mod read;
mod rope;
mod tokenizer;

use crate::error::io;
use crate::model::Model;
use crate::staged::Staged;
use crate::write::{Planned, write_safetensors};
use config::Renamed;
use kvern_contract::{Error, ErrorKind, Result};
use read::Header;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const OPERATION: &str = "model/gguf";
/// About how much is unpacked at once, in bytes of bf16.
const CHUNK_BYTES: u64 = 4 << 20;

/// What an import made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The directory.
    pub directory: PathBuf,
    /// Tensors in it.
    pub tensors: usize,
    /// Bytes of weights, in bf16.
    pub bytes: u64,
}

/// Turns a GGUF file of a llama into the Hugging Face directory `output`, which must not exist or
/// be empty. The directory appears whole, after it was opened and found right; a failure leaves
/// nothing.
///
/// Weights of F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K become bf16,
/// rounded to nearest even; memory use does not depend on the model's size.
///
/// # Errors
/// `Damaged` for a truncated or contradictory file; `Unsupported`, by name, for another
/// architecture, type, rope scaling or tokenizer; `Invalid` where `output` is not empty; `Io` and
/// `OutOfSpace` from the system.
pub fn import_gguf(file: &Path, output: &Path) -> Result<Imported> {
    let header = Header::read(file)?;
    let source = File::open(file).map_err(|e| io(OPERATION, file, &e))?;
    let (config, tensors) = config::convert(&header, &source)?;
    let (tokenizer, words) = tokenizer::convert(&header)?;
    let staged = Staged::begin(OPERATION, output)?;
    let pretty = |json: &serde_json::Value| {
        serde_json::to_vec_pretty(json)
            .map_err(|e| Error::new(ErrorKind::Internal, OPERATION, e.to_string()))
    };
    staged.write("config.json", &pretty(&config)?)?;
    staged.write("generation_config.json", &pretty(&config::generation(&config))?)?;
    staged.write("tokenizer.json", &pretty(&tokenizer)?)?;
    staged.write("tokenizer_config.json", &pretty(&words)?)?;
    let planned: Vec<Planned> = tensors
        .iter()
        .map(|t| Planned { name: t.name.clone(), shape: t.source.shape.clone() })
        .collect();
    let path = staged.path().join("model.safetensors");
    let bytes = write_safetensors(OPERATION, &path, &planned, &mut |number, out| {
        unpack(&source, file, &tensors[number], out)
    })?;
    Model::open(staged.path())?.text()?;
    let directory = staged.publish()?;
    Ok(Imported { directory, tensors: planned.len(), bytes })
}

/// Writes one tensor in bf16, a few rows at a time; rows of rotated projections go back from pairs
/// to halves.
fn unpack(source: &File, path: &Path, tensor: &Renamed<'_>, out: &mut dyn Write) -> Result<()> {
    let from = tensor.source;
    let columns = if from.shape.len() == 1 { 1 } else { from.shape[1..].iter().product() };
    let (rows, columns) = match tensor.heads {
        // A vector without heads is one row: blocks lie along it.
        0 if from.shape.len() == 1 => (1, from.shape[0]),
        _ => (from.shape[0], columns),
    };
    let row_bytes = from.bytes / rows;
    let group = match tensor.heads {
        0 => (CHUNK_BYTES / (columns * 2).max(1)).clamp(1, rows),
        heads => rows / u64::from(heads),
    };
    let (mut packed, mut unpacked) = (Vec::new(), Vec::new());
    let mut row = 0;
    while row < rows {
        let count = group.min(rows - row);
        packed.resize((count * row_bytes) as usize, 0);
        source
            .read_exact_at(&mut packed, from.offset + row * row_bytes)
            .map_err(|e| io(OPERATION, path, &e))?;
        unpacked.clear();
        if tensor.heads == 0 {
            from.encoding.to_bf16(&packed, &mut unpacked);
        } else {
            let half = count / 2;
            for new in 0..count {
                let old = new % half * 2 + new / half;
                let at = (old * row_bytes) as usize;
                from.encoding.to_bf16(&packed[at..at + row_bytes as usize], &mut unpacked);
            }
        }
        out.write_all(&unpacked).map_err(|e| io(OPERATION, path, &e))?;
        row += count;
    }
    Ok(())
}
