//! An open device, numbers in and out of its buffers, and a seeded source of odd ones.
#![allow(unsafe_code)]

use kvern_contract::*;
use kvern_device_candle::CandleDevice;
use std::sync::Arc;
use std::time::Duration;

/// A host that has nothing to give.
pub struct Nothing;

fn none<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Timeout, "host", "nothing here"))
}

impl Host for Nothing {
    fn open(&self, _: &str, _: Open) -> Result<FileId> {
        none()
    }
    fn close(&self, _: FileId) {}
    fn list(&self) -> Result<Vec<(String, u64)>> {
        none()
    }
    fn read_batch(&self, _: &mut [FileRead<'_>], _: Duration) -> Result<()> {
        none()
    }
    fn write_batch(&self, _: &[FileWrite<'_>], _: Duration) -> Result<()> {
        none()
    }
    fn sync(&self, _: &[FileId]) -> Result<()> {
        none()
    }
    fn publish(&self, _: &str, _: &[u8]) -> Result<()> {
        none()
    }
    fn truncate(&self, _: FileId, _: u64) -> Result<()> {
        none()
    }
    fn remove(&self, _: &str) -> Result<()> {
        none()
    }
    fn reserve(&self, _: u64) -> Result<()> {
        none()
    }
    fn release(&self, _: u64) {}
    fn event(&self, _: &str, _: Duration, _: u64) {}
    fn log(&self, _: u32, _: &str) {}
    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

/// What devices open with here.
pub fn spec(threads: u32, budget_bytes: u64) -> DeviceSpec {
    let compute = ComputeDtype::F32;
    DeviceSpec { compute, threads, budget_bytes, rows: 64, options: Options::new() }
}

/// A device and what tests do with it.
pub struct Rig {
    pub device: CandleDevice,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(2, u64::MAX)
    }

    pub fn with(threads: u32, budget: u64) -> Self {
        let mut device = CandleDevice::new();
        device.open(&spec(threads, budget), Arc::new(Nothing)).unwrap();
        Rig { device }
    }

    /// A buffer with these bytes, which begin `shift` bytes into it.
    pub fn bytes_at(&mut self, bytes: &[u8], shift: usize) -> Slice {
        let buffer = self.device.alloc((bytes.len() + shift) as u64, Space::Device).unwrap();
        let span = self.device.span(buffer).unwrap();
        // SAFETY: the span is the buffer just made, and no work on it is out.
        let all =
            unsafe { std::slice::from_raw_parts_mut(span.address as *mut u8, span.bytes as usize) };
        all[shift..].copy_from_slice(bytes);
        Slice { buffer, offset: shift as u64 }
    }

    pub fn words(&mut self, words: &[u32]) -> Slice {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.bytes_at(&bytes, 0)
    }

    pub fn floats(&mut self, floats: &[f32]) -> Slice {
        self.words(&floats.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    }

    pub fn zeros(&mut self, count: usize) -> Slice {
        Slice { buffer: self.device.alloc(4 * count as u64, Space::Device).unwrap(), offset: 0 }
    }

    /// Everything in a slice's buffer from the slice on.
    pub fn get_bytes(&self, slice: Slice) -> Vec<u8> {
        let span = self.device.span(slice.buffer).unwrap();
        // SAFETY: the span is a live buffer, and tests wait for all work first.
        let all =
            unsafe { std::slice::from_raw_parts(span.address as *const u8, span.bytes as usize) };
        all[slice.offset as usize..].to_vec()
    }

    pub fn get_words(&self, slice: Slice, count: usize) -> Vec<u32> {
        let word = |c: &[u8]| u32::from_le_bytes(c.try_into().unwrap());
        self.get_bytes(slice).chunks_exact(4).take(count).map(word).collect()
    }

    pub fn get(&self, slice: Slice, count: usize) -> Vec<f32> {
        self.get_words(slice, count).into_iter().map(f32::from_bits).collect()
    }

    /// Submits and waits.
    pub fn state(&mut self, ops: &[Op]) -> FenceState {
        let fence = self.device.submit(Queue(0), ops, &[]).unwrap();
        self.device.wait(fence, Duration::from_secs(60)).unwrap()
    }

    /// Submits, waits, and wants success.
    pub fn run(&mut self, op: Op) {
        assert_eq!(self.state(&[op]), FenceState::Done, "{}", op.name());
    }

    /// A matrix in an encoding at an odd address, and the numbers that it really holds.
    pub fn weight(
        &mut self,
        values: &[f32],
        outputs: usize,
        inputs: usize,
        encoding: WeightEncoding,
    ) -> (Weight, Vec<f64>) {
        let (bytes, held) = encode(values, encoding);
        let data = self.bytes_at(&bytes, 3);
        let (outputs, inputs) = (outputs as u32, inputs as u32);
        (Weight { data, encoding, outputs, inputs, ..Weight::default() }, held)
    }
}

pub const ENCODINGS: [WeightEncoding; 3] =
    [WeightEncoding::Bf16, WeightEncoding::F16, WeightEncoding::F32];

/// Bytes of values in an encoding, and what they say.
pub fn encode(values: &[f32], encoding: WeightEncoding) -> (Vec<u8>, Vec<f64>) {
    let (mut bytes, mut held) = (Vec::new(), Vec::new());
    for value in values {
        match encoding {
            WeightEncoding::Bf16 => {
                let x = half::bf16::from_f32(*value);
                bytes.extend(x.to_le_bytes());
                held.push(x.to_f64());
            }
            WeightEncoding::F16 => {
                let x = half::f16::from_f32(*value);
                bytes.extend(x.to_le_bytes());
                held.push(x.to_f64());
            }
            _ => {
                bytes.extend(value.to_le_bytes());
                held.push(f64::from(*value));
            }
        }
    }
    (bytes, held)
}

/// Seeded numbers.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// From `from` to `to`, both possible.
    pub fn between(&mut self, from: usize, to: usize) -> usize {
        from + (self.roll() as usize) % (to - from + 1)
    }

    /// Numbers between -1 and 1.
    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.roll() as f64 / (1u64 << 52) as f64 - 1.0) as f32).collect()
    }
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// Every value lies within `tolerance` of the expected ones' spread.
pub fn close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: counts");
    let spread = want.iter().fold(0.0f64, |most, x| most.max(x.abs())).max(1e-6);
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*got) - want).abs();
        assert!(off <= tolerance * spread, "{what}: value {i} is {got}, expected {want}");
    }
}

pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

pub fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// The exact gelu, its error function by its series.
pub fn gelu(x: f64) -> f64 {
    let z = x / std::f64::consts::SQRT_2;
    // Beyond here erf is 1 to f64's last place, and the series no longer converges in it.
    if z.abs() > 5.0 {
        return x.max(0.0);
    }
    let (mut term, mut sum) = (z, z);
    for n in 1..200 {
        let n = f64::from(n);
        term *= -z * z / n;
        sum += term / (2.0 * n + 1.0);
    }
    0.5 * x * (1.0 + sum * 2.0 / std::f64::consts::PI.sqrt())
}
