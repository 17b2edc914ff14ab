//! A tiny T5 directory that no family matches: made for planning, never run.

use crate::fail::{Outcome, While};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The directory; removed when this is dropped.
pub struct Fixture(PathBuf);

const VOCABULARY: [&str; 6] = ["<pad>", "</s>", "<unk>", "say", "hi", "there"];

impl Fixture {
    /// Makes the directory under the system's temporary one.
    pub fn create() -> Outcome<Fixture> {
        let path = std::env::temp_dir().join(format!("kvern-t5-{}", std::process::id()));
        std::fs::create_dir_all(&path).during(path.display())?;
        let fixture = Fixture(path);
        fixture.write("config.json", config().to_string().as_bytes())?;
        fixture.write("tokenizer.json", tokenizer().to_string().as_bytes())?;
        fixture.write("model.safetensors", &weights())?;
        Ok(fixture)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Outcome<()> {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).during(path.display())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // What stays behind lies in the temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config() -> Value {
    json!({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "vocab_size": 6,
           "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1,
           "num_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
           "is_encoder_decoder": true})
}

fn tokenizer() -> Value {
    let vocabulary: Map<String, Value> =
        VOCABULARY.iter().enumerate().map(|(id, word)| ((*word).into(), json!(id))).collect();
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
           "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
           "decoder": null,
           "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}})
}

fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut out = vec![("shared.weight".to_string(), vec![6, 16])];
    for (stack, attentions) in [("encoder", 1), ("decoder", 2)] {
        for layer in 0..attentions {
            let kind = if layer == 0 { "SelfAttention" } else { "EncDecAttention" };
            let prefix = format!("{stack}.block.0.layer.{layer}");
            for matrix in ["q", "k", "v", "o"] {
                out.push((format!("{prefix}.{kind}.{matrix}.weight"), vec![16, 16]));
            }
            out.push((format!("{prefix}.layer_norm.weight"), vec![16]));
        }
        let prefix = format!("{stack}.block.0.layer.{attentions}");
        out.push((format!("{prefix}.DenseReluDense.wi.weight"), vec![32, 16]));
        out.push((format!("{prefix}.DenseReluDense.wo.weight"), vec![16, 32]));
        out.push((format!("{prefix}.layer_norm.weight"), vec![16]));
        out.push((format!("{stack}.final_layer_norm.weight"), vec![16]));
    }
    out
}

/// A safetensors file of numbers from a fixed sequence, between -0.5 and 0.5.
fn weights() -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    for (name, shape) in shapes() {
        let begin = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let unit = (state >> 40) as f32 / (1u64 << 24) as f32;
            data.extend((unit - 0.5).to_le_bytes());
        }
        header.insert(
            name,
            json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}),
        );
    }
    let mut text = Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let length = (text.len() as u64).to_le_bytes();
    [&length[..], text.as_bytes(), &data].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::planner::{PlanAsk, plan};

    #[test]
    fn nothing_specialises_the_fixture_and_nothing_of_it_stays() {
        let fixture = Fixture::create().unwrap();
        let path = fixture.path().to_path_buf();
        let ask = PlanAsk {
            profile: "balanced",
            pinned: None,
            window_tokens: None,
            specialization: true,
        };
        let reference = path.to_string_lossy().into_owned();
        let found = plan(Some(&reference), Path::new("x"), &Machine::default(), &ask).unwrap();
        assert_eq!((found.family, found.state), (None, "fallback"));
        drop(fixture);
        assert!(!path.exists());
    }

    #[test]
    fn its_weights_are_a_safetensors_file() {
        let bytes = weights();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let end =
            header.as_object().unwrap().values().next_back().unwrap()["data_offsets"][1].as_u64();
        assert_eq!(end, Some((bytes.len() - 8 - length) as u64));
    }
}
