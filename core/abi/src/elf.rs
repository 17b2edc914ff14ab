//! A library as a file: whether the loader may be let near it, and bytes behind its symbols,
//! without running any of its code. A cut-short library would otherwise be SIGBUS in the loader, a
//! foreign one would run its constructors.

use kvern_contract::{Error, ErrorKind, Result};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const LOAD: u32 = 1;
const NOBITS: u32 = 8;
const DYNSYM: u32 = 11;
/// Bytes of a table above which it is refused unread.
const TABLE: u64 = 256 << 20;

/// Part of the file under a virtual address.
struct Segment {
    kind: u32,
    address: u64,
    offset: u64,
    bytes: u64,
}

struct Section {
    kind: u32,
    offset: u64,
    bytes: u64,
    link: u32,
}

/// A shared library's file whose tables all lie inside it.
pub struct Image {
    path: PathBuf,
    file: File,
    bytes: u64,
    segments: Vec<Segment>,
    sections: Vec<Section>,
}

/// Little-endian numbers of a table's row; rows are as long as their format says, so nothing is out
/// of range.
struct Row<'a>(&'a [u8]);

impl Row<'_> {
    fn number(&self, at: usize, bytes: usize) -> u64 {
        let part = self.0.get(at..at + bytes).unwrap_or_default();
        part.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    fn u32(&self, at: usize) -> u32 {
        self.number(at, 4) as u32
    }

    fn u64(&self, at: usize) -> u64 {
        self.number(at, 8)
    }
}

fn machine() -> (u64, &'static str) {
    match std::env::consts::ARCH {
        "x86_64" => (62, "x86-64"),
        "aarch64" => (183, "aarch64"),
        "riscv64" => (243, "riscv64"),
        other => (0, other),
    }
}

impl Image {
    /// Opens and checks a library. *Errors* NotFound; Io; Unsupported: not a file, not an ELF
    /// shared library of this machine, cut short.
    pub fn open(path: &Path) -> Result<Image> {
        let io = |e: std::io::Error| {
            let kind = match e.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Io,
            };
            Error::new(kind, "abi/open", format!("{} cannot be opened: {e}", path.display()))
        };
        // Asked before it is opened: opening a pipe would wait for a writer.
        let about = std::fs::metadata(path).map_err(io)?;
        let file = path.to_path_buf();
        let mut image = Image {
            path: file,
            bytes: about.len(),
            file: if about.is_file() {
                File::open(path).map_err(io)?
            } else if about.is_dir() {
                return Err(refuse(path, "it is a directory"));
            } else {
                return Err(refuse(path, "it is not a regular file"));
            },
            segments: Vec::new(),
            sections: Vec::new(),
        };
        image.read_tables()?;
        Ok(image)
    }

    /// Which file it is, in which state: device, inode, bytes, and when it was written.
    pub fn identity(&self) -> Result<[i64; 5]> {
        let about = self.file.metadata().map_err(|e| self.refuse(&e.to_string()))?;
        let (device, inode) = (about.dev() as i64, about.ino() as i64);
        Ok([device, inode, about.size() as i64, about.mtime(), about.mtime_nsec()])
    }

    /// Why this file is no plugin.
    pub fn refuse(&self, why: &str) -> Error {
        refuse(&self.path, why)
    }

    fn read(&self, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        self.inside(offset, bytes)?;
        let small = usize::try_from(bytes).ok().filter(|_| bytes <= TABLE);
        let Some(length) = small else {
            return Err(self.refuse("its tables are larger than any plugin's"));
        };
        let mut out = vec![0; length];
        self.file.read_exact_at(&mut out, offset).map_err(|e| {
            Error::new(ErrorKind::Io, "abi/open", format!("{}: {e}", self.path.display()))
        })?;
        Ok(out)
    }

    fn inside(&self, offset: u64, bytes: u64) -> Result<()> {
        let end = offset.checked_add(bytes);
        if end.is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        let (have, end) = (self.bytes, end.unwrap_or(u64::MAX));
        Err(self.refuse(&format!(
            "it is cut short: its tables reach to byte {end}, it has {have}; copy it again"
        )))
    }

    fn read_tables(&mut self) -> Result<()> {
        let start = self.read(0, self.bytes.min(64))?;
        if !start.starts_with(b"\x7fELF") {
            let text =
                !start.is_empty() && start.iter().all(|b| matches!(b, 9 | 10 | 13 | 32..=126));
            let what = match (start.is_empty(), text) {
                (true, _) => "it is empty",
                (_, true) => "it is a text file",
                _ => "it is not an ELF library",
            };
            return Err(self.refuse(what));
        }
        let head = Row(&start);
        if start.get(4) == Some(&1) {
            return Err(self.refuse("it is a 32-bit library, this host is 64-bit"));
        }
        self.inside(0, 64)?;
        if start.get(4..6) != Some(&[2, 1]) {
            return Err(self.refuse("its ELF class or byte order is not this machine's"));
        }
        let (number, name) = machine();
        if head.number(18, 2) != number {
            let other = head.number(18, 2);
            return Err(self.refuse(&format!(
                "it was built for ELF machine {other}, this host is {name} ({number})"
            )));
        }
        if head.number(16, 2) != 3 {
            return Err(self.refuse("it is an object file or a program, not a shared library"));
        }
        self.read_segments(&head)?;
        self.read_sections(&head)
    }

    fn read_segments(&mut self, head: &Row<'_>) -> Result<()> {
        if head.number(54, 2) != 56 || head.number(56, 2) == 0 {
            return Err(self.refuse("it has no program headers"));
        }
        let table = self.read(head.u64(32), head.number(56, 2) * 56)?;
        for row in table.chunks_exact(56).map(Row) {
            let segment = Segment {
                kind: row.u32(0),
                offset: row.u64(8),
                address: row.u64(16),
                bytes: row.u64(32),
            };
            self.inside(segment.offset, segment.bytes)?;
            self.segments.push(segment);
        }
        Ok(())
    }

    fn read_sections(&mut self, head: &Row<'_>) -> Result<()> {
        if head.number(58, 2) != 64 || head.number(60, 2) == 0 {
            return Err(self.refuse("it has no section headers"));
        }
        let table = self.read(head.u64(40), head.number(60, 2) * 64)?;
        for row in table.chunks_exact(64).map(Row) {
            let section = Section {
                kind: row.u32(4),
                offset: row.u64(24),
                bytes: row.u64(32),
                link: row.u32(40),
            };
            if section.kind != NOBITS {
                self.inside(section.offset, section.bytes)?;
            }
            self.sections.push(section);
        }
        Ok(())
    }

    /// The address and length of an exported symbol. *Errors* Unsupported: a damaged symbol table.
    pub fn symbol(&self, name: &str) -> Result<Option<(u64, u64)>> {
        // A library has one such table; of more, all but the first are noise.
        let Some(table) = self.sections.iter().find(|section| section.kind == DYNSYM) else {
            return Ok(None);
        };
        let names = self.sections.get(table.link as usize);
        let names = names.ok_or_else(|| self.refuse("its symbol table has no names"))?;
        let names = self.read(names.offset, names.bytes)?;
        let rows = self.read(table.offset, table.bytes)?;
        for row in rows.chunks_exact(24).map(Row) {
            let found = names.get(row.u32(0) as usize..).unwrap_or_default();
            let defined = row.number(6, 2) != 0;
            if defined && found.strip_prefix(name.as_bytes()).is_some_and(|r| r.first() == Some(&0))
            {
                return Ok(Some((row.u64(8), row.u64(16))));
            }
        }
        Ok(None)
    }

    /// Bytes under an address as the file has them: constant data that needs no relocation.
    /// *Errors* Unsupported: no segment holds them.
    pub fn bytes_at(&self, address: u64, bytes: u64) -> Result<Vec<u8>> {
        let holds = |s: &&Segment| {
            let inner = address.checked_sub(s.address).and_then(|at| at.checked_add(bytes));
            s.kind == LOAD && inner.is_some_and(|end| end <= s.bytes)
        };
        let segment = self.segments.iter().find(holds);
        let segment = segment.ok_or_else(|| self.refuse("a symbol points outside of its data"))?;
        self.read(segment.offset + (address - segment.address), bytes)
    }
}

fn refuse(path: &Path, why: &str) -> Error {
    let message = format!("{} is not a Kvern plugin: {why}", path.display());
    Error::new(ErrorKind::Unsupported, "abi/open", message)
}
