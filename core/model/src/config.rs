//! What `config.json` says, checked: sizes, rope, ids, and nothing that overflows later.

use crate::error::{invalid, unsupported};
use crate::family::{FAMILIES, Family};
use crate::json::{Object, parse_object};
use crate::rope::Rope;
use kvern_contract::Result;

const OPERATION: &str = "model/config";
const FILE: &str = "config.json";

/// A decoder's shape. Counts are of elements, never bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The family, as `LlamaForCausalLM`.
    pub architecture: String,
    /// The family's short name, as `llama`.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width of the feed-forward part.
    pub intermediate_size: u32,
    /// Decoder layers.
    pub layers: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u32,
    /// Channels of a head; even.
    pub head_dim: u32,
    /// Rows of the embedding.
    pub vocab_size: u32,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f32,
    /// Rotary frequencies.
    pub rope: Rope,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: u32,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// Biases on q, k, v and o.
    pub attention_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// Gate activation; `silu` in every known family.
    pub hidden_act: String,
    /// First token of a text, where the config names one.
    pub bos: Option<u32>,
    /// Tokens that end a text; empty where the config names none.
    pub eos: Vec<u32>,
    /// The whole file, for what a family needs beside.
    pub raw: serde_json::Value,
}

impl Config {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// `Invalid` where a key is missing, of a wrong type, or sizes contradict each other;
    /// `Unsupported`, naming what is known, for another architecture, rope type or activation, or
    /// for quantized weights.
    pub fn parse(bytes: &[u8]) -> Result<Config> {
        let map = parse_object(OPERATION, FILE, bytes)?;
        let object = Object { map: &map, file: FILE, operation: OPERATION };
        let family = family(&object)?;
        if let Some(quantized) = object.object("quantization_config")? {
            let how = quantized.text("quant_method")?.unwrap_or("an unnamed method");
            let message = format!(
                "config.json: the weights are quantized with {how}; expected plain bf16, f16 or f32"
            );
            return Err(unsupported(OPERATION, message));
        }
        let hidden_size = object.size("hidden_size")?;
        let heads = object.size("num_attention_heads")?;
        let config = Config {
            architecture: family.architecture.into(),
            model_type: object.text("model_type")?.unwrap_or(family.model_type).into(),
            hidden_size,
            intermediate_size: object.size("intermediate_size")?,
            layers: object.size("num_hidden_layers")?,
            heads,
            kv_heads: object.count("num_key_value_heads", 1)?.unwrap_or(heads),
            head_dim: match object.count("head_dim", 1)? {
                Some(n) => n,
                None => whole_share(hidden_size, heads)?,
            },
            vocab_size: object.size("vocab_size")?,
            rms_norm_eps: object
                .number("rms_norm_eps", "a positive number", |x| x > 0.0)?
                .unwrap_or(1e-6),
            rope: Rope::parse(&object)?,
            max_position_embeddings: object.count("max_position_embeddings", 1)?.unwrap_or(2048),
            tie_word_embeddings: object.switch("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: object.switch("attention_bias")?.unwrap_or(false),
            mlp_bias: object.switch("mlp_bias")?.unwrap_or(false),
            hidden_act: object.text("hidden_act")?.unwrap_or("silu").into(),
            bos: object.count("bos_token_id", 0)?,
            eos: object.ids("eos_token_id")?.unwrap_or_default(),
            raw: serde_json::Value::Null,
        };
        config.check(family)?;
        Ok(Config { raw: serde_json::Value::Object(map), ..config })
    }

    /// `head_dim / 2` inverse rotary frequencies in f32, as transformers computes them; the
    /// attention factor of every known kind is 1.
    pub fn inv_freq(&self) -> Vec<f32> {
        self.rope.inv_freq(self.head_dim)
    }

    /// The family that the architecture names.
    pub(crate) fn family(&self) -> &'static Family {
        let own = |f: &&Family| f.architecture == self.architecture;
        FAMILIES.iter().find(own).expect("parse accepts registered architectures alone")
    }

    fn check(&self, family: &Family) -> Result<()> {
        let refuse = |message: String| Err(invalid(OPERATION, format!("config.json: {message}")));
        if !self.heads.is_multiple_of(self.kv_heads) {
            return refuse(format!(
                "num_attention_heads is {}, expected a multiple of num_key_value_heads, {}",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return refuse(format!("head_dim is {}, expected an even number", self.head_dim));
        }
        if !family.activations.contains(&self.hidden_act.as_str()) {
            let known = family.activations.join(", ");
            let message =
                format!("config.json: hidden_act '{}' is unknown; known: {known}", self.hidden_act);
            return Err(unsupported(OPERATION, message));
        }
        // The largest matrix of each kind in f32 bytes, and all layers of it, must be countable;
        // then so is every offset that an engine computes.
        let (h, i) = (u64::from(self.hidden_size), u64::from(self.intermediate_size));
        let width = u64::from(self.heads) * u64::from(self.head_dim);
        if u32::try_from(width).is_err() {
            return refuse(format!(
                "num_attention_heads {} times head_dim {} is {width}, expected at most {}",
                self.heads,
                self.head_dim,
                u32::MAX
            ));
        }
        let products = [(h, i), (h, width), (h, u64::from(self.vocab_size))];
        for (rows, columns) in products {
            let layers = u128::from(self.layers) * 8;
            if u128::from(rows) * u128::from(columns) * 4 * layers > 1 << 62 {
                return refuse(format!(
                    "a matrix of {rows} times {columns} in {} layers is larger than any machine",
                    self.layers
                ));
            }
        }
        let outside = self.bos.iter().chain(&self.eos).find(|id| **id >= self.vocab_size);
        if let Some(id) = outside {
            return refuse(format!(
                "token id {id} is named as bos or eos, expected less than vocab_size, {}",
                self.vocab_size
            ));
        }
        Ok(())
    }
}

fn whole_share(hidden_size: u32, heads: u32) -> Result<u32> {
    if hidden_size.is_multiple_of(heads) {
        return Ok(hidden_size / heads);
    }
    let message = format!(
        "config.json: hidden_size is {hidden_size}, expected a multiple of num_attention_heads, {heads}, or a head_dim"
    );
    Err(invalid(OPERATION, message))
}

/// The family of the first architecture named; a config without any is known by its model_type.
fn family(object: &Object<'_>) -> Result<&'static Family> {
    let named = object.get("architectures").and_then(|v| v.get(0)).and_then(|v| v.as_str());
    let model_type = object.text("model_type")?;
    let found = FAMILIES.iter().find(|f| match named {
        Some(name) => f.architecture == name,
        None => Some(f.model_type) == model_type,
    });
    found.ok_or_else(|| {
        let known: Vec<_> = FAMILIES.iter().map(|f| f.architecture).collect();
        let name = named.or(model_type).unwrap_or("(none named)");
        let known = known.join(", ");
        let message = format!("config.json: architecture {name} is unknown; known: {known}");
        unsupported(OPERATION, message)
    })
}
