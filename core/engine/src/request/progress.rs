//! How far the prompts of a batch are.

use super::sequence::Sequence;
use crate::engine::Engine;
use crate::events::Progress;

impl Engine {
    /// Says how many tokens are computed of the prompts that have not been answered yet. *Caller*:
    /// before a step and after it, so that the end of the last prompt is told.
    pub(super) fn tell_prompts(&self, running: &[Sequence<'_>]) {
        self.events.progress(|| {
            let open = running.iter().filter(|s| s.tokens() == 0 && s.end.is_none());
            let open = open.map(Sequence::prompt);
            let (tokens, of) = open.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            Progress::Prompt { tokens, of }
        });
    }
}
