//! A device behaves the same through the border as when it is called directly, ops as words
//! included.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../../tests/fixtures/plugins/echo-device/src/echo.rs"]
mod echo;

use common::{Notes, library, unsigned};
use kvern_abi::{Plugin, open};
use kvern_contract::*;
use std::time::Duration;

fn slice(n: u32) -> Slice {
    Slice { buffer: Buffer(n), offset: u64::from(n) << 33 }
}

fn weight(n: u32) -> Weight {
    Weight {
        data: slice(n),
        scales: slice(n + 1),
        encoding: WeightEncoding::Mxfp4,
        outputs: n + 2,
        inputs: n + 3,
        layout: 1,
        stride: 1 << 40,
    }
}

fn view(n: u32) -> View {
    View { at: slice(n), row: n, group: 0, step: 1 }
}

fn ops() -> Vec<Op> {
    vec![
        Op::Embed { ids: slice(1), table: weight(2), out: slice(3), rows: 4, scale: -0.0 },
        Op::Linear {
            x: slice(1),
            weights: Few::of(&[weight(5), weight(6)]),
            biases: Few::of(&[Slice::default(), slice(9)]),
            outs: Few::of(&[slice(1), slice(2), slice(3), slice(4)]),
            rows: 7,
            epilogue: Epilogue::SiluGated,
            limit: f32::INFINITY,
            alpha: 1.702,
        },
        Op::Norm {
            x: view(1),
            weight: weight(1),
            bias: slice(2),
            gate: view(3),
            out: view(4),
            kind: NormKind::RmsPlusOne,
            rows: 1,
            groups: 2,
            width: 3,
            eps: 1e-6,
        },
        Op::Top { logits: slice(1), ids: slice(2), values: slice(3), rows: 1, width: 2, top: 3 },
    ]
}

fn spec(log: bool, threads: u32) -> DeviceSpec {
    let options = log.then(|| ("log".to_string(), OptionValue::Switch(true))).into_iter();
    DeviceSpec {
        compute: ComputeDtype::F32,
        threads,
        budget_bytes: 1 << 42,
        rows: 512,
        options: options.collect(),
    }
}

fn script(device: &mut dyn DeviceBackend) -> Vec<String> {
    let notes = Notes::new();
    let mut out = vec![format!("{:?}", device.describe())];
    out.push(format!("{:?}", device.open(&spec(true, 0), notes.clone())));
    out.push(format!("{:?}", device.open(&spec(true, 2), notes.clone())));
    for op in ops() {
        out.push(format!("{:?}", device.supports(&op)));
    }
    for bytes in [64, 1 << 41] {
        out.push(format!("{:?}", device.alloc(bytes, Space::Device)));
        out.push(format!("{:?}", device.alloc(bytes, Space::Staging)));
    }
    for bytes in [5, 50] {
        out.push(format!("{:?}", device.import(HostSpan { address: 0x7000, bytes })));
        out.push(format!("{:?}", device.span(Buffer(bytes as u32))));
    }
    device.free(Buffer(8));
    out.push(format!("{:?}", device.adapt(&weight(3))));
    let range = CopyRange { from: slice(1), to: slice(2), bytes: u64::MAX };
    out.push(format!("{:?}", device.copy(Queue(1), &[range; 2], &[Fence(u64::MAX / 2), Fence(9)])));
    out.push(format!("{:?}", device.copy(Queue(1), &[], &[])));
    let lists = [ops(), ops()[..2].to_vec(), Vec::new(), ops(), ops()[..2].to_vec()];
    for (i, list) in lists.iter().cycle().take(12).enumerate() {
        let after = [Fence(i as u64)];
        out.push(format!("{:?}", device.submit(Queue(i as u32), list, &after[..i % 2])));
    }
    for fence in 1..=3 {
        out.push(format!("{:?}", device.wait(Fence(fence), Duration::from_secs(fence))));
    }
    out.push(format!("{:?}", device.usage()));
    out.extend(notes.take());
    out
}

fn echo() -> Box<dyn DeviceBackend> {
    match open(&library("kvern-fixture-echo-device")).unwrap() {
        Plugin::Device(device) => device,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_device_call_is_the_same_through_the_border() {
    let direct = script(&mut echo::Echo::default());
    let through = unsigned(&script(&mut *echo()), "device `echo`");
    assert!(direct.len() > 50, "the script ran: {}", direct.len());
    for (at, (direct, through)) in direct.iter().zip(&through).enumerate() {
        assert_eq!(direct, through, "line {at}");
    }
    assert_eq!(direct.len(), through.len());
}

#[test]
fn a_panic_where_no_error_can_be_said_poisons_too() {
    let mut device = echo();
    device.open(&spec(false, 1), Notes::new()).unwrap();
    device.free(Buffer(666));
    let error = device.submit(Queue(0), &ops(), &[]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Panicked);
    assert!(error.message.contains("buffer 666 was too much"), "{error}");
    assert_eq!(device.supports(&ops()[0]), Support::No);
    assert_eq!(device.span(Buffer(50)), None);
    assert_eq!(device.usage(), DeviceUsage::default());
}
