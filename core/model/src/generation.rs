//! How a model's authors want it sampled, from `generation_config.json`.

use crate::config::Config;
use crate::json::{Object, parse_object};
use kvern_contract::Result;

const OPERATION: &str = "model/generation";
const FILE: &str = "generation_config.json";

/// Sampling defaults and ends of text. Absent keys have transformers' defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationConfig {
    /// Whether to draw at all; false means greedy.
    pub do_sample: bool,
    /// Logits are divided by it; above 0.
    pub temperature: f32,
    /// Keep that many of the best; 0 for all.
    pub top_k: u32,
    /// Keep the smallest set of that much probability; 1 for all.
    pub top_p: f32,
    /// Drop what is less probable than this share of the best; 0 for nothing.
    pub min_p: f32,
    /// Divides what was said before; 1 for nothing.
    pub repetition_penalty: f32,
    /// First token of a text, if any.
    pub bos: Option<u32>,
    /// Tokens that end a text; this file's, else the config's.
    pub eos: Vec<u32>,
    /// Most tokens to make, if the file says.
    pub max_new_tokens: Option<u32>,
}

impl GenerationConfig {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// `Invalid`, naming the key, for a value of a wrong type or out of range.
    pub fn parse(bytes: Option<&[u8]>, config: &Config) -> Result<GenerationConfig> {
        let map =
            bytes.map_or_else(|| Ok(Default::default()), |b| parse_object(OPERATION, FILE, b))?;
        let object = Object { map: &map, file: FILE, operation: OPERATION };
        let number = |key: &str, default: f32, expected: &str, good: fn(f32) -> bool| {
            Ok(object.number(key, expected, good)?.unwrap_or(default))
        };
        let temperature = number("temperature", 1.0, "a number of at least 0", |x| x >= 0.0)?;
        let share = |x: f32| (0.0..=1.0).contains(&x);
        let eos = object.ids("eos_token_id")?.unwrap_or_else(|| config.eos.clone());
        Ok(GenerationConfig {
            do_sample: object.switch("do_sample")?.unwrap_or(false) && temperature > 0.0,
            temperature: if temperature > 0.0 { temperature } else { 1.0 },
            top_k: object.count("top_k", 0)?.unwrap_or(50),
            top_p: number("top_p", 1.0, "a number above 0, at most 1", |x| x > 0.0 && x <= 1.0)?,
            min_p: number("min_p", 0.0, "a number from 0 to 1", share)?,
            repetition_penalty: number("repetition_penalty", 1.0, "a positive number", |x| {
                x > 0.0
            })?,
            bos: object.count("bos_token_id", 0)?.or(config.bos),
            eos,
            max_new_tokens: object.count("max_new_tokens", 1)?,
        })
    }
}
