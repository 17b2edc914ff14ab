//! Devices that break a promise: the reference behind the device's trait, which runs every op, with
//! a fault around it.

mod forms;
mod ops;
mod tables;

use super::{Mutant, all_turn_red, not_found};
use crate::shipped::{Shipped, of};
use crate::suite::{as_device, opened};
use kvern_abi::PluginKind;
use kvern_contract::*;
use kvern_testkit::device::{ScalarDevice, cases};
use kvern_testkit::{Outcome, Promise, Subject, sweep};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub type Device = dyn DeviceBackend;

/// A device with a fault around it.
pub struct Broken {
    inner: Box<Device>,
    describe: fn(&mut DeviceDescription),
    open: fn(&mut Device, &DeviceSpec, HostRef) -> Result<()>,
    supports: fn(&Device, &Op) -> Support,
    alloc: fn(&mut Device, u64, Space) -> Result<Buffer>,
    import: fn(&mut Device, HostSpan) -> Result<Option<Buffer>>,
    span: fn(&Device, Buffer) -> Option<HostSpan>,
    free: fn(&mut Device, Buffer),
    adapt: fn(&mut Device, &Weight) -> Result<Weight>,
    copy: fn(&mut Device, Queue, &[CopyRange], &[Fence]) -> Result<Fence>,
    /// What becomes of an op before it is passed on.
    op: fn(&mut Device, &mut Op),
    submit: fn(&mut Device, Queue, &[Op], &[Fence]) -> Result<Fence>,
    wait: fn(&mut Device, Fence, Duration) -> Result<FenceState>,
    /// What becomes of counters, beside the number of ops that were submitted.
    usage: fn(&mut DeviceUsage, u64),
    submitted: u64,
}

/// Without a fault.
pub fn whole(inner: Box<Device>) -> Broken {
    Broken {
        inner,
        describe: |_| (),
        open: |inner, spec, host| inner.open(spec, host),
        supports: |inner, op| inner.supports(op),
        alloc: |inner, bytes, space| inner.alloc(bytes, space),
        import: |inner, memory| inner.import(memory),
        span: |inner, buffer| inner.span(buffer),
        free: |inner, buffer| inner.free(buffer),
        adapt: |inner, weight| inner.adapt(weight),
        copy: |inner, queue, copies, after| inner.copy(queue, copies, after),
        op: |_, _| (),
        submit: |inner, queue, ops, after| inner.submit(queue, ops, after),
        wait: |inner, fence, deadline| inner.wait(fence, deadline),
        usage: |_, _| (),
        submitted: 0,
    }
}

impl DeviceBackend for Broken {
    fn describe(&self) -> DeviceDescription {
        let mut description = self.inner.describe();
        (self.describe)(&mut description);
        description
    }
    fn open(&mut self, spec: &DeviceSpec, host: HostRef) -> Result<()> {
        (self.open)(&mut *self.inner, spec, host)
    }
    fn supports(&self, op: &Op) -> Support {
        (self.supports)(&*self.inner, op)
    }
    fn alloc(&mut self, bytes: u64, space: Space) -> Result<Buffer> {
        (self.alloc)(&mut *self.inner, bytes, space)
    }
    fn import(&mut self, memory: HostSpan) -> Result<Option<Buffer>> {
        (self.import)(&mut *self.inner, memory)
    }
    fn span(&self, buffer: Buffer) -> Option<HostSpan> {
        (self.span)(&*self.inner, buffer)
    }
    fn free(&mut self, buffer: Buffer) {
        (self.free)(&mut *self.inner, buffer);
    }
    fn adapt(&mut self, weight: &Weight) -> Result<Weight> {
        (self.adapt)(&mut *self.inner, weight)
    }
    fn copy(&mut self, queue: Queue, copies: &[CopyRange], after: &[Fence]) -> Result<Fence> {
        (self.copy)(&mut *self.inner, queue, copies, after)
    }
    fn submit(&mut self, queue: Queue, ops: &[Op], after: &[Fence]) -> Result<Fence> {
        self.submitted += ops.len() as u64;
        let mut ops = ops.to_vec();
        ops.iter_mut().for_each(|op| (self.op)(&mut *self.inner, op));
        (self.submit)(&mut *self.inner, queue, &ops, after)
    }
    fn wait(&mut self, fence: Fence, deadline: Duration) -> Result<FenceState> {
        (self.wait)(&mut *self.inner, fence, deadline)
    }
    fn usage(&self) -> DeviceUsage {
        let mut usage = self.inner.usage();
        (self.usage)(&mut usage, self.submitted);
        usage
    }
}

macro_rules! mutants { ($($of:literal $text:literal: $what:literal,
    $field:ident: $fault:expr;)*) => {
    vec![$(Mutant {
        what: $what,
        breaks: Promise::new($of, $text),
        wrap: |inner| Box::new(Broken { $field: $fault, ..whole(inner) }),
    }),*]
} }
use mutants;

fn counter() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// Runs what is queued up to a fence.
fn finish(inner: &mut Device, fence: Fence) -> Result<Fence> {
    inner.wait(fence, Duration::from_secs(60)).map(|_| fence)
}

fn frame() -> Vec<Mutant<Device>> {
    mutants! {
        "DeviceBackend::describe" "Start nothing, and answer the same every time.":
            "a version that counts", describe: |d| d.version = format!("0.{}", counter());
        "DeviceDescription::options" "Defaults, every known name.": "a default that it refuses",
            describe: |d| { d.options.insert("unknown".into(), OptionValue::Integer(0)); };
        "DeviceDescription::align" "Alignment of every buffer, in bytes.": "more than there is",
            describe: |d| d.align = 1 << 30;
        "DeviceDescription::unified"
            "A buffer of either space can be read and written through `span`.":
            "another address", span: |inner, buffer| {
                let own = inner.span(buffer)?;
                let other = inner.span(Buffer(buffer.0 - 1)).or_else(|| inner.span(Buffer(1)))?;
                Some(HostSpan { bytes: own.bytes, ..other })
            };
        "DeviceBackend::open" "Keep to `spec`'s threads, budget and rows until it is dropped.":
            "twice the budget", open: |inner, spec, host| {
                let budget_bytes = spec.budget_bytes.saturating_mul(2);
                inner.open(&DeviceSpec { budget_bytes, ..spec.clone() }, host)
            };
        "DeviceBackend::open" "Invalid (an option), Unsupported, OverBudget.":
            "unknown options are dropped", open: |inner, spec, host| {
                inner.open(&DeviceSpec { options: Options::new(), ..spec.clone() }, host)
            };
        "DeviceBackend::open" "Invalid (an option), Unsupported, OverBudget.":
            "a budget of nothing is internal", open: |inner, spec, host| match spec.budget_bytes {
                0 => Err(Error::new(ErrorKind::Internal, "device/open", "no")),
                _ => inner.open(spec, host),
            };
        "DeviceBackend::supports" "Run what it said yes to.": "yes to all",
            supports: |_, _| Support::Yes { workspace_bytes: 0 };
        "DeviceBackend::alloc" "Gives new memory of `bytes`, zeroed, aligned.": "as it was",
            alloc: |inner, bytes, space| {
                let buffer = inner.alloc(bytes, space)?;
                let span = inner.span(buffer).filter(|_| bytes > 1000);
                let dirty = |span| kvern_testkit::device::memory::poke(span, 999, &[1]);
                span.map_or(Ok(()), dirty).map(|()| buffer)
            };
        "DeviceBackend::alloc" "OverBudget.": "another kind",
            alloc: |inner, bytes, space| inner.alloc(bytes, space).map_err(|e| Error {
                kind: ErrorKind::OutOfSpace, ..e
            });
        "Space::Staging" "Host memory that the device copies from, page-aligned, fit for O_DIRECT.":
            "no page begins there", span: |inner, buffer| inner.span(buffer).map(|span| HostSpan {
                address: span.address + 512, ..span
            });
        "Buffer" "Memory that the device gave; 0 is none.": "buffer 0 is the first",
            span: |inner, buffer| match buffer.0 {
                0 => Some(HostSpan { address: 4096, bytes: 4096 }),
                _ => inner.span(buffer),
            };
        "DeviceBackend::import"
            "Makes host memory a buffer, without a copy; `None` where it cannot.": "a copy",
            import: |inner, memory| {
                // The arena stays shared, or nothing could be tried at all.
                match inner.import(memory)? {
                    Some(_) if memory.bytes < 1 << 19 => {
                        inner.alloc(memory.bytes, Space::Staging).map(Some)
                    }
                    other => Ok(other),
                }
            };
        "DeviceBackend::import" "Invalid.": "nothing is refused",
            import: |inner, memory| match inner.import(memory) {
                Err(_) => inner.alloc(64, Space::Staging).map(Some),
                other => other,
            };
        "DeviceBackend::span" "Keep the address until `free`.": "it moves",
            span: |inner, buffer| inner.span(buffer).map(|span| HostSpan {
                address: span.address + 4096 * counter() as usize, ..span
            });
        "DeviceBackend::free" "Gives memory back once the last fence that uses it is reached.":
            "never", free: |_, _| ();
        "DeviceBackend::adapt"
            "Give the products of the weight as stored. Streamed weights are used as stored and \
             never come here.": "another row first",
            adapt: |inner, weight| {
                let mut answer = inner.adapt(weight)?;
                answer.outputs -= 1;
                answer.data.offset += 2;
                Ok(Weight { outputs: weight.outputs, ..answer })
            };
        "DeviceBackend::adapt" "Invalid, OverBudget.": "what is not there is the buffer's start",
            adapt: |inner, weight| {
                let data = Slice { offset: 0, ..weight.data };
                inner.adapt(&Weight { data, ..*weight })
            };
        "DeviceDescription::weights" "Encodings of weights that it reads.":
            "none of the first of them", supports: |inner, op| {
                let first = inner.describe().weights.first().copied();
                let weights = match op {
                    Op::Embed { table, .. } => vec![*table],
                    Op::Norm { weight, .. } | Op::Conv { weight, .. } => vec![*weight],
                    Op::Linear { weights, .. } => weights.as_slice().to_vec(),
                    Op::Experts { gate, up, down, .. } => vec![*gate, *up, *down],
                    _ => Vec::new(),
                };
                match weights.iter().any(|weight| Some(weight.encoding) == first) {
                    true => Support::No,
                    false => inner.supports(op),
                }
            };
        "DeviceDescription::kv" "Encodings of KV pages that it reads": "no attention at all",
            supports: |inner, op| match op {
                Op::Attention { .. } => Support::No,
                op => inner.supports(op),
            };
        "DeviceUsage::device_bytes" "Bytes allocated in [`Space::Device`] now.": "none",
            usage: |usage, _| usage.device_bytes = 0;
        "DeviceUsage::device_peak_bytes" "The most there were.": "as many as now",
            usage: |usage, _| usage.device_peak_bytes = usage.device_bytes;
        "DeviceUsage::staging_bytes" "Bytes allocated in [`Space::Staging`] now.": "both spaces",
            usage: |usage, _| usage.staging_bytes += usage.device_bytes;
        "DeviceUsage::reserved_bytes"
            "Bytes that the device's own allocator holds; null where nothing reserves.":
            "some, without a peak", usage: |usage, _| usage.reserved_bytes = Some(7);
        "Fence"
            "A point in a queue's order; 0 is reached. Of one queue they ascend; unique over all.":
            "the fence before", submit: |inner, queue, ops, after| {
                inner.submit(queue, ops, after).map(|fence| Fence(fence.0 - 1))
            };
        "Queue" "Work in order": "copies first",
            copy: |inner, queue, copies, after| {
                hasty(inner, copies)?;
                inner.copy(queue, &[], after)
            };
        "Queue" "Work in order": "a copy behind no fence is at once",
            copy: |inner, queue, copies, after| match after.is_empty() {
                true => {
                    hasty(inner, copies)?;
                    inner.copy(queue, &[], after)
                }
                false => inner.copy(queue, copies, after),
            };
        "DeviceBackend::submit" "Queues ops, in order, behind `after`.": "the last op first",
            submit: |inner, queue, ops, after| {
                let ops: Vec<Op> = ops.iter().rev().copied().collect();
                inner.submit(queue, &ops, after)
            };
        "DeviceBackend::submit" "Queues ops, in order, behind `after`.": "the last op is left out",
            submit: |inner, queue, ops, after| {
                inner.submit(queue, &ops[..1.max(ops.len() - 1)], after)
            };
        "DeviceBackend::submit" "Unsupported, Invalid: nothing ran.": "the first op ran",
            submit: |inner, queue, ops, after| {
                if ops.len() == 2 && inner.supports(&ops[0]) != Support::No {
                    let fence = inner.submit(queue, &ops[..1], after)?;
                    finish(inner, fence)?;
                    let bad = Error::new(ErrorKind::Invalid, "device/submit", "the second");
                    let fence = inner.submit(queue, &ops[1..], after)?;
                    return match inner.wait(fence, Duration::from_secs(60))? {
                        FenceState::Done => Ok(fence),
                        _ => Err(bad),
                    };
                }
                inner.submit(queue, ops, after)
            };
        "DeviceBackend::submit"
            "Check every range and table entry before it reads through it.": "nothing fails",
            wait: |inner, fence, deadline| inner.wait(fence, deadline).map(|state| match state {
                FenceState::Failed(_) => FenceState::Done,
                state => state,
            });
        "DeviceBackend::submit"
            "Check every range and table entry before it reads through it.":
            "a row past the end is the last", op: tables::clamped;
        "DeviceBackend::copy" "Queues copies behind `after`.": "at once",
            copy: |inner, queue, copies, after| {
                hasty(inner, copies)?;
                inner.copy(queue, copies, after)
            };
        "DeviceBackend::copy" "Check every range before anything moves.": "what fits moves",
            copy: |inner, queue, copies, after| {
                inner.copy(queue, copies, after).or_else(|e| {
                    let fence = inner.copy(queue, &copies[..1], after)?;
                    finish(inner, fence)?;
                    Err(e)
                })
            };
        "DeviceBackend::copy" "Invalid (out of range): nothing moved.":
            "what does not fit is dropped",
            copy: |inner, queue, copies, after| {
                inner.copy(queue, copies, after).or_else(|_| inner.copy(queue, &[], after))
            };
        "DeviceBackend::wait"
            "Return `Done` only when everything before the fence is done and visible through \
             `span`.": "always", wait: |inner, fence, deadline| match deadline {
                Duration::ZERO => Ok(FenceState::Done),
                _ => inner.wait(fence, deadline),
            };
        "DeviceBackend::wait" "Waits until the fence is reached or `deadline` has passed":
            "a short wait is none", wait: |inner, fence, deadline| match deadline.as_millis() {
                0 if fence.0 > 0 => Ok(FenceState::Pending),
                _ => inner.wait(fence, deadline),
            };
        "DeviceBackend::wait" "None but Panicked: failure is a state.": "failure is an error",
            wait: |inner, fence, deadline| match inner.wait(fence, deadline)? {
                FenceState::Failed(kind) => Err(Error::new(kind, "device/wait", "it failed")),
                state => Ok(state),
            };
        "FenceState::Failed"
            "Work before it failed: what it wrote is garbage, and so is what waits for it.":
            "what waits runs", submit: |inner, queue, ops, after| {
                let fence = inner.submit(queue, ops, &[])?;
                if after.is_empty() { finish(inner, fence) } else { Ok(fence) }
            };
        "DeviceBackend" "Nothing but `wait` blocks on work.": "submit does",
            submit: |inner, queue, ops, after| {
                let fence = inner.submit(queue, ops, after)?;
                finish(inner, fence)
            };
        "DeviceBackend" "Nothing but `wait` blocks on work.": "submit does, on the list before",
            submit: |inner, queue, ops, after| {
                for fence in after {
                    finish(inner, *fence)?;
                }
                inner.submit(queue, ops, after)
            };
        "DeviceBackend::usage" "Do so without synchronising.": "all is counted as done",
            usage: |usage, submitted| usage.ops = submitted;
        "DeviceUsage::ops" "Ops run since `open`.": "lists are",
            usage: |usage, _| usage.ops /= 2;
        "DeviceUsage::busy" "Time that queues were busy since `open`.": "never",
            usage: |usage, _| usage.busy = Duration::ZERO;
        "DeviceBackend"
            "It owns its worker threads and its buffers, and nothing else: no files, no model, no \
             history.": "it looks for files", open: |inner, spec, host| {
                host.list().ok();
                inner.open(spec, host)
            };
        "DeviceBackend"
            "It owns its worker threads and its buffers, and nothing else: no files, no model, no \
             history.": "every other norm is another",
            op: |_, op| if let (Op::Norm { eps, .. }, 1) = (op, counter() % 2) {
                *eps *= 1.5;
            };
        "DeviceDescription::row_invariant"
            "A row's bits do not depend on the rows beside it, nor on how many there are.":
            "of many rows it is another", op: |_, op| if let Op::Norm { rows: 2.., eps, .. } = op {
                *eps *= 1.5;
            };
        "ComputeDtype::F32"
            "The exact mode: f32 activations, f32 sums, and `row_invariant` where it is declared.":
            "of many rows it is another", op: |_, op| if let Op::Norm { rows: 2.., eps, .. } = op {
                *eps *= 1.5;
            };
    }
}

/// Moves what is to be copied before its time.
fn hasty(inner: &mut Device, copies: &[CopyRange]) -> Result<()> {
    use kvern_testkit::device::memory::{peek, poke};
    for CopyRange { from, to, bytes } in copies {
        let (Some(source), Some(target)) = (inner.span(from.buffer), inner.span(to.buffer)) else {
            continue;
        };
        let fits = |span: HostSpan, at: &Slice| at.offset.saturating_add(*bytes) <= span.bytes;
        if fits(source, from) && fits(target, to) {
            let mut moved = vec![0; *bytes as usize];
            peek(source, from.offset, &mut moved)?;
            poke(target, to.offset, &moved)?;
        }
    }
    Ok(())
}

#[test]
fn a_device_without_a_fault_keeps_every_case() {
    let make = || Ok(Box::new(whole(Box::new(ScalarDevice::default()))) as Box<Device>);
    for ran in sweep(&cases(), &Subject::new(&make)) {
        assert_eq!(ran.outcome, Outcome::Kept, "{}", ran.name);
    }
}

fn every() -> Vec<Mutant<Device>> {
    frame().into_iter().chain(ops::mutants()).chain(tables::mutants()).collect()
}

#[test]
fn every_promise_of_a_device_is_tried() {
    all_turn_red(&cases(), &every(), &|| Ok(Box::new(ScalarDevice::default())));
}

#[test]
fn what_a_device_computes_in_its_own_way_is_tried_as_well() {
    // In the exact mode faults show sooner: this one has none.
    let make = || {
        let open = |inner: &mut Device, spec: &DeviceSpec, host| match spec.compute {
            ComputeDtype::F32 => Err(Error::new(ErrorKind::Unsupported, "device/open", "f32")),
            ComputeDtype::Auto => inner.open(spec, host),
        };
        let inner = Box::new(ScalarDevice::default());
        Ok(Box::new(Broken { open, ..whole(inner) }) as Box<Device>)
    };
    let ran = sweep(&cases(), &Subject::new(&make));
    ran.iter().for_each(|ran| assert_eq!(ran.outcome, Outcome::Kept, "{}", ran.name));
    // Two gelus differ by less than a rounding to bf16; a score or a gate that is off is found by
    // what it does to the answer, which here is no more than roundings may do.
    let fine = [
        "The exact gelu, by erf.",
        "gelu by the tanh approximation.",
        "probabilities summed over a sequence's rows and a kv head's query heads",
        "Chosen experts over rows.",
    ];
    let all = ops::mutants().into_iter().chain(tables::mutants());
    let coarse = all.filter(|mutant| !fine.contains(&mutant.breaks.text));
    let wrong = not_found(&cases(), &coarse.collect::<Vec<_>>(), &make);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A product of two halves, the first of which is clamped.
fn clamped() -> Op {
    let (encoding, outputs, inputs) = (WeightEncoding::Bf16, 4, 32);
    let weight = Weight { encoding, outputs, inputs, ..Weight::default() };
    let none = Few::of(&[Slice::default()]);
    Op::Linear {
        x: Slice::default(),
        weights: Few::of(&[weight]),
        biases: none,
        outs: none,
        rows: 1,
        epilogue: Epilogue::Clamped,
        limit: 1.0,
        alpha: 1.0,
    }
}

#[test]
fn what_a_shipped_device_keeps_is_tried_through_the_border() {
    // The one that keeps the most.
    let shipped = of(PluginKind::Device);
    let kept = |shipped: &Shipped| {
        let make = || opened(shipped, as_device);
        let ran = sweep(&cases(), &Subject::new(&make));
        let kept = ran.into_iter().filter(|ran| ran.outcome == Outcome::Kept);
        kept.map(|ran| ran.name).collect::<BTreeSet<&str>>()
    };
    let all = shipped.iter().map(|shipped| (kept(shipped), shipped));
    let Some((kept, most)) = all.max_by_key(|(kept, _)| kept.len()) else { return };
    let cases: Vec<_> = cases().into_iter().filter(|case| kept.contains(case.name)).collect();
    assert!(cases.len() > 20, "{} keeps {} cases", most.name, cases.len());
    // A case is kept where a part of an op does not run; then nothing tries that part.
    let device = opened(most, as_device).unwrap();
    let runs_clamped = device.supports(&clamped()) != Support::No;
    let tried = |mutant: &Mutant<Device>| {
        let is_there = runs_clamped || mutant.breaks.text != "g = min(gate, limit)";
        is_there && cases.iter().any(|case| case.promises.contains(&mutant.breaks))
    };
    let mutants: Vec<_> = every().into_iter().filter(tried).collect();
    let wrong = not_found(&cases, &mutants, &|| opened(most, as_device));
    assert!(wrong.is_empty(), "{}:\n{}", most.name, wrong.join("\n"));
}
