//! What a device is, what it opens with, and its memory.

use super::super::bench::{BUDGET, Bench, Device, ROWS, each, held, settle, spec, text};
use super::super::desk::{BYTES, Desk};
use super::super::host::host;
use super::super::memory::{peek, poke};
use super::super::samples;
use super::{always, declined};
use crate::case::need;
use crate::{Case, Check, Promise, Subject};
use kvern_contract::*;
use kvern_storage::Region;

const SAME: Promise =
    Promise::new("DeviceBackend::describe", "Start nothing, and answer the same every time.");
const DEFAULTS: Promise = Promise::new("DeviceDescription::options", "Defaults, every known name.");
const KEEP: Promise = Promise::new(
    "DeviceBackend::open",
    "Keep to `spec`'s threads, budget and rows until it is dropped.",
);
const OPEN_ERRORS: Promise =
    Promise::new("DeviceBackend::open", "Invalid (an option), Unsupported, OverBudget.");
const ZEROED: Promise =
    Promise::new("DeviceBackend::alloc", "Gives new memory of `bytes`, zeroed, aligned.");
const OVER: Promise = Promise::new("DeviceBackend::alloc", "OverBudget.");
const ALIGNED: Promise =
    Promise::new("DeviceDescription::align", "Alignment of every buffer, in bytes.");
const STAGING: Promise = Promise::new(
    "Space::Staging",
    "Host memory that the device copies from, page-aligned, fit for O_DIRECT.",
);
const NONE: Promise = Promise::new("Buffer", "Memory that the device gave; 0 is none.");
const IMPORT: Promise = Promise::new(
    "DeviceBackend::import",
    "Makes host memory a buffer, without a copy; `None` where it cannot.",
);
const IMPORT_ERRORS: Promise = Promise::new("DeviceBackend::import", "Invalid.");
const STAYS: Promise = Promise::new("DeviceBackend::span", "Keep the address until `free`.");
const UNIFIED: Promise = Promise::new(
    "DeviceDescription::unified",
    "A buffer of either space can be read and written through `span`.",
);
const FREE: Promise = Promise::new(
    "DeviceBackend::free",
    "Gives memory back once the last fence that uses it is reached.",
);
const ADAPT: Promise = Promise::new(
    "DeviceBackend::adapt",
    "Give the products of the weight as stored. Streamed weights are used as stored and never \
     come here.",
);
const ADAPT_ERRORS: Promise = Promise::new("DeviceBackend::adapt", "Invalid, OverBudget.");
const HELD: Promise =
    Promise::new("DeviceUsage::device_bytes", "Bytes allocated in [`Space::Device`] now.");
const PEAK: Promise = Promise::new("DeviceUsage::device_peak_bytes", "The most there were.");
const STAGED: Promise =
    Promise::new("DeviceUsage::staging_bytes", "Bytes allocated in [`Space::Staging`] now.");
const RESERVED: Promise = Promise::new(
    "DeviceUsage::reserved_bytes",
    "Bytes that the device's own allocator holds; null where nothing reserves.",
);

pub fn cases() -> Vec<Case<Device>> {
    vec![
        always("a_description_is_a_constant_and_its_defaults_open", &[SAME, DEFAULTS], described),
        always("an_open_that_is_refused_says_why", &[OPEN_ERRORS], refused),
        always("memory_is_zeroed_and_aligned", &[ZEROED, ALIGNED, STAGING, NONE], zeroed),
        always("memory_keeps_to_its_budget", &[KEEP, OVER, HELD, PEAK, STAGED, RESERVED], budget),
        Case {
            name: "an_op_of_as_many_rows_as_were_said_runs",
            promises: &[KEEP],
            skip: |device| declined(device, many_rows, 8, "Linear does not run here"),
            check: rows,
        },
        always("imported_memory_is_the_hosts_own", &[IMPORT, IMPORT_ERRORS], imported),
        always("an_address_stays_and_is_that_of_the_bytes", &[STAYS, UNIFIED], addressed),
        always("freed_memory_is_given_back_after_its_last_use", &[FREE], freed),
        always("an_adapted_weight_gives_the_same_products", &[ADAPT, ADAPT_ERRORS], adapted),
    ]
}

fn described(subject: &Subject<'_, Device>) -> Check {
    let (mut one, other) = (subject.instance()?, subject.instance()?);
    let first = one.describe();
    let same = |found: DeviceDescription| {
        need(found == first, || format!("first {first:?}, then {found:?}"))
    };
    same(one.describe())?;
    same(other.describe())?;
    need(!first.name.is_empty() && !first.version.is_empty() && !first.kind.is_empty(), || {
        format!("name, version or kind is empty: {first:?}")
    })?;
    need(first.align.is_power_of_two() && first.queues > 0, || {
        format!("align {}, queues {}", first.align, first.queues)
    })?;
    let spec = spec(&*one, ComputeDtype::Auto);
    one.open(&spec, host()).map_err(|e| format!("its own defaults are refused: {}", text(e)))?;
    same(one.describe())
}

fn refused(subject: &Subject<'_, Device>) -> Check {
    let defaults = subject.instance()?.describe().options;
    let mut wrong = vec![("no_such_option".to_owned(), OptionValue::Integer(1))];
    for (name, value) in &defaults {
        wrong.push((
            name.clone(),
            match value {
                OptionValue::Text(_) => OptionValue::Integer(-1),
                _ => OptionValue::Text("no value of it".into()),
            },
        ));
    }
    for (name, value) in wrong {
        let mut device = subject.instance()?;
        let mut spec = spec(&*device, ComputeDtype::Auto);
        spec.options.insert(name.clone(), value.clone());
        match device.open(&spec, host()) {
            Err(e) if e.kind == ErrorKind::Invalid && e.message.contains(&name) => {}
            Err(e) => return Err(format!("option {name} = {value:?} is refused as {}", text(e))),
            Ok(()) => return Err(format!("option {name} = {value:?} is taken")),
        }
    }
    for compute in super::super::bench::FORMS {
        for (budget_bytes, rows) in [(0, 1), (1 << 40, 1 << 20), (u64::MAX, 64)] {
            let mut device = subject.instance()?;
            let usual = spec(&*device, compute);
            match device.open(&DeviceSpec { budget_bytes, rows, ..usual }, host()) {
                Ok(()) => {}
                Err(e) if matches!(e.kind, ErrorKind::Unsupported | ErrorKind::OverBudget) => {}
                Err(e) => return Err(format!("{budget_bytes} bytes, {rows} rows: {}", text(e))),
            }
        }
    }
    Ok(())
}

/// Bytes of a buffer from `offset` on, by way of the arena.
fn fetch(
    bench: &mut Bench,
    buffer: Buffer,
    offset: u64,
    bytes: usize,
) -> std::result::Result<Vec<u8>, String> {
    let from = Slice { buffer, offset };
    let to = Slice { buffer: bench.buffer(), offset: 0 };
    moved(bench, CopyRange { from, to, bytes: bytes as u64 })?;
    Ok(bench.read()?[..bytes].to_vec())
}

/// Bytes of the arena from its start on, into a buffer.
fn push(bench: &mut Bench, buffer: Buffer, bytes: &[u8]) -> Check {
    let mut all = vec![0xff; BYTES];
    all[..bytes.len()].copy_from_slice(bytes);
    bench.desk.set(all);
    bench.load()?;
    let (from, to) = (Slice { buffer: bench.buffer(), offset: 0 }, Slice { buffer, offset: 0 });
    moved(bench, CopyRange { from, to, bytes: bytes.len() as u64 })
}

fn moved(bench: &mut Bench, range: CopyRange) -> Check {
    let fence = bench.device.copy(Queue(0), &[range], &[]).map_err(text)?;
    let state = settle(&mut *bench.device, fence)?;
    need(state == FenceState::Done, || format!("a copy is {state:?}"))
}

fn zeroed(subject: &Subject<'_, Device>) -> Check {
    each(subject, |bench| {
        let align = bench.device.describe().align as usize;
        for space in [Space::Device, Space::Staging] {
            for bytes in [1usize, 4099, 300_000, 4099, 1, 300_000] {
                let buffer = bench.device.alloc(bytes as u64, space).map_err(text)?;
                need(buffer != Buffer(0), || "a buffer is number 0".into())?;
                let found = fetch(bench, buffer, 0, bytes)?;
                need(found.iter().all(|byte| *byte == 0), || {
                    format!("{bytes} new bytes of {space:?} are not all zero")
                })?;
                if let Some(span) = bench.device.span(buffer) {
                    need(span.bytes == bytes as u64, || format!("{bytes} bytes are {span:?}"))?;
                    let wanted = if space == Space::Staging { align.max(4096) } else { align };
                    need(span.address % wanted == 0, || {
                        format!("{space:?} at {:#x} is not aligned to {wanted}", span.address)
                    })?;
                } else {
                    need(space == Space::Device, || "staging has no address".into())?;
                }
                // The next of this size may be the same memory.
                push(bench, buffer, &vec![0xa5; bytes])?;
                bench.device.free(buffer);
            }
        }
        need(bench.device.span(Buffer(0)).is_none(), || "buffer 0 has an address".into())
    })
}

fn budget(subject: &Subject<'_, Device>) -> Check {
    let mut device = subject.instance()?;
    const BUDGET: u64 = 1 << 20;
    let usual = spec(&*device, ComputeDtype::Auto);
    device.open(&DeviceSpec { budget_bytes: BUDGET, ..usual }, host()).map_err(text)?;
    let over = |device: &mut Device, bytes: u64| match device.alloc(bytes, Space::Device) {
        Err(e) if e.kind == ErrorKind::OverBudget => Ok(()),
        Err(e) => Err(format!("{bytes} bytes beyond the budget are refused as {}", text(e))),
        Ok(_) => Err(format!("{bytes} bytes are given beyond a budget of {BUDGET}")),
    };
    over(&mut *device, BUDGET + 1)?;
    over(&mut *device, u64::MAX)?;
    let usage = |device: &Device, held: [u64; 3]| {
        let usage = device.usage();
        let found = [usage.device_bytes, usage.device_peak_bytes, usage.staging_bytes];
        need(found == held, || format!("bytes, their peak and staging are {found:?}, not {held:?}"))
    };
    usage(&*device, [0; 3])?;
    let part = BUDGET / 4;
    let a = device.alloc(part, Space::Device).map_err(text)?;
    let b = device.alloc(part, Space::Staging).map_err(text)?;
    usage(&*device, [part, part, part])?;
    let c = device.alloc(part, Space::Device).map_err(text)?;
    usage(&*device, [2 * part, 2 * part, part])?;
    over(&mut *device, 2 * part)?;
    [a, b, c].into_iter().for_each(|buffer| device.free(buffer));
    usage(&*device, [0, 2 * part, 0])?;
    let most = device.usage();
    let sound = match (most.reserved_bytes, most.reserved_peak_bytes) {
        (None, None) => true,
        (Some(now), Some(peak)) => peak >= now && peak >= 2 * part,
        _ => false,
    };
    need(sound, || format!("reserved bytes are {most:?}"))?;
    let whole = device.alloc(BUDGET / 2, Space::Device).map_err(text)?;
    device.free(whole);
    Ok(())
}

/// A product of as many rows as the device was opened for.
fn rows(subject: &Subject<'_, Device>) -> Check {
    held(subject, many_rows, 8)
}

fn many_rows(desk: &mut Desk, n: u64) -> Vec<Op> {
    // Samples without an epilogue.
    let mut ops = samples::linear(desk, 8 * n);
    let encoding = desk.weight_encoding(n);
    let (many, weight) = (ROWS, desk.weight(encoding, (24, 96), (1, 0)));
    let (input, to) = (desk.floats(many * 96), desk.out(many * 24));
    if let Some(Op::Linear { x, weights, biases, outs, rows, .. }) = ops.first_mut() {
        (*x, *weights, *outs, *rows) = (input, Few::of(&[weight]), Few::of(&[to]), many);
        *biases = Few::default();
    }
    ops
}

fn imported(subject: &Subject<'_, Device>) -> Check {
    each(subject, |bench| {
        let held = |usage: DeviceUsage| [usage.device_bytes, usage.staging_bytes];
        let before = held(bench.device.usage());
        let region = Region::new(10_000).map_err(text)?;
        region.lend(0, 10_000).map_err(text)?.fill(3);
        let whole = region.span();
        for (address, bytes) in
            [(0, 64), (whole.address, u64::MAX), (whole.address, isize::MAX as u64)]
        {
            let span = HostSpan { address, bytes };
            match bench.device.import(span) {
                Ok(None) => {}
                Err(e) if e.kind == ErrorKind::Invalid => {}
                Err(e) => return Err(format!("{span:?} is refused as {}", text(e))),
                Ok(Some(_)) => return Err(format!("{span:?} is imported, and it is no memory")),
            }
        }
        // A part of it, at no round address: it may want a round one.
        let part = HostSpan { address: whole.address + 24, bytes: 8000 };
        let buffer = match bench.device.import(part) {
            Ok(Some(buffer)) => buffer,
            Ok(None) => return Ok(()),
            Err(e) if e.kind == ErrorKind::Invalid => return Ok(()),
            Err(e) => return Err(format!("{part:?} is refused as {}", text(e))),
        };
        if let Some(span) = bench.device.span(buffer) {
            need(span == part, || format!("{part:?} is imported as {span:?}: a copy"))?;
        }
        need(held(bench.device.usage()) == before, || {
            "imported memory is counted as the device's own".into()
        })?;
        // What the host writes now, the device reads.
        region.lend(24, 8000).map_err(text)?.fill(4);
        let found = fetch(bench, buffer, 0, 8000)?;
        need(found.iter().all(|byte| *byte == 4), || "the device reads another memory".into())?;
        push(bench, buffer, &[5; 8000])?;
        let all = region.lend(0, 10_000).map_err(text)?;
        let wanted = |i: usize| if (24..8024).contains(&i) { 5 } else { 3 };
        need(all.iter().enumerate().all(|(i, byte)| *byte == wanted(i)), || {
            "what the device writes is not in the host's memory, or beyond it".into()
        })?;
        drop(all);
        bench.device.free(buffer);
        need(held(bench.device.usage()) == before, || {
            "imported memory that is freed is taken from the device's own".into()
        })
    })
}

fn addressed(subject: &Subject<'_, Device>) -> Check {
    each(subject, |bench| {
        let unified = bench.device.describe().unified;
        let mut buffers = Vec::new();
        for n in 0..20u64 {
            let space = if n % 2 == 0 { Space::Device } else { Space::Staging };
            let buffer = bench.device.alloc(5000 + n, space).map_err(text)?;
            let span = bench.device.span(buffer);
            need(span.is_some() || !unified, || format!("unified, and {space:?} has no address"))?;
            buffers.push((buffer, span, n as u8 + 1));
            for (buffer, span, _) in &buffers {
                let now = bench.device.span(*buffer);
                need(now == *span, || format!("an address moved from {span:?} to {now:?}"))?;
            }
        }
        for (buffer, span, byte) in &buffers {
            if let Some(span) = span {
                poke(*span, 0, &[*byte; 5000]).map_err(text)?;
            } else {
                push(bench, *buffer, &[*byte; 5000])?;
            }
        }
        for (buffer, span, byte) in &buffers {
            let found = fetch(bench, *buffer, 0, 5000)?;
            need(found.iter().all(|b| b == byte), || {
                "what the host wrote by address is not what the device reads".into()
            })?;
            push(bench, *buffer, &vec![byte ^ 0x80; 5000])?;
            let now = bench.device.span(*buffer);
            need(now == *span, || format!("an address moved from {span:?} to {now:?}"))?;
            if let Some(span) = span {
                let mut found = vec![0; 5000];
                peek(*span, 0, &mut found).map_err(text)?;
                need(found.iter().all(|b| *b == byte ^ 0x80), || {
                    "what the device wrote is not what the host reads by address".into()
                })?;
            }
        }
        Ok(())
    })
}

fn freed(subject: &Subject<'_, Device>) -> Check {
    each(subject, |bench| {
        // More, over time, than the budget has.
        for n in 0..12u8 {
            let buffer = bench.device.alloc(BUDGET / 8, Space::Device).map_err(text)?;
            push(bench, buffer, &[n; 4096])?;
            let queued = CopyRange {
                from: Slice { buffer, offset: 0 },
                to: Slice { buffer: bench.buffer(), offset: 8192 },
                bytes: 4096,
            };
            let fence = bench.device.copy(Queue(0), &[queued], &[]).map_err(text)?;
            bench.device.free(buffer);
            need(bench.device.span(buffer).is_none(), || "a freed buffer has an address".into())?;
            let state = settle(&mut *bench.device, fence)?;
            need(state == FenceState::Done, || {
                format!("a buffer was freed behind a copy of it, which is {state:?}")
            })?;
            need(bench.read()?[8192..8192 + 4096] == [n; 4096], || {
                "a buffer that was freed behind a copy of it was not copied".into()
            })?;
            let held = bench.device.usage().device_bytes - bench.own.device_bytes;
            need(held == 0, || format!("{held} bytes are held after the last fence"))?;
        }
        Ok(())
    })
}

fn adapted(subject: &Subject<'_, Device>) -> Check {
    each(subject, |bench| {
        let encodings = bench.desk.weights.clone();
        for (n, encoding) in encodings.iter().enumerate() {
            let make = |desk: &mut Desk, n: u64| {
                let mut ops = samples::linear(desk, 8 * (n % 4));
                let encoding = desk.weight_encoding(n);
                let weight = desk.weight(encoding, (40, 96), (1, 0));
                let (input, to) = (desk.floats(33 * 96), desk.out(33 * 40));
                if let Some(Op::Linear { x, weights, biases, outs, rows, .. }) = ops.first_mut() {
                    (*x, *weights, *outs, *rows) = (input, Few::of(&[weight]), Few::of(&[to]), 33);
                    *biases = Few::default();
                }
                ops
            };
            let Some(ops) = bench.sample(make, n as u64, 7) else { continue };
            let [Op::Linear { weights, .. }] = ops[..] else { continue };
            let weight = weights.as_slice()[0];
            bench.load()?;
            // It stays: in the device's own memory.
            let place =
                |bench: &mut Bench, at: Slice, bytes: u64| -> std::result::Result<_, String> {
                    if at.buffer == Buffer(0) {
                        return Ok(at);
                    }
                    let buffer = bench.device.alloc(bytes, Space::Device).map_err(text)?;
                    let from = Slice { buffer: bench.buffer(), ..at };
                    let to = Slice { buffer, offset: 0 };
                    moved(bench, CopyRange { from, to, bytes })?;
                    Ok(to)
                };
            let bytes = match encoding {
                WeightEncoding::F32 => 4 * 40 * 96,
                WeightEncoding::Int8 => 40 * 96,
                WeightEncoding::Mxfp4 => 40 * 48,
                _ => 2 * 40 * 96,
            };
            let scales = if *encoding == WeightEncoding::Int8 { 4 * 40 } else { 40 * 3 };
            let stored = Weight {
                data: place(bench, weight.data, bytes)?,
                scales: place(bench, weight.scales, scales)?,
                ..weight
            };
            let kept = bench.device.adapt(&stored);
            let kept = kept.map_err(|e| format!("{encoding:?}: {}", text(e)))?;
            if kept.data.buffer != stored.data.buffer {
                bench.device.free(stored.data.buffer);
            }
            let mut op = ops[0];
            if let Op::Linear { weights, .. } = &mut op {
                *weights = Few::of(&[kept]);
            }
            bench.hold_as(&ops[0], &op).map_err(|e| format!("adapted {encoding:?}: {e}"))?;
            // One that is not there: refused now, or when it is used.
            let far = Slice { offset: bytes - 1, ..stored.data };
            let wrong = Weight { data: far, ..stored };
            let far = if kept.data.buffer == stored.data.buffer { wrong } else { kept };
            if far == wrong {
                match bench.device.adapt(&wrong) {
                    Err(e) if e.kind == ErrorKind::Invalid => {}
                    Err(e) => return Err(format!("a weight out of range: {}", text(e))),
                    Ok(answer) => {
                        if let Op::Linear { weights, .. } = &mut op {
                            *weights = Few::of(&[answer]);
                        }
                        let found = bench.run(&[op])?;
                        need(found.kind() == Some(ErrorKind::Invalid), || {
                            format!("a weight out of range is adapted, and used: {found:?}")
                        })?;
                    }
                }
            }
            // No more than the budget.
            let usage = bench.device.usage();
            let rest = BUDGET - usage.device_bytes - usage.staging_bytes;
            let filler = bench.device.alloc(rest, Space::Device).map_err(text)?;
            match bench.device.adapt(&kept) {
                Err(e) if e.kind == ErrorKind::OverBudget => {}
                Err(e) => return Err(format!("no room to adapt in: {}", text(e))),
                Ok(answer) => {
                    let held = bench.device.usage().device_bytes;
                    need(held <= BUDGET, || format!("adapted, {held} bytes of {BUDGET} are held"))?;
                    need(answer == kept || held < BUDGET, || {
                        "a weight is repacked where there was no room".into()
                    })?;
                }
            }
            bench.device.free(filler);
        }
        Ok(())
    })
}
