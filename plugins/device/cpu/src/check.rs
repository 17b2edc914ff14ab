//! From ops to tasks: whether this device runs an op, and whether every extent lies inside its
//! buffers.
//!
//! `supported` looks at parameters alone. `task` resolves buffers too: after it, no kernel can
//! leave them, save through tables, which are checked when the task runs.

use crate::attention_check;
use crate::kernels;
use crate::memory::Memory;
use crate::task::*;
use kvern_contract::{
    Error, ErrorKind, KvEncoding, MapKind, Op, Result, RowsKind, Slice, View, Weight,
    WeightEncoding,
};

/// Why an op is refused: what kind of refusal, and what was found.
pub(crate) type Refusal = (ErrorKind, String);

pub(crate) fn invalid<T>(line: impl Into<String>) -> std::result::Result<T, Refusal> {
    Err((ErrorKind::Invalid, line.into()))
}

pub(crate) fn unsupported<T>(line: impl Into<String>) -> std::result::Result<T, Refusal> {
    Err((ErrorKind::Unsupported, line.into()))
}

/// Buffers, as ops name them.
pub(crate) struct Places<'a>(pub &'a Memory);

impl Places<'_> {
    /// A place with room for a product of sizes, in bytes.
    pub fn at(
        &self,
        what: &str,
        place: Slice,
        sizes: &[u64],
    ) -> std::result::Result<*mut u8, Refusal> {
        let bytes = sizes.iter().try_fold(1u64, |all, size| all.checked_mul(*size));
        let (address, rest) = self.rest(what, place)?;
        match bytes {
            Some(bytes) if bytes <= rest => Ok(address),
            Some(bytes) => invalid(format!(
                "{what} needs {bytes} bytes at offset {} of buffer {}, which has {rest} there",
                place.offset, place.buffer.0
            )),
            None => invalid(format!("{what} is larger than an address space")),
        }
    }

    /// A place that may be none: null.
    pub fn maybe(
        &self,
        what: &str,
        place: Slice,
        sizes: &[u64],
    ) -> std::result::Result<*mut u8, Refusal> {
        if place.buffer.0 == 0 { Ok(std::ptr::null_mut()) } else { self.at(what, place, sizes) }
    }

    /// A place, and the bytes behind it.
    pub fn rest(&self, what: &str, place: Slice) -> std::result::Result<(*mut u8, u64), Refusal> {
        let found = self.0.reach(place);
        found.map_or_else(
            || {
                let (buffer, offset) = (place.buffer.0, place.offset);
                invalid(format!("{what} is at offset {offset} of buffer {buffer}: there is none"))
            },
            Ok,
        )
    }

    /// A view of so many rows, groups and values; `write`: no two values share a place.
    fn view(
        &self,
        what: &str,
        view: &View,
        counts: [u32; 3],
        write: bool,
    ) -> std::result::Result<Strided, Refusal> {
        let strides = [view.row, view.group, view.step];
        if view.step > 1 {
            return invalid(format!("{what} steps by {} floats; 0 or 1 are known", view.step));
        }
        let mut last = 0u64;
        for (count, stride) in counts.into_iter().zip(strides) {
            if write && stride == 0 && count > 1 {
                return invalid(format!("{what} puts {count} values in one place"));
            }
            let far = u64::from(count.saturating_sub(1)) * u64::from(stride);
            last = last.saturating_add(far);
        }
        let floats = if counts.contains(&0) { 0 } else { last.saturating_add(1) };
        let at = self.at(what, view.at, &[floats, 4])?.cast();
        let [row, group, step] = strides.map(|s| s as usize);
        Ok(Strided { at, row, group, step })
    }
}

/// The form of a weight that kernels read.
fn dtype(what: &str, weight: &Weight) -> std::result::Result<Dtype, Refusal> {
    if weight.layout != 0 {
        return unsupported(format!("{what} has layout {}; only 0 is known", weight.layout));
    }
    match weight.encoding {
        WeightEncoding::Bf16 => Ok(Dtype::Bf16),
        WeightEncoding::F16 => Ok(Dtype::F16),
        WeightEncoding::F32 => Ok(Dtype::F32),
        other => unsupported(format!("{what} is {other:?}; bf16, f16 and f32 are known")),
    }
}

fn bytes(dtype: Dtype) -> u64 {
    match dtype {
        Dtype::Bf16 | Dtype::F16 => 2,
        Dtype::F32 => 4,
    }
}

/// Floats of scratch above which an op is refused: 256 MiB, far above any model's.
const SCRATCH: usize = 1 << 26;

fn modest(need: Need) -> std::result::Result<Need, Refusal> {
    match need.own.max(need.shared) {
        0..=SCRATCH => Ok(need),
        floats => unsupported(format!("scratch of {floats} floats; {SCRATCH} are the most")),
    }
}

/// Scratch of an op, or why it does not run here; buffers are not looked at.
pub(crate) fn supported(op: &Op, workers: usize) -> std::result::Result<Need, Refusal> {
    parameters(op, workers).and_then(modest)
}

/// The same of a scratch of any size.
fn parameters(op: &Op, workers: usize) -> std::result::Result<Need, Refusal> {
    match op {
        Op::Embed { table, .. } => dtype("the table", table).map(|_| Need::default()),
        Op::Norm { weight, groups, width, .. } => {
            if weight.encoding != WeightEncoding::None {
                dtype("the weight", weight)?;
            }
            if *groups == 0 || *width == 0 {
                return invalid("a norm of nothing");
            }
            Ok(Need::default())
        }
        Op::Linear { weights, epilogue, .. } => {
            use kvern_contract::Epilogue::{Clamped, GeluTanhGated, SiluGated};
            let weights = weights.as_slice();
            let Some(first) = weights.first() else { return invalid("no weight") };
            for weight in weights {
                dtype("a weight", weight)?;
                if weight.inputs != first.inputs || weight.inputs == 0 || weight.outputs == 0 {
                    return invalid(format!(
                        "a weight of {} by {} beside one of {} inputs",
                        weight.outputs, weight.inputs, first.inputs
                    ));
                }
            }
            let gated = matches!(epilogue, SiluGated | GeluTanhGated);
            if gated && (weights.len() != 2 || weights[1].outputs != first.outputs) {
                return invalid("a gated product wants two weights of one shape");
            }
            if *epilogue == Clamped {
                return unsupported("the clamped epilogue");
            }
            Ok(kernels::linear::NEED)
        }
        Op::RopeWrite { key_dim, rotary, encoding, .. } => {
            if rotary > key_dim || rotary % 2 != 0 {
                return invalid(format!("rotary {rotary} of {key_dim} channels"));
            }
            match kvern_contract::encoding_of(*encoding) {
                Some(KvEncoding::F32 | KvEncoding::F16 | KvEncoding::Bf16) => Ok(Need::default()),
                other => unsupported(format!("writing pages as {other:?}")),
            }
        }
        Op::Attention { .. } => attention_check::supported(op, workers),
        Op::Map { groups, width, .. } if *groups == 0 || *width == 0 => invalid("a map of nothing"),
        Op::Rows { width: 0, .. } => invalid("rows of no width"),
        Op::Top { width, top, .. } if *top == 0 || top > width => {
            invalid(format!("top {top} of {width}"))
        }
        Op::Map { .. } | Op::Rows { .. } | Op::Top { .. } => Ok(Need::default()),
        Op::AttentionMass { .. }
        | Op::Route { .. }
        | Op::Experts { .. }
        | Op::Conv { .. }
        | Op::Delta { .. }
        | Op::DeltaGates { .. } => unsupported("this op"),
    }
}

/// An op with its places checked and resolved. *Errors* Unsupported, Invalid.
pub(crate) fn task(op: &Op, memory: &Memory, workers: usize) -> Result<Task> {
    let places = Places(memory);
    let task = parameters(op, workers)
        .and_then(|need| resolve(op, &places).and_then(|task| modest(need).map(|_| task)));
    task.map_err(|(kind, line)| {
        let line = format!("{}: {line}", op.name().to_lowercase());
        Error::new(kind, "device/submit", line)
    })
}

fn resolve(op: &Op, places: &Places<'_>) -> std::result::Result<Task, Refusal> {
    match *op {
        Op::Embed { ids, table, out, rows, scale } => {
            let dtype = dtype("the table", &table)?;
            let (n, vocabulary, width) =
                (u64::from(rows), u64::from(table.outputs), u64::from(table.inputs));
            Ok(Task::Embed(Embed {
                ids: places.at("ids", ids, &[n, 4])?.cast(),
                table: places.at("the table", table.data, &[vocabulary, width, bytes(dtype)])?,
                dtype,
                vocabulary: table.outputs as usize,
                width: table.inputs as usize,
                out: places.at("out", out, &[n, width, 4])?.cast(),
                rows: rows as usize,
                scale,
            }))
        }
        Op::Norm { .. } => norm(op, places),
        Op::Linear { .. } => linear(op, places),
        Op::RopeWrite { .. } => attention_check::rope(op, places),
        Op::Attention { .. } => attention_check::attention(op, places),
        Op::Map { a, b, out, kind, rows, groups, width, scalar } => {
            let counts = [rows, groups, width];
            let two = matches!(
                kind,
                MapKind::Add | MapKind::Mul | MapKind::SigmoidMul | MapKind::SiluMul
            );
            let a = places.view("a", &a, counts, false)?;
            Ok(Task::Map(Map {
                a,
                b: if two { places.view("b", &b, counts, false)? } else { a },
                out: places.view("out", &out, counts, true)?,
                kind,
                rows: rows as usize,
                groups: groups as usize,
                width: width as usize,
                scalar,
            }))
        }
        Op::Rows { x, indices, out, kind, rows, width } => {
            let (n, row) = (u64::from(rows), 4 * u64::from(width));
            let gather = kind == RowsKind::Gather;
            let (free, ranged) = if gather { (x, out) } else { (out, x) };
            let (indexed, rest) = places.rest(if gather { "x" } else { "out" }, free)?;
            let listed = places.at(if gather { "out" } else { "x" }, ranged, &[n, row])?;
            let (x, out) = if gather { (indexed, listed) } else { (listed, indexed) };
            Ok(Task::Rows(Rows {
                x: x.cast(),
                indices: places.at("indices", indices, &[n, 4])?.cast(),
                out: out.cast(),
                kind,
                rows: rows as usize,
                width: width as usize,
                bound: rest / row,
            }))
        }
        Op::Top { logits, ids, values, rows, width, top } => {
            let (n, w, t) = (u64::from(rows), u64::from(width), u64::from(top));
            Ok(Task::Top(Top {
                logits: places.at("logits", logits, &[n, w, 4])?.cast(),
                ids: places.at("ids", ids, &[n, t, 4])?.cast(),
                values: places.at("values", values, &[n, t, 4])?.cast(),
                rows: rows as usize,
                width: width as usize,
                top: top as usize,
            }))
        }
        _ => unsupported("this op"),
    }
}

fn norm(op: &Op, places: &Places<'_>) -> std::result::Result<Task, Refusal> {
    let Op::Norm { x, weight, bias, gate, out, kind, rows, groups, width, eps } = *op else {
        return unsupported("this op");
    };
    let counts = [rows, groups, width];
    let n = u64::from(width);
    let weight = match weight.encoding {
        WeightEncoding::None => None,
        _ => {
            let dtype = dtype("the weight", &weight)?;
            let count = u64::from(weight.outputs.max(1)) * u64::from(weight.inputs.max(1));
            if count != n {
                return invalid(format!("a weight of {count} values for groups of {n}"));
            }
            Some((places.at("the weight", weight.data, &[n, bytes(dtype)])?.cast_const(), dtype))
        }
    };
    let gated = gate.at.buffer.0 != 0;
    Ok(Task::Norm(Norm {
        x: places.view("x", &x, counts, false)?,
        weight,
        bias: places.maybe("the bias", bias, &[n, 4])?.cast(),
        gate: if gated { Some(places.view("the gate", &gate, counts, false)?) } else { None },
        out: places.view("out", &out, counts, true)?,
        kind,
        rows: rows as usize,
        groups: groups as usize,
        width: width as usize,
        eps,
    }))
}

fn linear(op: &Op, places: &Places<'_>) -> std::result::Result<Task, Refusal> {
    let Op::Linear { x, weights, biases, outs, rows, epilogue, .. } = *op else {
        return unsupported("this op");
    };
    let (weights, biases, outs) = (weights.as_slice(), biases.as_slice(), outs.as_slice());
    let n = u64::from(rows);
    let mut parts = Vec::with_capacity(4);
    let gated = {
        use kvern_contract::Epilogue::{GeluTanhGated, SiluGated};
        matches!(epilogue, SiluGated | GeluTanhGated)
    };
    for (index, weight) in weights.iter().enumerate() {
        let dtype = dtype("a weight", weight)?;
        let (outputs, inputs) = (u64::from(weight.outputs), u64::from(weight.inputs));
        let out = outs.get(index).copied().unwrap_or_default();
        parts.push(Part {
            weight: places.at("a weight", weight.data, &[outputs, inputs, bytes(dtype)])?,
            dtype,
            outputs: weight.outputs as usize,
            bias: places
                .maybe("a bias", biases.get(index).copied().unwrap_or_default(), &[outputs, 4])?
                .cast(),
            out: match gated && index > 0 {
                true => std::ptr::null_mut(),
                false => places.at("an output", out, &[n, outputs, 4])?.cast(),
            },
        });
    }
    let Some(first) = parts.first().copied() else { return invalid("no weight") };
    let inputs = weights.first().map_or(0, |w| w.inputs);
    let count = parts.len();
    parts.resize(4, first);
    let [a, b, c, d] = parts[..] else { return invalid("more than four weights") };
    Ok(Task::Linear(Linear {
        x: places.at("x", x, &[n, u64::from(inputs), 4])?.cast(),
        inputs: inputs as usize,
        rows: rows as usize,
        parts: [a, b, c, d],
        count,
        epilogue,
    }))
}
