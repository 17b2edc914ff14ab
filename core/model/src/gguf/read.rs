//! The header of a GGUF file, versions 2 and 3, read defensively: keys, values, and where each
//! tensor lies.

use super::dequant::Encoding;
use crate::error::{damaged, io, unsupported};
use kvern_contract::Result;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

const OPERATION: &str = "model/gguf";
/// Most key-value pairs, most tensors, most elements of all arrays together: far above any real
/// file, and what keeps a hostile one from filling the memory.
const KEYS: u64 = 1 << 16;
const TENSORS: u64 = 1 << 17;
const ELEMENTS: u64 = 1 << 22;
const TEXT_BYTES: u64 = 16 << 20;
const DEFAULT_ALIGNMENT: u64 = 32;

/// A value of a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Switch(bool),
    Text(String),
    List(Vec<Value>),
}

/// A tensor of the file.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub encoding: Encoding,
    /// Row-major, rows first.
    pub shape: Vec<u64>,
    /// First byte in the file.
    pub offset: u64,
    pub bytes: u64,
}

/// What a file says before its tensors.
#[derive(Debug)]
pub(super) struct Header {
    pub values: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, Source>,
}

impl Header {
    /// Reads a file's header and checks that every tensor lies inside the file, apart from the
    /// others.
    pub fn read(path: &Path) -> Result<Header> {
        let file = File::open(path).map_err(|e| io(OPERATION, path, &e))?;
        let facts = file.metadata().map_err(|e| io(OPERATION, path, &e))?;
        let name = path.display().to_string();
        if !facts.is_file() {
            return Err(damaged(OPERATION, format!("{name} is not a regular file")));
        }
        let source = BufReader::with_capacity(1 << 16, file);
        let mut reader = Reader { source, at: 0, length: facts.len(), elements: 0, name };
        reader.header()
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn count(&self, key: &str) -> Option<u32> {
        match self.get(key)? {
            Value::Unsigned(n) => u32::try_from(*n).ok(),
            Value::Signed(n) => u32::try_from(*n).ok(),
            _ => None,
        }
    }

    pub fn number(&self, key: &str) -> Option<f32> {
        match self.get(key)? {
            Value::Float(x) => Some(*x as f32),
            _ => None,
        }
    }

    pub fn switch(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Switch(on) => Some(*on),
            _ => None,
        }
    }

    pub fn list(&self, key: &str) -> Option<&[Value]> {
        match self.get(key)? {
            Value::List(list) => Some(list),
            _ => None,
        }
    }
}

struct Reader<R> {
    source: R,
    at: u64,
    length: u64,
    elements: u64,
    name: String,
}

impl<R: Read> Reader<R> {
    fn header(&mut self) -> Result<Header> {
        let magic: [u8; 4] = self.take()?;
        if &magic != b"GGUF" {
            return Err(self.wrong("it does not begin with GGUF".into()));
        }
        let version = u32::from_le_bytes(self.take()?);
        if !(2..=3).contains(&version) {
            let message = format!("{}: GGUF version {version}, known are 2 and 3", self.name);
            return Err(unsupported(OPERATION, message));
        }
        let tensors = self.bounded("tensors", TENSORS)?;
        let keys = self.bounded("keys", KEYS)?;
        let mut values = BTreeMap::new();
        for _ in 0..keys {
            let key = self.text()?;
            let kind = u32::from_le_bytes(self.take()?);
            let value = self.value(kind, 0)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(self.wrong(format!("key {key} comes twice")));
            }
        }
        let alignment = match values.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n,
            Some(other) => return Err(self.wrong(format!("general.alignment is {other:?}"))),
        };
        let mut found: Vec<(String, Source)> = Vec::new();
        for _ in 0..tensors {
            found.push(self.tensor(alignment)?);
        }
        let start = self.at.next_multiple_of(alignment);
        self.place(&mut found, start)?;
        let count = found.len();
        let tensors: BTreeMap<_, _> = found.into_iter().collect();
        if tensors.len() != count {
            return Err(self.wrong("two tensors have one name".into()));
        }
        Ok(Header { values, tensors })
    }

    fn tensor(&mut self, alignment: u64) -> Result<(String, Source)> {
        let name = self.text()?;
        let dims = u32::from_le_bytes(self.take()?);
        if !(1..=4).contains(&dims) {
            return Err(self.wrong(format!("{name} has {dims} dimensions, expected 1 to 4")));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            shape.push(u64::from_le_bytes(self.take()?));
        }
        let code = u32::from_le_bytes(self.take()?);
        let offset = u64::from_le_bytes(self.take()?);
        let Some(encoding) = Encoding::of(code) else {
            let kind = Encoding::name_of(code);
            let message = format!("{}: {name} is {kind}, known: {}", self.name, Encoding::KNOWN);
            return Err(unsupported(OPERATION, message));
        };
        let row = shape[0];
        if !row.is_multiple_of(encoding.elements()) {
            let block = encoding.elements();
            return Err(self.wrong(format!("{name}: rows of {row} are no multiple of {block}")));
        }
        let elements = shape.iter().try_fold(1u64, |all, n| all.checked_mul(*n));
        let bytes = elements.and_then(|n| (n / encoding.elements()).checked_mul(encoding.bytes()));
        let Some(bytes) = bytes.filter(|_| shape.iter().all(|n| *n > 0)) else {
            return Err(self.wrong(format!("{name} has the impossible shape {shape:?}")));
        };
        if !offset.is_multiple_of(alignment) {
            return Err(
                self.wrong(format!("{name} starts at {offset}, no multiple of {alignment}"))
            );
        }
        shape.reverse();
        Ok((name, Source { encoding, shape, offset, bytes }))
    }

    /// Turns offsets into positions in the file and checks that extents fit and do not overlap.
    fn place(&self, found: &mut [(String, Source)], start: u64) -> Result<()> {
        for (name, source) in found.iter_mut() {
            let at = start.checked_add(source.offset);
            let end = at.and_then(|at| at.checked_add(source.bytes));
            if end.is_none_or(|end| end > self.length) {
                let length = self.length;
                return Err(self.wrong(format!(
                    "{name} ends past the file's {length} bytes: it is truncated"
                )));
            }
            source.offset += start;
        }
        let mut extents: Vec<_> = found.iter().map(|(n, s)| (s.offset, s.bytes, n)).collect();
        extents.sort_unstable();
        match extents.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            Some(pair) => Err(self.wrong(format!("{} and {} overlap", pair[0].2, pair[1].2))),
            None => Ok(()),
        }
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.take()?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.take()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.take()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.take()?))),
            4 => Value::Unsigned(u64::from(u32::from_le_bytes(self.take()?))),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.take()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.take()?))),
            7 => match self.take::<1>()? {
                [0] => Value::Switch(false),
                [1] => Value::Switch(true),
                [other] => return Err(self.wrong(format!("a switch is {other}, expected 0 or 1"))),
            },
            8 => Value::Text(self.text()?),
            9 if depth < 2 => {
                let inner = u32::from_le_bytes(self.take()?);
                let count = self.bounded("elements", ELEMENTS)?;
                self.elements += count;
                if self.elements > ELEMENTS {
                    return Err(self.wrong(format!("more than {ELEMENTS} elements in lists")));
                }
                let mut list = Vec::new();
                for _ in 0..count {
                    list.push(self.value(inner, depth + 1)?);
                }
                Value::List(list)
            }
            9 => return Err(self.wrong("lists of lists of lists".into())),
            10 => Value::Unsigned(u64::from_le_bytes(self.take()?)),
            11 => Value::Signed(i64::from_le_bytes(self.take()?)),
            12 => Value::Float(f64::from_le_bytes(self.take()?)),
            other => return Err(self.wrong(format!("a value of the unknown type {other}"))),
        })
    }

    /// A count of 64 bits that is at most `most` and could still fit into the file.
    fn bounded(&mut self, what: &str, most: u64) -> Result<u64> {
        let count = u64::from_le_bytes(self.take()?);
        let most = most.min(self.length - self.at);
        if count > most {
            return Err(self.wrong(format!("it names {count} {what}, expected at most {most}")));
        }
        Ok(count)
    }

    fn text(&mut self) -> Result<String> {
        let length = self.bounded("bytes of text", TEXT_BYTES)?;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.wrong("a text is not UTF-8".into()))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        if self.length - self.at < bytes.len() as u64 {
            let length = self.length;
            return Err(
                self.wrong(format!("its {length} bytes end inside the header: it is truncated"))
            );
        }
        self.source.read_exact(bytes).map_err(|e| self.wrong(e.to_string()))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn wrong(&self, message: String) -> kvern_contract::Error {
        damaged(OPERATION, format!("{}: {message}", self.name))
    }
}
