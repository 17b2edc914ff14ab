//! A model's words: text to token ids and back, and conversations as one prompt.

mod pyjson;
mod stop;
mod stream;
mod template;
mod tokenizer;

pub use stop::{Matched, StopMatcher};
pub use stream::TextStream;
pub use template::{ChatTemplate, Message};
pub use tokenizer::Text;

/// The files that [`Text`] is made of.
#[derive(Clone, Copy, Debug)]
pub struct TextFiles<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<&'a [u8]>,
    /// `chat_template.jinja`; goes before a template in `tokenizer_config.json`.
    pub chat_template: Option<&'a [u8]>,
}
