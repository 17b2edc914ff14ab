//! Models of real shapes and random weights, for tests of streaming and memory: their text is
//! noise, their bytes are real, and the same seed makes the same bytes.

use crate::config::Config;
use crate::error::invalid;
use crate::files::{SMALL_FILE_BYTES, TOKENIZER_BYTES, read_optional, read_small};
use crate::model::Model;
use crate::rng::Rng;
use crate::staged::Staged;
use crate::write::{Planned, write_safetensors};
use half::bf16;
use kvern_contract::{Error, ErrorKind, Result};
use serde_json::{Map, json};
use std::io::Write;
use std::path::{Path, PathBuf};

const OPERATION: &str = "model/synth";
/// Values that a model's matrices are cut from; 8 MiB in bf16.
const POOL: usize = 1 << 22;
/// Values of one cut.
const CUT: usize = 1 << 16;

/// Sizes of a llama; see [`Config`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynthDims {
    /// Width of the residual stream.
    pub hidden: u32,
    /// Width of the feed-forward part.
    pub inner: u32,
    /// Decoder layers.
    pub layers: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Channels of a head.
    pub head_dim: u32,
    /// Rows of the embedding, where no tokenizer says.
    pub vocabulary: u32,
}

impl SynthDims {
    /// The sizes of a name: `tiny` (0.2 MB), `1b` (2.1 GB), `3b` (5.9 GB), `8b` (14.4 GB), or all
    /// seven as `hidden=64,inner=160,layers=2,heads=4,kv_heads=2,head_dim=16,vocabulary=512`.
    ///
    /// # Errors
    /// `Invalid`, naming what is known.
    pub fn parse(text: &str) -> Result<SynthDims> {
        let known = |[hidden, inner, layers, heads, kv_heads, head_dim, vocabulary]: [u32; 7]| {
            Ok(SynthDims { hidden, inner, layers, heads, kv_heads, head_dim, vocabulary })
        };
        match text {
            "tiny" => known([64, 160, 2, 4, 2, 16, 512]),
            "1b" => known([2048, 8192, 16, 32, 8, 64, 49152]),
            "3b" => known([3072, 8192, 28, 24, 8, 128, 49152]),
            "8b" => known([4096, 14336, 32, 32, 8, 128, 49152]),
            custom => {
                const NAMES: [&str; 7] =
                    ["hidden", "inner", "layers", "heads", "kv_heads", "head_dim", "vocabulary"];
                let value = |name: &str| {
                    let pairs = custom.split(',').filter_map(|part| part.trim().split_once('='));
                    let mut own = pairs.filter(|(key, _)| *key == name);
                    let value = own.next()?.1.parse::<u32>().ok();
                    value.filter(|_| own.next().is_none())
                };
                let values: Option<Vec<u32>> = NAMES.iter().map(|name| value(name)).collect();
                let whole = custom.split(',').count() == NAMES.len();
                match values.filter(|_| whole).and_then(|v| <[u32; 7]>::try_from(v).ok()) {
                    Some(values) => known(values),
                    None => Err(invalid(
                        OPERATION,
                        format!(
                            "size '{custom}' is unknown; known: tiny, 1b, 3b, 8b, or {}=… each once",
                            NAMES.join("=…,")
                        ),
                    )),
                }
            }
        }
    }
}

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynthSpec {
    /// Its sizes.
    pub dims: SynthDims,
    /// Chooses the weights.
    pub seed: u64,
    /// Most bytes of tensors in a file; a tensor that is larger has a file of its own.
    pub shard_bytes: u64,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synthesized {
    /// The directory.
    pub directory: PathBuf,
    /// Bytes of weights, in bf16.
    pub bytes: u64,
    /// Files of weights.
    pub shards: usize,
}

/// Writes a random llama into the directory `output`, which must not exist or be empty. It appears
/// whole; memory use does not depend on its size. A tensor's bytes depend on the seed and its place
/// in the model, not on how the model is cut into files. With `tokenizer_from`, a model's
/// directory, that model's tokenizer and template are copied and its vocabulary is used.
///
/// # Errors
/// `Invalid` for impossible sizes or where `output` is not empty; `Io` and `OutOfSpace` from the
/// system.
pub fn synth(
    spec: &SynthSpec,
    output: &Path,
    tokenizer_from: Option<&Path>,
) -> Result<Synthesized> {
    let mut json = config_json(&spec.dims);
    let mut copied = Vec::new();
    if let Some(source) = tokenizer_from {
        let bytes = read_small(OPERATION, &source.join("config.json"), SMALL_FILE_BYTES)?;
        let config = Config::parse(&bytes)?;
        json.insert("vocab_size".into(), json!(config.vocab_size));
        json.insert("bos_token_id".into(), json!(config.bos));
        json.insert("eos_token_id".into(), json!(config.eos));
        copied = words_of(source)?;
    }
    let text = serde_json::to_vec_pretty(&json)
        .map_err(|e| Error::new(ErrorKind::Internal, OPERATION, e.to_string()))?;
    let config = Config::parse(&text)?;
    let staged = Staged::begin(OPERATION, output)?;
    for (name, bytes) in &copied {
        staged.write(name, bytes)?;
    }
    let mut planned = Vec::new();
    (config.family().promise)(&config, &mut |name, shape| {
        let shape = shape.iter().map(|n| u64::from(*n)).collect();
        planned.push(Planned { name: name.to_string(), shape });
        Ok(())
    })?;
    let (bytes, shards) = write_weights(&staged, &planned, spec)?;
    staged.write("config.json", &text)?;
    Model::open(staged.path())?;
    Ok(Synthesized { directory: staged.publish()?, bytes, shards })
}

/// Writes all tensors, in order, into as few files as the limit allows; gives bytes and files.
fn write_weights(staged: &Staged, planned: &[Planned], spec: &SynthSpec) -> Result<(u64, usize)> {
    let pool = pool(spec.seed);
    let shards = cut(planned, spec.shard_bytes);
    let (mut total, mut first, mut weight_map) = (0, 0, Map::new());
    for (number, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_string(),
            all => format!("model-{:05}-of-{all:05}.safetensors", number + 1),
        };
        for tensor in *shard {
            weight_map.insert(tensor.name.clone(), json!(name));
        }
        let path = staged.path().join(&name);
        total += write_safetensors(OPERATION, &path, shard, &mut |n, out| {
            let seed = spec.seed ^ (first + n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let written = draw(&shard[n], &pool, &mut Rng::new(seed), out);
            written.map_err(|e| crate::error::io(OPERATION, &path, &e))
        })?;
        first += shard.len() as u64;
    }
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        staged.write("model.safetensors.index.json", index.to_string().as_bytes())?;
    }
    Ok((total, shards.len()))
}

/// Cuts the list of tensors where the next one would pass the limit.
fn cut(planned: &[Planned], limit: u64) -> Vec<&[Planned]> {
    let (mut shards, mut start, mut held) = (Vec::new(), 0, 0u64);
    for (number, tensor) in planned.iter().enumerate() {
        let bytes = tensor.bytes().unwrap_or(u64::MAX);
        if number > start && held.saturating_add(bytes) > limit {
            shards.push(&planned[start..number]);
            (start, held) = (number, 0);
        }
        held = held.saturating_add(bytes);
    }
    shards.push(&planned[start..]);
    shards
}

/// Norms are ones; matrices are cuts of the pool at random places.
fn draw(tensor: &Planned, pool: &[u8], rng: &mut Rng, out: &mut dyn Write) -> std::io::Result<()> {
    let mut left = tensor.shape.iter().product::<u64>() as usize;
    let ones = bf16::ONE.to_le_bytes().repeat(if tensor.shape.len() == 1 { CUT } else { 0 });
    while left > 0 {
        let count = left.min(CUT);
        let at = (rng.next_u64() % (POOL - CUT) as u64) as usize * 2;
        let from = if ones.is_empty() { &pool[at..] } else { &ones[..] };
        out.write_all(&from[..count * 2])?;
        left -= count;
    }
    Ok(())
}

/// Values of about a normal distribution of deviation 0.02 (sums of four uniform ones: integers and
/// one division, so the same everywhere), in bf16.
fn pool(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = Vec::with_capacity(2 * POOL);
    for _ in 0..POOL {
        let bits = rng.next_u64();
        let sum: u64 = (0..4).map(|part| bits >> (16 * part) & 0xffff).sum();
        // The deviation of such a sum is 65536 divided by the root of 3.
        let value = (sum as f32 - 131_070.0) * (0.02 / 37837.2);
        bytes.extend(bf16::from_f32(value).to_le_bytes());
    }
    bytes
}

fn config_json(dims: &SynthDims) -> Map<String, serde_json::Value> {
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "hidden_size": dims.hidden, "intermediate_size": dims.inner, "num_hidden_layers": dims.layers,
        "num_attention_heads": dims.heads, "num_key_value_heads": dims.kv_heads, "head_dim": dims.head_dim,
        "vocab_size": dims.vocabulary, "max_position_embeddings": 131072, "tie_word_embeddings": true,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    });
    json.as_object().cloned().unwrap_or_default()
}

/// The files that a model's words are in.
fn words_of(source: &Path) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut found = Vec::new();
    let tokenizer = read_small(OPERATION, &source.join("tokenizer.json"), TOKENIZER_BYTES)?;
    found.push(("tokenizer.json", tokenizer));
    for name in ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"] {
        if let Some(bytes) = read_optional(OPERATION, &source.join(name), SMALL_FILE_BYTES)? {
            found.push((name, bytes));
        }
    }
    Ok(found)
}
