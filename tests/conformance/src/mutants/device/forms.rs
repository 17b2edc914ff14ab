//! Devices of other forms that break nothing, and must keep every case: what the suite demands is
//! what the contract does, not what a processor is like.

use super::{Device, whole};
use kvern_contract::*;
use kvern_testkit::device::{ScalarDevice, cases};
use kvern_testkit::{Outcome, Subject, sweep};
use std::collections::BTreeSet;
use std::time::Duration;

/// A device with memory of its own: the host reaches none of it, and ops reach nothing else.
struct Discrete {
    inner: ScalarDevice,
    staging: BTreeSet<u32>,
}

/// What its buffers' numbers begin with; no parameter of an op is as large and no float is so.
const FIRST: u32 = 0x7e31_0000;

fn inside(buffer: Buffer) -> Buffer {
    match buffer.0 & 0xffff_0000 == FIRST {
        true => Buffer(buffer.0 - FIRST),
        // One that there is not.
        false if buffer.0 > 0 => Buffer(u32::MAX),
        false => buffer,
    }
}

fn slice(at: Slice) -> Slice {
    Slice { buffer: inside(at.buffer), ..at }
}

impl DeviceBackend for Discrete {
    fn describe(&self) -> DeviceDescription {
        DeviceDescription { unified: false, kind: "discrete".into(), ..self.inner.describe() }
    }
    fn open(&mut self, spec: &DeviceSpec, host: HostRef) -> Result<()> {
        self.inner.open(spec, host)
    }
    fn supports(&self, op: &Op) -> Support {
        self.inner.supports(op)
    }
    fn alloc(&mut self, bytes: u64, space: Space) -> Result<Buffer> {
        let buffer = self.inner.alloc(bytes, space)?;
        if space == Space::Staging {
            self.staging.insert(buffer.0);
        }
        Ok(Buffer(FIRST + buffer.0))
    }
    fn import(&mut self, _: HostSpan) -> Result<Option<Buffer>> {
        Ok(None)
    }
    fn span(&self, buffer: Buffer) -> Option<HostSpan> {
        let buffer = inside(buffer);
        if self.staging.contains(&buffer.0) { self.inner.span(buffer) } else { None }
    }
    fn free(&mut self, buffer: Buffer) {
        self.inner.free(inside(buffer));
    }
    fn adapt(&mut self, weight: &Weight) -> Result<Weight> {
        Ok(*weight)
    }
    fn copy(&mut self, queue: Queue, copies: &[CopyRange], after: &[Fence]) -> Result<Fence> {
        let inner = |copy: &CopyRange| {
            let (from, to) = (slice(copy.from), slice(copy.to));
            CopyRange { from, to, ..*copy }
        };
        let copies: Vec<CopyRange> = copies.iter().map(inner).collect();
        self.inner.copy(queue, &copies, after)
    }
    fn submit(&mut self, queue: Queue, ops: &[Op], after: &[Fence]) -> Result<Fence> {
        let mut all = Vec::new();
        for op in ops {
            let mut words = Vec::new();
            op.put(&mut words);
            for word in words.iter_mut().filter(|word| **word & 0xffff_0000 == FIRST) {
                *word -= FIRST;
                if self.staging.contains(word) {
                    let line = "an op reaches no staging";
                    return Err(Error::new(ErrorKind::Invalid, "device/submit", line));
                }
            }
            all.push(Op::take(&mut words.as_slice())?);
        }
        self.inner.submit(queue, &all, after)
    }
    fn wait(&mut self, fence: Fence, deadline: Duration) -> Result<FenceState> {
        self.inner.wait(fence, deadline)
    }
    fn usage(&self) -> DeviceUsage {
        self.inner.usage()
    }
}

fn keeps_every_case(make: impl Fn() -> Box<Device>) {
    for ran in sweep(&cases(), &Subject::new(&|| Ok(make()))) {
        assert_eq!(ran.outcome, Outcome::Kept, "{}", ran.name);
    }
}

#[test]
fn a_device_that_imports_nothing_keeps_every_case() {
    keeps_every_case(|| {
        let inner = Box::new(ScalarDevice::default());
        Box::new(super::Broken { import: |_, _| Ok(None), ..whole(inner) })
    });
}

#[test]
fn a_device_with_memory_of_its_own_alone_keeps_every_case() {
    keeps_every_case(|| {
        let (inner, staging) = (ScalarDevice::default(), BTreeSet::new());
        Box::new(Discrete { inner, staging })
    });
}

#[test]
fn a_device_that_imports_round_addresses_alone_keeps_every_case() {
    keeps_every_case(|| {
        let inner = Box::new(ScalarDevice::default());
        let import = |inner: &mut Device, memory: HostSpan| match memory.address % 4096 {
            0 => inner.import(memory),
            _ => Err(Error::new(ErrorKind::Invalid, "device/import", "no round address")),
        };
        Box::new(super::Broken { import, ..whole(inner) })
    });
}
