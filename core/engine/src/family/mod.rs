//! A family says what a model computes: its weights in units, its graph in ops. One file each.

mod llama;

use crate::weights::Table;
use kvern_contract::{
    Access, Error, ErrorKind, KvLayer, LayerIndex, Op, Result, Role, Slice, View, Weight,
};
use kvern_model::Model;

/// Where a matrix stands in the family's list of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Matrix(pub usize);
/// Where a vector (a norm's weight, a bias) stands in the family's list of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Vector(pub usize);
/// Where a buffer of activations stands in the family's list of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Scratch(pub usize);

/// A piece of weights that moves as one.
pub(crate) struct UnitPlan {
    pub layer: Option<LayerIndex>,
    pub role: Role,
    pub access: Access,
    pub matrices: Vec<Matrix>,
}

/// What the engine has to know of a model.
pub(crate) struct Plan {
    /// Names of matrices, by [`Matrix`].
    pub matrices: Vec<String>,
    /// Names of vectors, by [`Vector`]: kept in memory, in f32.
    pub vectors: Vec<String>,
    /// Units, in the order of a sweep.
    pub units: Vec<UnitPlan>,
    /// Floats a row of each buffer of activations, by [`Scratch`].
    pub scratch: Vec<u32>,
    /// Of these, what a feed-forward block alone uses: rows of one of its chunks.
    pub dense: Vec<Scratch>,
    /// What each decoder layer keeps.
    pub layers: Vec<KvLayer>,
    /// Query heads and channels.
    pub attention: Vec<AttentionPlan>,
    /// The embedding table, and what its rows are multiplied by.
    pub embedding: (Matrix, f32),
    /// Values of a hidden row.
    pub hidden: u32,
    /// Ids that the head knows.
    pub vocabulary: u32,
    /// Inverse frequencies, one for two rotated channels.
    pub inverse_frequencies: Vec<f32>,
    /// Tokens that the model was made for.
    pub context_tokens: u64,
}

/// Attention of one layer.
pub(crate) struct AttentionPlan {
    pub heads: u32,
    pub scale: f32,
    pub softcap: f32,
    pub window: u32,
    pub interleaved: bool,
    pub q: Scratch,
    pub k: Scratch,
    pub v: Scratch,
    pub out: Scratch,
}

/// Places of what a list of ops names.
pub(crate) struct Places<'a> {
    pub scratch: &'a [Slice],
    pub table: &'a Table,
    /// The first row, of buffers that have all rows of a step.
    pub first: u32,
    pub rows: u32,
}

impl Places<'_> {
    pub(crate) fn slice(&self, scratch: Scratch) -> Slice {
        self.scratch[scratch.0]
    }
    pub(crate) fn weight(&self, matrix: Matrix) -> Weight {
        self.table.matrices[matrix.0]
    }
    pub(crate) fn vector(&self, vector: Vector) -> Weight {
        self.table.vectors[vector.0]
    }
    pub(crate) fn bias(&self, vector: Option<Vector>) -> Slice {
        vector.map_or(Slice::default(), |v| self.vector(v).data)
    }
    /// Whole rows of `width` values, from the first row on.
    pub(crate) fn rows_of(&self, scratch: Scratch, width: u32) -> View {
        let mut at = self.slice(scratch);
        at.offset += 4 * u64::from(self.first) * u64::from(width);
        View { at, row: width, group: width, step: 1 }
    }
}

/// A feed-forward block in chunks of at most `most` rows, one after another: no row knows of
/// another, so the bits are those of all rows at once, and the widest buffers hold a chunk.
pub(crate) fn feed_forward(
    family: &dyn Family,
    layer: usize,
    at: &Places<'_>,
    most: u32,
    list: &mut Vec<Op>,
) {
    for first in (0..at.rows).step_by(most.max(1) as usize) {
        let rows = most.max(1).min(at.rows - first);
        family.feed_forward(layer, &Places { first, rows, ..*at }, list);
    }
}

/// Where the residual stream lies, in every family.
pub(crate) const RESIDUAL: Scratch = Scratch(0);

/// A model's graph.
pub(crate) trait Family: Send {
    /// What the engine has to know.
    fn plan(&self) -> &Plan;
    /// From the residual stream to q, k and v.
    fn before_attention(&self, layer: usize, at: &Places<'_>, list: &mut Vec<Op>);
    /// From attention's output back into the residual stream, by the same unit.
    fn after_attention(&self, layer: usize, at: &Places<'_>, list: &mut Vec<Op>);
    /// The rest of the layer, by its second unit; for a chunk of the rows.
    fn feed_forward(&self, layer: usize, at: &Places<'_>, list: &mut Vec<Op>);
    /// From chosen rows of the residual stream (`indices` u32 `[row]`) to logits.
    fn head(&self, indices: Slice, logits: Slice, at: &Places<'_>, list: &mut Vec<Op>);
}

/// The family of a model. *Errors* Unsupported: no family has its architecture.
pub(crate) fn of(model: &Model) -> Result<Box<dyn Family>> {
    match model.config().architecture.as_str() {
        "LlamaForCausalLM" => Ok(Box::new(llama::Llama::new(model)?)),
        other => Err(Error::new(
            ErrorKind::Unsupported,
            "engine/load",
            format!("architecture {other} has no family here; known: LlamaForCausalLM"),
        )),
    }
}
