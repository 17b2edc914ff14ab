//! What a timeline is told of a step: the step, and each session's part of it.

use crate::engine::Engine;
use crate::events::{Track, What};
use crate::pager::{Lost, Rows};
use crate::step::{Ran, StepAsk, Want};
use std::time::Instant;

/// What a session's part of a step is.
fn kind(ask: &StepAsk<'_>) -> &'static str {
    match ask.want {
        Want::All => "score",
        // Every row may choose a token: the last known one, and what is guessed after it.
        Want::Last(rows) if rows >= ask.ids.len() => "decode",
        Want::Last(_) | Want::Nothing => "prefill",
    }
}

impl Engine {
    /// Tells of a step that began at `began`; without `ran` it failed.
    pub(crate) fn tell_step(
        &self,
        began: Option<Instant>,
        asks: &[StepAsk<'_>],
        batch: &[Rows],
        ran: Option<&Ran>,
    ) {
        let mut kinds: Vec<&str> = asks.iter().map(kind).collect();
        for (index, (ask, rows)) in asks.iter().zip(batch).enumerate() {
            let lost = ran.and_then(|(lost, _)| lost[index].as_ref());
            let kept = ran.and_then(|(_, kept)| kept[index]);
            self.events.span(kind(ask), began, || part(ask, rows, lost, kept));
        }
        kinds.sort_unstable();
        kinds.dedup();
        self.events.span("step", began, || {
            let step = self.weights.sweeps();
            let rows = asks.iter().map(|a| a.ids.len() as u64).sum();
            let what = match (ran, kinds.as_slice()) {
                (None, _) => "failed",
                (_, [one]) => one,
                _ => "prefill and decode",
            };
            What::new(Track::Steps, format!("step {step}: {what}"))
                .arg("step", step)
                .arg("sessions", asks.len() as u64)
                .arg("rows", rows)
        });
    }
}

/// A session's part.
fn part(ask: &StepAsk<'_>, rows: &Rows, lost: Option<&Lost>, kept: Option<u32>) -> What {
    let (session, first) = (rows.session.0, rows.position);
    let end = first + u64::from(rows.rows);
    let name = match kind(ask) {
        "decode" => format!("session {session}: token {end}"),
        other => format!("session {session}: {other} {first} to {}", end - 1),
    };
    let mut what = What::new(Track::Tokens, name)
        .arg("session", session)
        .arg("first", first)
        .arg("rows", rows.rows.into());
    if let Some(kept) = kept.filter(|kept| *kept < rows.rows) {
        what = what.arg("kept_rows", kept.into());
    }
    match lost {
        Some(lost) => what.arg("lost_from", lost.position),
        None => what,
    }
}
