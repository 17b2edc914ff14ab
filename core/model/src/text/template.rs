//! Chat templates: Hugging Face's Jinja, with the Python in it that templates rely on.

use super::pyjson::{self, Style};
use crate::error::{invalid, unsupported};
use kvern_contract::Result;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error as JinjaError, ErrorKind as JinjaKind, Value, context};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

const OPERATION: &str = "model/template";
const NAME: &str = "chat template";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// A compiled template with the special tokens that it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Vec<(String, String)>,
}

impl ChatTemplate {
    /// Compiles a template. `tokens` are pairs as `("bos_token", "<s>")`.
    ///
    /// # Errors
    /// `Unsupported`, with line and cause, where the template is no Jinja that we know.
    pub fn new(source: &str, tokens: Vec<(String, String)>) -> Result<ChatTemplate> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| unsupported(OPERATION, said(&e)))?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|e| unsupported(OPERATION, said(&e)))?;
        Ok(ChatTemplate { environment, tokens })
    }

    /// The template of a model: its own file, else `chat_template` of `tokenizer_config.json`, a
    /// text or a list of named ones of which `default` is meant. The inner error says why there is
    /// none.
    pub(crate) fn find(
        file: Option<&[u8]>,
        config: &Map<String, Json>,
    ) -> Result<std::result::Result<ChatTemplate, String>> {
        let tokens = ["bos_token", "eos_token", "unk_token", "pad_token"];
        let tokens = tokens.iter().filter_map(|key| {
            let value = config.get(*key)?;
            let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((key.to_string(), text.to_string()))
        });
        let tokens = tokens.collect();
        if let Some(bytes) = file {
            let source = std::str::from_utf8(bytes).map_err(|e| {
                invalid(OPERATION, format!("chat_template.jinja is not UTF-8: {e}"))
            })?;
            return ChatTemplate::new(source, tokens).map(Ok);
        }
        match config.get("chat_template") {
            None | Some(Json::Null) => Ok(Err(String::new())),
            Some(Json::String(source)) => ChatTemplate::new(source, tokens).map(Ok),
            Some(Json::Array(list)) => {
                let text = |entry: &Json, key: &str| Some(entry.get(key)?.as_str()?.to_string());
                let named: Vec<(String, String)> = list
                    .iter()
                    .filter_map(|entry| Some((text(entry, "name")?, text(entry, "template")?)))
                    .collect();
                match named.iter().find(|(name, _)| name == "default") {
                    Some((_, source)) => ChatTemplate::new(source, tokens).map(Ok),
                    None => {
                        let names: Vec<_> = named.into_iter().map(|(name, _)| name).collect();
                        Ok(Err(format!(" named default, only: {}", names.join(", "))))
                    }
                }
            }
            Some(_) => Err(invalid(
                OPERATION,
                "tokenizer_config.json: chat_template is neither a text nor a list of named ones",
            )),
        }
    }

    /// The prompt of a conversation.
    ///
    /// # Errors
    /// `Invalid`, with the template's own words, where it raises or fails.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let tokens = self.tokens.iter().map(|(key, token)| (key.as_str(), token.as_str()));
        let facts = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => add_generation_prompt,
            tools => Value::from(()),
            documents => Value::from(()),
            ..Value::from_pairs(tokens)
        };
        let template =
            self.environment.get_template(NAME).map_err(|e| invalid(OPERATION, said(&e)))?;
        template.render(facts).map_err(|e| invalid(OPERATION, said(&e)))
    }
}

/// What went wrong, and where.
fn said(error: &JinjaError) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    match error.line() {
        Some(line) => format!("the chat template, line {line}: {what}"),
        None => format!("the chat template: {what}"),
    }
}

fn raise_exception(message: String) -> std::result::Result<Value, JinjaError> {
    Err(JinjaError::new(JinjaKind::InvalidOperation, message))
}

/// Local time by a `strftime` format.
fn strftime_now(format: String) -> std::result::Result<String, JinjaError> {
    jiff::fmt::strtime::format(format, &jiff::ZonedDateTime::now())
        .map_err(|e| JinjaError::new(JinjaKind::InvalidOperation, e.to_string()))
}

/// JSON as Python writes it: no HTML escapes, and the arguments that templates pass.
fn tojson(value: Value, options: Kwargs) -> std::result::Result<Value, JinjaError> {
    let failed = |e: String| JinjaError::new(JinjaKind::InvalidOperation, e);
    let json = serde_json::to_value(&value).map_err(|e| failed(e.to_string()))?;
    let indent = match options.get::<Option<Value>>("indent")? {
        Some(v) if !v.is_none() => Some(usize::try_from(v)?),
        _ => None,
    };
    if indent.is_some_and(|n| n > 64) {
        return Err(failed("tojson: an indent of more than 64".into()));
    }
    let separators = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
        Some([item, key]) => Some((item.clone(), key.clone())),
        Some(_) => return Err(failed("tojson: separators are two texts".into())),
        None => None,
    };
    let style = Style {
        indent,
        separators,
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    Ok(Value::from_safe_string(pyjson::write(&json, &style)))
}

/// `{% generation %}` marks what an assistant said, for training; here it is a block that is always
/// taken, with the white-space control that it was written with.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let inner_end = tag[2..].find("%}").map(|end| end + 2);
        let inner = inner_end.map_or("", |end| &tag[2..end]);
        let word = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let instead = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        let taken = match (instead, inner_end) {
            (Some(instead), Some(end)) => {
                out.push_str("{%");
                out.push_str(&inner.replacen(word, instead, 1));
                end
            }
            _ => {
                out.push_str("{%");
                2
            }
        };
        rest = &tag[taken..];
    }
    out.push_str(rest);
    out
}
