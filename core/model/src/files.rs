//! Reading small files whole, with a limit, so that a wrong path never fills the memory.

use crate::error::{invalid, io};
use kvern_contract::Result;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Largest `config.json`, `tokenizer_config.json`, template or generation config, in bytes.
pub(crate) const SMALL_FILE_BYTES: u64 = 16 << 20;
/// Largest `tokenizer.json`, in bytes.
pub(crate) const TOKENIZER_BYTES: u64 = 256 << 20;

/// All bytes of a regular file of at most `most` bytes.
///
/// # Errors
/// `NotFound` or `Io` from the system; `Invalid` where the file is no regular file or larger.
pub(crate) fn read_small(operation: &str, path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| io(operation, path, &e))?;
    let facts = file.metadata().map_err(|e| io(operation, path, &e))?;
    if !facts.is_file() {
        return Err(invalid(operation, format!("{} is not a regular file", path.display())));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(|e| io(operation, path, &e))?;
    if bytes.len() as u64 > most {
        return Err(invalid(
            operation,
            format!("{} is larger than {most} bytes, the limit for such a file", path.display()),
        ));
    }
    Ok(bytes)
}

/// The same for a file that may be absent: `None` then.
pub(crate) fn read_optional(operation: &str, path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
    match path.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => read_small(operation, path, most).map(Some),
    }
}
