//! Every op in plain f64, from the words of the contract: what it writes, and where. Slow, and
//! meant to be read beside the table of ops.
//!
//! Where the contract has bits depend on nothing (a history in parts, experts in waves, a replay),
//! what is carried is rounded to f32 after each piece, as it is in memory.

mod attention;
mod experts;
mod image;
mod plain;
mod recurrent;
mod stored;

pub use image::{Image, Value, Write};

use image::{invalid, unsupported};
use kvern_contract::*;

/// What an op writes, in order.
///
/// # Errors
/// Unsupported, Invalid: it names what is not there.
pub fn writes(op: &Op, image: &Image) -> Result<Vec<Write>> {
    supported(op)?;
    match op {
        Op::Embed { .. } => plain::embed(op, image),
        Op::Norm { .. } => plain::norm(op, image),
        Op::Linear { .. } => plain::linear(op, image),
        Op::RopeWrite { .. } => attention::rope_write(op, image),
        Op::Attention { .. } => attention::attention(op, image),
        Op::AttentionMass { .. } => attention::mass(op, image),
        Op::Route { .. } => experts::route(op, image),
        Op::Experts { .. } => experts::experts(op, image),
        Op::Conv { .. } => recurrent::conv(op, image),
        Op::Delta { .. } => recurrent::delta(op, image),
        Op::DeltaGates { .. } => recurrent::gates(op, image),
        Op::Map { .. } => plain::map(op, image),
        Op::Rows { .. } => plain::rows(op, image),
        Op::Top { .. } => plain::top(op, image),
    }
}

/// Whether an op makes sense, by its parameters alone.
///
/// # Errors
/// Unsupported, Invalid.
pub fn supported(op: &Op) -> Result<()> {
    let ensure = |holds: bool| if holds { Ok(()) } else { invalid(op.name()) };
    match *op {
        Op::Embed { table, .. } => {
            stored::check(&table)?;
            ensure(table.layout == 0)
        }
        Op::Norm { weight, groups, width, .. } => {
            ensure(groups > 0 && width > 0)?;
            let weight =
                Weight { outputs: weight.outputs.max(1), inputs: weight.inputs.max(1), ..weight };
            if weight.encoding == WeightEncoding::None { Ok(()) } else { stored::check(&weight) }
        }
        Op::Linear { weights, epilogue, .. } => {
            let weights = weights.as_slice();
            let Some(first) = weights.first() else { return invalid("no weight") };
            weights.iter().try_for_each(stored::check)?;
            ensure(weights.iter().all(|w| w.inputs == first.inputs))?;
            match epilogue {
                Epilogue::SiluGated | Epilogue::GeluTanhGated => {
                    ensure(weights.len() == 2 && weights[1].outputs == first.outputs)
                }
                Epilogue::Clamped => ensure(weights.len() == 1 && first.outputs % 2 == 0),
                _ => Ok(()),
            }
        }
        Op::RopeWrite { key_dim, rotary, encoding, .. } => {
            ensure(rotary % 2 == 0 && rotary <= key_dim)?;
            match encoding_of(encoding) {
                Some(KvEncoding::F32 | KvEncoding::F16 | KvEncoding::Bf16) => Ok(()),
                other => unsupported(format!("rows of pages in {other:?}")),
            }
        }
        Op::Attention { heads, kv_heads, key_dim, value_dim, .. }
        | Op::AttentionMass { heads, kv_heads, key_dim, value_dim, .. } => {
            ensure(kv_heads > 0 && heads > 0 && key_dim > 0 && value_dim > 0)?;
            ensure(heads % kv_heads == 0)
        }
        Op::Route { experts, top, .. } => ensure(top > 0 && top <= experts),
        Op::Experts { gate, up, down, epilogue, .. } => {
            use Epilogue::*;
            stored::check(&gate)?;
            stored::check(&down)?;
            let halved = if epilogue == Clamped { 2 } else { 1 };
            ensure(gate.outputs == halved * down.inputs && gate.inputs == down.outputs)?;
            match epilogue {
                SiluGated | GeluTanhGated => {
                    stored::check(&up)?;
                    ensure((up.outputs, up.inputs) == (gate.outputs, gate.inputs))
                }
                Add => unsupported("experts that add before they are weighted"),
                _ => Ok(()),
            }
        }
        Op::Conv { weight, channels, kernel, .. } => {
            ensure(weight.outputs == channels && weight.inputs == kernel)?;
            stored::check(&weight)
        }
        Op::Delta { heads, key_heads, key_dim, value_dim, .. } => {
            ensure(heads > 0 && key_heads > 0 && key_dim > 0 && value_dim > 0)?;
            ensure(heads % key_heads == 0)
        }
        Op::DeltaGates { groups, width, .. } | Op::Map { groups, width, .. } => {
            ensure(groups > 0 && width > 0)
        }
        Op::Rows { width, .. } => ensure(width > 0),
        Op::Top { width, top, .. } => ensure(top > 0 && top <= width),
    }
}
