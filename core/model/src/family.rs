//! Which families are known, and which tensors each promises.

use crate::config::Config;
use kvern_contract::Result;

/// Told the name and shape of a promised tensor; an error ends the listing.
pub(crate) type Told<'a> = &'a mut dyn FnMut(&str, &[u32]) -> Result<()>;

/// One family of models. A new one is an entry in [`FAMILIES`] and a function that lists its
/// tensors.
pub(crate) struct Family {
    /// As `architectures` in `config.json` names it.
    pub architecture: &'static str,
    /// As `model_type` names it.
    pub model_type: &'static str,
    /// Gate activations that it may have.
    pub activations: &'static [&'static str],
    /// Calls back with the name and shape of every tensor that a config promises.
    pub promise: fn(&Config, Told<'_>) -> Result<()>,
    /// Tensors that a file may hold beside, and nobody reads.
    pub ignored: fn(&Config, &str) -> bool,
}

/// All known families.
pub(crate) const FAMILIES: &[Family] = &[Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    activations: &["silu"],
    promise: llama,
    ignored: |config, name| {
        name.ends_with(".rotary_emb.inv_freq")
            || (config.tie_word_embeddings && name == "lm_head.weight")
    },
}];

/// Calls back with every tensor of a llama: embedding, layers, norm, head.
fn llama(config: &Config, tensor: Told<'_>) -> Result<()> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let query = config.heads * config.head_dim;
    let key = config.kv_heads * config.head_dim;
    let linear = [
        ("self_attn.q_proj", query, hidden, config.attention_bias),
        ("self_attn.k_proj", key, hidden, config.attention_bias),
        ("self_attn.v_proj", key, hidden, config.attention_bias),
        ("self_attn.o_proj", hidden, query, config.attention_bias),
        ("mlp.gate_proj", inner, hidden, config.mlp_bias),
        ("mlp.up_proj", inner, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, inner, config.mlp_bias),
    ];
    tensor("model.embed_tokens.weight", &[config.vocab_size, hidden])?;
    for layer in 0..config.layers {
        tensor(&format!("model.layers.{layer}.input_layernorm.weight"), &[hidden])?;
        for (name, rows, columns, bias) in linear {
            tensor(&format!("model.layers.{layer}.{name}.weight"), &[rows, columns])?;
            if bias {
                tensor(&format!("model.layers.{layer}.{name}.bias"), &[rows])?;
            }
        }
        tensor(&format!("model.layers.{layer}.post_attention_layernorm.weight"), &[hidden])?;
    }
    tensor("model.norm.weight", &[hidden])?;
    if !config.tie_word_embeddings {
        tensor("lm_head.weight", &[config.vocab_size, hidden])?;
    }
    Ok(())
}
