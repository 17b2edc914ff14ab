//! Ops of which something is left out or exchanged.

use super::super::Mutant;
use super::{Broken, Device, mutants, whole};
use kvern_contract::*;
use kvern_testkit::Promise;

const NONE: Slice = Slice { buffer: Buffer(0), offset: 0 };

/// Changes fields of one op.
macro_rules! change { ($op:ident { $($field:ident),* } => $change:expr) => {
    |_, op| if let Op::$op { $($field,)* .. } = op { $change }
} }

/// Another word where an op has one.
macro_rules! instead {
    ($op:ident $field:ident: $from:expr => $to:expr) => {
        |_, op| {
            if let Op::$op { $field, .. } = op
                && *$field == $from
            {
                *$field = $to;
            }
        }
    };
}

fn rows() -> Vec<Mutant<Device>> {
    mutants! {
        "Op::Embed" "Rows of a table by id, times `scale`.": "once",
            op: change!(Embed { scale } => *scale = 1.0);
        "Op::Norm" "Norms `groups` of `width` in each row": "the first group",
            op: change!(Norm { groups } => *groups = 1);
        "Op::Norm" "With `gate`, times silu(gate), last.": "no gate",
            op: change!(Norm { gate } => *gate = View::default());
        "Op::Norm" "`[width]`; none: 1.": "none is x",
            op: |_, op| if let Op::Norm { weight, x, width, .. } = op
                && weight.encoding == WeightEncoding::None
            {
                let (encoding, inputs) = (WeightEncoding::F32, *width);
                *weight = Weight { data: x.at, encoding, outputs: 1, inputs, ..Weight::default() };
            };
        "NormKind" "x / sqrt(mean of squares + eps), times w.": "the sum of squares",
            op: instead!(Norm kind: NormKind::Rms => NormKind::L2);
        "NormKind" "As `Rms`, times 1 + w.": "times w",
            op: instead!(Norm kind: NormKind::RmsPlusOne => NormKind::Rms);
        "NormKind" "(x - mean) / sqrt(variance + eps), times w.": "no mean",
            op: instead!(Norm kind: NormKind::Layer => NormKind::Rms);
        "NormKind" "x / sqrt(sum of squares + eps), times w.": "the mean of squares",
            op: instead!(Norm kind: NormKind::L2 => NormKind::Rms);
        "Op::Linear"
            "Up to four weights over one input, an f32 bias or none each, an output each.":
            "no bias", op: change!(Linear { biases } => *biases = Few::default());
        "Op::Linear" "`Epilogue::Add` adds, bias and all.": "it does not add",
            op: instead!(Linear epilogue: Epilogue::Add => Epilogue::None);
        "Epilogue" "silu of each.": "none",
            op: instead!(Linear epilogue: Epilogue::Silu => Epilogue::None);
        "Epilogue" "The exact gelu, by erf.": "by tanh",
            op: instead!(Linear epilogue: Epilogue::Gelu => Epilogue::GeluTanh);
        "Epilogue" "gelu by the tanh approximation.": "by erf",
            op: instead!(Linear epilogue: Epilogue::GeluTanh => Epilogue::Gelu);
        "Epilogue" "silu(first) * second, into the first output.": "gelu",
            op: instead!(Linear epilogue: Epilogue::SiluGated => Epilogue::GeluTanhGated);
        "Epilogue" "gelu by tanh of the first, times the second, into the first output.": "silu",
            op: instead!(Linear epilogue: Epilogue::GeluTanhGated => Epilogue::SiluGated);
        "Epilogue" "g = min(gate, limit)": "no limit",
            op: change!(Linear { limit } => *limit = 1e9);
        "DeviceDescription::weights" "Encodings of weights that it reads.": "f16 is read as bf16",
            op: |_, op| if let Op::Linear { weights, .. } = op {
                let mut all = weights.as_slice().to_vec();
                let halves = all.iter_mut().filter(|w| w.encoding == WeightEncoding::F16);
                halves.for_each(|w| w.encoding = WeightEncoding::Bf16);
                *weights = Few::of(&all);
            };
        "Op::Map" "Element by element, over views.": "a b without strides",
            op: change!(Map { b } => b.row = 0);
        "MapKind" "a + scalar b.": "a b",
            op: instead!(Map kind: MapKind::Add => MapKind::Mul);
        "MapKind" "a b.": "a", op: instead!(Map kind: MapKind::Mul => MapKind::Copy);
        "MapKind" "scalar a.": "a", op: instead!(Map kind: MapKind::Scale => MapKind::Copy);
        "MapKind" "a sigmoid(b).": "a silu(b)",
            op: instead!(Map kind: MapKind::SigmoidMul => MapKind::SiluMul);
        "MapKind" "a silu(b).": "a b", op: instead!(Map kind: MapKind::SiluMul => MapKind::Mul);
        "MapKind" "scalar tanh(a / scalar).": "a",
            op: instead!(Map kind: MapKind::Softcap => MapKind::Copy);
        "Op::Rows" "Rows by index.": "a value less", op: change!(Rows { rows } => *rows -= 1);
        "RowsKind" "out row i is x row `indices[i]`": "the reverse",
            op: instead!(Rows kind: RowsKind::Gather => RowsKind::Scatter);
        "RowsKind" "out row `indices[i]` is x row i": "it adds",
            op: instead!(Rows kind: RowsKind::Scatter => RowsKind::ScatterAdd);
        "RowsKind" "As `Scatter`, and adds.": "it does not add",
            op: instead!(Rows kind: RowsKind::ScatterAdd => RowsKind::Scatter);
        "Op::Top" "The `top` largest of each row, descending, ties to the lower id.":
            "of all but the last", op: change!(Top { width } => if *width > 5 { *width -= 1 });
    }
}

fn pages() -> Vec<Mutant<Device>> {
    mutants! {
        "Op::RopeWrite" "Rotates the first `rotary` channels of q (in place) and k": "none",
            op: change!(RopeWrite { rotary } => *rotary = 0);
        "Op::RopeWrite" "writes K and V in `encoding` to frames": "f16 is bf16",
            op: change!(RopeWrite { encoding } => if *encoding == 2 { *encoding = 3 });
        "Op::RopeWrite" "Pairs are neighbours (2i, 2i + 1), else halves (i, i + rotary / 2).":
            "always halves", op: change!(RopeWrite { interleaved } => *interleaved = false);
        "Op::Attention" "Queries against pages.": "not the last sequence",
            op: change!(Attention { sequences } => *sequences -= 1);
        "Op::Attention" "(from `sinks`: m = sink, l = 1)": "no sinks",
            op: change!(Attention { sinks } => *sinks = NONE);
        "Op::Attention" "`last` writes a / l to `out`": "it writes the state alone",
            op: change!(Attention { state, last } => if state.buffer != Buffer(0) {
                *last = false;
            });
        "Op::Attention" "`[row][head][2 + value_dim]`: m, l, a.": "no state is left",
            op: change!(Attention { state, first, last } => if *first && *last {
                *state = NONE;
            });
        "Op::Attention" "What a score is multiplied by.": "a little less",
            op: change!(Attention { scale } => *scale *= 0.98);
        "Op::Attention" "Then scores become softcap tanh(s / softcap); 0: none.": "none",
            op: change!(Attention { softcap } => *softcap = 0.0);
        "Op::Attention" "Positions that a query sees, its own included; 0: all.": "one more",
            op: change!(Attention { window } => if *window > 0 { *window += 1 });
        "Op::Attention" "The `keep` first positions stay seen.": "one less",
            op: change!(Attention { keep } => *keep = keep.saturating_sub(1));
        "Op::Attention" "A query sees nothing after itself.": "it does",
            op: change!(Attention { causal } => *causal = false);
        "Op::Attention" "State (m, l, a) is set by `first`": "by every op",
            op: change!(Attention { first } => *first = true);
        "Op::AttentionMass"
            "probabilities summed over a sequence's rows and a kv head's query heads":
            "of other scores", op: change!(AttentionMass { scale } => *scale *= 0.98);
    }
}

fn experts() -> Vec<Mutant<Device>> {
    mutants! {
        "Op::Route" "The `top` experts of each row, the largest first, ties to the lower id.":
            "not the last expert", op: change!(Route { experts } => if *experts > 8 {
                *experts -= 1;
            });
        "Op::Route" "Weights of a row are divided by their sum.": "they are not",
            op: change!(Route { renormalise } => *renormalise = false);
        "Op::Route" "Then weights are multiplied by it.": "they are not",
            op: change!(Route { scale } => *scale = 1.0);
        "RouteKind" "A router's `bias` takes part in the choice, not in the weights.": "in nothing",
            op: change!(Route { bias } => *bias = NONE);
        "RouteKind" "softmax over all experts, then the largest.": "softmax over the largest",
            op: instead!(Route kind: RouteKind::SoftmaxThenTop => RouteKind::TopThenSoftmax);
        "RouteKind" "The largest, then softmax over them.": "softmax over all",
            op: instead!(Route kind: RouteKind::TopThenSoftmax => RouteKind::SoftmaxThenTop);
        "RouteKind" "sigmoid of each, then the largest.": "softmax",
            op: instead!(Route kind: RouteKind::SigmoidThenTop => RouteKind::SoftmaxThenTop);
        "Op::Experts" "Chosen experts over rows.": "with other gates",
            op: change!(Experts { epilogue } => if *epilogue == Epilogue::SiluGated {
                *epilogue = Epilogue::GeluTanhGated;
            });
        "Op::Experts" "Starts `out` from zero, else it adds.": "always from zero",
            op: change!(Experts { first } => *first = true);
        "Op::Experts"
            "A row's experts add in ascending id: waves of a few, ascending, give the bits of all \
             at once.": "the last wave is all there is",
            op: change!(Experts { first } => *first = true);
        "Weight::stride" "Bytes from one of a stack to the next": "they follow one another",
            op: change!(Experts { down } => down.stride = 0);
        "Op::Conv" "Depthwise causal convolution, newest input last; silu after.": "no silu",
            op: change!(Conv { silu } => *silu = false);
        "Op::Delta" "S *= exp(decay); S += k (beta (v - S'k))'; out = S'(scale q).": "no scale",
            op: change!(Delta { scale } => *scale = 1.0);
        "Op::Delta" "head h has key head h * key_heads / heads": "all have the first",
            op: change!(Delta { k } => k.group = 0);
        "Op::Delta" "a log from which a rewind replays, with no q and no `out`, to the same bits":
            "of another decay",
            op: change!(Delta { q, decay, beta } => if q.at.buffer == Buffer(0) {
                *decay = *beta;
            });
        "Op::DeltaGates" "decay = -exp(a_log) softplus(a + dt_bias), a logarithm": "another bias",
            op: change!(DeltaGates { dt_bias, a_log } => *dt_bias = *a_log);
        "Op::DeltaGates" "beta = sigmoid(b)": "of a",
            op: change!(DeltaGates { b, a } => *b = *a);
    }
}

pub fn mutants() -> Vec<Mutant<Device>> {
    rows().into_iter().chain(pages()).chain(experts()).collect()
}
