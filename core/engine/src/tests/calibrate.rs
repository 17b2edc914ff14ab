//! A device is measured by what it really computes, and what goes wrong comes through.

use crate::{DeviceProbe, ProductShape, device_rates};
use kvern_contract::{
    Buffer, ComputeDtype, CopyRange, DeviceBackend, DeviceDescription, DeviceSpec, DeviceUsage,
    Error, ErrorKind, Fence, FenceState, HostRef, HostSpan, Op, Options, Queue, Result, Space,
    Support, Weight, WeightEncoding,
};
use kvern_device_cpu::CpuDevice;
use kvern_model::Model;
use kvern_storage::Service;
use std::sync::Arc;
use std::time::Duration;

/// What a device of these tests does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    Nothing,
    LacksProducts,
    SharesNoMemory,
    RunsNothing,
    RefusesToOpen,
    RefusesWork,
    FailsWork,
    NeverEnds,
}

/// The cpu device, but for one thing.
struct Through(CpuDevice, Wrong);

fn error(kind: ErrorKind) -> Error {
    Error::new(kind, "device/test", "the double says no")
}

impl DeviceBackend for Through {
    fn describe(&self) -> DeviceDescription {
        self.0.describe()
    }
    fn open(&mut self, spec: &DeviceSpec, host: HostRef) -> Result<()> {
        match self.1 {
            Wrong::RefusesToOpen => Err(error(ErrorKind::OverBudget)),
            _ => self.0.open(spec, host),
        }
    }
    fn supports(&self, op: &Op) -> Support {
        if self.1 == Wrong::LacksProducts { Support::No } else { self.0.supports(op) }
    }
    fn alloc(&mut self, bytes: u64, space: Space) -> Result<Buffer> {
        self.0.alloc(bytes, space)
    }
    fn import(&mut self, memory: HostSpan) -> Result<Option<Buffer>> {
        if self.1 == Wrong::SharesNoMemory { Ok(None) } else { self.0.import(memory) }
    }
    fn span(&self, buffer: Buffer) -> Option<HostSpan> {
        self.0.span(buffer)
    }
    fn free(&mut self, buffer: Buffer) {
        self.0.free(buffer);
    }
    fn adapt(&mut self, weight: &Weight) -> Result<Weight> {
        self.0.adapt(weight)
    }
    fn copy(&mut self, queue: Queue, copies: &[CopyRange], after: &[Fence]) -> Result<Fence> {
        self.0.copy(queue, copies, after)
    }
    fn submit(&mut self, queue: Queue, ops: &[Op], after: &[Fence]) -> Result<Fence> {
        match self.1 {
            Wrong::RefusesWork => Err(error(ErrorKind::Invalid)),
            Wrong::RunsNothing => self.0.submit(queue, &[], after),
            _ => self.0.submit(queue, ops, after),
        }
    }
    fn wait(&mut self, fence: Fence, deadline: Duration) -> Result<FenceState> {
        let done = self.0.wait(fence, deadline)?;
        Ok(match self.1 {
            Wrong::FailsWork => FenceState::Failed(ErrorKind::Internal),
            Wrong::NeverEnds => FenceState::Pending,
            _ => done,
        })
    }
    fn usage(&self) -> DeviceUsage {
        self.0.usage()
    }
}

const SHAPE: ProductShape = ProductShape {
    hidden: 96,
    query: 64,
    key_value: 32,
    inner: 160,
    encoding: WeightEncoding::Bf16,
};

fn probe(wrong: Wrong, shape: ProductShape, cache: &tempfile::TempDir) -> DeviceProbe {
    DeviceProbe {
        device: Box::new(Through(CpuDevice::default(), wrong)),
        options: Options::new(),
        compute: ComputeDtype::Auto,
        threads: 2,
        storage: Service::pool(1),
        cache_dir: cache.path().into(),
        shape,
        weight_bytes: 300_000,
        rows: vec![1, 7, 32],
        rounds: 2,
        slice: Duration::ZERO,
        deadline: Duration::from_secs(20),
        log: Arc::new(|_, _| ()),
    }
}

#[test]
fn every_encoding_and_number_of_rows_has_a_rate() {
    let cache = tempfile::tempdir().expect("a directory");
    for encoding in [WeightEncoding::Bf16, WeightEncoding::F16, WeightEncoding::F32] {
        for compute in [ComputeDtype::Auto, ComputeDtype::F32] {
            let shape = ProductShape { encoding, ..SHAPE };
            let asked = DeviceProbe { compute, ..probe(Wrong::Nothing, shape, &cache) };
            let rates = device_rates(asked).expect("it measures");
            assert_eq!(rates.iter().map(|r| r.rows).collect::<Vec<_>>(), [1, 7, 32]);
            for rate in rates {
                let good = rate.best.is_finite() && rate.best >= rate.median && rate.median > 0.0;
                assert!(good, "{encoding:?} {compute:?}: {rate:?}");
            }
        }
    }
}

#[test]
fn what_a_device_does_wrong_comes_through() {
    let cache = tempfile::tempdir().expect("a directory");
    for (wrong, kind, word) in [
        (Wrong::LacksProducts, ErrorKind::Unsupported, "linear"),
        (Wrong::SharesNoMemory, ErrorKind::Unsupported, "host memory"),
        (Wrong::RunsNothing, ErrorKind::Damaged, "made 0 of a product"),
        (Wrong::RefusesToOpen, ErrorKind::OverBudget, "says no"),
        (Wrong::RefusesWork, ErrorKind::Invalid, "says no"),
        (Wrong::FailsWork, ErrorKind::Internal, "failed a product"),
        (Wrong::NeverEnds, ErrorKind::Timeout, "did not end"),
    ] {
        let error = device_rates(probe(wrong, SHAPE, &cache)).expect_err("it is wrong");
        assert_eq!(error.kind, kind, "{wrong:?}: {error}");
        assert!(error.to_string().to_lowercase().contains(word), "{wrong:?}: {error}");
    }
}

#[test]
fn a_shape_that_cannot_be_measured_is_refused() {
    let cache = tempfile::tempdir().expect("a directory");
    let shape = ProductShape { inner: 0, ..SHAPE };
    let error = device_rates(probe(Wrong::Nothing, shape, &cache)).expect_err("no values");
    assert_eq!(error.kind, ErrorKind::Invalid);
    let shape = ProductShape { encoding: WeightEncoding::Mxfp4, ..SHAPE };
    assert!(probe(Wrong::Nothing, shape, &cache).memory_bytes().is_err());
    let error = device_rates(probe(Wrong::Nothing, shape, &cache)).expect_err("unknown values");
    assert_eq!(error.kind, ErrorKind::Unsupported);
}

#[test]
fn a_models_products_are_those_of_its_first_layer_and_fill_what_was_asked() {
    let model = Model::open(&super::austen()).expect("it opens");
    let shape = ProductShape::of(&model).expect("its shape");
    let want = ProductShape { hidden: 192, query: 192, key_value: 64, inner: 512, ..SHAPE };
    assert_eq!(shape, want);
    let cache = tempfile::tempdir().expect("a directory");
    let weights =
        |bytes| DeviceProbe { weight_bytes: bytes, ..probe(Wrong::Nothing, shape, &cache) };
    // bf16: q and o, k and v, gate, up and down; each a multiple of a page.
    let layer = 2 * (2 * 192 * 192 + 2 * 192 * 64 + 3 * 192 * 512);
    let beside = weights(1).memory_bytes().expect("bytes") - layer;
    assert_eq!(beside, 32 * 4 * 4 * 512, "inputs and three outputs of the widest, 32 rows");
    assert_eq!(weights(3 * layer + 1).memory_bytes().expect("bytes"), 4 * layer + beside);
}
