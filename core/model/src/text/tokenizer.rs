//! `tokenizer.json` in use: encode as transformers does, decode, and refuse what would come out
//! wrong.

use super::template::{ChatTemplate, Message};
use super::{TextFiles, TextStream};
use crate::error::{invalid, missing};
use crate::json::parse_object;
use kvern_contract::Result;
use std::fmt;
use tokenizers::Tokenizer;
use tokenizers::utils::parallelism::set_parallelism;

const OPERATION: &str = "model/text";
/// Longest run of white space that is encoded, in characters. The pattern that splits words holds
/// one backtrack point for each character of a run, and at a million of them it gives up and leaves
/// the rest of the text unsplit: other tokens, and no error.
const SPACE_RUN_CHARS: usize = 500_000;

/// Tokenizer and chat template of one model.
pub struct Text {
    model: String,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    no_template: String,
    byte_fallback: bool,
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Text({})", self.model)
    }
}

impl Text {
    /// Reads the files of a model called `model` with `vocab_size` rows in its embedding.
    ///
    /// # Errors
    /// `Invalid` where a file is broken, or where the tokenizer knows an id that the embedding has
    /// no row for.
    pub fn parse(model: &str, files: &TextFiles<'_>, vocab_size: u32) -> Result<Text> {
        // One text at a time is encoded here, so a pool of threads would only steal cores from the
        // device.
        set_parallelism(false);
        // The loader panics where a decoder is no JSON, so what is no JSON does not reach it.
        let mut tokenizer = serde_json::from_slice::<serde_json::Value>(files.tokenizer)
            .map_err(|e| e.to_string())
            .and_then(|_| Tokenizer::from_bytes(files.tokenizer).map_err(|e| e.to_string()))
            .map_err(|e| invalid(OPERATION, format!("tokenizer.json: {e}")))?;
        let largest = tokenizer.get_vocab(true).into_iter().max_by_key(|(_, id)| *id);
        let Some((token, id)) = largest else {
            return Err(invalid(OPERATION, "tokenizer.json has no vocabulary"));
        };
        if id >= vocab_size {
            let message = format!(
                "tokenizer.json gives {token:?} the id {id}, expected less than vocab_size, {vocab_size}, of config.json"
            );
            return Err(invalid(OPERATION, message));
        }
        // Whoever wrote the file may have left these set; a prompt is never cut or padded.
        tokenizer
            .with_truncation(None)
            .map_err(|e| invalid(OPERATION, format!("tokenizer.json: {e}")))?;
        tokenizer.with_padding(None);
        let config = match files.tokenizer_config {
            Some(bytes) => parse_object(OPERATION, "tokenizer_config.json", bytes)?,
            None => Default::default(),
        };
        let (template, no_template) = match ChatTemplate::find(files.chat_template, &config)? {
            Ok(template) => (Some(template), String::new()),
            Err(reason) => (None, reason),
        };
        let byte_fallback = decodes_bytes(&tokenizer);
        Ok(Text { model: model.to_string(), tokenizer, template, no_template, byte_fallback })
    }

    /// The ids of a text, with what the tokenizer's post-processor adds (a BOS, in some models);
    /// names of special tokens in the text become these tokens, as everywhere.
    ///
    /// # Errors
    /// `Invalid` for a run of more than 500,000 white-space characters, which the splitter cannot
    /// take.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    /// The ids of a text with nothing added, for a prompt that a template made.
    ///
    /// # Errors
    /// As [`Text::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        check_space(text)?;
        let encoding = self
            .tokenizer
            .encode_fast(text, add_special)
            .map_err(|e| invalid(OPERATION, format!("the text does not encode: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids. Bytes that are no UTF-8 become U+FFFD. `skip_special` leaves out special
    /// tokens.
    ///
    /// # Errors
    /// `Invalid` where the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.tokenizer
            .decode(ids, skip_special)
            .map_err(|e| invalid(OPERATION, format!("the tokens do not decode: {e}")))
    }

    /// How many ids the tokenizer knows, added tokens included.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The first difference between the ids that two vocabularies give, in a line; `None` where
    /// they are the same.
    pub fn difference(&self, other: &Text) -> Option<String> {
        let (ours, theirs) = (self.tokenizer.get_vocab(true), other.tokenizer.get_vocab(true));
        let differs = |(token, id): (&String, &u32)| {
            (theirs.get(token) != Some(id)).then(|| (*id, token.clone()))
        };
        let first = ours.iter().filter_map(differs).min();
        let told = |found: Option<&u32>| found.map_or("no token".into(), |id| format!("{id}"));
        match first {
            Some((id, token)) => {
                let found = told(theirs.get(&token));
                Some(format!(
                    "{token:?} is {id} for {} and {found} for {}",
                    self.model, other.model
                ))
            }
            None if theirs.len() != ours.len() => Some(format!(
                "{} has {} tokens and {} has {}",
                self.model,
                ours.len(),
                other.model,
                theirs.len()
            )),
            None => None,
        }
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The vocabulary's spelling of an id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Whether an id is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokenizer.get_added_tokens_decoder().get(&id).is_some_and(|t| t.special)
    }

    /// Whether [`Text::render`] can work.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// A conversation as one prompt text, by the model's own template.
    ///
    /// # Errors
    /// `NotFound` where the model has no template; `Invalid` with the template's own words where it
    /// refuses.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        match &self.template {
            Some(template) => template.render(messages, add_generation_prompt),
            None => {
                let message = format!("{} has no chat template{}", self.model, self.no_template);
                Err(missing(OPERATION, message))
            }
        }
    }

    /// The ids of a conversation: rendered, then encoded with nothing added twice.
    ///
    /// # Errors
    /// As [`Text::render`] and [`Text::encode`].
    pub fn chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>> {
        self.encode_plain(&self.render(messages, add_generation_prompt)?)
    }

    /// A decoder that is fed one token at a time.
    pub fn stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream::new(self, skip_special)
    }

    /// Whether later tokens may still change how this one decodes: one byte of a run that is read
    /// as a whole.
    pub(super) fn is_open_byte(&self, id: u32) -> bool {
        self.byte_fallback
            && self.token(id).is_some_and(|t| {
                t.len() == 6 && t.starts_with("<0x") && t.ends_with('>') && t.is_ascii()
            })
    }
}

fn check_space(text: &str) -> Result<()> {
    let (mut run, mut start) = (0, 0);
    for (at, c) in text.char_indices() {
        if !c.is_whitespace() {
            run = 0;
            continue;
        }
        if run == 0 {
            start = at;
        }
        run += 1;
        if run > SPACE_RUN_CHARS {
            let message = format!(
                "more than {SPACE_RUN_CHARS} white-space characters in a row from byte {start}: the tokenizer would split them wrongly; shorten the run"
            );
            return Err(invalid(OPERATION, message));
        }
    }
    Ok(())
}

/// Whether the decoder joins `<0x..>` tokens, which it then reads as UTF-8 or not at all, a run at
/// a time.
fn decodes_bytes(tokenizer: &Tokenizer) -> bool {
    let decoder = tokenizer.get_decoder().and_then(|d| serde_json::to_string(d).ok());
    decoder.is_some_and(|json| json.contains("\"ByteFallback\""))
}
