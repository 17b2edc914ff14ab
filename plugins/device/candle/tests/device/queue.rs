//! Buffers, fences, failure and budgets.

use crate::harness::*;
use kvern_contract::*;
use std::sync::Arc;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn add(rig: &mut Rig, to: Slice, with: f32) -> Op {
    let b = rig.floats(&[with]);
    let view = |at| View { at, row: 0, group: 0, step: 0 };
    let (a, b, out) = (view(to), view(b), view(to));
    Op::Map { a, b, out, kind: MapKind::Add, rows: 1, groups: 1, width: 1, scalar: 1.0 }
}

/// An op that passes every check at submission and fails at its table.
fn failing(rig: &mut Rig) -> Op {
    let ids = rig.words(&[9]);
    let (table, _) = rig.weight(&[1.0, 2.0], 2, 1, WeightEncoding::F32);
    Op::Embed { ids, table, out: rig.zeros(1), rows: 1, scale: 1.0 }
}

#[test]
fn work_runs_in_order_and_not_before_the_wait() {
    let mut rig = Rig::new();
    let x = rig.floats(&[1.0]);
    let copy = rig.zeros(1);
    let op = add(&mut rig, x, 2.0);
    let first = rig.device.submit(Queue(0), &[op, op], &[]).unwrap();
    let ranges = [CopyRange { from: x, to: copy, bytes: 4 }];
    let second = rig.device.copy(Queue(0), &ranges, &[first]).unwrap();
    assert!(second > first);
    assert_eq!(rig.get(x, 1), [1.0]);
    assert_eq!(rig.device.wait(second, LONG), Ok(FenceState::Done));
    assert_eq!(rig.device.wait(first, Duration::ZERO), Ok(FenceState::Done));
    assert_eq!(rig.get(copy, 1), [5.0]);
    assert_eq!(rig.device.usage().ops, 2);
}

#[test]
fn a_deadline_that_passed_leaves_the_rest_for_the_next_wait() {
    let mut rig = Rig::new();
    let x = rig.floats(&[0.0]);
    let op = add(&mut rig, x, 1.0);
    let fence = rig.device.submit(Queue(0), &[op; 50], &[]).unwrap();
    assert_eq!(rig.device.wait(fence, Duration::ZERO), Ok(FenceState::Pending));
    assert_eq!(rig.device.wait(fence, LONG), Ok(FenceState::Done));
    assert_eq!(rig.get(x, 1), [50.0]);
}

#[test]
fn failed_work_fails_what_is_behind_it_and_not_what_comes_later() {
    let mut rig = Rig::new();
    let x = rig.floats(&[0.0]);
    let (bad, good) = (failing(&mut rig), add(&mut rig, x, 1.0));
    let first = rig.device.submit(Queue(0), &[good], &[]).unwrap();
    let broken = rig.device.submit(Queue(0), &[bad], &[]).unwrap();
    let behind = rig.device.submit(Queue(0), &[good], &[]).unwrap();
    let failed = FenceState::Failed(ErrorKind::Invalid);
    assert_eq!(rig.device.wait(behind, LONG), Ok(failed));
    assert_eq!(rig.device.wait(broken, LONG), Ok(failed));
    assert_eq!(rig.device.wait(first, LONG), Ok(FenceState::Done));
    let waiting = rig.device.submit(Queue(0), &[good], &[broken]).unwrap();
    assert_eq!(rig.device.wait(waiting, LONG), Ok(failed));
    assert_eq!(rig.state(&[good]), FenceState::Done);
    assert_eq!(rig.get(x, 1), [2.0]);
}

#[test]
fn a_buffer_lives_until_its_last_fence_and_takes_no_new_work() {
    let mut rig = Rig::new();
    let x = rig.floats(&[3.0]);
    let out = rig.zeros(1);
    let ranges = [CopyRange { from: x, to: out, bytes: 4 }];
    let fence = rig.device.copy(Queue(0), &ranges, &[]).unwrap();
    let before = rig.device.usage().device_bytes;
    rig.device.free(x.buffer);
    assert_eq!(rig.device.usage().device_bytes, before);
    assert_eq!(rig.device.copy(Queue(0), &ranges, &[]).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(rig.device.span(x.buffer), None);
    assert_eq!(rig.device.wait(fence, LONG), Ok(FenceState::Done));
    assert_eq!(rig.get(out, 1), [3.0]);
    assert_eq!(rig.device.usage().device_bytes, before - 4);
    assert_eq!(rig.device.usage().device_peak_bytes, before);
}

#[test]
fn memory_is_zeroed_aligned_and_within_the_budget() {
    let mut rig = Rig::with(1, 6000);
    let staging = rig.device.alloc(5000, Space::Staging).unwrap();
    assert_eq!(rig.device.span(staging).unwrap().address % 4096, 0);
    let buffer = rig.device.alloc(700, Space::Device).unwrap();
    assert_eq!(rig.device.span(buffer).unwrap().address % 64, 0);
    assert!(rig.get_bytes(Slice { buffer, offset: 0 }).iter().all(|byte| *byte == 0));
    assert_eq!(rig.device.alloc(301, Space::Device).unwrap_err().kind, ErrorKind::OverBudget);
    assert_eq!(rig.device.alloc(u64::MAX, Space::Staging).unwrap_err().kind, ErrorKind::OverBudget);
    rig.device.free(buffer);
    assert!(rig.device.alloc(1000, Space::Device).is_ok());
    assert_eq!(rig.device.usage().staging_bytes, 5000);
}

#[test]
fn imported_memory_is_the_hosts_own() {
    let mut rig = Rig::new();
    let memory = [1.0f32, 2.0];
    let span = HostSpan { address: memory.as_ptr() as usize, bytes: 8 };
    let buffer = rig.device.import(span).unwrap().unwrap();
    assert_eq!(rig.device.span(buffer), Some(span));
    let out = rig.zeros(2);
    let from = Slice { buffer, offset: 0 };
    let fence = rig.device.copy(Queue(0), &[CopyRange { from, to: out, bytes: 8 }], &[]).unwrap();
    assert_eq!(rig.device.wait(fence, LONG), Ok(FenceState::Done));
    assert_eq!(rig.get(out, 2), memory);
    assert_eq!(rig.device.import(HostSpan { address: 0, bytes: 8 }), Ok(None));
    assert_eq!(rig.device.import(HostSpan { address: 8, bytes: u64::MAX }), Ok(None));
}

#[test]
fn under_a_budget_no_weight_grows_and_a_kept_one_is_freed_by_its_buffer() {
    let mut rig = Rig::with(1, 2 * (3 + 4 * 64) + (3 + 2 * 64));
    let (half, _) = rig.weight(&[1.0; 64], 8, 8, WeightEncoding::Bf16);
    assert_eq!(rig.device.adapt(&half), Ok(half), "it would grow");
    let (weight, _) = rig.weight(&[1.0; 64], 8, 8, WeightEncoding::F32);
    let kept = rig.device.adapt(&weight).unwrap();
    assert_eq!(kept.layout, 2);
    assert_eq!(rig.device.adapt(&kept), Ok(kept));
    assert_eq!(rig.device.adapt(&weight), Ok(weight), "there is no room for another");
    assert_eq!(rig.device.span(kept.data.buffer), None);
    let before = rig.device.usage().device_bytes;
    rig.device.free(kept.data.buffer);
    assert_eq!(rig.device.usage().device_bytes, before - 4 * 64);
    assert_eq!(rig.device.adapt(&weight).unwrap().layout, 2);
    let mut rig = Rig::new();
    let (half, _) = rig.weight(&[1.0; 64], 8, 8, WeightEncoding::Bf16);
    assert_eq!(rig.device.adapt(&half).unwrap().layout, 2, "without a budget it may");
    let other = Weight { encoding: WeightEncoding::Mxfp4, ..half };
    assert_eq!(rig.device.adapt(&other), Ok(other));
}

#[test]
fn a_closed_device_and_a_second_open_are_refused() {
    let mut device = kvern_device_candle::CandleDevice::new();
    assert_eq!(device.alloc(8, Space::Device).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(device.submit(Queue(0), &[], &[]).unwrap_err().kind, ErrorKind::Invalid);
    let before = device.describe();
    let mut strange = spec(1, 8);
    strange.options.insert("nonsense".into(), OptionValue::Switch(true));
    let error = device.open(&strange, Arc::new(Nothing)).unwrap_err();
    assert!(error.message.contains("nonsense"), "{error}");
    device.open(&spec(1, 8), Arc::new(Nothing)).unwrap();
    assert_eq!(device.open(&spec(1, 8), Arc::new(Nothing)).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(device.describe(), before);
    assert_eq!(device.wait(Fence(0), LONG), Ok(FenceState::Done));
    assert_eq!(device.wait(Fence(7), LONG), Ok(FenceState::Failed(ErrorKind::Invalid)));
    assert_eq!(device.submit(Queue(1), &[], &[]).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(device.submit(Queue(0), &[], &[Fence(9)]).unwrap_err().kind, ErrorKind::Invalid);
}
