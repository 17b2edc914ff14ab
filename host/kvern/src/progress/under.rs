//! A terminal's line below the one in which text stands that goes on: what is drawn there leaves
//! the text and the cursor where they are.

use console::Term;
use indicatif::TermLike;
use std::io::Result;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One line down in the same column, where need be by scrolling, and up again: there is a line
/// below now. Then the cursor's place is kept.
const DOWN: &str = "\x0b\x1b[A\x1b7\x1b[B\r";
/// Back to that place.
const BACK: &str = "\x1b8";

/// The line below. What is written to it waits for a flush, which draws it at once.
#[derive(Debug)]
pub struct Under {
    term: Term,
    waiting: Mutex<String>,
}

impl Under {
    pub fn new() -> Under {
        Under { term: Term::stderr(), waiting: Mutex::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, String> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TermLike for Under {
    fn width(&self) -> u16 {
        self.term.size().1
    }
    fn height(&self) -> u16 {
        self.term.size().0
    }
    // A bar of one line goes nowhere.
    fn move_cursor_up(&self, _: usize) -> Result<()> {
        Ok(())
    }
    fn move_cursor_down(&self, _: usize) -> Result<()> {
        Ok(())
    }
    fn move_cursor_right(&self, _: usize) -> Result<()> {
        Ok(())
    }
    fn move_cursor_left(&self, _: usize) -> Result<()> {
        Ok(())
    }
    fn write_line(&self, text: &str) -> Result<()> {
        self.write_str(text)
    }
    fn write_str(&self, text: &str) -> Result<()> {
        self.waiting().push_str(text);
        Ok(())
    }
    fn clear_line(&self) -> Result<()> {
        self.write_str("\r\x1b[2K")
    }
    fn flush(&self) -> Result<()> {
        let text = std::mem::take(&mut *self.waiting());
        match text.is_empty() {
            true => Ok(()),
            false => self.term.write_str(&format!("{DOWN}{text}{BACK}")),
        }
    }
}
