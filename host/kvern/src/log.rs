//! Lines of the engine and the plugins, on stderr, as far as they were asked for.

use std::sync::atomic::{AtomicU32, Ordering};

/// Warnings and errors are always told.
static MOST: AtomicU32 = AtomicU32::new(2);

/// `-v` adds what was chosen, `-vv` and `-vvv` everything.
pub fn set_verbosity(verbose: u8) {
    MOST.store(2 + u32::from(verbose), Ordering::Relaxed);
}

/// Tells a line of a level, 1 error to 5 trace, if that level is asked for.
pub fn line(level: u32, text: &str) {
    if level <= MOST.load(Ordering::Relaxed) {
        let word = ["", "error: ", "warning: "].get(level as usize).copied().unwrap_or("");
        crate::out::note(&format!("kvern: {word}{}", crate::fail::one_line(text)));
    }
}
