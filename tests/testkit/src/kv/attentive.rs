//! Strategies that look at attention: what they clear and drop, and what they remember.

use super::model::PAGE;
use super::trial::{Went, need, refused, spec, went};
use super::{Strategy, always};
use crate::double::MemoryStorage;
use crate::{Case, Check, Promise, Random, Subject};
use kvern_contract::*;
use kvern_storage::{Budget, NoSink, RootHost};
use std::sync::Arc;

const CLEAR: Promise = Promise::new("KvAttentive::select", "Only clear bits.");
const SHOWN: Promise = Promise::new("KvAttentive::observe", "Drop only positions it was shown;");
const HOLD: Promise = Promise::new("KvAttentive::observe", "edits hold from the next step.");
const UNDER: Promise = Promise::new(
    "KvPolicy::keep_rows",
    "Rows that an attentive strategy promises to stay under, a layer and head, between steps.",
);
const DAMAGED: Promise =
    Promise::new("KvAttentive::begin", "Damaged (`saved` is not what `save` gave).");
const SAVED: Promise = Promise::new("KvAttentive::save", "What `begin` needs to go on.");
const REWIND: Promise = Promise::new(
    "KvAttentive::rewind",
    "Forgets positions from `to` on. A row dropped before stays dropped.",
);
const SEALED: Promise = Promise::new("KvAttentive::sealed", "A page filled.");

pub(super) fn cases() -> Vec<Case<Strategy>> {
    let looks = |name, promises, check| Case {
        skip: |strategy: &Strategy| {
            let able = strategy.describe().capabilities;
            let looks = able.selects || able.observes || able.sees_pages;
            (!looks).then_some("it looks at no attention")
        },
        ..always(name, promises, check)
    };
    vec![
        looks(
            "pages_are_only_cleared_and_rows_only_dropped_that_were_shown",
            &[CLEAR, SHOWN, HOLD, UNDER],
            edits,
        ),
        looks("what_was_saved_goes_on_as_before", &[SAVED, SEALED], saved),
        looks("a_past_that_nobody_saved_is_damaged", &[DAMAGED], garbage),
        looks("a_rewind_forgets_what_came_later", &[REWIND], rewind),
    ]
}

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);
const HEADS: u32 = 2;

/// The attentive side, what it declares, and the rows that it promises to stay under.
struct Looking {
    side: Box<dyn KvAttentive>,
    able: KvCapabilities,
    rows: Option<u32>,
    layer: KvLayer,
}

impl Looking {
    fn open(mut strategy: Box<Strategy>) -> Went<Looking> {
        let able = strategy.describe().capabilities;
        let spec = spec(&*strategy)?;
        let storage = MemoryStorage::new();
        let host = RootHost::new(storage, "/root".into(), Budget::new(None), Arc::new(NoSink));
        let opened = went("open", strategy.open(&spec, host))?;
        let side = opened.attentive.ok_or_else(|| {
            super::trial::Stop::Wrong("it looks at attention, and opens nothing that does".into())
        })?;
        Ok(Looking { side, able, rows: spec.policy.keep_rows, layer: spec.shape.layers[2] })
    }

    /// One step of a session at layer 2: a page may fill, pages are chosen, mass is seen. What was
    /// decided.
    fn step(&mut self, seen: &mut Seen, seed: u64) -> Went<Decided> {
        let layer = LayerIndex(2);
        let mut random = Random::new(seed ^ u64::from(seen.tokens) << 20);
        let before = seen.tokens;
        seen.tokens += 40;
        for head in &mut seen.live {
            head.extend(before..seen.tokens);
        }
        let pages = seen.tokens.div_ceil(PAGE as u32);
        if self.able.sees_pages && u64::from(before) / PAGE < u64::from(seen.tokens) / PAGE {
            let page = before / PAGE as u32;
            let length = self.layer.page_bytes(KvEncoding::Bf16);
            // Halves between 1 and 2, so that every value is a number.
            let bytes: Vec<u8> = (0..length)
                .map(|at| if at % 2 == 1 { 0x3f } else { 0x80 | random.bits() as u8 })
                .collect();
            let key = PageKey { session: seen.session, layer, part: Part::Page(page) };
            let view = PageView {
                key,
                layer: self.layer,
                encoding: KvEncoding::Bf16,
                tokens: PAGE_TOKENS,
                bytes: &bytes,
            };
            went("sealed", self.side.sealed(&view))?;
        }
        let mut words = Vec::new();
        if self.able.selects {
            let key_dim = self.layer.key_dim;
            let queries: Vec<f32> =
                (0..4 * key_dim).map(|_| random.below(1000) as f32 / 500.0 - 1.0).collect();
            let ask =
                QueryAsk { session: seen.session, layer, heads: 4, key_dim, queries: &queries };
            let all = mask(pages);
            let mut visible = PageMask { words: all.clone(), pages };
            went("select", self.side.select(&ask, &mut visible))?;
            let set = visible.words.iter().zip(&all).any(|(word, all)| word & !all != 0);
            let same = visible.pages == pages && visible.words.len() == all.len();
            need(same && !set, || {
                format!("of {pages} pages, select leaves {visible:?}: more than was visible")
            })?;
            words = visible.words;
        }
        let mut drops = Vec::new();
        if self.able.observes {
            let mass: Vec<Vec<f32>> = (seen.live.iter())
                .map(|head| head.iter().map(|_| random.below(1000) as f32 / 1000.0).collect())
                .collect();
            let heads: Vec<HeadMass<'_>> = (seen.live.iter().zip(&mass))
                .map(|(positions, mass)| HeadMass { positions, mass })
                .collect();
            let mass = AttentionMass { session: seen.session, layer, queries: 40, heads: &heads };
            let mut edits = RowEdits::default();
            went("observe", self.side.observe(&mass, &mut edits))?;
            for (head, position) in &edits.drops {
                let live = seen.live.get_mut(*head as usize);
                let at = live
                    .and_then(|live| live.binary_search(position).ok().map(|at| live.remove(at)));
                need(at.is_some(), || {
                    format!("head {head} drops position {position}, which it was not shown")
                })?;
            }
            let most = seen.live.iter().map(Vec::len).max().unwrap_or_default();
            need(self.rows.is_none_or(|rows| most <= rows as usize), || {
                format!("{most} rows are left, and the policy promises {:?}", self.rows)
            })?;
            drops = edits.drops;
        }
        Ok((words, drops))
    }
}

/// Words of the mask that is left, and rows that are dropped: a kv head and a position each.
type Decided = (Vec<u64>, Vec<(u32, u32)>);

/// What a session was shown so far, and what is left of it.
#[derive(Clone)]
struct Seen {
    session: SessionId,
    tokens: u32,
    live: Vec<Vec<u32>>,
}

impl Seen {
    fn new(session: SessionId) -> Self {
        Seen { session, tokens: 0, live: vec![Vec::new(); HEADS as usize] }
    }
}

/// All pages visible.
fn mask(pages: u32) -> Vec<u64> {
    let mut words = vec![0; pages.div_ceil(64) as usize];
    (0..pages).for_each(|page| words[page as usize / 64] |= 1 << (page % 64));
    words
}

fn edits(subject: &Subject<'_, Strategy>) -> Check {
    for seed in subject.seeds(6) {
        let mut looking = Looking::open(subject.instance()?)?;
        let mut all = [Seen::new(A), Seen::new(B)];
        for seen in &all {
            went("begin", looking.side.begin(seen.session, None, &[]))?;
        }
        for _ in 0..30 {
            for seen in &mut all {
                looking.step(seen, seed)?;
            }
        }
    }
    Ok(())
}

fn saved(subject: &Subject<'_, Strategy>) -> Check {
    for seed in subject.seeds(4) {
        let mut looking = Looking::open(subject.instance()?)?;
        let mut seen = Seen::new(A);
        went("begin", looking.side.begin(A, None, &[]))?;
        for _ in 0..12 {
            looking.step(&mut seen, seed)?;
        }
        let saved = went("save", looking.side.save(A))?;
        // Begun again, and forked, it decides as the one that went on.
        let mut again = Looking::open(subject.instance()?)?;
        went("begin from what was saved", again.side.begin(A, None, &saved))?;
        let mut fork = Seen { session: B, ..seen.clone() };
        went("begin of a fork", looking.side.begin(B, Some(A), &saved))?;
        let mut later = seen.clone();
        for n in 0..8 {
            let goes = looking.step(&mut seen, seed)?;
            let (went, forks) = (again.step(&mut later, seed)?, looking.step(&mut fork, seed)?);
            need(went == goes, || {
                format!("{n} steps after it was saved, it decides {went:?} and not {goes:?}")
            })?;
            need(forks == goes, || {
                format!("{n} steps after a fork, the child decides {forks:?} and not {goes:?}")
            })?;
        }
        looking.side.end(A);
        looking.step(&mut fork, seed)?;
        looking.side.end(B);
    }
    Ok(())
}

fn garbage(subject: &Subject<'_, Strategy>) -> Check {
    let mut looking = Looking::open(subject.instance()?)?;
    let mut seen = Seen::new(A);
    went("begin", looking.side.begin(A, None, &[]))?;
    for _ in 0..8 {
        looking.step(&mut seen, 1)?;
    }
    let saved = went("save", looking.side.save(A))?;
    let mut next = 10;
    for seed in subject.seeds(40) {
        let mut random = Random::new(seed);
        let noise: Vec<u8> = (0..1 + random.below(300)).map(|_| random.bits() as u8).collect();
        next += 1;
        let begun = looking.side.begin(SessionId(next), None, &noise);
        refused("begin from noise", &begun, &[ErrorKind::Damaged])?;
        // Cut short, or with a flipped bit, it may pass for saved; it is no panic.
        let mut near = saved.clone();
        near.truncate(random.below(saved.len() as u64 + 1) as usize);
        if let Some(byte) = near.first_mut().filter(|_| random.one_in(2)) {
            *byte ^= 0x10;
        }
        next += 1;
        let begun = looking.side.begin(SessionId(next), None, &near);
        if begun.is_err() {
            refused("begin from a damaged past", &begun, &[ErrorKind::Damaged])?;
        }
    }
    looking.step(&mut seen, 1)?;
    Ok(())
}

fn rewind(subject: &Subject<'_, Strategy>) -> Check {
    for seed in subject.seeds(6) {
        let mut looking = Looking::open(subject.instance()?)?;
        let mut seen = Seen::new(A);
        went("begin", looking.side.begin(A, None, &[]))?;
        for to in [300, 170, 64, 0] {
            for _ in 0..10 {
                looking.step(&mut seen, seed)?;
            }
            went("rewind", looking.side.rewind(A, to))?;
            seen.tokens = to as u32;
            seen.live.iter_mut().for_each(|head| head.retain(|at| u64::from(*at) < to));
        }
        looking.step(&mut seen, seed)?;
    }
    Ok(())
}
