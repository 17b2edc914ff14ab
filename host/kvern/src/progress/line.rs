//! What a line says: what takes long, how far it is, how fast, and how long it will take.

use crate::out::size;
use kvern_engine::Progress;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a load or a prompt takes before anything is said of it.
const SHORT: Duration = Duration::from_millis(500);
/// The same of a sweep.
const SHORT_SWEEP: Duration = Duration::from_secs(2);
/// After so long a time without anything, rates begin anew.
const PAUSE: Duration = Duration::from_secs(1);
/// A rate is that of so long a time.
const RECENT: Duration = Duration::from_secs(4);

/// A line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// So far.
    pub at: u64,
    /// In all.
    pub of: u64,
    /// In words.
    pub text: String,
}

/// Something that is under way.
#[derive(Clone, Copy, Debug)]
struct Job {
    since: Instant,
    at: u64,
    of: u64,
}

/// What moved lately: a count that only grows, by time.
#[derive(Debug, Default)]
struct Recent {
    counts: VecDeque<(Instant, u64)>,
}

/// What was told so far.
#[derive(Debug, Default)]
pub struct Seen {
    /// What the drive gives at most, in bytes a second, where it was measured.
    pub drive: Option<f64>,
    load: Option<Job>,
    prompt: Option<Job>,
    sweep: Option<Job>,
    bytes: Recent,
    tokens: Recent,
}

impl Recent {
    /// Something begins: what was long before it has no part in its rate.
    fn begin(&mut self, now: Instant) {
        if self.counts.back().is_none_or(|last| now.duration_since(last.0) > PAUSE) {
            self.counts = VecDeque::from([(now, 0)]);
        }
    }

    /// So much came now.
    fn add(&mut self, more: u64, now: Instant) {
        let count = self.counts.back().map_or(0, |last| last.1) + more;
        self.counts.push_back((now, count));
        // One that is older than the window is where the window begins.
        while self.counts.get(1).is_some_and(|next| now.duration_since(next.0) > RECENT) {
            self.counts.pop_front();
        }
    }

    /// What comes in a second.
    fn rate(&self, now: Instant) -> Option<f64> {
        let (first, last) = (self.counts.front()?, self.counts.back()?);
        let seconds = now.duration_since(first.0).as_secs_f64();
        (last.1 > first.1 && seconds > 0.1).then(|| (last.1 - first.1) as f64 / seconds)
    }
}

/// The job after another count of it; `None` where it is done. Answers what was new too.
fn moved(job: Option<Job>, at: u64, of: u64, now: Instant) -> (Option<Job>, u64) {
    let before = job.filter(|job| job.at <= at && job.of == of);
    let since = before.map_or(now, |job| job.since);
    ((at < of).then_some(Job { since, at, of }), at - before.map_or(0, |job| job.at))
}

impl Seen {
    /// Takes what is told.
    pub fn take(&mut self, told: Progress, now: Instant) {
        match told {
            Progress::Load { bytes, of } => {
                if self.load.is_none() {
                    self.bytes.begin(now);
                }
                let (job, new) = moved(self.load, bytes, of, now);
                self.load = job;
                self.bytes.add(new, now);
            }
            Progress::Prompt { tokens, of } => {
                if self.prompt.is_none() {
                    self.tokens.begin(now);
                }
                let (job, new) = moved(self.prompt, tokens, of, now);
                self.prompt = job;
                self.tokens.add(new, now);
            }
            Progress::Sweep { bytes, of } => {
                let before = self.sweep.filter(|job| job.at <= bytes && job.of == of);
                if before.is_none() {
                    self.bytes.begin(now);
                }
                let since = before.map_or(now, |job| job.since);
                self.bytes.add(bytes - before.map_or(0, |job| job.at), now);
                // All weights are there, but the last ones are still computed on.
                self.sweep = (of > 0).then_some(Job { since, at: bytes, of });
            }
            Progress::Swept => self.sweep = None,
        }
    }

    /// What is to be shown now.
    pub fn line(&self, now: Instant) -> Option<Line> {
        let long = |job: &Job, short| now.duration_since(job.since) >= short;
        let (load, prompt) = (self.load.filter(|j| long(j, SHORT)), self.prompt);
        let sweep = self.sweep.filter(|job| long(job, SHORT_SWEEP));
        let line = |job: Job, text| Line { at: job.at, of: job.of, text };
        match (load, prompt.filter(|j| long(j, SHORT)), sweep) {
            (Some(load), ..) => Some(line(load, format!("weights {}", self.moving(load, now)))),
            (None, Some(prompt), None) => Some(line(prompt, self.prompt(prompt, now))),
            (None, Some(prompt), Some(sweep)) => {
                let (prompt_says, moving) = (self.prompt(prompt, now), self.moving(sweep, now));
                Some(line(prompt, format!("{prompt_says}; sweep {moving}")))
            }
            (None, None, Some(sweep)) => {
                Some(line(sweep, format!("sweep {}", self.moving(sweep, now))))
            }
            (None, None, None) => None,
        }
    }

    fn prompt(&self, job: Job, now: Instant) -> String {
        let rate = self.tokens.rate(now);
        let told = rate.map_or(String::new(), |r| format!(", {} tokens/s", figure(r)));
        format!("prompt {} of {} tokens{told}{}", job.at, job.of, left(job, rate))
    }

    /// Bytes, how fast, what that is of the drive, and how long it will take.
    fn moving(&self, job: Job, now: Instant) -> String {
        let rate = self.bytes.rate(now);
        let mut text = format!("{} of {}", size(job.at), size(job.of));
        if let Some(rate) = rate {
            text.push_str(&format!(", {}/s", size(rate as u64)));
            if let Some(drive) = self.drive.filter(|drive| *drive > 0.0) {
                text.push_str(&format!(" ({:.0} % of the drive)", 100.0 * rate / drive));
            }
        }
        text + &left(job, rate)
    }
}

/// A rate for people.
fn figure(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

/// How long the rest takes.
fn left(job: Job, rate: Option<f64>) -> String {
    let Some(rate) = rate else { return String::new() };
    let seconds = ((job.of - job.at) as f64 / rate).ceil();
    match seconds {
        s if s < 60.0 => format!(", {s:.0} s left"),
        s if s < 6000.0 => format!(", {:.0} min left", (s / 60.0).ceil()),
        s => format!(", {:.1} h left", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn seconds(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    #[test]
    fn a_load_says_how_fast_it_is_of_what_the_drive_gives_and_how_long_it_takes() {
        let (mut seen, start) = (Seen { drive: Some(200e6), ..Seen::default() }, Instant::now());
        seen.take(Progress::Load { bytes: 0, of: 1000 * MIB }, start);
        assert_eq!(seen.line(start + seconds(0.4)), None, "what is short says nothing");
        seen.take(Progress::Load { bytes: 100 * MIB, of: 1000 * MIB }, start + seconds(1.0));
        let line = seen.line(start + seconds(1.0)).expect("a line");
        assert_eq!((line.at, line.of), (100 * MIB, 1000 * MIB));
        let want = "weights 100.0 MiB of 1000.0 MiB, 100.0 MiB/s (52 % of the drive), 9 s left";
        assert_eq!(line.text, want);
        seen.drive = None;
        let line = seen.line(start + seconds(2.0)).expect("a line");
        assert_eq!(line.text, "weights 100.0 MiB of 1000.0 MiB, 50.0 MiB/s, 18 s left");
        seen.take(Progress::Load { bytes: 1000 * MIB, of: 1000 * MIB }, start + seconds(3.0));
        assert_eq!(seen.line(start + seconds(3.0)), None, "what is done says nothing");
    }

    #[test]
    fn a_prompt_says_its_tokens_and_a_long_sweep_of_it_its_bytes_too() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        seen.take(Progress::Prompt { tokens: 0, of: 1000 }, start);
        seen.take(Progress::Sweep { bytes: 0, of: 100 * MIB }, start);
        let line = seen.line(start + seconds(1.0)).expect("a line");
        assert_eq!(line.text, "prompt 0 of 1000 tokens");
        seen.take(Progress::Sweep { bytes: 50 * MIB, of: 100 * MIB }, start + seconds(2.0));
        let line = seen.line(start + seconds(2.0)).expect("a line");
        let want = "prompt 0 of 1000 tokens; sweep 50.0 MiB of 100.0 MiB, 25.0 MiB/s, 2 s left";
        assert_eq!(line.text, want);
        seen.take(Progress::Swept, start + seconds(4.0));
        seen.take(Progress::Prompt { tokens: 500, of: 1000 }, start + seconds(4.0));
        let line = seen.line(start + seconds(4.0)).expect("a line");
        assert_eq!((line.at, line.of), (500, 1000));
        assert_eq!(line.text, "prompt 500 of 1000 tokens, 125 tokens/s, 4 s left");
        seen.take(Progress::Prompt { tokens: 1000, of: 1000 }, start + seconds(5.0));
        assert_eq!(seen.line(start + seconds(9.0)), None);
    }

    #[test]
    fn a_sweep_says_something_after_two_seconds_until_it_is_over() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        seen.take(Progress::Sweep { bytes: 0, of: 10 * MIB }, start);
        seen.take(Progress::Sweep { bytes: 5 * MIB, of: 10 * MIB }, start + seconds(1.0));
        assert_eq!(seen.line(start + seconds(1.9)), None);
        let line = seen.line(start + seconds(2.0)).expect("a line");
        assert!(line.text.starts_with("sweep 5.0 MiB of 10.0 MiB, "), "{}", line.text);
        seen.take(Progress::Sweep { bytes: 10 * MIB, of: 10 * MIB }, start + seconds(3.0));
        assert!(seen.line(start + seconds(3.0)).is_some(), "the last unit is computed on");
        seen.take(Progress::Swept, start + seconds(3.1));
        assert_eq!(seen.line(start + seconds(3.1)), None);
        // The next one begins anew, at the rate of what came before it.
        seen.take(Progress::Sweep { bytes: 0, of: 10 * MIB }, start + seconds(3.1));
        assert_eq!(seen.line(start + seconds(5.0)), None);
        let line = seen.line(start + seconds(5.2)).expect("a line");
        assert!(line.text.contains("/s"), "{}", line.text);
        seen.take(Progress::Sweep { bytes: 0, of: 0 }, start + seconds(6.0));
        assert_eq!(seen.line(start + seconds(99.0)), None, "nothing is streamed");
    }
}
