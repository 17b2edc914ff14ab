//! A file that ends after a whole event, whatever happens to it.

use std::fs::File;
use std::io::{Result, Seek, SeekFrom, Write};

/// What can be written to, and perhaps be cut.
pub trait Out: Write {
    /// Forgets what was written after the first so many bytes.
    fn cut(&mut self, bytes: u64) -> Result<()>;
}

impl Out for File {
    fn cut(&mut self, bytes: u64) -> Result<()> {
        self.set_len(bytes)?;
        self.seek(SeekFrom::Start(bytes)).map(|_| ())
    }
}

/// The file, and how much of it is whole.
pub struct Whole<W> {
    out: W,
    bytes: u64,
}

impl<W: Out> Whole<W> {
    pub fn new(out: W) -> Self {
        Whole { out, bytes: 0 }
    }

    /// Adds whole events. *Errors* of the file, which then ends before them where it can be cut,
    /// with its list closed where there is room for that.
    pub fn add(&mut self, text: &str) -> Result<()> {
        if let Err(error) = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            // What was wrong first is what is told.
            let end: &[u8] = if self.bytes > 0 { b"\n]\n" } else { b"" };
            let _ = self.out.cut(self.bytes).and_then(|()| self.out.write_all(end));
            return Err(error);
        }
        self.bytes += text.len() as u64;
        Ok(())
    }
}
