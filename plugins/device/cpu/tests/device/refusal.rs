//! What is refused, what fails, and what a failure takes with it: never a crash, never a hang.

use crate::attention::ready;
use crate::pages::{Case, PLAIN, data};
use crate::rig::*;
use kvern_contract::*;
use std::time::{Duration, Instant};

pub fn kind(result: Result<FenceState>) -> ErrorKind {
    match result {
        Err(error) => {
            assert!(!error.message.is_empty() && !error.message.contains('\n'), "{error}");
            error.kind
        }
        Ok(FenceState::Failed(kind)) => kind,
        Ok(state) => panic!("it is {state:?}"),
    }
}

fn scale(at: Slice, width: u32) -> Op {
    let v = View { at, row: width, group: width, step: 1 };
    Op::Map { a: v, b: v, out: v, kind: MapKind::Scale, rows: 1, groups: 1, width, scalar: 2.0 }
}

pub fn linear(rig: &mut Rig) -> Op {
    let data = rig.bytes(&[0; 64]);
    let encoding = WeightEncoding::Bf16;
    let weight = Weight { data, encoding, outputs: 4, inputs: 8, ..Weight::default() };
    Op::Linear {
        x: rig.floats(&[1.0; 16]),
        weights: Few::of(&[weight]),
        biases: Few::default(),
        outs: Few::of(&[rig.room(8)]),
        rows: 2,
        epilogue: Epilogue::None,
        limit: 0.0,
        alpha: 0.0,
    }
}

#[test]
fn ranges_outside_of_buffers_are_refused_before_anything_runs() {
    let mut rig = Rig::open("auto", 2).unwrap();
    let at = rig.floats(&[1.0; 8]);
    for (buffer, offset, width) in [
        (at.buffer, 3, 9),
        (at.buffer, 8, 7),
        (at.buffer, u64::MAX, 1),
        (Buffer(0), 0, 1),
        (Buffer(77 << 20), 0, 1),
    ] {
        let bad = scale(Slice { buffer, offset }, width);
        assert_eq!(kind(rig.try_run(&[scale(at, 8), bad])), ErrorKind::Invalid);
    }
    assert_eq!(rig.read(at, 8), [1.0; 8], "the sound op of a refused list did not run");
    let good = linear(&mut rig);
    rig.run(&[good]);
    let Op::Linear { weights, .. } = good else { return };
    let mut longer = good;
    if let Op::Linear { rows, .. } = &mut longer {
        *rows = 3;
    }
    let mut taller = good;
    if let Op::Linear { weights: w, .. } = &mut taller {
        *w = Few::of(&[Weight { outputs: u32::MAX, inputs: u32::MAX, ..weights.as_slice()[0] }]);
    }
    for bad in [longer, taller] {
        assert_eq!(kind(rig.try_run(&[bad])), ErrorKind::Invalid);
    }
    let over = CopyRange { from: at, to: Slice { offset: 4, ..at }, bytes: 32 };
    assert_eq!(rig.device.copy(Queue(0), &[over], &[]).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn what_is_not_done_here_is_refused_by_name() {
    let mut rig = Rig::open("auto", 1).unwrap();
    let mut clamped = linear(&mut rig);
    if let Op::Linear { epilogue, .. } = &mut clamped {
        *epilogue = Epilogue::Clamped;
    }
    let mut int8 = linear(&mut rig);
    if let Op::Linear { weights, .. } = &mut int8 {
        *weights = Few::of(&[Weight { encoding: WeightEncoding::Int8, ..weights.as_slice()[0] }]);
    }
    let none = Slice::default();
    let route = Op::Route {
        logits: none,
        bias: none,
        ids: none,
        weights: none,
        rows: 1,
        experts: 4,
        top: 2,
        kind: RouteKind::SoftmaxThenTop,
        renormalise: false,
        scale: 1.0,
    };
    for op in [clamped, int8, route] {
        assert_eq!(rig.device.supports(&op), Support::No);
        let error = rig.try_run(&[op]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.message.starts_with(&op.name().to_lowercase()), "{error}");
    }
    let mut bare = linear(&mut rig);
    if let Op::Linear { x, outs, .. } = &mut bare {
        (*x, *outs) = (none, Few::default());
    }
    let Support::Yes { workspace_bytes } = rig.device.supports(&bare) else {
        panic!("a plain product runs, whatever its buffers")
    };
    assert!(workspace_bytes > 0);
}

#[test]
fn ids_and_indices_past_the_end_fail_their_fence() {
    for (_, mut rig) in rigs() {
        let (x, out) = (rig.floats(&[1.0; 30]), rig.room(30));
        let table = Weight {
            data: x,
            encoding: WeightEncoding::F32,
            outputs: 10,
            inputs: 3,
            ..Weight::default()
        };
        let ids = rig.words(&[3, 10]);
        let embed = Op::Embed { ids, table, out, rows: 2, scale: 1.0 };
        assert_eq!(kind(rig.try_run(&[embed])), ErrorKind::Invalid);
        for kinds in [RowsKind::Gather, RowsKind::Scatter, RowsKind::ScatterAdd] {
            let op = Op::Rows { x, indices: ids, out, kind: kinds, rows: 2, width: 3 };
            assert_eq!(kind(rig.try_run(&[op])), ErrorKind::Invalid);
        }
        // The device goes on.
        rig.run(&[scale(x, 30)]);
        assert_eq!(rig.read(x, 30), [2.0; 30]);
    }
}

#[test]
fn bad_spans_and_entries_fail_their_fence() {
    let case = || Case {
        encodings: vec![KvEncoding::Bf16],
        sequences: vec![(3, 100), (1, 300)],
        masks: true,
        ..PLAIN
    };
    let data = data(&case(), 6);
    for (name, rig) in rigs() {
        let mut ready = ready(rig, &case(), &data);
        let Op::Attention { spans, entries, .. } = ready.op else { return };
        let (span_words, entry_words) =
            (ready.rig.words_of(spans, 16), ready.rig.words_of(entries, 8 * 7));
        // Which word of which table, and what is wrong there.
        let bad_spans = [(0, 2), (1, 9), (8, 2), (8, 5), (1, u32::MAX), (4, 99), (3, u32::MAX)];
        let bad_entries =
            [(0, u32::MAX), (1, 1), (3, 65), (4, 0), (4, 255), (4, 1), (5, 99), (6, 2)];
        for (at, word) in bad_spans {
            let mut words = span_words.clone();
            words[at] = word;
            let table = ready.rig.words(&words);
            let mut op = ready.op;
            if let Op::Attention { spans, .. } = &mut op {
                *spans = table;
            }
            let got = kind(ready.rig.try_run(&[op]));
            assert_eq!(got, ErrorKind::Invalid, "{name}: word {at} of spans is {word}");
        }
        for (at, word) in bad_entries {
            let mut words = entry_words.clone();
            // In the last entry.
            let place = words.len() - 8 + at;
            words[place] = word;
            let table = ready.rig.words(&words);
            let mut op = ready.op;
            if let Op::Attention { entries, .. } = &mut op {
                *entries = table;
            }
            let got = kind(ready.rig.try_run(&[op]));
            assert_eq!(got, ErrorKind::Invalid, "{name}: word {at} of entries is {word}");
        }
        ready.rig.run(&[ready.op]);
    }
}

#[test]
fn bad_places_and_positions_fail_their_fence() {
    for (_, mut rig) in rigs() {
        let page = 64 * 8 * 4;
        let pool = rig.bytes(&vec![0; page as usize]);
        for (position, offset, row) in [(4, 0, 0), (0, 1, 0), (0, 0, 64), (0, u32::MAX, 0)] {
            let none = Slice::default();
            let op = Op::RopeWrite {
                q: none,
                k: rig.floats(&[0.0; 8]),
                v: rig.floats(&[0.0; 8]),
                positions: rig.words(&[0, position]),
                cos: rig.floats(&[1.0; 4]),
                sin: rig.floats(&[0.0; 4]),
                writes: rig.words(&[0, 0, 1, 0, offset, 0, row, 0]),
                pool,
                rows: 2,
                heads: 0,
                kv_heads: 1,
                key_dim: 4,
                value_dim: 4,
                rotary: 2,
                table_rows: 4,
                interleaved: false,
                encoding: encoding_word(KvEncoding::F32),
            };
            assert_eq!(kind(rig.try_run(&[op])), ErrorKind::Invalid);
        }
    }
}

#[test]
fn a_failure_takes_what_waits_for_it_and_nothing_else() {
    let mut rig = Rig::open("auto", 2).unwrap();
    let (x, out) = (rig.floats(&[1.0; 4]), rig.room(4));
    let indices = rig.words(&[9]);
    let bad = Op::Rows { x, indices, out, kind: RowsKind::Gather, rows: 1, width: 4 };
    let wait = Duration::from_secs(9);
    let device = &mut rig.device;
    let before = device.submit(Queue(0), &[scale(x, 4)], &[]).unwrap();
    let failed = device.submit(Queue(0), &[bad], &[before]).unwrap();
    let behind = device.submit(Queue(0), &[scale(x, 4)], &[]).unwrap();
    assert_eq!(device.wait(before, wait).unwrap(), FenceState::Done);
    assert_eq!(device.wait(failed, wait).unwrap(), FenceState::Failed(ErrorKind::Invalid));
    assert_eq!(device.wait(behind, wait).unwrap(), FenceState::Failed(ErrorKind::Invalid));
    let fresh = device.submit(Queue(0), &[scale(x, 4)], &[before]).unwrap();
    assert_eq!(device.wait(fresh, wait).unwrap(), FenceState::Done);
    let late = device.submit(Queue(0), &[scale(x, 4)], &[failed]).unwrap();
    assert_eq!(device.wait(late, wait).unwrap(), FenceState::Failed(ErrorKind::Invalid));
    assert_eq!(device.wait(Fence(0), wait).unwrap(), FenceState::Done);
    let never = device.wait(Fence(late.0 + 1), wait);
    assert_eq!(never, Ok(FenceState::Failed(ErrorKind::Invalid)));
    assert!(device.submit(Queue(0), &[], &[Fence(late.0 + 1)]).is_err());
    assert!(device.submit(Queue(1), &[], &[]).is_err());
    assert_eq!(rig.read(x, 4), [4.0; 4], "two of the scalings ran");
}

#[test]
fn waits_end_with_their_deadline_and_go_on_later() {
    let mut rig = Rig::open("auto", 2).unwrap();
    let x = rig.floats(&[1.0; 4]);
    let fences: Vec<Fence> =
        (0..5).map(|_| rig.device.submit(Queue(0), &[scale(x, 4)], &[]).unwrap()).collect();
    let mut pending = 0;
    while rig.device.wait(fences[4], Duration::ZERO).unwrap() == FenceState::Pending {
        pending += 1;
        assert!(pending < 5, "every wait runs a list at least");
    }
    assert_eq!(pending, 4);
    assert_eq!(rig.read(x, 4), [32.0; 4]);
    assert_eq!(rig.device.usage().ops, 5);
}

#[test]
fn memory_freed_behind_pending_work_stays_until_it_is_done() {
    let mut rig = Rig::open("auto", 2).unwrap();
    let (from, to) = (rig.floats(&[3.0; 1000]), rig.room(1000));
    let held = rig.device.usage().device_bytes;
    let copy = CopyRange { from, to, bytes: 4000 };
    let fence = rig.device.copy(Queue(0), &[copy], &[]).unwrap();
    rig.device.free(from.buffer);
    assert!(rig.device.span(from.buffer).is_none());
    assert_eq!(rig.device.usage().device_bytes, held);
    assert_eq!(rig.device.wait(fence, Duration::from_secs(9)).unwrap(), FenceState::Done);
    assert_eq!(rig.device.usage().device_bytes, held - 4003);
    assert_eq!(rig.read(to, 1000), [3.0; 1000]);
}

#[test]
fn foreign_memory_computes_in_place() {
    let mut rig = Rig::open("auto", 2).unwrap();
    let mut own = vec![1f32; 100];
    let span = HostSpan { address: own.as_mut_ptr() as usize, bytes: 400 };
    let buffer = rig.device.import(span).unwrap().unwrap();
    assert_eq!(rig.device.span(buffer), Some(span));
    rig.run(&[scale(Slice { buffer, offset: 4 }, 99)]);
    rig.device.free(buffer);
    assert_eq!(own[0], 1.0);
    assert!(own[1..].iter().all(|v| *v == 2.0));
    assert_eq!(rig.device.usage().device_bytes, 0);
}

#[test]
fn opening_refuses_what_it_does_not_know() {
    let open = |change: &dyn Fn(&mut DeviceSpec)| {
        let mut spec = spec("auto", 2);
        change(&mut spec);
        let mut device = kvern_device_cpu::CpuDevice::new();
        device.open(&spec, host()).and_then(|()| device.open(&spec, host())).unwrap_err()
    };
    let text = |word: &str| OptionValue::Text(word.into());
    let error = open(&|spec| drop(spec.options.insert("isa".into(), text("mmx"))));
    assert!(error.message.contains("mmx"), "{error}");
    let error = open(&|spec| drop(spec.options.insert("speed".into(), text("high"))));
    assert!(error.message.contains("speed"), "{error}");
    let error = open(&|spec| drop(spec.options.insert("isa".into(), OptionValue::Integer(1))));
    assert_eq!(error.kind, ErrorKind::Invalid);
    let error = open(&|_| ());
    assert!(error.message.contains("already"), "{error}");
    let mut closed = kvern_device_cpu::CpuDevice::new();
    assert_eq!(closed.submit(Queue(0), &[], &[]).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(closed.alloc(1, Space::Device).unwrap_err().kind, ErrorKind::OverBudget);
}

#[test]
fn random_words_never_leave_their_buffers() {
    let mut random = Random(99);
    for threads in [1, 2] {
        let mut rig = Rig::open("auto", threads).unwrap();
        let bytes: Vec<u8> = (0..1 << 16).map(|_| random.below(3) as u8).collect();
        let buffers = [rig.bytes(&bytes), rig.bytes(&bytes), rig.bytes(&bytes)];
        let (mut parsed, mut ran) = (0, 0);
        let start = Instant::now();
        for _ in 0..60_000 {
            let code = 1 + random.below(14);
            let lengths = [14, 38, 50, 38, 42, 40, 21, 64, 23, 41, 24, 12, 12, 26];
            let mut words = vec![code, 0];
            let length = lengths[code as usize - 1] + random.below(3);
            for _ in 0..length {
                words.push(match random.below(8) {
                    0 => random.word(),
                    1 => random.below(70),
                    2 | 3 => buffers[random.below(3) as usize].buffer.0,
                    _ => random.below(4),
                });
            }
            words[1] = words.len() as u32 - 2;
            let Ok(op) = Op::take(&mut &words[..]) else { continue };
            parsed += 1;
            let state = rig.try_run(&[op]);
            assert_ne!(state, Ok(FenceState::Failed(ErrorKind::Panicked)), "{op:?}");
            ran += u32::from(state == Ok(FenceState::Done));
            if start.elapsed() > Duration::from_secs(5) {
                break;
            }
        }
        assert!(parsed > 100, "only {parsed} lists were ops, {ran} ran");
    }
}

#[test]
fn a_list_of_many_ops_runs_in_order_with_more_threads_than_cores() {
    let mut rig = Rig::open("auto", 9).unwrap();
    let x = rig.floats(&[1.0; 64]);
    let one = rig.floats(&[1.0; 64]);
    let add = |a: Slice, b: Slice| {
        let v = |at| View { at, row: 64, group: 64, step: 1 };
        let (a, b) = (v(a), v(b));
        Op::Map { a, b, out: a, kind: MapKind::Add, rows: 1, groups: 1, width: 64, scalar: 1.0 }
    };
    let ops: Vec<Op> =
        (0..40).map(|i| if i % 2 == 0 { add(x, one) } else { scale(x, 64) }).collect();
    rig.run(&ops);
    let mut want = 1f32;
    for i in 0..40 {
        want = if i % 2 == 0 { want + 1.0 } else { want * 2.0 };
    }
    assert_eq!(rig.read(x, 64), [want; 64]);
}
