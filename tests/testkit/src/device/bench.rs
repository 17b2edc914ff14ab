//! An open device beside the arena: what it writes is compared with what the reference writes, and
//! every other byte with what it was.

use super::desk::{ARENA, BYTES, Desk};
use super::host::Quiet;
use super::memory::{peek, poke};
use super::reference::{Value, Write, writes};
use crate::case::need;
use crate::{Check, Subject};
use kvern_contract::*;
use kvern_storage::Region;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub type Device = dyn DeviceBackend;

/// Lays out the n-th sample of an op, or of ops that follow one another.
pub type Make = fn(&mut Desk, u64) -> Vec<Op>;

/// Rows that an op may have, in all cases.
pub const ROWS: u32 = 64;
/// Memory that a device may give, in all cases but those about it.
pub const BUDGET: u64 = 64 << 20;
/// Longer than any list here takes: a test that waits as long has failed.
pub const LONG: Duration = Duration::from_secs(60);

/// How far a value may be off, relative to the sum of the sizes of its terms.
///
/// In f32, sums here have at most 300 terms: whatever their order, they are within 300 roundings
/// of 2^-24, and functions take some more: 2^-15 are 512 of them. In `Auto` factors may be rounded
/// to bf16, 2^-9 each: both on the way in, one in between, and the sum on the way out. 2^-7 are
/// these four, were all of them the same way.
fn tolerance(compute: ComputeDtype) -> f64 {
    match compute {
        ComputeDtype::F32 => 2f64.powi(-15),
        ComputeDtype::Auto => 2f64.powi(-7),
    }
}

/// What an instance of `subject` opens with.
pub fn spec(device: &Device, compute: ComputeDtype) -> DeviceSpec {
    let options = device.describe().options;
    DeviceSpec { compute, threads: 2, budget_bytes: BUDGET, rows: ROWS, options }
}

/// A device with its arena.
pub struct Bench {
    pub device: Box<Device>,
    pub desk: Desk,
    tolerance: f64,
    /// What the device had counted when the arena was there.
    pub own: DeviceUsage,
    /// Where ops find the arena.
    buffer: Buffer,
    /// Where the host finds it, and whose memory that is: the arena's own where the device
    /// imports, else staging from and to which it is copied.
    span: HostSpan,
    staging: Option<Buffer>,
    host: Arc<Quiet>,
    /// Memory that the device imported.
    _region: Arc<Region>,
}

/// How a list ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It ran.
    Done,
    /// `submit` refused it.
    Refused(ErrorKind),
    /// Its fence failed.
    Failed(ErrorKind),
}

impl Answer {
    pub fn kind(self) -> Option<ErrorKind> {
        match self {
            Answer::Done => None,
            Answer::Refused(kind) | Answer::Failed(kind) => Some(kind),
        }
    }
}

pub fn text(error: Error) -> String {
    format!("{:?}: {error}", error.kind)
}

/// Waits until a fence is no longer pending.
pub fn settle(device: &mut Device, fence: Fence) -> std::result::Result<FenceState, String> {
    let start = Instant::now();
    loop {
        match device.wait(fence, Duration::from_secs(1)).map_err(text)? {
            FenceState::Pending if start.elapsed() > LONG => {
                return Err(format!("{fence:?} is pending after {LONG:?}"));
            }
            FenceState::Pending => {}
            state => return Ok(state),
        }
    }
}

impl Bench {
    /// An open instance; `None` where it does not compute in this form.
    pub fn open(
        subject: &Subject<'_, Device>,
        compute: ComputeDtype,
    ) -> std::result::Result<Option<Bench>, String> {
        let mut device = subject.instance()?;
        let host = Arc::new(Quiet::default());
        match device.open(&spec(&*device, compute), host.clone()) {
            Err(error) if error.kind == ErrorKind::Unsupported => return Ok(None),
            other => other.map_err(|e| format!("it does not open: {}", text(e)))?,
        }
        let region = Region::new(BYTES).map_err(text)?;
        let (buffer, span, staging) = match device.import(region.span()).map_err(text)? {
            Some(buffer) => (buffer, region.span(), None),
            None => {
                let buffer = device.alloc(BYTES as u64, Space::Device).map_err(text)?;
                let staging = device.alloc(BYTES as u64, Space::Staging).map_err(text)?;
                let span = device.span(staging).ok_or("staging has no address")?;
                (buffer, span, Some(staging))
            }
        };
        let (desk, own) = (Desk::new(&device.describe()), device.usage());
        let tolerance = tolerance(compute);
        let _region = region;
        Ok(Some(Bench { device, desk, tolerance, own, buffer, span, staging, host, _region }))
    }

    /// A device has no files: whether it asked the host for any.
    fn asked(&self) -> Check {
        self.host.asked().map_or(Ok(()), |call| Err(format!("it asks its host to {call}")))
    }

    /// An op with the arena's real number.
    pub fn real(&self, op: &Op) -> Op {
        let mut words = Vec::new();
        op.put(&mut words);
        let number = |word: &mut u32| *word = if *word == ARENA.0 { self.buffer.0 } else { *word };
        words.iter_mut().for_each(number);
        Op::take(&mut words.as_slice()).unwrap_or(*op)
    }

    /// The arena's real number.
    pub fn buffer(&self) -> Buffer {
        self.buffer
    }

    /// Puts the arena where the device finds it.
    pub fn load(&mut self) -> Check {
        poke(self.span, 0, self.desk.bytes()).map_err(text)?;
        let Some(staging) = self.staging else { return Ok(()) };
        let fence = self.carry(staging, self.buffer, &[])?;
        let state = settle(&mut *self.device, fence)?;
        need(state == FenceState::Done, || format!("a copy from staging is {state:?}"))
    }

    fn carry(
        &mut self,
        from: Buffer,
        to: Buffer,
        after: &[Fence],
    ) -> std::result::Result<Fence, String> {
        let at = |buffer| Slice { buffer, offset: 0 };
        let all = CopyRange { from: at(from), to: at(to), bytes: BYTES as u64 };
        self.device.copy(Queue(0), &[all], after).map_err(text)
    }

    /// A fence at which the arena, as it is at `fence`, is where the host reads it.
    pub fn shown_at(&mut self, fence: Fence) -> std::result::Result<Fence, String> {
        match self.staging {
            Some(staging) => self.carry(self.buffer, staging, &[fence]),
            None => Ok(fence),
        }
    }

    /// The arena's bytes as the device left them.
    pub fn read(&mut self) -> std::result::Result<Vec<u8>, String> {
        if self.staging.is_some() {
            let fence = self.shown_at(Fence(0))?;
            let state = settle(&mut *self.device, fence)?;
            need(state == FenceState::Done, || format!("a copy to staging is {state:?}"))?;
        }
        self.seen()
    }

    /// The arena's bytes where the host reads them, as they are there now.
    pub fn seen(&self) -> std::result::Result<Vec<u8>, String> {
        let mut bytes = vec![0; BYTES];
        peek(self.span, 0, &mut bytes).map_err(text)?;
        Ok(bytes)
    }

    /// Submits a list, as it is, and waits for it.
    pub fn run(&mut self, ops: &[Op]) -> std::result::Result<Answer, String> {
        let ops: Vec<Op> = ops.iter().map(|op| self.real(op)).collect();
        let fence = match self.device.submit(Queue(0), &ops, &[]) {
            Ok(fence) => fence,
            Err(error) => return Ok(Answer::Refused(error.kind)),
        };
        match settle(&mut *self.device, fence)? {
            FenceState::Failed(kind) => Ok(Answer::Failed(kind)),
            _ => Ok(Answer::Done),
        }
    }

    /// Loads the arena, runs a list, and answers with the bytes that it left.
    pub fn left_by(&mut self, ops: &[Op]) -> std::result::Result<Vec<u8>, String> {
        self.load()?;
        match self.run(ops)? {
            Answer::Done => self.read(),
            other => Err(format!("{} is {other:?}", names(ops))),
        }
    }

    /// The n-th sample of an op, laid out; `None` where the device does not run it.
    pub fn sample(&mut self, make: Make, n: u64, seed: u64) -> Option<Vec<Op>> {
        if !runs(&*self.device, &mut self.desk, make, n, seed) {
            return None;
        }
        self.desk.clear(seed);
        Some(make(&mut self.desk, n))
    }

    /// Runs ops one by one, each against the reference.
    pub fn hold(&mut self, ops: &[Op]) -> Check {
        for op in ops {
            let expected = writes(op, &self.desk.image)
                .map_err(|e| format!("the reference refuses {}: {e}", shown(op)))?;
            let after = self.left_by(std::slice::from_ref(op))?;
            self.compare(&expected, &after).map_err(|line| format!("{line}; {}", shown(op)))?;
            self.desk.set(after);
        }
        Ok(())
    }

    /// Runs an op that must leave what the reference leaves of another.
    pub fn hold_as(&mut self, wanted: &Op, op: &Op) -> Check {
        let expected = writes(wanted, &self.desk.image).map_err(text)?;
        let after = self.left_by(std::slice::from_ref(op))?;
        self.compare(&expected, &after)
    }

    fn compare(&self, expected: &[Write], after: &[u8]) -> Check {
        let mut wanted = self.desk.bytes().to_vec();
        // Of two writes to one place the later stays.
        let places: BTreeMap<u64, Value> =
            expected.iter().map(|w| (w.to.offset, w.value)).collect();
        for (at, value) in places {
            let at = at as usize;
            let length = value.bytes().len();
            let got = &after[at..at + length];
            need(self.is_near(got, value), || {
                let got = match got {
                    [a, b] => format!("{:#06x}", u16::from_le_bytes([*a, *b])),
                    [a, b, c, d] => f32::from_le_bytes([*a, *b, *c, *d]).to_string(),
                    _ => String::new(),
                };
                format!("{got} at byte {at}, not {value:?}")
            })?;
            wanted[at..at + length].copy_from_slice(got);
        }
        match wanted.iter().zip(after).position(|(a, b)| a != b) {
            Some(at) => Err(format!("byte {at} is nobody's, and it changed")),
            None => Ok(()),
        }
    }

    fn is_near(&self, got: &[u8], value: Value) -> bool {
        // What is only moved or converted is exact.
        if got == value.bytes() {
            return true;
        }
        let near = |got: f64, value: f64, terms: f64, step: f64| {
            value.is_finite() && (got - value).abs() <= self.tolerance * terms + step
        };
        match (got, value) {
            // Zero has two signs.
            ([a, b, c, d], Value::Float { value, terms: 0.0 }) => {
                f32::from_le_bytes([*a, *b, *c, *d]) == value as f32
            }
            (_, Value::Half { terms: 0.0, .. } | Value::Bf16 { terms: 0.0, .. }) => false,
            (_, Value::Word(_)) => false,
            ([a, b, c, d], Value::Float { value, terms }) => {
                near(f64::from(f32::from_le_bytes([*a, *b, *c, *d])), value, terms, 1e-37)
            }
            ([a, b], Value::Half { value, terms }) => {
                let step = value.abs() * 2f64.powi(-11) + 2f64.powi(-25);
                near(half::f16::from_le_bytes([*a, *b]).to_f64(), value, terms, step)
            }
            ([a, b], Value::Bf16 { value, terms }) => {
                let step = value.abs() * 2f64.powi(-8);
                near(half::bf16::from_le_bytes([*a, *b]).to_f64(), value, terms, step)
            }
            _ => false,
        }
    }
}

/// An op as a line: its parameters, without its places.
pub fn shown(op: &Op) -> String {
    let text = format!("{op:?}");
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("Slice {") {
        out += before;
        rest = after.split_once('}').map_or("", |(_, rest)| rest);
    }
    out + rest
}

fn names(ops: &[Op]) -> String {
    ops.iter().map(shown).collect::<Vec<_>>().join(", ")
}

/// Whether a device runs the n-th sample of an op.
pub fn runs(device: &Device, desk: &mut Desk, make: Make, n: u64, seed: u64) -> bool {
    desk.dry = true;
    desk.random = crate::Random::new(seed);
    let bare = make(desk, n);
    desk.dry = false;
    bare.iter().all(|op| device.supports(op) != Support::No)
}

/// Both forms to compute in.
pub const FORMS: [ComputeDtype; 2] = [ComputeDtype::F32, ComputeDtype::Auto];

/// Runs `check` on an open instance of each form.
pub fn each(subject: &Subject<'_, Device>, mut check: impl FnMut(&mut Bench) -> Check) -> Check {
    for compute in FORMS {
        if let Some(mut bench) = Bench::open(subject, compute)? {
            let checked = check(&mut bench).and_then(|()| bench.asked());
            checked.map_err(|line| format!("{line} ({compute:?})"))?;
        }
    }
    Ok(())
}

/// Runs `check` on an open instance of the first form that it computes in.
pub fn first(subject: &Subject<'_, Device>, check: impl FnOnce(&mut Bench) -> Check) -> Check {
    for compute in FORMS {
        if let Some(mut bench) = Bench::open(subject, compute)? {
            return check(&mut bench).and_then(|()| bench.asked());
        }
    }
    Err("it computes in no form".into())
}

/// Holds `count` samples of an op against the reference.
pub fn held(subject: &Subject<'_, Device>, make: Make, count: u32) -> Check {
    each(subject, |bench| {
        for (n, seed) in subject.seeds(count).enumerate() {
            if let Some(ops) = bench.sample(make, n as u64, seed) {
                bench.hold(&ops).map_err(|line| format!("{line} (sample {n})"))?;
            }
        }
        Ok(())
    })
}
