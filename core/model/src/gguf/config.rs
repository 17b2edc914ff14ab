//! From GGUF's keys and tensor names to those of a Hugging Face llama.

use super::read::{Header, Source, Value};
use super::rope;
use crate::error::{damaged, unsupported};
use kvern_contract::Result;
use serde_json::{Map, Value as Json, json};
use std::fs::File;

const OPERATION: &str = "model/gguf";

/// What becomes of a stored tensor.
pub(super) struct Renamed<'a> {
    pub name: String,
    pub source: &'a Source,
    /// Heads whose rows are stored in pairs and go back into halves; 0 for none.
    pub heads: u32,
}

/// `config.json` of a file, and all its tensors under their new names.
pub(super) fn convert<'a>(header: &'a Header, file: &File) -> Result<(Json, Vec<Renamed<'a>>)> {
    let architecture = header.text("general.architecture").unwrap_or("(none named)");
    if architecture != "llama" {
        let message = format!("architecture {architecture} is unknown; known: llama");
        return Err(unsupported(OPERATION, message));
    }
    let size = |key: &str| count(header, &format!("llama.{key}"));
    let layers = size("block_count")?;
    let heads = size("attention.head_count")?;
    let kv_heads = header.count("llama.attention.head_count_kv").unwrap_or(heads);
    let hidden = size("embedding_length")?;
    if header.get("llama.expert_count").is_some_and(|n| *n != Value::Unsigned(0)) {
        return Err(unsupported(OPERATION, "llama.expert_count: experts are not known here"));
    }
    let head_dim = header
        .count("llama.attention.key_length")
        .or_else(|| header.count("llama.rope.dimension_count"))
        .unwrap_or(hidden / heads.max(1));
    let rotary = header.count("llama.rope.dimension_count").unwrap_or(head_dim);
    if rotary != head_dim {
        let message = format!("{rotary} of {head_dim} channels are rotated, expected all");
        return Err(unsupported(OPERATION, message));
    }
    let embedding = header.tensors.get("token_embd.weight");
    let Some(vocabulary) = embedding.and_then(|t| t.shape.first()) else {
        return Err(damaged(OPERATION, "tensor token_embd.weight is missing"));
    };
    let has = |name: &str| header.tensors.contains_key(name);
    let rope = rope::convert(header, file, head_dim)?;
    let token = |key: &str| header.count(&format!("tokenizer.ggml.{key}_token_id"));
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": has("blk.0.attn_q.bias"),
        "bos_token_id": token("bos"),
        "dtype": "bfloat16",
        "eos_token_id": token("eos"),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": size("feed_forward_length")?,
        "max_position_embeddings": size("context_length")?,
        "mlp_bias": has("blk.0.ffn_gate.bias"),
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "pad_token_id": token("padding"),
        "rms_norm_eps": shortest(number(header, "llama.attention.layer_norm_rms_epsilon")?),
        "rope_parameters": rope,
        "tie_word_embeddings": !has("output.weight"),
        "vocab_size": vocabulary,
    });
    Ok((config, rename(header, heads, kv_heads)?))
}

/// `generation_config.json`: the tokens that the file names.
pub(super) fn generation(config: &Json) -> Json {
    let mut map = Map::new();
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        if let Some(id) = config.get(key).filter(|id| !id.is_null()) {
            map.insert(key.into(), id.clone());
        }
    }
    Json::Object(map)
}

fn rename(header: &Header, heads: u32, kv_heads: u32) -> Result<Vec<Renamed<'_>>> {
    let mut all = Vec::new();
    for (name, source) in &header.tensors {
        let new = match name.as_str() {
            "token_embd.weight" => Some(("model.embed_tokens.weight".into(), 0)),
            "output_norm.weight" => Some(("model.norm.weight".into(), 0)),
            "output.weight" => Some(("lm_head.weight".into(), 0)),
            rope::FACTORS => continue,
            _ => layer_name(name, heads, kv_heads),
        };
        let Some((new, heads)) = new else {
            let message = format!("tensor {name} is none of a llama's");
            return Err(unsupported(OPERATION, message));
        };
        let rows = source.shape[0];
        if heads > 0 && !rows.is_multiple_of(2 * u64::from(heads)) {
            let message = format!(
                "{name} has {rows} rows, expected a multiple of {heads} heads of two halves"
            );
            return Err(damaged(OPERATION, message));
        }
        all.push(Renamed { name: new, source, heads });
    }
    Ok(all)
}

fn layer_name(name: &str, heads: u32, kv_heads: u32) -> Option<(String, u32)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (part, ending) = rest.rsplit_once('.')?;
    if ending != "weight" && ending != "bias" {
        return None;
    }
    let (part, heads) = match part {
        "attn_norm" => ("input_layernorm", 0),
        "ffn_norm" => ("post_attention_layernorm", 0),
        "attn_q" => ("self_attn.q_proj", heads),
        "attn_k" => ("self_attn.k_proj", kv_heads),
        "attn_v" => ("self_attn.v_proj", 0),
        "attn_output" => ("self_attn.o_proj", 0),
        "ffn_gate" => ("mlp.gate_proj", 0),
        "ffn_up" => ("mlp.up_proj", 0),
        "ffn_down" => ("mlp.down_proj", 0),
        _ => return None,
    };
    Some((format!("model.layers.{layer}.{part}.{ending}"), heads))
}

fn count(header: &Header, key: &str) -> Result<u32> {
    let wrong = || damaged(OPERATION, format!("{key} is missing or no count"));
    header.count(key).filter(|n| *n > 0).ok_or_else(wrong)
}

fn number(header: &Header, key: &str) -> Result<f32> {
    header.number(key).ok_or_else(|| damaged(OPERATION, format!("{key} is missing or no number")))
}

/// The shortest decimal that is this f32, so that 1e-5 is written as itself.
pub(super) fn shortest(x: f32) -> Json {
    let text = format!("{x:?}");
    text.parse::<f64>().map_or(Json::Null, |x| json!(x))
}
