//! A model's files: where each matrix and vector lies in them.

use super::layout::{Layout, Shape};
use super::{ALIGN, up};
use crate::family::{Plan, UnitPlan};
use crate::spec::WeightPath;
use kvern_contract::{Error, ErrorKind, FileId, FileRead, Result, WeightEncoding};
use kvern_model::{Dtype, Model, WeightFile};
use kvern_storage::{OpenHow, Storage};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// A matrix in its file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub file: FileId,
    pub offset: u64,
    pub bytes: u64,
    pub encoding: WeightEncoding,
    pub outputs: u32,
    pub inputs: u32,
}

/// The files of a model, opened, its matrices in them, and their places in memory.
pub(crate) struct Files {
    pub stored: Vec<Stored>,
    pub vectors: Vec<Stored>,
    /// Of each unit of the plan.
    pub layouts: Vec<Arc<Layout>>,
    /// Every file is read round the page cache.
    pub direct: bool,
    /// Why one is not, where that was asked for.
    pub refused: Option<String>,
    /// Bytes pass through a page cache that cannot keep them.
    pub passing: bool,
}

impl Files {
    /// Opens a model's files, to be read as `how` says. *Errors* of the storage; NotFound for a
    /// tensor that is not there.
    pub(crate) fn open(
        model: &Model,
        plan: &Plan,
        storage: &dyn Storage,
        how: WeightPath,
    ) -> Result<Self> {
        let open = match how {
            WeightPath::Direct => OpenHow::Direct,
            WeightPath::Cached => OpenHow::Read,
            WeightPath::Passing => OpenHow::Passing,
        };
        let mut ids = Vec::new();
        for file in &model.tensors().files {
            ids.push(match file {
                WeightFile::Path(path) => storage.open(path, open)?,
                WeightFile::Memory { name, bytes } => storage.open_memory(name, bytes)?,
            });
        }
        let (mut shapes, mut facts) = (HashMap::new(), Vec::new());
        for id in &ids {
            let fact = storage.facts(*id)?;
            shapes.insert(*id, Shape { align: fact.align, bytes: storage.bytes(*id)? });
            facts.push(fact);
        }
        let find = |name: &String| stored(model, &ids, name);
        let matrices: Vec<Stored> = plan.matrices.iter().map(find).collect::<Result<_>>()?;
        let shape = |file| shapes.get(&file).copied().unwrap_or(Shape { align: 1, bytes: 0 });
        let layout = |unit: &UnitPlan| {
            let of: Vec<Stored> = unit.matrices.iter().map(|m| matrices[m.0]).collect();
            Arc::new(Layout::of(&of, shape))
        };
        Ok(Files {
            layouts: plan.units.iter().map(layout).collect(),
            vectors: plan.vectors.iter().map(find).collect::<Result<_>>()?,
            stored: matrices,
            direct: !facts.is_empty() && facts.iter().all(|f| f.direct),
            passing: how == WeightPath::Passing || facts.iter().any(|f| f.refused.is_some()),
            refused: facts.into_iter().find_map(|f| f.refused),
        })
    }
    /// Bytes that vectors take in f32.
    pub(crate) fn vector_bytes(&self) -> u64 {
        self.vectors.iter().map(|v| up(4 * u64::from(v.inputs), ALIGN)).sum()
    }
}

fn stored(model: &Model, files: &[FileId], name: &str) -> Result<Stored> {
    let bad = |kind, text: String| Error::new(kind, "engine/load", text);
    let tensor = model
        .tensors()
        .get(name)
        .ok_or_else(|| bad(ErrorKind::NotFound, format!("tensor {name} is not in the model")))?;
    let encoding = match tensor.dtype {
        Dtype::Bf16 => WeightEncoding::Bf16,
        Dtype::F16 => WeightEncoding::F16,
        Dtype::F32 => WeightEncoding::F32,
        ref other => {
            let text = format!("tensor {name} is {other:?}; known: bf16, f16, f32");
            return Err(bad(ErrorKind::Unsupported, text));
        }
    };
    let (outputs, inputs) = match tensor.shape[..] {
        [inputs] => (1, inputs),
        [outputs, inputs] => (outputs, inputs),
        _ => return Err(bad(ErrorKind::Invalid, format!("tensor {name} is no matrix or vector"))),
    };
    let small = |n: u64| {
        u32::try_from(n).map_err(|_| bad(ErrorKind::Invalid, format!("tensor {name} is too large")))
    };
    Ok(Stored {
        file: files[tensor.file],
        offset: tensor.offset,
        bytes: tensor.bytes,
        encoding,
        outputs: small(outputs)?,
        inputs: small(inputs)?,
    })
}

pub(super) fn read<'a>(stored: &Stored, into: &'a mut [u8]) -> FileRead<'a> {
    FileRead { file: stored.file, offset: stored.offset, into, done: Ok(()) }
}

pub(super) fn finish(storage: &dyn Storage, reads: &mut [FileRead<'_>]) -> Result<()> {
    storage.read_batch(reads, Duration::MAX)?;
    reads.iter().find_map(|r| r.done.clone().err()).map_or(Ok(()), Err)
}

/// Values of a dtype as f32, exactly.
pub(super) fn widen(raw: &[u8], encoding: WeightEncoding, into: &mut [u8]) {
    let out = into.chunks_exact_mut(4);
    match encoding {
        WeightEncoding::F32 => into.copy_from_slice(raw),
        WeightEncoding::F16 => raw.chunks_exact(2).zip(out).for_each(|(from, to)| {
            let value = half::f16::from_le_bytes([from[0], from[1]]).to_f32();
            to.copy_from_slice(&value.to_le_bytes());
        }),
        _ => raw.chunks_exact(2).zip(out).for_each(|(from, to)| {
            to.copy_from_slice(&[0, 0, from[0], from[1]]);
        }),
    }
}
