//! Ctrl-C: the first one asks the run to end after the current token, a second one ends the process
//! at once.

use crate::fail::{Failure, Outcome};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, OnceLock};

static ASKED: AtomicBool = AtomicBool::new(false);
/// Whom to wake, besides the flag: a loop that waits for a line of stdin.
static WAKE: OnceLock<Mutex<Option<Sender<Option<String>>>>> = OnceLock::new();

/// Catches SIGINT from here on.
pub fn catch() -> Outcome<()> {
    let caught = ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        let waiting = WAKE.get().and_then(|w| w.lock().ok().and_then(|guard| guard.clone()));
        if let Some(waiting) = waiting {
            // A loop that is gone needs no waking.
            let _ = waiting.send(None);
        }
    });
    caught.map_err(|e| Failure::new(format!("Ctrl-C cannot be caught: {e}")))
}

/// Whether the run should end.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// Ends the run here if it should end.
pub fn check() -> Outcome<()> {
    if asked() { Err(Failure::interrupted()) } else { Ok(()) }
}

/// Sends `None` to a loop that waits for lines, when Ctrl-C comes.
pub fn wake(waiting: Sender<Option<String>>) {
    if let Ok(mut guard) = WAKE.get_or_init(|| Mutex::new(None)).lock() {
        *guard = Some(waiting);
    }
}

/// No line will come any more: the loop's channel closes with the caller's own sender.
pub fn forget() {
    if let Some(Ok(mut guard)) = WAKE.get().map(Mutex::lock) {
        *guard = None;
    }
}
