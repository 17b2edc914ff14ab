//! How far a run is, in a line on stderr while something takes long: weights that are loaded, a
//! prompt, a sweep. Nothing where stderr is no terminal.
//!
//! The line is drawn by a thread of its own, and is away whenever anything else is written: stdout
//! and stderr are written to by [`alone`].

mod line;
mod under;

use crate::fail::{Failure, Outcome};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kvern_engine::OnProgress;
use line::{Line, Seen};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use under::Under;

/// How often the line is drawn.
const PERIOD: Duration = Duration::from_millis(100);

/// The line that is shown now.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);
/// Whether text stands in the terminal's line, without its end.
static OPEN: AtomicBool = AtomicBool::new(false);

fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn clear(shown: &mut Option<ProgressBar>) {
    if let Some(bar) = shown.take() {
        bar.finish_and_clear();
    }
}

/// Writes while no line is shown.
pub fn alone<T>(write: impl FnOnce() -> T) -> T {
    let mut shown = shown();
    clear(&mut shown);
    write()
}

/// Text was written to stdout: a line goes below it while it has no end.
pub fn follows(text: &str) {
    if let Some(last) = text.chars().next_back() {
        OPEN.store(last != '\n' && std::io::stdout().is_terminal(), Ordering::Relaxed);
    }
}

/// Shows how far a run is. Dropped, it ends.
pub struct Bars {
    seen: Arc<Mutex<Seen>>,
    ended: Arc<AtomicBool>,
}

impl Bars {
    /// Begins to show what is told; `None` where stderr is no terminal that moves its cursor.
    pub fn begin() -> Outcome<Option<Bars>> {
        if ProgressDrawTarget::stderr().is_hidden() {
            return Ok(None);
        }
        let (seen, ended) = (Arc::new(Mutex::new(Seen::default())), Arc::default());
        let bars = Bars { seen: Arc::clone(&seen), ended: Arc::clone(&ended) };
        let run = move || {
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(PERIOD);
                let line = lock(&seen).line(Instant::now());
                // With the lock, so that nothing is drawn once the end was told.
                let mut shown = shown();
                match line.filter(|_| !ended.load(Ordering::Relaxed)) {
                    Some(line) => draw(&mut shown, &line),
                    None => clear(&mut shown),
                }
            }
        };
        let thread = std::thread::Builder::new().name("kvern-progress".into()).spawn(run);
        thread.map_err(|e| Failure::new(format!("no thread for progress: {e}")))?;
        Ok(Some(bars))
    }

    /// Takes what is told; `drive` is what the drive gives at most, in bytes a second.
    pub fn sink(&self, drive: Option<f64>) -> OnProgress {
        let seen = Arc::clone(&self.seen);
        lock(&seen).drive = drive;
        Arc::new(move |at| lock(&seen).take(at, Instant::now()))
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        alone(|| ());
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn draw(shown: &mut Option<ProgressBar>, line: &Line) {
    let bar = shown.get_or_insert_with(|| {
        let target = match OPEN.load(Ordering::Relaxed) {
            false => ProgressDrawTarget::stderr(),
            true => ProgressDrawTarget::term_like(Box::new(Under::new())),
        };
        let bar = ProgressBar::with_draw_target(Some(line.of), target);
        // A template of these words is always good.
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {wide_msg}") {
            bar.set_style(style);
        }
        bar
    });
    bar.set_message(line.text.clone());
    bar.update(|state| {
        state.set_len(line.of);
        state.set_pos(line.at);
    });
}
