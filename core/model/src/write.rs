//! safetensors files written as a stream, so that a model larger than the memory can be made.

use crate::error::{invalid, io};
use kvern_contract::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Where the first tensor starts, in bytes: a multiple of it.
const DATA_ALIGNMENT: usize = 4096;

/// A tensor to be written in bf16: its name and shape.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub name: String,
    pub shape: Vec<u64>,
}

impl Planned {
    /// Bytes in bf16; `None` on overflow.
    pub fn bytes(&self) -> Option<u64> {
        self.shape.iter().try_fold(2u64, |all, n| all.checked_mul(*n))
    }
}

/// Writes the header, then asks `fill` for the bytes of each tensor in turn; each must be exactly
/// as long as its shape says. The file is synced. Gives the bytes of tensors written.
pub(crate) fn write_safetensors(
    operation: &str,
    path: &Path,
    tensors: &[Planned],
    fill: &mut dyn FnMut(usize, &mut dyn Write) -> Result<()>,
) -> Result<u64> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0u64;
    for tensor in tensors {
        let start = end;
        end = tensor.bytes().and_then(|n| end.checked_add(n)).ok_or_else(|| {
            invalid(operation, format!("{} {:?} is too large", tensor.name, tensor.shape))
        })?;
        let facts = json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(tensor.name.clone(), facts);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // Spaces may follow: the first tensor starts at a page, and so do most that follow, for direct
    // reads.
    header.resize((header.len() + 8).next_multiple_of(DATA_ALIGNMENT) - 8, b' ');
    let failed = |e: std::io::Error| io(operation, path, &e);
    let file = File::create_new(path).map_err(failed)?;
    let mut out = Counted { inner: BufWriter::with_capacity(1 << 20, file), count: 0 };
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    out.write_all(&header).map_err(failed)?;
    for (number, tensor) in tensors.iter().enumerate() {
        let before = out.count;
        fill(number, &mut out)?;
        if Some(out.count - before) != tensor.bytes() {
            let message = format!("{} came with {} bytes", tensor.name, out.count - before);
            return Err(Error::new(ErrorKind::Internal, operation, message));
        }
    }
    let file = out.inner.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)?;
    Ok(end)
}

/// Counts what passes.
struct Counted<W> {
    inner: W,
    count: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
