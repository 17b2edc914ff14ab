//! Bad ranges, tables and parameters: an error, never a read.

use crate::harness::*;
use kvern_contract::*;

fn refused(rig: &mut Rig, op: Op, part: &str) {
    let error = rig.device.submit(Queue(0), &[op], &[]).unwrap_err();
    assert!(error.message.contains(part), "{}: {error}, expected {part}", op.name());
}

fn fails(rig: &mut Rig, op: Op) {
    assert_eq!(rig.state(&[op]), FenceState::Failed(ErrorKind::Invalid), "{}", op.name());
}

fn attention(rig: &mut Rig, span: [u32; 5], entry: [u32; 8], pool: usize) -> Op {
    let [row, rows, position, first, count] = span;
    Op::Attention {
        q: rig.zeros(2 * 4),
        out: rig.zeros(2 * 4),
        state: Slice::default(),
        spans: rig.words(&[row, rows, position, first, count, 0, 0, 0]),
        entries: rig.words(&entry),
        masks: rig.bytes_at(&[255; 8], 0),
        pool: rig.zeros(pool),
        sinks: Slice::default(),
        sequences: 1,
        heads: 1,
        kv_heads: 1,
        key_dim: 4,
        value_dim: 4,
        scale: 1.0,
        softcap: 0.0,
        window: 0,
        keep: 0,
        causal: true,
        first: true,
        last: true,
    }
}

#[test]
fn attentions_tables_are_checked_before_they_are_followed() {
    let mut rig = Rig::new();
    let page = 64 * 8;
    let good = [0, 0, 0, 64, 1, 0, 0, 0];
    let span = [0, 2, 0, 0, 1];
    let op = attention(&mut rig, span, good, page);
    rig.run(op);
    for (at, value) in [(0, 4), (1, 1), (3, 65), (5, 1), (0, u32::MAX), (5, u32::MAX - 1)] {
        let mut bad = good;
        bad[at] = value;
        let op = attention(&mut rig, span, bad, page);
        fails(&mut rig, op);
    }
    for bad in [[1, 2, 0, 0, 1], [0, u32::MAX, 0, 0, 1], [0, 2, 0, 1, 1], [0, 2, 0, 0, u32::MAX]] {
        let op = attention(&mut rig, bad, good, page);
        fails(&mut rig, op);
    }
    let mut unknown = good;
    unknown[4] = 17;
    let op = attention(&mut rig, span, unknown, page);
    assert_eq!(rig.state(&[op]), FenceState::Failed(ErrorKind::Unsupported));
    let op = attention(&mut rig, [0, 0, 0, 0, 0], good, 1);
    rig.run(op);
}

#[test]
fn ids_indices_positions_and_places_past_the_end_fail_the_fence() {
    let mut rig = Rig::new();
    let (table, _) = rig.weight(&[1.0; 6], 3, 2, WeightEncoding::F32);
    for id in [3, u32::MAX] {
        let (ids, out) = (rig.words(&[id]), rig.zeros(2));
        fails(&mut rig, Op::Embed { ids, table, out, rows: 1, scale: 1.0 });
        for kind in [RowsKind::Gather, RowsKind::Scatter, RowsKind::ScatterAdd] {
            let (x, out) = (rig.zeros(6), rig.zeros(6));
            fails(&mut rig, Op::Rows { x, indices: ids, out, kind, rows: 1, width: 2 });
        }
    }
    for (position, offset, row) in [(4, 0, 0), (0, 1, 0), (0, 0, 64), (0, u32::MAX, 0)] {
        let op = Op::RopeWrite {
            q: rig.zeros(2),
            k: rig.zeros(2),
            v: rig.zeros(2),
            positions: rig.words(&[position]),
            cos: rig.zeros(4),
            sin: rig.zeros(4),
            writes: rig.words(&[offset, offset, row, 0]),
            pool: rig.zeros(64 * 4),
            rows: 1,
            heads: 1,
            kv_heads: 1,
            key_dim: 2,
            value_dim: 2,
            rotary: 2,
            table_rows: 4,
            interleaved: false,
            encoding: 1,
        };
        fails(&mut rig, op);
    }
}

#[test]
fn a_range_that_does_not_fit_is_refused_at_submission() {
    let mut rig = Rig::new();
    let (table, _) = rig.weight(&[1.0; 6], 3, 2, WeightEncoding::F32);
    let (ids, out) = (rig.words(&[0, 1]), rig.zeros(4));
    let embed = |rows, table, out| Op::Embed { ids, table, out, rows, scale: 1.0 };
    refused(&mut rig, embed(3, table, out), "do not fit");
    refused(&mut rig, embed(u32::MAX, table, out), "do not fit");
    refused(&mut rig, embed(2, Weight { outputs: 4, ..table }, out), "do not fit");
    refused(&mut rig, embed(2, Weight { layout: 2, ..table }, out), "no adapted weight");
    refused(&mut rig, embed(2, Weight { layout: 3, ..table }, out), "layout 3");
    refused(&mut rig, embed(2, table, Slice { offset: 1, ..out }), "do not fit");
    refused(&mut rig, embed(2, table, Slice { offset: u64::MAX, ..out }), "do not fit");
    refused(&mut rig, embed(2, table, Slice::default()), "not there");
    let view = View { at: out, row: u32::MAX, group: u32::MAX, step: 1 };
    let kind = MapKind::Copy;
    let big = u32::MAX;
    let map = |out| Op::Map {
        a: out,
        b: out,
        out,
        kind,
        rows: big,
        groups: big,
        width: big,
        scalar: 1.0,
    };
    refused(&mut rig, map(view), "do not fit");
    refused(&mut rig, map(View { step: 2, ..view }), "steps by 2");
    let from = Slice { offset: 1, ..out };
    let copies = [CopyRange { from, to: out, bytes: 16 }];
    assert!(rig.device.copy(Queue(0), &copies, &[]).is_err());
    assert_eq!(rig.device.usage().ops, 0);
}

#[test]
fn a_kept_weight_of_another_form_is_refused() {
    let mut rig = Rig::new();
    let (weight, _) = rig.weight(&[1.0; 6], 3, 2, WeightEncoding::F32);
    let kept = rig.device.adapt(&weight).unwrap();
    let (ids, out) = (rig.words(&[0]), rig.zeros(3));
    let table = Weight { outputs: 2, inputs: 3, ..kept };
    refused(&mut rig, Op::Embed { ids, table, out, rows: 1, scale: 1.0 }, "kept");
}

#[test]
fn ops_that_do_not_run_here_are_refused_by_name() {
    let mut rig = Rig::new();
    let none = Slice::default();
    let kind = RouteKind::SoftmaxThenTop;
    let route = Op::Route {
        logits: none,
        bias: none,
        ids: none,
        weights: none,
        rows: 1,
        experts: 4,
        top: 2,
        kind,
        renormalise: false,
        scale: 1.0,
    };
    assert_eq!(rig.device.supports(&route), Support::No);
    let error = rig.device.submit(Queue(0), &[route], &[]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("Route"), "{error}");
}

#[test]
fn supports_answers_without_buffers_and_tells_scratch() {
    let mut rig = Rig::new();
    let weight = |encoding| Weight { encoding, outputs: 64, inputs: 64, ..Weight::default() };
    let linear = |encoding, epilogue| Op::Linear {
        x: Slice::default(),
        weights: Few::of(&[weight(encoding)]),
        biases: Few::default(),
        outs: Few::default(),
        rows: 0,
        epilogue,
        limit: 0.0,
        alpha: 0.0,
    };
    for encoding in ENCODINGS {
        match rig.device.supports(&linear(encoding, Epilogue::None)) {
            Support::Yes { workspace_bytes } => assert!(workspace_bytes >= 64 * 64 * 4),
            Support::No => panic!("{encoding:?} is refused"),
        }
    }
    let error = rig.device.submit(Queue(0), &[linear(WeightEncoding::F32, Epilogue::None)], &[]);
    assert_eq!(error.unwrap_err().kind, ErrorKind::Invalid, "no operands");
    assert_eq!(rig.device.supports(&linear(WeightEncoding::Int8, Epilogue::None)), Support::No);
    assert_eq!(rig.device.supports(&linear(WeightEncoding::F32, Epilogue::Clamped)), Support::No);
    assert_eq!(rig.device.supports(&linear(WeightEncoding::F32, Epilogue::SiluGated)), Support::No);
}
