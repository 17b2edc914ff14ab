//! The two extensions: an example of each that keeps its contract, and mutants of them.

use super::*;
use kvern_testkit::{Outcome, Subject, run};
use std::collections::BTreeMap;

/// Rows that the example keeps.
const ROWS: usize = 96;

/// What the example may do wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    SetsBits,
    DropsUnseen,
    DropsTwice,
    KeepsAll,
    TakesNoise,
    SavesNothing,
    ForgetsPages,
    Remembers,
    Counts,
    Longer,
    Varies,
    TakesAll,
    HalfFills,
    Panics,
}

/// What a session has: mass by head and position, and the full pages.
#[derive(Clone, Default)]
struct State {
    mass: BTreeMap<(u32, u32), f32>,
    pages: u32,
    dropped: Option<(u32, u32)>,
    rewound: Option<u32>,
}

/// Drops the rows with the least mass, and lets queries see the newest pages that filled.
struct Looks(BTreeMap<SessionId, State>, Wrong);

const MAGIC: &[u8; 4] = b"look";

impl KvAttentive for Looks {
    fn begin(&mut self, id: SessionId, from: Option<SessionId>, saved: &[u8]) -> Result<()> {
        if let Some(parent) = from.and_then(|from| self.0.get(&from)) {
            let parent = parent.clone();
            self.0.insert(id, parent);
            return Ok(());
        }
        let mut state = State::default();
        if !saved.is_empty() && self.1 != Wrong::TakesNoise && self.1 != Wrong::SavesNothing {
            let damaged = || Error::new(ErrorKind::Damaged, "kv/begin", "this was never saved");
            let rest = saved.strip_prefix(MAGIC).ok_or_else(damaged)?;
            let (pages, rows) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
            let (rows, tail) = rows.as_chunks::<12>();
            if !tail.is_empty() {
                return Err(damaged());
            }
            state.pages = u32::from_le_bytes(*pages);
            for row in rows {
                let word = |at: usize| [row[at], row[at + 1], row[at + 2], row[at + 3]];
                let place = (u32::from_le_bytes(word(0)), u32::from_le_bytes(word(4)));
                state.mass.insert(place, f32::from_le_bytes(word(8)));
            }
        }
        self.0.insert(id, state);
        Ok(())
    }
    fn sealed(&mut self, page: &PageView<'_>) -> Result<()> {
        if self.1 == Wrong::ForgetsPages {
            return Err(Error::new(ErrorKind::Internal, "kv/sealed", "no page was expected"));
        }
        self.0.entry(page.key.session).or_default().pages += 1;
        Ok(())
    }
    fn select(&mut self, ask: &QueryAsk<'_>, visible: &mut PageMask) -> Result<()> {
        let full = self.0.get(&ask.session).map_or(0, |state| state.pages);
        if let Some(word) = visible.words.first_mut() {
            *word &= !0 << full.saturating_sub(2).min(63);
            if self.1 == Wrong::SetsBits {
                *word |= 1 << 63;
            }
        }
        Ok(())
    }
    fn observe(&mut self, mass: &AttentionMass<'_>, edits: &mut RowEdits) -> Result<()> {
        let wrong = self.1;
        let state = self.0.entry(mass.session).or_default();
        for (head, seen) in (0..).zip(mass.heads) {
            for (position, mass) in seen.positions.iter().zip(seen.mass) {
                *state.mass.entry((head, *position)).or_default() += mass;
            }
            let mut rows: Vec<(u32, f32)> = (state.mass.range((head, 0)..=(head, u32::MAX)))
                .map(|((_, position), mass)| (*position, *mass))
                .collect();
            rows.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
            let drop = match wrong {
                Wrong::KeepsAll => 0,
                _ => rows.len().saturating_sub(ROWS),
            };
            for (position, _) in &rows[..drop] {
                edits.drops.push((head, *position));
                state.mass.remove(&(head, *position));
            }
        }
        match wrong {
            Wrong::DropsUnseen => edits.drops.push((0, 1_000_000)),
            Wrong::DropsTwice => edits.drops.extend(state.dropped.take()),
            Wrong::Remembers => {
                edits.drops.extend(state.rewound.take().map(|position| (0, position)));
            }
            _ => {}
        }
        state.dropped = edits.drops.first().copied();
        Ok(())
    }
    fn rewind(&mut self, session: SessionId, to: TokenIndex) -> Result<()> {
        let wrong = self.1;
        let state = self.0.entry(session).or_default();
        let to = u32::try_from(to).unwrap_or(u32::MAX);
        if wrong == Wrong::Remembers {
            state.rewound = Some(to + 1000);
        }
        state.mass.retain(|(_, position), _| *position < to);
        state.pages = state.pages.min(to / PAGE_TOKENS);
        Ok(())
    }
    fn save(&self, session: SessionId) -> Result<Vec<u8>> {
        let Some(state) = self.0.get(&session) else { return Ok(Vec::new()) };
        let mut out = [MAGIC, &state.pages.to_le_bytes()[..]].concat();
        for ((head, position), mass) in &state.mass {
            out.extend(head.to_le_bytes());
            out.extend(position.to_le_bytes());
            out.extend(mass.to_le_bytes());
        }
        Ok(out)
    }
    fn end(&mut self, session: SessionId) {
        self.0.remove(&session);
    }
}

/// Keeps the upper byte of every bf16.
struct Upper(Wrong, std::sync::atomic::AtomicU64);

impl Upper {
    fn count(&self) -> u64 {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }
}

impl KvCodec for Upper {
    fn page_bytes(&self, layer: &KvLayer) -> u64 {
        let wrong = if self.0 == Wrong::Counts { self.count() } else { 0 };
        layer.page_bytes(KvEncoding::Bf16) / 2 + wrong
    }
    fn encode(&self, page: &PageView<'_>, out: &mut [u8]) -> Result<usize> {
        if page.encoding != KvEncoding::Bf16 && self.0 != Wrong::TakesAll {
            let text = "a page that is not bf16";
            return Err(Error::new(ErrorKind::Unsupported, "kv/encode", text));
        }
        let length = (page.bytes.len() / 2).min(out.len());
        let upper = page.bytes.iter().skip(1).step_by(2);
        out[..length].iter_mut().zip(upper).for_each(|(out, byte)| *out = *byte);
        match self.0 {
            Wrong::Varies => out[0] = self.count() as u8,
            Wrong::Longer => return Ok(out.len() + 1),
            _ => {}
        }
        Ok(length)
    }
    fn decode(&self, bytes: &[u8], layer: &KvLayer, _: KvEncoding, out: &mut [u8]) -> Result<()> {
        if bytes.len() as u64 * 2 != layer.page_bytes(KvEncoding::Bf16) {
            assert!(self.0 != Wrong::Panics, "bytes of another length");
            return Err(Error::new(ErrorKind::Damaged, "kv/decode", "a page of another length"));
        }
        for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
            if self.0 != Wrong::HalfFills {
                pair[0] = 0;
            }
            pair[1] = *byte;
        }
        Ok(())
    }
}

/// The example with a fault, beside the store of a strategy that ships.
fn example(inner: Box<Strategy>, wrong: Wrong) -> Box<Strategy> {
    let bent = Wrapped::new(inner).with_description(|description| {
        let able = &mut description.capabilities;
        (able.exact, able.codec) = (false, true);
        (able.selects, able.observes, able.sees_pages) = (true, true, true);
    });
    let bent = bent.with_policy(|inner, ask| {
        let rows = u32::try_from(ROWS).ok();
        inner.policy(ask).map(|policy| KvPolicy { keep_rows: rows, ..policy })
    });
    Box::new(bent.with_open(move |inner, spec, host| {
        let opened = inner.open(spec, host)?;
        let attentive: Box<dyn KvAttentive> = Box::new(Looks(BTreeMap::new(), wrong));
        let codec: Box<dyn KvCodec> = Box::new(Upper(wrong, Default::default()));
        Ok(Opened { attentive: Some(attentive), codec: Some(codec), ..opened })
    }))
}

#[test]
fn an_example_of_the_extensions_keeps_every_case() {
    let shipped = persistent();
    let make = || opened(&shipped, as_kv).map(|inner| example(inner, Wrong::Nothing));
    let subject = Subject::new(&make);
    let extensions = ["KvAttentive", "KvCodec"];
    let mut ran = 0;
    for case in cases() {
        if case.promises.iter().any(|p| extensions.iter().any(|of| p.of.starts_with(of))) {
            let outcome = run(&case, &subject).outcome;
            assert_eq!(outcome, Outcome::Kept, "{}", case.name);
            ran += 1;
        }
    }
    assert!(ran >= 8, "{ran} cases of the extensions");
}

pub(super) fn mutants() -> Vec<Mutant<Strategy>> {
    vec![
        mutant("KvAttentive::select", "Only clear bits.", "a page that there is not", |inner| {
            example(inner, Wrong::SetsBits)
        }),
        mutant(
            "KvAttentive::observe",
            "Drop only positions it was shown;",
            "a position far behind the last",
            |inner| example(inner, Wrong::DropsUnseen),
        ),
        mutant(
            "KvAttentive::observe",
            "edits hold from the next step.",
            "what was dropped is dropped again",
            |inner| example(inner, Wrong::DropsTwice),
        ),
        mutant(
            "KvPolicy::keep_rows",
            "Rows that an attentive strategy promises to stay under, a layer and head, between \
             steps.",
            "every row is kept",
            |inner| example(inner, Wrong::KeepsAll),
        ),
        mutant(
            "KvAttentive::begin",
            "Damaged (`saved` is not what `save` gave).",
            "noise is a past",
            |inner| example(inner, Wrong::TakesNoise),
        ),
        mutant(
            "KvAttentive::save",
            "What `begin` needs to go on.",
            "what was saved is forgotten",
            |inner| example(inner, Wrong::SavesNothing),
        ),
        mutant("KvAttentive::sealed", "A page filled.", "no page is taken", |inner| {
            example(inner, Wrong::ForgetsPages)
        }),
        mutant(
            "KvAttentive::rewind",
            "Forgets positions from `to` on. A row dropped before stays dropped.",
            "a position past the rewind is dropped",
            |inner| example(inner, Wrong::Remembers),
        ),
        mutant("KvCodec::page_bytes", "Answer the same every time.", "it counts", |inner| {
            example(inner, Wrong::Counts)
        }),
        mutant(
            "KvCodec::page_bytes",
            "Most bytes that a page of this layer takes.",
            "a page takes one more",
            |inner| example(inner, Wrong::Longer),
        ),
        mutant("KvCodec::encode", "Give the same bytes for the same page.", "a counter", |inner| {
            example(inner, Wrong::Varies)
        }),
        mutant(
            "KvCodec::encode",
            "Unsupported (the page's encoding).",
            "every form is taken for bf16",
            |inner| example(inner, Wrong::TakesAll),
        ),
        mutant("KvCodec::decode", "Fill all of `out`.", "every other byte is left", |inner| {
            example(inner, Wrong::HalfFills)
        }),
        mutant("KvCodec::decode", "Damaged.", "another length is a panic", |inner| {
            example(inner, Wrong::Panics)
        }),
    ]
}
