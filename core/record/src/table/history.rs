//! What is known of one session: its tokens, and where its pages lie.

use kvern_contract::*;
use std::collections::BTreeMap;

/// Tokens of a page.
pub(crate) const PAGE: u64 = PAGE_TOKENS as u64;

/// Which layers keep what.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    /// Layers with pages.
    pub(crate) paged: Vec<u32>,
    /// Layers with a state.
    pub(crate) recurrent: Vec<u32>,
}
impl Layers {
    pub(crate) fn of(shape: &KvShape) -> Self {
        let numbered = || (0u32..).zip(&shape.layers);
        let keeps_pages = |layer: &KvLayer| match layer.kind {
            LayerKind::Full | LayerKind::Window { .. } => layer.kv_heads > 0,
            LayerKind::Recurrent { .. } | LayerKind::Transient => false,
        };
        let keeps_state = |layer: &KvLayer| matches!(layer.kind, LayerKind::Recurrent { .. });
        Layers {
            paged: numbered().filter(|(_, l)| keeps_pages(l)).map(|(at, _)| at).collect(),
            recurrent: numbered().filter(|(_, l)| keeps_state(l)).map(|(at, _)| at).collect(),
        }
    }
    fn is_empty(&self) -> bool {
        self.paged.is_empty() && self.recurrent.is_empty()
    }
}

/// A stored page or state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<P> {
    /// Where its bytes lie.
    pub place: P,
    /// What the host will check.
    pub tag: PageTag,
}
/// A layer, and which part of it.
pub(crate) type Spot = (u32, Part);

/// The position behind the last token that an entry speaks of.
pub(crate) fn end_of(part: Part, tag: &PageTag) -> u64 {
    match part {
        Part::Page(page) => u64::from(page) * PAGE + u64::from(tag.tokens),
        Part::State { at } => at,
    }
}

/// Tokens and entries. Entries may run ahead of the tokens, and tokens of the entries.
#[derive(Clone, Debug)]
pub(crate) struct History<P> {
    pub(crate) keys: Vec<TokenKey>,
    pub(crate) entries: BTreeMap<Spot, Entry<P>>,
    pub(crate) note: Vec<u8>,
}
impl<P> Default for History<P> {
    fn default() -> Self {
        History { keys: Vec::new(), entries: BTreeMap::new(), note: Vec::new() }
    }
}
impl<P: Copy> History<P> {
    /// Committed tokens.
    pub(crate) fn tokens(&self) -> u64 {
        self.keys.len() as u64
    }

    /// Forgets tokens from `to` on and entries that end past it.
    pub(crate) fn cut(&mut self, to: u64) {
        self.keys.truncate(usize::try_from(to).unwrap_or(usize::MAX));
        self.entries.retain(|&(_, part), entry| end_of(part, &entry.tag) <= to);
    }

    /// A copy of what lies before `at`: whole pages, and with `partial` the page that ends there
    /// unfilled.
    pub(crate) fn before(&self, at: u64, partial: bool) -> History<P> {
        let keep = |&(&(_, part), entry): &(&Spot, &Entry<P>)| {
            let whole = matches!(part, Part::State { .. }) || entry.tag.tokens == PAGE_TOKENS;
            end_of(part, &entry.tag) <= at && (whole || partial)
        };
        let keys =
            self.keys[..self.keys.len().min(usize::try_from(at).unwrap_or(usize::MAX))].to_vec();
        let entries =
            self.entries.iter().filter(keep).map(|(&spot, &entry)| (spot, entry)).collect();
        History { keys, entries, note: self.note.clone() }
    }

    /// Tokens at the start of a prompt that are this history's too.
    pub(crate) fn common(&self, prompt: &[TokenKey]) -> u64 {
        self.keys.iter().zip(prompt).take_while(|(own, other)| own == other).count() as u64
    }

    /// The longest start of at most `common` tokens that can be loaded: whole pages or the whole
    /// history, all layers' pages stored, and where layers are recurrent a state of each.
    pub(crate) fn reusable(&self, layers: &Layers, common: u64) -> u64 {
        if layers.is_empty() {
            return 0;
        }
        let tokens = self.tokens();
        let filled = |layer: u32, page: u64, rows: u64| {
            let spot = u32::try_from(page).ok().map(|page| (layer, Part::Page(page)));
            let entry = spot.and_then(|spot| self.entries.get(&spot));
            entry.is_some_and(|entry| u64::from(entry.tag.tokens) == rows)
        };
        let whole = |&layer: &u32| {
            (0..common / PAGE).take_while(|&page| filled(layer, page, PAGE)).count() as u64
        };
        let pages = layers.paged.iter().map(whole).min().unwrap_or(common / PAGE);
        let mut most = pages * PAGE;
        let (last, rest) = (tokens / PAGE, tokens % PAGE);
        if common == tokens
            && rest > 0
            && pages == last
            && layers.paged.iter().all(|&layer| filled(layer, last, rest))
        {
            most = tokens;
        }
        let fits = |at: u64| at <= most && (at.is_multiple_of(PAGE) || at == tokens);
        match layers.recurrent.is_empty() {
            true => most,
            false => self.last_state(layers, fits),
        }
    }

    /// The last position that `fits` where every recurrent layer has a state; 0 is always one.
    pub(crate) fn last_state(&self, layers: &Layers, fits: impl Fn(u64) -> bool) -> u64 {
        let Some((&first, others)) = layers.recurrent.split_first() else { return 0 };
        let range = (first, Part::State { at: 0 })..=(first, Part::State { at: u64::MAX });
        let states = self.entries.range(range).rev().filter_map(|(&(_, part), _)| match part {
            Part::State { at } => Some(at),
            Part::Page(_) => None,
        });
        let everywhere = |&at: &u64| {
            let has = |&layer: &u32| self.entries.contains_key(&(layer, Part::State { at }));
            fits(at) && others.iter().all(has)
        };
        states.into_iter().find(everywhere).unwrap_or(0)
    }

    /// Bytes to load the first `tokens` tokens.
    pub(crate) fn load_bytes(&self, tokens: u64) -> u64 {
        let needed = |&(&(_, part), entry): &(&Spot, &Entry<P>)| match part {
            Part::Page(_) => end_of(part, &entry.tag) <= tokens,
            Part::State { at } => at == tokens,
        };
        self.entries.iter().filter(needed).map(|(_, entry)| u64::from(entry.tag.bytes)).sum()
    }
}
