//! What a device gives, measured: the products of a decoder layer, through the contract's own
//! calls, over more weights than a cache holds.

use crate::events::{Recorder, Watch};
use crate::load::open_device;
use crate::spec::LogLine;
use crate::weights::{import, up};
use kvern_contract::{
    ComputeDtype, DeviceBackend, DeviceSpec, Epilogue, Error, ErrorKind, FenceState, Few, Op,
    Options, Queue, Result, Slice, Support, Weight, WeightEncoding,
};
use kvern_model::{Dtype, Model};
use kvern_storage::{Budget, Region, Storage};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is measured, and with what.
pub struct DeviceProbe {
    /// The device; not opened yet.
    pub device: Box<dyn DeviceBackend>,
    /// Its options, defaults filled in.
    pub options: Options,
    /// What it computes in.
    pub compute: ComputeDtype,
    /// Most threads that compute, at least 1.
    pub threads: u32,
    /// How bytes move, for the device's own files.
    pub storage: Arc<dyn Storage>,
    /// Directory under which it may keep them.
    pub cache_dir: PathBuf,
    /// What the products are like.
    pub shape: ProductShape,
    /// Bytes of weights that one pass goes through at least; a few times the largest cache.
    pub weight_bytes: u64,
    /// Rows to measure with, each at least 1.
    pub rows: Vec<u32>,
    /// How often all of them are gone through, at least once.
    pub rounds: u32,
    /// Least time of one of them in a round.
    pub slice: Duration,
    /// Longest that one pass may take.
    pub deadline: Duration,
    /// Where log lines of the device go.
    pub log: LogLine,
}

/// Sizes of a decoder layer's products, in values, and how their weights are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProductShape {
    /// Width of the residual stream.
    pub hidden: u32,
    /// Width of all queries.
    pub query: u32,
    /// Width of all keys; of all values, too.
    pub key_value: u32,
    /// Width inside of the feed-forward block.
    pub inner: u32,
    /// `Bf16`, `F16` or `F32`.
    pub encoding: WeightEncoding,
}

/// What came of it, for a number of rows.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RowsRate {
    /// Rows of each product.
    pub rows: u32,
    /// Bytes of weights a second in the best pass.
    pub best: f64,
    /// The same of the median pass.
    pub median: f64,
}

impl ProductShape {
    /// Those of a model's first layer. *Errors* NotFound, Unsupported: its weights are not of a
    /// kind that is known here.
    pub fn of(model: &Model) -> Result<ProductShape> {
        let config = model.config();
        let name = "model.layers.0.mlp.down_proj.weight";
        let bad = |kind, text: String| Error::new(kind, "engine/calibrate", text);
        let found = model.tensors().get(name);
        let tensor = found.ok_or_else(|| bad(ErrorKind::NotFound, format!("no tensor {name}")))?;
        let encoding = match &tensor.dtype {
            Dtype::Bf16 => WeightEncoding::Bf16,
            Dtype::F16 => WeightEncoding::F16,
            Dtype::F32 => WeightEncoding::F32,
            other => {
                let text = format!("tensor {name} is {other:?}; known: bf16, f16, f32");
                return Err(bad(ErrorKind::Unsupported, text));
            }
        };
        Ok(ProductShape {
            hidden: config.hidden_size,
            query: config.heads * config.head_dim,
            key_value: config.kv_heads * config.head_dim,
            inner: config.intermediate_size,
            encoding,
        })
    }

    /// Inputs, outputs and what follows, of each op of a layer.
    fn products(&self) -> [(u32, Vec<u32>, Epilogue); 4] {
        let ProductShape { hidden, query, key_value, inner, .. } = *self;
        [
            (hidden, vec![query, key_value, key_value], Epilogue::None),
            (query, vec![hidden], Epilogue::None),
            (hidden, vec![inner, inner], Epilogue::SiluGated),
            (inner, vec![hidden], Epilogue::None),
        ]
    }

    /// Bytes of a layer's weights, each at a place of its own.
    fn layer_bytes(&self) -> Result<u64> {
        let value = self.value()?.len() as u64;
        let of = |inputs: u32, out: &u32| up(u64::from(inputs) * u64::from(*out) * value, ALIGN);
        let products = self.products();
        let sizes = products.iter().flat_map(|(i, outputs, _)| outputs.iter().map(|o| of(*i, o)));
        Ok(sizes.fold(0, u64::saturating_add))
    }

    /// Bytes of a row of the widest input or output.
    fn row_bytes(&self) -> u64 {
        4 * u64::from(self.hidden.max(self.query).max(self.key_value).max(self.inner))
    }

    /// Every weight, as bytes.
    fn value(&self) -> Result<&'static [u8]> {
        match self.encoding {
            WeightEncoding::Bf16 => Ok(&[0x80, 0x39]),
            WeightEncoding::F16 => Ok(&[0x00, 0x0C]),
            WeightEncoding::F32 => Ok(&[0x00, 0x00, 0x80, 0x39]),
            other => {
                let text = format!("products with weights in {other:?} are not measured here");
                Err(Error::new(ErrorKind::Unsupported, "engine/calibrate", text))
            }
        }
    }
}

impl DeviceProbe {
    /// Bytes of memory that measuring takes. *Errors* Unsupported: the encoding.
    pub fn memory_bytes(&self) -> Result<u64> {
        let layer = self.shape.layer_bytes()?;
        let rows = self.rows.iter().copied().max().unwrap_or(1).max(1);
        let row = (1 + OUTPUTS) * self.shape.row_bytes();
        Ok(layer.saturating_mul(self.layers()?).saturating_add(row.saturating_mul(rows.into())))
    }

    /// Layers of weights.
    fn layers(&self) -> Result<u64> {
        Ok(self.weight_bytes.div_ceil(self.shape.layer_bytes()?.max(1)).max(1))
    }
}

/// What every weight is: sums of it over any inputs are exact in f32, in any order.
const WEIGHT: f32 = 1.0 / 4096.0;
/// Weights start at multiples of this.
const ALIGN: u64 = 4096;

/// Measures. *Errors* Invalid (an empty shape), Unsupported (the device does not run such a
/// product, or cannot compute on host memory), Damaged (a product came out wrong), Timeout, and the
/// device's own.
pub fn device_rates(mut probe: DeviceProbe) -> Result<Vec<RowsRate>> {
    let budget = Budget::new(None);
    let most = probe.rows.iter().copied().max().unwrap_or(1).max(1);
    let asked = DeviceSpec {
        compute: probe.compute,
        threads: probe.threads.max(1),
        budget_bytes: u64::MAX,
        rows: most,
        options: std::mem::take(&mut probe.options),
    };
    let events = Recorder::new(Arc::clone(&probe.log), Watch::default());
    let device = probe.device.as_mut();
    open_device(device, &asked, &probe.storage, &probe.cache_dir, &budget, &events)?;
    let (rounds, slice) = (probe.rounds.max(1), probe.slice);
    let mut samples: Vec<(u32, Vec<f64>)> =
        probe.rows.iter().map(|rows| ((*rows).max(1), Vec::new())).collect();
    let mut bench = Bench::new(probe, most)?;
    for (rows, _) in &samples {
        bench.check(*rows)?;
    }
    for _ in 0..rounds {
        for (rows, rates) in &mut samples {
            let began = Instant::now();
            loop {
                rates.push(bench.pass(*rows)?);
                if began.elapsed() >= slice {
                    break;
                }
            }
        }
    }
    let rate = |(rows, mut rates): (u32, Vec<f64>)| {
        rates.sort_by(f64::total_cmp);
        let median = rates[rates.len() / 2];
        RowsRate { rows, best: rates[rates.len() - 1], median }
    };
    Ok(samples.into_iter().map(rate).collect())
}

/// A device, and memory with weights, inputs and outputs. The device goes first: until it is gone
/// it may be at work on them.
struct Bench {
    device: Box<dyn DeviceBackend>,
    within: Duration,
    shape: ProductShape,
    value_bytes: u64,
    /// Layers of weights, and bytes of one.
    layers: u64,
    layer_bytes: u64,
    /// The layer to go on with.
    next: u64,
    weights: Shared,
    inputs: Shared,
    outputs: Shared,
}

/// Host memory, and where the device has it.
struct Shared {
    region: Arc<Region>,
    at: Slice,
}

impl Shared {
    fn new(device: &mut dyn DeviceBackend, bytes: u64, value: &[u8]) -> Result<Shared> {
        let region = Region::in_huge_pages(bytes as usize)?;
        let mut lease = region.lend(0, bytes as usize)?;
        lease.chunks_exact_mut(value.len()).for_each(|at| at.copy_from_slice(value));
        drop(lease);
        let at = Slice { buffer: import(device, &region)?, offset: 0 };
        Ok(Shared { region, at })
    }
}

impl Bench {
    fn new(probe: DeviceProbe, rows: u32) -> Result<Bench> {
        let (shape, value) = (probe.shape, probe.shape.value()?);
        let ProductShape { hidden, query, key_value, inner, .. } = shape;
        if [hidden, query, key_value, inner].contains(&0) {
            let text = format!("a product of no values is not measured: {shape:?}");
            return Err(Error::new(ErrorKind::Invalid, "engine/calibrate", text));
        }
        let (layers, layer_bytes) = (probe.layers()?, shape.layer_bytes()?);
        let row_bytes = shape.row_bytes() * u64::from(rows);
        let mut device = probe.device;
        Ok(Bench {
            within: probe.deadline,
            shape,
            value_bytes: value.len() as u64,
            layers,
            layer_bytes,
            next: 0,
            weights: Shared::new(device.as_mut(), layers * layer_bytes, value)?,
            inputs: Shared::new(device.as_mut(), row_bytes, &1.0_f32.to_le_bytes())?,
            outputs: Shared::new(device.as_mut(), OUTPUTS * row_bytes, &[0; 4])?,
            device,
        })
    }

    /// The ops of so many layers from `first` on.
    fn ops(&self, first: u64, layers: u64, rows: u32) -> Vec<Op> {
        let mut ops = Vec::new();
        for layer in first..first + layers {
            let mut at = layer % self.layers * self.layer_bytes;
            for (inputs, outputs, epilogue) in self.shape.products() {
                let weights: Vec<Weight> = outputs
                    .iter()
                    .map(|out| {
                        let data = Slice { offset: at, ..self.weights.at };
                        at += up(u64::from(inputs) * u64::from(*out) * self.value_bytes, ALIGN);
                        let encoding = self.shape.encoding;
                        Weight { data, encoding, outputs: *out, inputs, ..Weight::default() }
                    })
                    .collect();
                let outs: Vec<Slice> = (0..outputs.len()).map(|out| self.output(out)).collect();
                ops.push(Op::Linear {
                    x: self.inputs.at,
                    weights: Few::of(&weights),
                    biases: Few::of(&[Slice::default(); OUTPUTS as usize][..outs.len()]),
                    outs: Few::of(&outs),
                    rows,
                    epilogue,
                    limit: 0.0,
                    alpha: 0.0,
                });
            }
        }
        ops
    }

    fn output(&self, index: usize) -> Slice {
        let part = self.outputs.region.bytes() as u64 / OUTPUTS;
        Slice { offset: index as u64 * part, ..self.outputs.at }
    }

    /// Runs every product by itself and looks at what came out. *Errors* Unsupported, Damaged.
    fn check(&mut self, rows: u32) -> Result<()> {
        let name = self.device.describe().name;
        let products = self.shape.products();
        for (op, (inputs, outputs, epilogue)) in self.ops(0, 1, rows).into_iter().zip(products) {
            if self.device.supports(&op) == Support::No {
                let text = format!("device `{name}` does not run the op {} so", op.name());
                return Err(Error::new(ErrorKind::Unsupported, "engine/calibrate", text));
            }
            self.outputs.region.lend(0, self.outputs.region.bytes())?.fill(0);
            self.run(&[op])?;
            let sum = inputs as f32 * WEIGHT;
            let gated = epilogue == Epilogue::SiluGated;
            let want = if gated { sum * (sum / (1.0 + (-sum).exp())) } else { sum };
            // Of a gated product the second half is the device's to use.
            for (index, width) in outputs.iter().enumerate().take(if gated { 1 } else { 3 }) {
                let got = self.read(index, *width as usize * rows as usize)?;
                let near = |x: &f32| (*x - want).abs() <= want / 64.0;
                if let Some(wrong) = got.iter().find(|x| !near(x)) {
                    let text = format!(
                        "device `{name}` made {wrong} of a product that is {want} ({rows} rows of \
                         {inputs} values)"
                    );
                    return Err(Error::new(ErrorKind::Damaged, "engine/calibrate", text));
                }
            }
        }
        Ok(())
    }

    fn read(&self, output: usize, values: usize) -> Result<Vec<f32>> {
        let lease = self.outputs.region.lend(self.output(output).offset as usize, values * 4)?;
        let float = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(lease.chunks_exact(4).map(float).collect())
    }

    /// Goes on through the weights; answers the bytes of weights a second. With many rows, where
    /// arithmetic takes the time, through fewer of them.
    fn pass(&mut self, rows: u32) -> Result<f64> {
        let layers = (self.layers * ROWS_FEW).div_ceil(ROWS_FEW + u64::from(rows));
        let ops = self.ops(self.next, layers, rows);
        self.next = (self.next + layers) % self.layers;
        let began = Instant::now();
        self.run(&ops)?;
        let took = began.elapsed().as_secs_f64().max(1e-9);
        Ok((layers * self.layer_bytes) as f64 / took)
    }

    fn run(&mut self, ops: &[Op]) -> Result<()> {
        let fence = self.device.submit(Queue(0), ops, &[])?;
        let (kind, how) = match self.device.wait(fence, self.within)? {
            FenceState::Done => return Ok(()),
            FenceState::Failed(kind) => (kind, "failed"),
            FenceState::Pending => (ErrorKind::Timeout, "did not end in time with"),
        };
        let text = format!("device `{}` {how} a product", self.device.describe().name);
        Err(Error::new(kind, "engine/calibrate", text))
    }
}

/// Outputs of an op at most.
const OUTPUTS: u64 = 3;
/// So many rows go through half of the weights.
const ROWS_FEW: u64 = 8;
