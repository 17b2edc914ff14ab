//! Order: lists, copies, fences, failures, and what may not wait.

use super::super::bench::{Answer, BUDGET, Bench, Device, LONG, each, first, settle, text};
use super::super::desk::{BYTES, Desk};
use super::super::host::host;
use super::always;
use crate::case::need;
use crate::{Case, Check, Promise, Subject};
use kvern_contract::*;
use std::time::{Duration, Instant};

const FENCES: Promise = Promise::new(
    "Fence",
    "A point in a queue's order; 0 is reached. Of one queue they ascend; unique over all.",
);
const QUEUE: Promise = Promise::new("Queue", "Work in order");
const ORDER: Promise =
    Promise::new("DeviceBackend::submit", "Queues ops, in order, behind `after`.");
const COPIES: Promise = Promise::new("DeviceBackend::copy", "Queues copies behind `after`.");
const RANGES: Promise =
    Promise::new("DeviceBackend::copy", "Check every range before anything moves.");
const NOTHING: Promise =
    Promise::new("DeviceBackend::copy", "Invalid (out of range): nothing moved.");
const DONE: Promise = Promise::new(
    "DeviceBackend::wait",
    "Return `Done` only when everything before the fence is done and visible through `span`.",
);
const STATE: Promise =
    Promise::new("DeviceBackend::wait", "None but Panicked: failure is a state.");
const REACHED: Promise = Promise::new(
    "DeviceBackend::wait",
    "Waits until the fence is reached or `deadline` has passed",
);
const FAILED: Promise = Promise::new(
    "FenceState::Failed",
    "Work before it failed: what it wrote is garbage, and so is what waits for it.",
);
const LAZY: Promise = Promise::new("DeviceBackend", "Nothing but `wait` blocks on work.");
const COUNTERS: Promise = Promise::new("DeviceBackend::usage", "Do so without synchronising.");
const OPS: Promise = Promise::new("DeviceUsage::ops", "Ops run since `open`.");
const BUSY: Promise = Promise::new("DeviceUsage::busy", "Time that queues were busy since `open`.");

pub fn cases() -> Vec<Case<Device>> {
    vec![
        always("fences_ascend_and_none_comes_twice", &[FENCES], fences),
        always(
            "lists_and_copies_run_in_order_and_behind_their_fences",
            &[QUEUE, ORDER, COPIES],
            order,
        ),
        always("a_copy_out_of_range_moves_nothing", &[RANGES, NOTHING], ranges),
        always("what_is_done_is_visible_however_short_the_wait", &[DONE, REACHED], visible),
        always("a_failure_is_a_state_and_takes_what_waits_for_it", &[STATE, FAILED], failure),
        always("work_is_done_in_wait_and_counted", &[LAZY, COUNTERS, OPS, BUSY], counted),
    ]
}

/// `x` times 2 into `out`, a row of so many.
fn double(x: Slice, out: Slice, width: u32) -> Op {
    let view = |at| View { at, row: width, group: width, step: 1 };
    let (a, out) = (view(x), view(out));
    Op::Map { a, b: a, out, kind: MapKind::Scale, rows: 1, groups: 1, width, scalar: 2.0 }
}

fn fences(subject: &Subject<'_, Device>) -> Check {
    each(subject, |bench| {
        bench.desk.clear(1);
        let (x, to) = (bench.desk.floats(8), bench.desk.out(8));
        bench.load()?;
        let (op, mut last) = (bench.real(&double(x, to, 8)), vec![0; 16]);
        let mut seen = std::collections::BTreeSet::from([0]);
        let queues = bench.device.describe().queues.min(16);
        need(queues > 0, || "it declares no queue".into())?;
        need(settle(&mut *bench.device, Fence(0))? == FenceState::Done, || {
            "fence 0 is not reached".into()
        })?;
        for n in 0..40u32 {
            let queue = Queue(n % queues);
            let place = |at: Slice| Slice { buffer: bench.buffer(), ..at };
            let copy = CopyRange { from: place(x), to: place(to), bytes: 32 };
            // Queue 0 computes, others copy.
            let fence = match queue.0 == 0 && n % 3 > 0 {
                true => bench.device.submit(queue, &[op], &[]),
                false => bench.device.copy(queue, &[copy], &[]),
            };
            let fence = fence.map_err(text)?;
            let before = std::mem::replace(&mut last[queue.0 as usize], fence.0);
            need(fence.0 > before, || format!("{fence:?} comes after {before} of {queue:?}"))?;
            need(seen.insert(fence.0), || format!("{fence:?} comes twice"))?;
        }
        for fence in seen {
            let state = settle(&mut *bench.device, Fence(fence))?;
            need(state == FenceState::Done, || format!("fence {fence} is {state:?}"))?;
        }
        Ok(())
    })
}

fn order(subject: &Subject<'_, Device>) -> Check {
    each(subject, |bench| {
        bench.desk.clear(2);
        let width = 1000;
        let x = bench.desk.floats(width);
        let (a, b, c) = (bench.desk.out(width), bench.desk.out(width), bench.desk.out(width));
        let values = bench.desk.image.floats(x, &[width]).map_err(text)?;
        bench.load()?;
        let place = |at: Slice| Slice { buffer: bench.buffer(), ..at };
        let copy =
            |from, to| CopyRange { from: place(from), to: place(to), bytes: 4 * u64::from(width) };
        let (to_b, back) = (copy(a, b), copy(c, x));
        let real = |bench: &Bench, op: Op| bench.real(&op);
        // Each reads what the one before wrote: a = 2x, a = 2a, b = a, c = 2b, x = c, a = 2x.
        let first = [real(bench, double(x, a, width)), real(bench, double(a, a, width))];
        let (second, third) = (real(bench, double(b, c, width)), real(bench, double(x, a, width)));
        let other = Queue(1 % bench.device.describe().queues.max(1));
        let right = [("a", a, 16.0), ("b", b, 4.0), ("c", c, 8.0), ("x", x, 8.0)];
        // Over two queues, by fences; then on one, by its order alone.
        for fenced in [true, false] {
            bench.load()?;
            let device = &mut *bench.device;
            let other = if fenced { other } else { Queue(0) };
            let behind = |fence| if fenced { vec![fence, Fence(0)] } else { Vec::new() };
            let f = device.submit(Queue(0), &first, &[]).map_err(text)?;
            let f = device.copy(other, &[to_b], &behind(f)).map_err(text)?;
            let f = device.submit(Queue(0), &[second], &behind(f)).map_err(text)?;
            let f = device.copy(other, &[back], &behind(f)).map_err(text)?;
            let f = device.submit(Queue(0), &[third], &behind(f)).map_err(text)?;
            need(settle(device, f)? == FenceState::Done, || "the last list is not done".into())?;
            let left = bench.read()?;
            let how = if fenced { "by fences" } else { "of one queue, without a fence" };
            for (name, at, factor) in right {
                for (i, value) in values.iter().enumerate() {
                    let from = at.offset as usize + 4 * i;
                    let bytes = [left[from], left[from + 1], left[from + 2], left[from + 3]];
                    let got = f64::from(f32::from_le_bytes(bytes));
                    need(got == value * factor, || {
                        format!("{how}, {name} is {got} at {i}, not {value} times {factor}")
                    })?;
                }
            }
        }
        Ok(())
    })
}

fn ranges(subject: &Subject<'_, Device>) -> Check {
    each(subject, |bench| {
        bench.desk.clear(3);
        let (x, to) = (bench.desk.floats(64), bench.desk.out(64));
        bench.load()?;
        let before = bench.read()?;
        let at = |offset| Slice { buffer: bench.buffer(), offset };
        let good = CopyRange { from: at(x.offset), to: at(to.offset), bytes: 256 };
        let (end, nobody) = (BYTES as u64, Buffer(0x7fff_fff1));
        let bad = [
            CopyRange { from: at(end - 255), ..good },
            CopyRange { to: at(end - 255), ..good },
            CopyRange { to: at(end + 1), bytes: 0, ..good },
            CopyRange { from: at(u64::MAX - 3), ..good },
            CopyRange { to: at(u64::MAX - 255), ..good },
            CopyRange { bytes: u64::MAX, ..good },
            CopyRange { from: Slice { buffer: nobody, offset: 0 }, ..good },
            CopyRange { to: Slice { buffer: Buffer(0), offset: 0 }, ..good },
        ];
        for bad in bad {
            match bench.device.copy(Queue(0), &[good, bad], &[]) {
                Err(error) if error.kind == ErrorKind::Invalid => {}
                Err(error) => return Err(format!("{bad:?} is refused as {}", text(error))),
                Ok(_) => return Err(format!("{bad:?} is taken")),
            }
            // Whatever was queued nevertheless is done behind this.
            let fence = bench.device.copy(Queue(0), &[], &[]).map_err(text)?;
            settle(&mut *bench.device, fence)?;
            need(bench.read()? == before, || format!("{bad:?} is refused, and bytes moved"))?;
        }
        let fence = bench.device.copy(Queue(0), &[good], &[]).map_err(text)?;
        need(settle(&mut *bench.device, fence)? == FenceState::Done, || "a copy failed".into())?;
        let mut wanted = before;
        let (from, into) = (x.offset as usize, to.offset as usize);
        wanted.copy_within(from..from + 256, into);
        need(bench.read()? == wanted, || "a copy moved other bytes than asked".into())
    })
}

/// A product that takes a while, into `out`.
fn heavy(desk: &mut Desk) -> Op {
    let (rows, outputs, inputs) = (64, 256, 512);
    // As stored: no device is asked for more than one of its own encodings.
    let encoding = desk.weight_encoding(0);
    let weight = desk.weight(encoding, (outputs, inputs), (1, 0));
    Op::Linear {
        x: desk.floats(rows * inputs / 8),
        weights: Few::of(&[weight]),
        biases: Few::of(&[Slice::default()]),
        outs: Few::of(&[desk.out(rows / 8 * outputs)]),
        rows: rows / 8,
        epilogue: Epilogue::None,
        limit: 0.0,
        alpha: 0.0,
    }
}

fn visible(subject: &Subject<'_, Device>) -> Check {
    each(subject, |bench| {
        bench.desk.clear(4);
        let op = heavy(&mut bench.desk);
        let wanted = bench.left_by(&[op])?;
        for wait in [Duration::ZERO, Duration::from_micros(50), Duration::from_millis(1)] {
            bench.load()?;
            let real = bench.real(&op);
            let mut fence = Fence(0);
            for _ in 0..4 {
                fence = bench.device.submit(Queue(0), &[real], &[]).map_err(text)?;
            }
            fence = bench.shown_at(fence)?;
            let (mut state, start) = (FenceState::Pending, Instant::now());
            while state == FenceState::Pending && start.elapsed() < LONG {
                state = bench.device.wait(fence, wait).map_err(text)?;
                if wait == Duration::ZERO && state == FenceState::Pending {
                    // A look is no help, and no more than that is asked of it: what is not done
                    // yet is waited for, and then it sees that.
                    settle(&mut *bench.device, fence)?;
                    state = bench.device.wait(fence, wait).map_err(text)?;
                    break;
                }
            }
            need(state == FenceState::Done, || format!("after waits of {wait:?} it is {state:?}"))?;
            need(bench.seen()? == wanted, || {
                format!("after waits of {wait:?} it is Done, and not all of it is there")
            })?;
        }
        Ok(())
    })
}

fn failure(subject: &Subject<'_, Device>) -> Check {
    each(subject, |bench| {
        bench.desk.clear(5);
        let (x, out) = (bench.desk.floats(8), bench.desk.out(8));
        let indices = bench.desk.words(&[u32::MAX]);
        let kind = RowsKind::Gather;
        let bad = Op::Rows { x, indices, out, kind, rows: 1, width: 8 };
        let good = double(x, out, 8);
        bench.load()?;
        let (bad, real) = (bench.real(&bad), bench.real(&good));
        // An index is only known when the list runs, save by a device that looks early.
        if let Ok(fence) = bench.device.submit(Queue(0), &[bad], &[]) {
            let behind = bench.device.submit(Queue(0), &[real], &[fence]).map_err(text)?;
            for (what, fence) in [("it", fence), ("what waits for it", behind)] {
                let state = settle(&mut *bench.device, fence)?;
                need(state == FenceState::Failed(ErrorKind::Invalid), || {
                    format!("a row past the buffer: {what} is {state:?}, not Failed(Invalid)")
                })?;
            }
            let late = bench.device.submit(Queue(0), &[real], &[fence]);
            if let Ok(late) = late {
                let state = settle(&mut *bench.device, late)?;
                need(matches!(state, FenceState::Failed(_)), || {
                    format!("what waits for a failure known before is {state:?}")
                })?;
            }
        }
        // A fence that never was is nothing to wait for, and no error either.
        let never = bench.device.wait(Fence(u64::MAX), Duration::ZERO).map_err(text)?;
        need(never != FenceState::Done, || "a fence that never was is Done".into())?;
        // The device goes on.
        need(bench.run(&[good])? == Answer::Done, || "after a failure nothing runs".into())
    })
}

fn counted(subject: &Subject<'_, Device>) -> Check {
    each(subject, counted_in)?;
    first(subject, |bench| {
        six(bench)?;
        let mut other = subject.instance()?;
        let spec = super::super::bench::spec(&*other, ComputeDtype::Auto);
        other.open(&DeviceSpec { budget_bytes: BUDGET, ..spec }, host()).map_err(text)
    })
}

/// Lists are only queued.
fn counted_in(bench: &mut Bench) -> Check {
    bench.desk.clear(6);
    let op = heavy(&mut bench.desk);
    bench.load()?;
    let real = bench.real(&op);
    need(bench.device.usage().ops == 0, || "ops are counted before there are any".into())?;
    // Who waits in `submit`, or to count, for what was queued or for the list before it, never has
    // more than one list that is not done. Others have, if not now then with longer lists: it is
    // enough that it is seen once.
    let (mut submitted, mut last, mut seen) = (0, Fence(0), false);
    'found: for length in [8usize, 32, 128, 512] {
        let list = vec![real; length];
        for _ in 0..6 {
            last = bench.device.submit(Queue(0), &list, &[last]).map_err(text)?;
            submitted += length as u64;
            let ops = bench.device.usage().ops;
            need(ops <= submitted, || format!("{ops} ops are counted of {submitted}"))?;
            seen = submitted - ops > length as u64;
            if seen {
                break 'found;
            }
        }
    }
    need(seen, || {
        format!("of {submitted} products all are done whenever they are counted, before a wait")
    })?;
    // Dropped with all of that in its queue, it ends.
    Ok(())
}

/// What ran is counted, and another may be open beside it.
fn six(bench: &mut Bench) -> Check {
    bench.desk.clear(6);
    let op = heavy(&mut bench.desk);
    bench.load()?;
    for n in 1..=3 {
        need(bench.run(&[op, op])? == Answer::Done, || "a product failed".into())?;
        let ops = bench.device.usage().ops;
        need(ops == 2 * n, || format!("{ops} ops are counted after {}", 2 * n))?;
    }
    let busy = bench.device.usage().busy;
    need(busy > Duration::ZERO, || "six products took no time".into())
}
