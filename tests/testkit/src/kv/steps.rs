//! What an engine does in a random trace.

use crate::Random;

/// When a step's whole pages are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum When {
    Before,
    After,
    Later,
}

/// One thing that an engine does. Numbers choose among what is there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// A new session, of a text.
    Fresh {
        text: u64,
    },
    /// A prompt is looked up, and begun from if it is found.
    Prompt {
        text: u64,
        tokens: u64,
        pages: bool,
    },
    /// Several prompts at once.
    Prompts {
        text: u64,
    },
    Fork {
        of: usize,
        at: u64,
    },
    Grow {
        of: usize,
        tokens: u64,
        stores: When,
    },
    /// All sessions go on in one batch: one store, one commit.
    Batch {
        tokens: u64,
    },
    /// Pages of a step are stored, and the step is given up.
    GiveUp {
        of: usize,
        flush: bool,
    },
    Rewind {
        of: usize,
        to: u64,
    },
    Flush {
        of: usize,
    },
    End {
        of: usize,
        keep: bool,
    },
    Check {
        of: usize,
    },
    Maintain,
    /// The process ends without a word, and the next one opens the root.
    Reopen,
}

/// Steps that a seed chooses.
pub(super) fn choose(random: &mut Random, steps: usize) -> Vec<Step> {
    let mut one = || {
        let of = random.below(8) as usize;
        let text = random.below(12);
        match random.below(24) {
            0..=1 => Step::Fresh { text },
            2..=4 => {
                let tokens = 1 + random.below(500);
                Step::Prompt { text, tokens, pages: random.one_in(3) }
            }
            5 => Step::Prompts { text },
            6 => Step::Fork { of, at: random.below(1000) },
            7..=11 => {
                let stores = match random.below(4) {
                    0 => When::Before,
                    1 => When::Later,
                    _ => When::After,
                };
                Step::Grow { of, tokens: 1 + random.below(150), stores }
            }
            12 => Step::Batch { tokens: 1 + random.below(100) },
            13 => Step::GiveUp { of, flush: random.one_in(2) },
            14..=15 => Step::Rewind { of, to: random.below(1000) },
            16..=18 => Step::Flush { of },
            19 => Step::End { of, keep: !random.one_in(3) },
            20..=21 => Step::Check { of },
            22 => Step::Maintain,
            _ => Step::Reopen,
        }
    };
    (0..steps).map(|_| one()).collect()
}
