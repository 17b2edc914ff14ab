//! Every op against the reference, in all of its modes, in shapes that no vector divides.

use super::super::bench::{Device, held, runs};
use super::super::desk::Desk;
use super::super::samples::{self, ALL};
use super::{always, declined};
use crate::case::need;
use crate::{Case, Check, Promise, Subject};
use kvern_contract::*;

macro_rules! promises { ($($name:ident: $($of:literal $text:literal),+;)*) => { $(
    const $name: &[Promise] = &[$(Promise::new($of, $text)),+];
)* } }
promises! {
    EMBED:
        "Op::Embed" "Rows of a table by id, times `scale`.";
    NORM:
        "Op::Norm" "Norms `groups` of `width` in each row",
        "Op::Norm" "With `gate`, times silu(gate), last.",
        "Op::Norm" "`[width]`; none: 1.",
        "NormKind" "x / sqrt(mean of squares + eps), times w.",
        "NormKind" "As `Rms`, times 1 + w.",
        "NormKind" "(x - mean) / sqrt(variance + eps), times w.",
        "NormKind" "x / sqrt(sum of squares + eps), times w.";
    LINEAR:
        "Op::Linear" "Up to four weights over one input, an f32 bias or none each, an output each.",
        "Op::Linear" "`Epilogue::Add` adds, bias and all.",
        "Epilogue" "silu of each.",
        "Epilogue" "The exact gelu, by erf.",
        "Epilogue" "gelu by the tanh approximation.",
        "Epilogue" "silu(first) * second, into the first output.",
        "Epilogue" "gelu by tanh of the first, times the second, into the first output.",
        "Epilogue" "g = min(gate, limit)",
        "DeviceDescription::weights" "Encodings of weights that it reads.";
    ROPE:
        "Op::RopeWrite" "Rotates the first `rotary` channels of q (in place) and k",
        "Op::RopeWrite" "writes K and V in `encoding` to frames",
        "Op::RopeWrite" "Pairs are neighbours (2i, 2i + 1), else halves (i, i + rotary / 2).",
        "KvEncoding::Bf16" "The upper half of an f32, rounded half to even.";
    ATTENTION:
        "Op::Attention" "Queries against pages.",
        "Op::Attention" "(from `sinks`: m = sink, l = 1)",
        "Op::Attention" "`last` writes a / l to `out`",
        "Op::Attention" "0 where nothing was seen.",
        "Op::Attention" "`[row][head][2 + value_dim]`: m, l, a.",
        "Op::Attention" "What a score is multiplied by.",
        "Op::Attention" "Then scores become softcap tanh(s / softcap); 0: none.",
        "Op::Attention" "Positions that a query sees, its own included; 0: all.",
        "Op::Attention" "The `keep` first positions stay seen.",
        "Op::Attention" "A query sees nothing after itself.",
        "PageEntry::encoding" "pages of one list may differ",
        "PageEntry::mask" "Bit n is row n; set: it is seen.",
        "PageEntry::first" "`packed` is 1, and only the mask decides.",
        "PageEntry::tokens" "Rows filled, 1 to 64.",
        "SpanEntry::position" "Position of the first of them.",
        "DeviceDescription::kv" "Encodings of KV pages that it reads";
    MASS:
        "Op::AttentionMass"
            "probabilities summed over a sequence's rows and a kv head's query heads";
    ROUTE:
        "Op::Route" "The `top` experts of each row, the largest first, ties to the lower id.",
        "Op::Route" "Weights of a row are divided by their sum.",
        "Op::Route" "Then weights are multiplied by it.",
        "RouteKind" "A router's `bias` takes part in the choice, not in the weights.",
        "RouteKind" "softmax over all experts, then the largest.",
        "RouteKind" "The largest, then softmax over them.",
        "RouteKind" "sigmoid of each, then the largest.";
    EXPERTS:
        "Op::Experts" "Chosen experts over rows.",
        "Op::Experts" "Biases go by id, not by slot.",
        "Op::Experts" "or `u32::MAX`: absent, skipped",
        "Op::Experts" "Starts `out` from zero, else it adds.",
        "Weight::stride" "Bytes from one of a stack to the next";
    CONV:
        "Op::Conv" "Depthwise causal convolution, newest input last; silu after.",
        "Op::Conv" "A span at position 0 starts from zeros, whatever the state holds.",
        "Op::Conv" "the last inputs, oldest first";
    DELTA:
        "Op::Delta" "S *= exp(decay); S += k (beta (v - S'k))'; out = S'(scale q).",
        "Op::Delta" "head h has key head h * key_heads / heads",
        "Op::Delta" "`[slot][head][key_dim][value_dim]`, zeros at position 0.";
    MAP:
        "Op::Map" "Element by element, over views.",
        "MapKind" "a + scalar b.",
        "MapKind" "a b.",
        "MapKind" "scalar a.",
        "MapKind" "a sigmoid(b).",
        "MapKind" "a silu(b).",
        "MapKind" "scalar tanh(a / scalar).";
    ROWS:
        "Op::Rows" "Rows by index.",
        "RowsKind" "out row i is x row `indices[i]`",
        "RowsKind" "out row `indices[i]` is x row i",
        "RowsKind" "As `Scatter`, and adds.";
    TOP:
        "Op::Top" "The `top` largest of each row, descending, ties to the lower id.";
    GATES:
        "Op::DeltaGates" "decay = -exp(a_log) softplus(a + dt_bias), a logarithm",
        "Op::DeltaGates" "beta = sigmoid(b)";
    DECLARED:
        "DeviceDescription::weights" "Encodings of weights that it reads.",
        "DeviceDescription::kv" "Encodings of KV pages that it reads";
}

macro_rules! cases { ($($name:literal $promises:ident $make:ident $count:literal
    $reason:literal;)*) => {
    vec![$(Case {
        name: $name,
        promises: $promises,
        skip: |device: &Device| declined(device, samples::$make, $count, $reason),
        check: |subject| held(subject, samples::$make, $count),
    }),*]
} }

pub fn cases() -> Vec<Case<Device>> {
    let declared = always("every_encoding_that_is_declared_is_read", DECLARED, declared);
    let ops = cases! {
        "rows_of_a_table_come_by_id" EMBED embed 12 "Embed does not run here";
        "norms_are_of_every_kind_weight_and_stride" NORM norm 48 "Norm does not run here";
        "products_are_sums_of_products_in_every_encoding_and_what_follows_follows"
            LINEAR linear 64 "Linear does not run here";
        "rope_turns_q_and_k_and_k_and_v_go_to_their_places"
            ROPE rope_write 24 "RopeWrite does not run here";
        "attention_sees_what_a_query_may_see_of_pages_in_every_encoding"
            ATTENTION attention 70 "Attention does not run here";
        "masses_are_the_probabilities_of_attention"
            MASS mass 12 "AttentionMass does not run here";
        "a_router_chooses_and_weighs" ROUTE route 24 "Route does not run here";
        "experts_add_as_they_are_weighed" EXPERTS experts 20 "Experts does not run here";
        "a_convolution_goes_on_from_its_last_inputs" CONV conv 16 "Conv does not run here";
        "the_delta_rule_goes_on_from_its_state" DELTA delta 15 "Delta does not run here";
        "maps_are_of_every_kind_and_stride" MAP map 56 "Map does not run here";
        "rows_are_gathered_scattered_and_added" ROWS rows 9 "Rows does not run here";
        "the_largest_come_first" TOP top 12 "Top does not run here";
        "gates_are_decay_and_beta" GATES gates 6 "DeltaGates does not run here";
    };
    std::iter::once(declared).chain(ops).collect()
}

/// What is declared runs in at least one op, or else all that is said of it is tried by nothing.
fn declared(subject: &Subject<'_, Device>) -> Check {
    let device = subject.instance()?;
    let description = device.describe();
    let mut desk = Desk::new(&description);
    for encoding in &description.weights {
        desk.weights = vec![*encoding];
        let of = |op: &Op| weights_of(op).iter().any(|weight| weight.encoding == *encoding);
        let read = ALL.iter().any(|(_, make, count)| {
            (0..u64::from(*count)).any(|n| {
                desk.dry = true;
                let named = make(&mut desk, n).iter().any(of);
                named && runs(&*device, &mut desk, *make, n, n)
            })
        });
        need(read, || format!("weights in {encoding:?} are declared, and no op with them runs"))?;
    }
    let kv = &description.kv;
    let read = declined(&*device, samples::attention, 8, "").is_none();
    need(read || kv.is_empty(), || format!("pages in {kv:?} are declared, and no Attention runs"))
}

fn weights_of(op: &Op) -> Vec<Weight> {
    match op {
        Op::Embed { table, .. } => vec![*table],
        Op::Norm { weight, .. } | Op::Conv { weight, .. } => vec![*weight],
        Op::Linear { weights, .. } => weights.as_slice().to_vec(),
        Op::Experts { gate, up, down, .. } => vec![*gate, *up, *down],
        _ => Vec::new(),
    }
}
