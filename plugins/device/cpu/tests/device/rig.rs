//! An open device with buffers filled from slices, and numbers to fill them with.
#![allow(unsafe_code, clippy::unwrap_used)]

use kvern_contract::*;
use kvern_device_cpu::CpuDevice;
use std::sync::Arc;
use std::time::Duration;

/// A host that nobody asks anything.
struct NoHost;
impl Host for NoHost {
    fn open(&self, name: &str, _: Open) -> Result<FileId> {
        Err(Error::new(ErrorKind::NotFound, "host/open", name))
    }
    fn close(&self, _: FileId) {}
    fn list(&self) -> Result<Vec<(String, u64)>> {
        Ok(Vec::new())
    }
    fn read_batch(&self, _: &mut [FileRead<'_>], _: Duration) -> Result<()> {
        Ok(())
    }
    fn write_batch(&self, _: &[FileWrite<'_>], _: Duration) -> Result<()> {
        Ok(())
    }
    fn sync(&self, _: &[FileId]) -> Result<()> {
        Ok(())
    }
    fn publish(&self, _: &str, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn truncate(&self, _: FileId, _: u64) -> Result<()> {
        Ok(())
    }
    fn remove(&self, _: &str) -> Result<()> {
        Ok(())
    }
    fn reserve(&self, _: u64) -> Result<()> {
        Ok(())
    }
    fn release(&self, _: u64) {}
    fn event(&self, _: &str, _: Duration, _: u64) {}
    fn log(&self, _: u32, _: &str) {}
    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

pub fn host() -> HostRef {
    Arc::new(NoHost)
}

pub fn spec(isa: &str, threads: u32) -> DeviceSpec {
    DeviceSpec {
        compute: ComputeDtype::F32,
        threads,
        budget_bytes: 1 << 32,
        rows: 512,
        options: Options::from([("isa".to_string(), OptionValue::Text(isa.into()))]),
    }
}

/// An open device.
pub struct Rig {
    pub device: CpuDevice,
}

impl Rig {
    /// `None` where this cpu lacks the instruction set.
    pub fn open(isa: &str, threads: u32) -> Option<Rig> {
        let mut device = CpuDevice::new();
        match device.open(&spec(isa, threads), host()) {
            Ok(()) => Some(Rig { device }),
            Err(error) if error.kind == ErrorKind::Unsupported => None,
            Err(error) => panic!("{error}"),
        }
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> Slice {
        // An odd offset: the data of weights lies anywhere.
        let buffer = self.device.alloc(bytes.len() as u64 + 3, Space::Device).unwrap();
        let span = self.device.span(buffer).unwrap();
        let to = (span.address + 3) as *mut u8;
        // SAFETY: the buffer has three bytes more than there are, and no work is pending on it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Slice { buffer, offset: 3 }
    }

    pub fn floats(&mut self, values: &[f32]) -> Slice {
        self.bytes(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn words(&mut self, values: &[u32]) -> Slice {
        self.bytes(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn room(&mut self, floats: usize) -> Slice {
        self.floats(&vec![f32::NAN; floats])
    }

    pub fn read_bytes(&self, at: Slice, bytes: usize) -> Vec<u8> {
        let span = self.device.span(at.buffer).unwrap();
        assert!(at.offset + bytes as u64 <= span.bytes);
        let from = (span.address + at.offset as usize) as *const u8;
        // SAFETY: the bytes lie in the buffer, and no work is pending on it.
        unsafe { std::slice::from_raw_parts(from, bytes) }.to_vec()
    }

    pub fn words_of(&self, at: Slice, count: usize) -> Vec<u32> {
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        self.read_bytes(at, count * 4).chunks(4).map(word).collect()
    }

    pub fn read(&self, at: Slice, floats: usize) -> Vec<f32> {
        self.words_of(at, floats).into_iter().map(f32::from_bits).collect()
    }

    pub fn try_run(&mut self, ops: &[Op]) -> Result<FenceState> {
        let fence = self.device.submit(Queue(0), ops, &[])?;
        self.device.wait(fence, Duration::from_secs(60))
    }

    pub fn run(&mut self, ops: &[Op]) {
        assert_eq!(self.try_run(ops).unwrap(), FenceState::Done);
    }
}

/// Every instruction set of this cpu with 1, 2 and 3 threads; the first is the plain reference.
pub fn rigs() -> Vec<(String, Rig)> {
    let mut rigs = Vec::new();
    for isa in ["scalar", "avx2", "avx512", "auto"] {
        for threads in 1..=3 {
            if let Some(rig) = Rig::open(isa, threads) {
                rigs.push((format!("{isa} on {threads}"), rig));
            }
        }
    }
    assert!(rigs.len() >= 6, "auto and scalar are everywhere");
    rigs
}

/// A small deterministic generator.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let x = self.0 ^ self.0 >> 33;
        (x.wrapping_mul(0xff51afd7ed558ccd) >> 32) as u32
    }
    pub fn below(&mut self, n: u32) -> u32 {
        self.word() % n
    }
    /// In -1..1.
    pub fn float(&mut self) -> f32 {
        self.word() as f32 / 2147483648.0 - 1.0
    }
    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// Bits, for `==`; every NaN is one.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { u32::MAX } else { v.to_bits() }).collect()
}

pub fn half(bits: u16) -> f32 {
    let (sign, e, f) = (bits >> 15, i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let value = match e {
        0 => f * 2f32.powi(-24),
        31 if f == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + f / 1024.0) * 2f32.powi(e - 15),
    };
    if sign == 1 { -value } else { value }
}

/// Numbers in a form, as bytes and as what these mean.
pub fn encoded(random: &mut Random, n: usize, form: WeightEncoding) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = Vec::new();
    let mut values = Vec::new();
    for _ in 0..n {
        let x = random.float();
        match form {
            WeightEncoding::Bf16 => {
                let word = (x.to_bits() >> 16) as u16;
                bytes.extend(word.to_le_bytes());
                values.push(f32::from_bits(u32::from(word) << 16));
            }
            WeightEncoding::F16 => {
                // Any half below 1: sign, exponent up to 14, fraction.
                let word =
                    (random.below(2) << 15 | random.below(15) << 10 | random.below(1024)) as u16;
                bytes.extend(word.to_le_bytes());
                values.push(half(word));
            }
            _ => {
                bytes.extend(x.to_le_bytes());
                values.push(x);
            }
        }
    }
    (bytes, values)
}

/// Asserts |got - want| <= tolerance (1 + |want|), element by element.
pub fn close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let far = (f64::from(*g) - w).abs();
        assert!(far <= tolerance * (1.0 + w.abs()), "{what}: element {i} is {g}, not {w}");
    }
}
