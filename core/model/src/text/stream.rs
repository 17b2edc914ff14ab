//! Text as it comes, token by token: every piece is whole UTF-8, and the pieces together are the
//! full decode.

use super::tokenizer::Text;
use kvern_contract::Result;

const REPLACEMENT: char = '\u{fffd}';
/// A character of four bytes whose last is to come shows as at most this many replacement
/// characters.
const OPEN_CHARS: usize = 3;

/// Decodes a growing list of tokens. A token may end inside a character; such a tail waits for the
/// next token.
pub struct TextStream<'a> {
    text: &'a Text,
    skip_special: bool,
    /// Tokens from the last boundary at which nothing waited, one of context before it.
    window: Vec<u32>,
    /// Bytes of the window's decode that were given out.
    sent: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(text: &'a Text, skip_special: bool) -> Self {
        TextStream { text, skip_special, window: Vec::new(), sent: 0 }
    }

    /// Takes one token; gives the text that is now certain, often empty.
    ///
    /// # Errors
    /// As [`Text::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.window.push(id);
        if self.text.is_open_byte(id) {
            return Ok(String::new());
        }
        let whole = self.text.decode(&self.window, self.skip_special)?;
        let certain = certain_bytes(&whole);
        let piece = whole.get(self.sent..certain).unwrap_or_default().to_string();
        self.sent = self.sent.max(certain);
        if certain == whole.len() {
            self.forget(id)?;
        }
        Ok(piece)
    }

    /// Ends the text; gives what still waited, with U+FFFD for a character that never came whole.
    ///
    /// # Errors
    /// As [`Text::decode`].
    pub fn finish(&mut self) -> Result<String> {
        let whole = self.text.decode(&self.window, self.skip_special)?;
        let piece = whole.get(self.sent..).unwrap_or_default().to_string();
        (self.window, self.sent) = (Vec::new(), 0);
        Ok(piece)
    }

    /// Keeps the last token alone: a decoder may treat the first token of a text differently (it
    /// drops a leading space), so one visible token stays as context.
    fn forget(&mut self, last: u32) -> Result<()> {
        let context = self.text.decode(&[last], self.skip_special)?;
        if !context.is_empty() {
            (self.window, self.sent) = (vec![last], context.len());
        }
        Ok(())
    }
}

/// Length of a text without the replacement characters at its end that further bytes may turn into
/// a character.
fn certain_bytes(text: &str) -> usize {
    let open = text.chars().rev().take(OPEN_CHARS).take_while(|c| *c == REPLACEMENT).count();
    text.len() - open * REPLACEMENT.len_utf8()
}
