//! What several tests need: fixtures, and tiny models with something wrong in them.
#![allow(dead_code)] // each test binary uses a part

use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A fixture model's directory.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name)
}

/// The embedded model's directory.
pub fn tiny_austen() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../host/kvern/embedded/tiny-austen")
}

/// A llama so small that a test can write it out.
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 16, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": [1, 2],
        "max_position_embeddings": 64, "rope_theta": 10000.0
    })
}

/// The tensors that [`config`] promises, with their shapes.
pub fn tensors() -> Vec<(String, Vec<u64>)> {
    let layer = [
        ("input_layernorm", vec![8]),
        ("self_attn.q_proj", vec![8, 8]),
        ("self_attn.k_proj", vec![4, 8]),
        ("self_attn.v_proj", vec![4, 8]),
        ("self_attn.o_proj", vec![8, 8]),
        ("post_attention_layernorm", vec![8]),
        ("mlp.gate_proj", vec![12, 8]),
        ("mlp.up_proj", vec![12, 8]),
        ("mlp.down_proj", vec![8, 12]),
    ];
    let mut all = vec![
        ("model.embed_tokens.weight".to_string(), vec![16, 8]),
        ("model.norm.weight".to_string(), vec![8]),
    ];
    all.extend(layer.map(|(name, shape)| (format!("model.layers.0.{name}.weight"), shape)));
    all
}

/// The bytes of a safetensors file of zeros.
pub fn safetensors(tensors: &[(String, Vec<u64>)], dtype: &str, bits: u64) -> Vec<u8> {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let end = at + shape.iter().product::<u64>() * bits / 8;
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]}),
        );
        at = end;
    }
    raw_safetensors(&Value::Object(header).to_string(), at as usize)
}

/// A safetensors file of this header and so many zeros.
pub fn raw_safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// Writes a model of a config and the bytes of its weights; gives its directory.
pub fn write_model(config: &Value, weights: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    dir
}
