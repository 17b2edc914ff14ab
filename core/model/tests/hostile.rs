//! Nothing that a file holds may panic: mutated configs, headers, tokenizers and templates give an
//! error or a model.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod support;

use kvern_model::{ChatTemplate, Config, Message, Model, Text, TextFiles};
use proptest::prelude::*;
use serde_json::Value;
use support::*;

/// A change to some bytes: where (as a share of the length), what, and how many to drop.
type Change = (f64, u8, usize);

fn changes() -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec((0.0f64..1.0, any::<u8>(), 0usize..3), 1..6)
}

fn mutate(bytes: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for (share, byte, drop) in changes {
        if out.is_empty() {
            break;
        }
        let at = (share * out.len() as f64) as usize;
        match drop {
            0 => out[at] = *byte,
            1 => {
                out.remove(at);
            }
            _ => out.truncate(at + 1),
        }
    }
    out
}

/// Numbers that code forgets.
fn number() -> impl Strategy<Value = Value> {
    let text = [
        "0",
        "-1",
        "1",
        "2",
        "3",
        "4294967295",
        "4294967296",
        "18446744073709551615",
        "1e40",
        "0.5",
        "null",
        "\"x\"",
        "[1]",
    ];
    prop::sample::select(text.to_vec()).prop_map(|t| serde_json::from_str(t).unwrap())
}

const KEYS: &[&str] = &[
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rms_norm_eps",
    "rope_theta",
    "eos_token_id",
    "bos_token_id",
    "max_position_embeddings",
    "rope_scaling",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_mutated_config_never_panics(changes in changes()) {
        let _ = Config::parse(&mutate(config().to_string().as_bytes(), &changes));
    }

    #[test]
    fn a_config_of_strange_numbers_never_panics(
        values in prop::collection::vec((prop::sample::select(KEYS), number()), 1..4),
    ) {
        let mut config = config();
        for (key, value) in values {
            config[key] = value;
        }
        if let Ok(config) = Config::parse(config.to_string().as_bytes()) {
            prop_assert!(config.heads % config.kv_heads == 0 && config.head_dim % 2 == 0);
            if config.head_dim < 4096 {
                prop_assert_eq!(config.inv_freq().len() as u32, config.head_dim / 2);
            }
        }
    }

    #[test]
    fn mutated_weights_never_panic_and_extents_stay_inside(
        changes in changes(),
        length in any::<Option<u16>>(),
    ) {
        let mut bytes = mutate(&safetensors(&tensors(), "BF16", 16), &changes);
        if let Some(length) = length {
            let n = bytes.len().min(8);
            bytes[..n].copy_from_slice(&u64::from(length).to_le_bytes()[..n]);
        }
        if let Ok(model) = Model::open(write_model(&config(), &bytes).path()) {
            for (_, tensor) in model.tensors().iter() {
                prop_assert!(tensor.offset + tensor.bytes <= bytes.len() as u64);
            }
        }
    }

    #[test]
    fn a_mutated_template_never_panics(changes in changes()) {
        let source = "{% for m in messages %}{% generation %}\
            {{ m['content'] | tojson(indent=2) }}\
            {% endgeneration %}{% endfor %}{{ bos_token[1:3] }}";
        let source = String::from_utf8_lossy(&mutate(source.as_bytes(), &changes)).into_owned();
        if let Ok(template) = ChatTemplate::new(&source, vec![("bos_token".into(), "<s>".into())]) {
            let messages = [Message::new("user", "a"), Message::new("assistant", "é")];
            let _ = template.render(&messages, true);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_mutated_tokenizer_never_panics(changes in changes()) {
        let tokenizer = include_bytes!("../../../host/kvern/embedded/tiny-austen/tokenizer.json");
        let changed = mutate(tokenizer, &changes);
        let files = TextFiles { tokenizer: &changed, tokenizer_config: None, chat_template: None };
        if let Ok(text) = Text::parse("x", &files, 4096)
            && let Ok(ids) = text.encode("It was a truth, 1813.")
        {
            let _ = text.decode(&ids, true);
        }
    }
}

#[test]
fn a_tokenizer_that_is_no_json_from_its_decoder_on_is_an_error() {
    let tokenizer = br#"{"version": "1.0", "decoder": {"type": "ByteLevel}, "model": {}}"#;
    let files = TextFiles { tokenizer, tokenizer_config: None, chat_template: None };
    let error = Text::parse("x", &files, 4096).err().unwrap();
    assert!(error.message.starts_with("tokenizer.json: "), "{}", error.message);
}
