//! A GGUF file's vocabulary as `tokenizer.json`: byte-level BPE with the splitter that the file
//! names.

use super::read::{Header, Value};
use crate::error::{damaged, unsupported};
use kvern_contract::Result;
use serde_json::{Map, Value as Json, json};
use std::collections::HashSet;

const OPERATION: &str = "model/gguf";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const KNOWN: &str = "gpt-2, default, smollm, llama-bpe, llama3, qwen2";

/// How words are cut before merging.
struct Splitter {
    json: Json,
    /// Whole words in the vocabulary go before merges.
    ignore_merges: bool,
    /// Whether a text begins with BOS where the file does not say.
    add_bos: bool,
}

/// `tokenizer.json` and `tokenizer_config.json`.
pub(super) fn convert(header: &Header) -> Result<(Json, Json)> {
    let model = header.text("tokenizer.ggml.model").unwrap_or("(none named)");
    if model != "gpt2" {
        let message = format!("tokenizer model '{model}' is unknown; known: gpt2");
        return Err(unsupported(OPERATION, message));
    }
    let splitter = splitter(header.text("tokenizer.ggml.pre").unwrap_or("default"))?;
    let tokens = texts(header, "tokenizer.ggml.tokens")?;
    let merges = texts(header, "tokenizer.ggml.merges")?;
    let kinds = header.list("tokenizer.ggml.token_type").unwrap_or_default();
    let mut vocabulary = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocabulary.insert((*token).into(), json!(id)).is_some() {
            return Err(damaged(OPERATION, format!("token {token:?} comes twice")));
        }
    }
    let added = added_tokens(&tokens, kinds);
    let pairs = pairs(&merges, &vocabulary)?;
    let bos = special(header, &tokens, "bos");
    let add_bos = header.switch("tokenizer.ggml.add_bos_token").unwrap_or(splitter.add_bos);
    let post = match bos {
        Some((id, token)) if add_bos => begin_with(id, token),
        _ => Json::Null,
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": splitter.json,
        "post_processor": post,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": splitter.ignore_merges, "vocab": vocabulary, "merges": pairs
        }
    });
    Ok((tokenizer, words(header, &tokens)))
}

fn splitter(name: &str) -> Result<Splitter> {
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let sequence =
        |first: Json, second: Json| json!({"type": "Sequence", "pretokenizers": [first, second]});
    let split = |pattern: &str| {
        let first = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        sequence(first, bytes(false))
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    let (json, ignore_merges) = match name {
        "gpt-2" | "default" => (bytes(true), false),
        "smollm" => (sequence(digits, bytes(true)), false),
        "llama-bpe" | "llama3" | "llama-v3" => (split(LLAMA3), true),
        "qwen2" => (split(QWEN2), false),
        other => {
            let message = format!("pre-tokenizer '{other}' is unknown; known: {KNOWN}");
            return Err(unsupported(OPERATION, message));
        }
    };
    Ok(Splitter { json, ignore_merges, add_bos: ignore_merges })
}

/// Tokens that are found in a text before it is split: control tokens, unknown, and user-defined
/// ones.
fn added_tokens(tokens: &[&str], kinds: &[Value]) -> Vec<Json> {
    let kind = |v: &Value| match v {
        Value::Signed(n) => *n,
        Value::Unsigned(n) => i64::try_from(*n).unwrap_or(0),
        _ => 0,
    };
    let with_kind = tokens.iter().enumerate().zip(kinds.iter().map(kind));
    let added = with_kind.filter(|(_, kind)| matches!(kind, 2..=4)).map(|((id, token), kind)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": kind != 4})
    });
    added.collect()
}

/// Merges as pairs; each must make a token that there is, or the tokenizer would not load.
fn pairs(merges: &[&str], vocabulary: &Map<String, Json>) -> Result<Vec<Json>> {
    let mut seen = HashSet::new();
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let pair = merge.split_once(' ').filter(|(a, b)| {
            !b.contains(' ')
                && [*a, *b, &format!("{a}{b}")].iter().all(|t| vocabulary.contains_key(*t))
        });
        let Some((first, second)) = pair.filter(|pair| seen.insert(*pair)) else {
            let message =
                format!("merge {merge:?} is not two tokens that make a third, or comes twice");
            return Err(damaged(OPERATION, message));
        };
        pairs.push(json!([first, second]));
    }
    Ok(pairs)
}

fn begin_with(id: u32, token: &str) -> Json {
    let bos = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let part = |name: &str, number: u32| json!({"Sequence": {"id": name, "type_id": number}});
    json!({
        "type": "TemplateProcessing",
        "single": [bos, part("A", 0)],
        "pair": [bos, part("A", 0), bos, part("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}
    })
}

/// `tokenizer_config.json`: special tokens and the chat template.
fn words(header: &Header, tokens: &[&str]) -> Json {
    let mut map = Map::new();
    for (name, key) in [
        ("bos", "bos_token"),
        ("eos", "eos_token"),
        ("unknown", "unk_token"),
        ("padding", "pad_token"),
    ] {
        if let Some((_, token)) = special(header, tokens, name) {
            map.insert(key.into(), json!(token));
        }
    }
    map.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    map.insert("clean_up_tokenization_spaces".into(), json!(false));
    if let Some(template) = header.text("tokenizer.chat_template") {
        map.insert("chat_template".into(), json!(template));
    }
    Json::Object(map)
}

fn special<'a>(header: &Header, tokens: &[&'a str], name: &str) -> Option<(u32, &'a str)> {
    let id = header.count(&format!("tokenizer.ggml.{name}_token_id"))?;
    Some((id, *tokens.get(id as usize)?))
}

fn texts<'a>(header: &'a Header, key: &str) -> Result<Vec<&'a str>> {
    let wrong = || damaged(OPERATION, format!("{key} is missing or no list of texts"));
    let text = |value: &'a Value| match value {
        Value::Text(text) => Some(text.as_str()),
        _ => None,
    };
    let list = header.list(key).ok_or_else(wrong)?;
    list.iter().map(text).collect::<Option<Vec<_>>>().ok_or_else(wrong)
}
