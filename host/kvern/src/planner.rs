//! The plan of a run, made without weights: which family a config belongs to, which passes it gets,
//! how large it is, and which KV strategy suits it.

use crate::fail::{Failure, Outcome};
use crate::machine::Machine;
use crate::model::Reference;
use crate::selector::{Ask, Selection, Size, select};
use serde_json::Value;
use std::path::Path;

struct Family {
    name: &'static str,
    architectures: &'static [&'static str],
    passes: &'static [&'static str],
    /// What the model takes beside text, where it does.
    takes: Option<&'static str>,
}

const DENSE: &[&str] = &["disk-cache", "cpu-offload", "mlp-chunking"];
const FAMILIES: [Family; 5] = [
    Family { name: "llama", architectures: &["LlamaForCausalLM"], passes: DENSE, takes: None },
    Family {
        name: "gemma3",
        architectures: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
        passes: DENSE,
        takes: Some("vision_config"),
    },
    Family {
        name: "qwen3-next",
        architectures: &["Qwen3NextForCausalLM", "Qwen3MoeForCausalLM"],
        passes: &["disk-cache", "cpu-offload", "gpu-offload", "moe-routing"],
        takes: None,
    },
    Family {
        name: "gpt-oss",
        architectures: &["GptOssForCausalLM", "OpenAIGptOssForCausalLM"],
        passes: &["cpu-offload", "moe-routing", "attention-replacement", "gds-export-weights"],
        takes: None,
    },
    Family {
        name: "voxtral",
        architectures: &["VoxtralForConditionalGeneration", "VoxtralForSpeechSeq2Seq"],
        passes: DENSE,
        takes: Some("audio_config"),
    },
];

/// What will run, as far as it can be told without weights.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// The family, where exactly one matches.
    pub family: Option<&'static str>,
    /// Passes that apply.
    pub passes: Vec<&'static str>,
    /// `planned`, or `fallback` where nothing specialises.
    pub state: &'static str,
    /// Counted from the config, all experts included.
    pub parameters: Option<u64>,
    /// The KV strategy.
    pub selection: Selection,
}

/// What a plan depends on beside the model.
#[derive(Clone, PartialEq, Debug)]
pub struct PlanAsk<'a> {
    /// What the selector favours.
    pub profile: &'a str,
    /// A strategy that the user pinned.
    pub pinned: Option<String>,
    /// A window that the user asked for.
    pub window_tokens: Option<u32>,
    /// Whether a family's passes may be used.
    pub specialization: bool,
}

/// Plans a run of a model that may not be there: then nothing is known of it, and nothing
/// specialises.
pub fn plan(
    reference: Option<&str>,
    models_dir: &Path,
    machine: &Machine,
    ask: &PlanAsk<'_>,
) -> Outcome<Plan> {
    let config = Reference::resolve(reference, models_dir).and_then(|r| r.config()).ok();
    let config = config.map_or(Ok(Value::Null), |bytes| {
        serde_json::from_slice(&bytes).map_err(|e| Failure::new(format!("config.json: {e}")))
    })?;
    plan_config(&config, machine, ask)
}

/// The same of a config that was read.
pub fn plan_config(config: &Value, machine: &Machine, ask: &PlanAsk<'_>) -> Outcome<Plan> {
    let family = if ask.specialization { family_of(config) } else { None };
    let mut passes: Vec<&'static str> = family.map(|f| f.passes.to_vec()).unwrap_or_default();
    let media = family.and_then(|f| f.takes).is_some_and(|key| config.get(key).is_some());
    if media {
        passes.push("multimodal-shell");
    }
    let parameters = parameters(config);
    let selection = select(&Ask {
        profile: ask.profile.into(),
        pinned: ask.pinned.clone(),
        window_tokens: ask.window_tokens,
        text_only: !media,
        memory: Size::of_memory(machine.memory_bytes),
        accelerator: Size::None,
        model: Size::of_model(parameters),
    })?;
    let state = if family.is_some() { "planned" } else { "fallback" };
    Ok(Plan { family: family.map(|f| f.name), passes, state, parameters, selection })
}

fn family_of(config: &Value) -> Option<&'static Family> {
    let named: Vec<&str> =
        config["architectures"].as_array()?.iter().filter_map(Value::as_str).collect();
    let mut matching =
        FAMILIES.iter().filter(|f| f.architectures.iter().any(|a| named.contains(a)));
    matching.next().filter(|_| matching.next().is_none())
}

/// Parameters of a decoder's matrices and norms, all experts counted; `None` where a size is
/// missing.
pub fn parameters(config: &Value) -> Option<u64> {
    let config = config.get("text_config").filter(|c| c.is_object()).unwrap_or(config);
    let number = |key: &str| config.get(key).and_then(Value::as_u64);
    let hidden = number("hidden_size")?;
    let layers = number("num_hidden_layers")?;
    let heads = number("num_attention_heads").filter(|n| *n > 0)?;
    let kv_heads = number("num_key_value_heads").unwrap_or(heads);
    let head_dim = number("head_dim").unwrap_or(hidden / heads);
    let vocabulary = number("vocab_size")?;
    let experts = number("num_experts").or(number("num_local_experts")).unwrap_or(0);
    let width = number("intermediate_size").unwrap_or(0);
    let expert_width = number("moe_intermediate_size").unwrap_or(width);
    let product = |factors: &[u64]| factors.iter().try_fold(1u64, |a, b| a.checked_mul(*b));
    let attention = product(&[2, hidden, head_dim, heads.checked_add(kv_heads)?])?;
    let mlp = match experts {
        0 => product(&[3, hidden, width])?,
        n => product(&[3, n, hidden, expert_width])?.checked_add(product(&[n, hidden])?)?,
    };
    let norms = product(&[2, hidden])?;
    let layer = attention.checked_add(mlp)?.checked_add(norms)?;
    let tied = config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false);
    let tables = product(&[if tied { 1 } else { 2 }, vocabulary, hidden])?;
    product(&[layers, layer])?.checked_add(tables)?.checked_add(hidden)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ask(specialization: bool) -> PlanAsk<'static> {
        PlanAsk { profile: "balanced", pinned: None, window_tokens: None, specialization }
    }

    #[test]
    fn the_embedded_model_is_a_llama_of_known_size() {
        let machine = Machine::default();
        let found = plan(None, Path::new("/nowhere"), &machine, &ask(true)).unwrap();
        assert_eq!((found.family, found.state), (Some("llama"), "planned"));
        assert_eq!(found.passes, DENSE);
        // 2048 x 192 embedding, tied; 6 layers of 2 x 192 x 32 x 8 + 3 x 192 x 512 + 2 x 192; the
        // last norm.
        assert_eq!(found.parameters, Some(393_216 + 6 * (98_304 + 294_912 + 384) + 192));
        let generic = plan(None, Path::new("/nowhere"), &machine, &ask(false)).unwrap();
        assert_eq!((generic.family, generic.state), (None, "fallback"));
    }

    #[test]
    fn a_model_that_is_not_there_is_planned_as_unknown() {
        let found =
            plan(Some("x"), Path::new("/nowhere"), &Machine::default(), &ask(true)).unwrap();
        assert_eq!((found.family, found.parameters), (None, None));
    }

    #[test]
    fn two_families_at_once_are_none() {
        let config = json!({"architectures": ["LlamaForCausalLM", "GptOssForCausalLM"]});
        assert!(plan_config(&config, &Machine::default(), &ask(true)).unwrap().family.is_none());
        let media =
            json!({"architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {}});
        let found = plan_config(&media, &Machine::default(), &ask(true)).unwrap();
        assert!(found.passes.contains(&"multimodal-shell"));
    }

    #[test]
    fn sizes_that_overflow_are_unknown() {
        let config = json!({"hidden_size": u64::MAX, "num_hidden_layers": 2, "vocab_size": 9,
                            "num_attention_heads": 1});
        assert_eq!(parameters(&config), None);
    }
}
