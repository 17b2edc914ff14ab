//! Where each tensor's bytes lie: safetensors headers, parsed defensively, nothing else read.

use crate::error::{damaged, invalid, io, missing};
use crate::files::read_optional;
use kvern_contract::Result;
use safetensors::tensor::{Dtype as Stored, Metadata};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const OPERATION: &str = "model/tensors";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Largest header, and largest index of shards, in bytes; the format's own limit.
const HEADER_BYTES: u64 = 100_000_000;

/// Where a file of weights is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightFile {
    /// On a file system.
    Path(PathBuf),
    /// In this process, for as long as it lives.
    Memory {
        /// What to call it in messages.
        name: String,
        /// The whole safetensors file.
        bytes: &'static [u8],
    },
}

impl fmt::Display for WeightFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightFile::Path(path) => path.display().fmt(f),
            WeightFile::Memory { name, .. } => name.fmt(f),
        }
    }
}

/// Form of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// bfloat16, 2 bytes.
    Bf16,
    /// IEEE half, 2 bytes.
    F16,
    /// IEEE single, 4 bytes.
    F32,
    /// Anything else, by the name that the file gives it; a model of such tensors is refused.
    Other(&'static str),
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::Bf16 => "BF16",
            Dtype::F16 => "F16",
            Dtype::F32 => "F32",
            Dtype::Other(name) => name,
        })
    }
}

impl From<Stored> for Dtype {
    fn from(stored: Stored) -> Dtype {
        match stored {
            Stored::BF16 => Dtype::Bf16,
            Stored::F16 => Dtype::F16,
            Stored::F32 => Dtype::F32,
            Stored::F64 => Dtype::Other("F64"),
            Stored::BOOL => Dtype::Other("BOOL"),
            Stored::U8 => Dtype::Other("U8"),
            Stored::I8 => Dtype::Other("I8"),
            Stored::U16 => Dtype::Other("U16"),
            Stored::I16 => Dtype::Other("I16"),
            Stored::U32 => Dtype::Other("U32"),
            Stored::I32 => Dtype::Other("I32"),
            Stored::U64 => Dtype::Other("U64"),
            Stored::I64 => Dtype::Other("I64"),
            Stored::F4 => Dtype::Other("F4"),
            Stored::F8_E4M3 => Dtype::Other("F8_E4M3"),
            Stored::F8_E5M2 => Dtype::Other("F8_E5M2"),
            Stored::F8_E8M0 => Dtype::Other("F8_E8M0"),
            _ => Dtype::Other("a dtype that is neither BF16, F16 nor F32"),
        }
    }
}

/// One tensor's place and form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Index into [`TensorIndex::files`].
    pub file: usize,
    /// First byte, from the start of the file. A multiple of nothing.
    pub offset: u64,
    /// Length in bytes: elements times the dtype's size.
    pub bytes: u64,
    /// Form of the elements, little endian.
    pub dtype: Dtype,
    /// Rows first; row-major.
    pub shape: Vec<u64>,
}

/// All tensors of a model. Extents lie inside their files, do not overlap and leave no gap.
#[derive(Clone, Debug, Default)]
pub struct TensorIndex {
    /// The files that tensors point into.
    pub files: Vec<WeightFile>,
    /// Length of each file in bytes, as it was when the header was read.
    pub lengths: Vec<u64>,
    tensors: BTreeMap<String, Tensor>,
    headers: Vec<[u8; 32]>,
}

impl TensorIndex {
    /// A tensor by name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// All names, in byte order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors with their names, in byte order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Digests of the files' headers, in the files' order.
    pub(crate) fn headers(&self) -> &[[u8; 32]] {
        &self.headers
    }

    /// The weights of a directory: `model.safetensors`, or the shards that the index names.
    pub(crate) fn open(dir: &Path) -> Result<TensorIndex> {
        let mut index = TensorIndex::default();
        let single = dir.join(SINGLE);
        if single.symlink_metadata().is_ok() {
            index.add_path(&single)?;
            return Ok(index);
        }
        let Some(bytes) = read_optional(OPERATION, &dir.join(INDEX), HEADER_BYTES)? else {
            return Err(missing(OPERATION, without_weights(dir)));
        };
        let weight_map = weight_map(&bytes)?;
        let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
        for shard in &shards {
            index.add_path(&dir.join(shard))?;
        }
        let order: Vec<&str> = shards.into_iter().collect();
        for (name, shard) in &weight_map {
            let held = index.tensors.get(name).map(|t| order[t.file]);
            if held != Some(shard.as_str()) {
                let held = held.unwrap_or("no shard");
                let message = format!("{INDEX} puts {name} into {shard}, found it in {held}");
                return Err(damaged(OPERATION, message));
            }
        }
        Ok(index)
    }

    /// One safetensors file in memory.
    pub(crate) fn memory(name: &str, bytes: &'static [u8]) -> Result<TensorIndex> {
        let mut index = TensorIndex::default();
        let file = WeightFile::Memory { name: name.to_string(), bytes };
        index.add(file, &mut &bytes[..], bytes.len() as u64)?;
        Ok(index)
    }

    fn add_path(&mut self, path: &Path) -> Result<()> {
        let mut file = File::open(path).map_err(|e| io(OPERATION, path, &e))?;
        let facts = file.metadata().map_err(|e| io(OPERATION, path, &e))?;
        if !facts.is_file() {
            return Err(invalid(OPERATION, format!("{} is not a regular file", path.display())));
        }
        self.add(WeightFile::Path(path.to_path_buf()), &mut file, facts.len())
    }

    fn add(&mut self, file: WeightFile, source: &mut dyn Read, length: u64) -> Result<()> {
        let name = file.to_string();
        let (header, start) = read_header(&name, source, length)?;
        let number = self.files.len();
        for (tensor_name, tensor) in parse_header(&name, &header, start, length, number)? {
            if let Some(other) = self.tensors.insert(tensor_name.clone(), tensor) {
                let first = &self.files[other.file];
                let message = format!("{tensor_name} is in {first} and again in {name}");
                return Err(damaged(OPERATION, message));
            }
        }
        self.headers.push(crate::digest::sha256(&[&header]));
        self.files.push(file);
        self.lengths.push(length);
        Ok(())
    }
}

/// The header's JSON and the offset of the first tensor's byte. Reads 8 + n bytes.
fn read_header(name: &str, source: &mut dyn Read, length: u64) -> Result<(Vec<u8>, u64)> {
    let failed = |e: std::io::Error| damaged(OPERATION, format!("{name}: {e}"));
    if length < 8 {
        let message =
            format!("{name} has {length} bytes, expected a safetensors file of at least 8");
        return Err(damaged(OPERATION, message));
    }
    let mut prefix = [0; 8];
    source.read_exact(&mut prefix).map_err(failed)?;
    let n = u64::from_le_bytes(prefix);
    let room = HEADER_BYTES.min(length - 8);
    if n > room {
        let message = format!("{name} names a header of {n} bytes, expected at most {room}");
        return Err(damaged(OPERATION, message));
    }
    let mut header = vec![0; n as usize];
    source.read_exact(&mut header).map_err(failed)?;
    Ok((header, 8 + n))
}

fn parse_header(
    name: &str,
    header: &[u8],
    start: u64,
    length: u64,
    file: usize,
) -> Result<Vec<(String, Tensor)>> {
    let wrong = |e: &dyn fmt::Display| damaged(OPERATION, format!("{name}: header: {e}"));
    serde_json::from_slice::<UniqueKeys>(header).map_err(|e| wrong(&e))?;
    // Deserializing checks: dtype times shape equals the extent, without overflow; extents follow
    // each other from 0 without gap or overlap.
    let metadata: Metadata = serde_json::from_slice(header).map_err(|e| wrong(&e))?;
    let promised = start + metadata.data_len() as u64;
    if promised != length {
        let message = format!("{name} has {length} bytes, expected {promised} by its header");
        return Err(damaged(OPERATION, message));
    }
    let tensor = |(tensor_name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (from, to) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let shape = info.shape.iter().map(|n| *n as u64).collect();
        let dtype = Dtype::from(info.dtype);
        (tensor_name, Tensor { file, offset: start + from, bytes: to - from, dtype, shape })
    };
    Ok(metadata.tensors().into_iter().map(tensor).collect())
}

/// An object in which no key comes twice: of two equal keys a parser would silently keep one.
struct UniqueKeys;

impl<'de> serde::Deserialize<'de> for UniqueKeys {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = UniqueKeys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<UniqueKeys, A::Error> {
                let mut seen = BTreeSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    map.next_value::<IgnoredAny>()?;
                    if !seen.insert(key.clone()) {
                        return Err(serde::de::Error::custom(format!("{key} comes twice")));
                    }
                }
                Ok(UniqueKeys)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// The index's `weight_map`: tensor name to shard, each a plain file name.
fn weight_map(bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    let object = crate::json::parse_object(OPERATION, INDEX, bytes)?;
    let Some(entries) = object.get("weight_map").and_then(|v| v.as_object()) else {
        return Err(damaged(OPERATION, format!("{INDEX}: weight_map is missing")));
    };
    let mut map = BTreeMap::new();
    for (name, shard) in entries {
        let plain = shard.as_str().filter(|s| is_plain_file_name(s));
        let Some(shard) = plain else {
            let message = format!("{INDEX}: {name} is in {shard}, expected a plain file name");
            return Err(damaged(OPERATION, message));
        };
        map.insert(name.clone(), shard.to_string());
    }
    if map.is_empty() {
        return Err(damaged(OPERATION, format!("{INDEX}: weight_map names no tensor")));
    }
    Ok(map)
}

/// Whether a name stays in its directory.
pub(crate) fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty()
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\', '\0'])
        && name.len() <= 255
}

/// Says what is there in place of weights, so that the way out is named.
fn without_weights(dir: &Path) -> String {
    let found = |ending: &str| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.file_name()).find(|n| n.to_string_lossy().ends_with(ending))
    };
    let base = format!("{} holds neither {SINGLE} nor {INDEX}", dir.display());
    if let Some(gguf) = found(".gguf") {
        return format!("{base}, but {}: import it first", gguf.to_string_lossy());
    }
    if let Some(pickle) = found(".bin") {
        let name = pickle.to_string_lossy();
        return format!("{base}, but {name}: pickled weights are never read; get safetensors");
    }
    base
}
