//! What a store must know, kept in memory: histories, the pages that were stored of them, and what
//! a prompt may and must be answered.

use crate::Random;
use kvern_contract::*;
use kvern_record::checksum;
use std::collections::{BTreeMap, BTreeSet};

/// Tokens of a page.
pub(super) const PAGE: u64 = PAGE_TOKENS as u64;
/// Layers with pages; layer 1 keeps nothing.
pub(super) const PAGED: [u32; 2] = [0, 2];
/// Pages that a step of these tests adds to a layer at most.
pub(super) const STEP_PAGES: u32 = 8;

/// Two layers of different widths, and one between them that keeps nothing.
pub(super) fn shape() -> KvShape {
    let layer = |kind, kv_heads| KvLayer { kind, key_dim: 4, value_dim: 3, kv_heads };
    let layers =
        vec![layer(LayerKind::Full, 1), layer(LayerKind::Transient, 0), layer(LayerKind::Full, 2)];
    KvShape { layers, hot: KvEncoding::Bf16 }
}

/// The token at a position of a text. Texts start alike and part at a place of their own, in a page
/// or at its end; some differ in content alone.
fn token(text: u64, at: u64) -> TokenKey {
    let parts = 64 * (text % 5) + [0, 17, 40][(text / 5 % 3) as usize];
    let own = if at < parts { 0 } else { text };
    let mut random = Random::new(own << 32 | at);
    let id = random.below(50_000) as u32;
    let clip = own % 2 == 1 && at == parts;
    TokenKey { id, reserved: 0, content: if clip { random.bits() } else { 0 } }
}

/// Tokens `from..to` of a text.
pub(super) fn text(text: u64, from: u64, to: u64) -> Vec<TokenKey> {
    (from..to).map(|at| token(text, at)).collect()
}

/// A hash over all of these tokens.
pub(super) fn chain(keys: &[TokenKey]) -> ChainHash {
    let (mut a, mut b) = (0x243f_6a88_85a3_08d3u64, 0x1319_8a2e_0370_7344u64);
    for key in keys {
        a = (a ^ u64::from(key.id)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ b;
        b = (b ^ key.content ^ a).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(31);
    }
    let mut out = [0; 16];
    out[..8].copy_from_slice(&a.to_le_bytes());
    out[8..].copy_from_slice(&b.to_le_bytes());
    ChainHash(out)
}

/// The chain after each whole page.
pub(super) fn chains(keys: &[TokenKey]) -> Vec<ChainHash> {
    (1..=keys.len() / PAGE as usize).map(|page| chain(&keys[..page * PAGE as usize])).collect()
}

/// The bytes of a page: they follow from what its tag says of tokens and layer.
pub(super) fn bytes_of(chain: ChainHash, layer: u32, length: u32) -> Vec<u8> {
    let mut random = Random::new(checksum(&chain.0) ^ u64::from(layer) << 56);
    let words = (0..length.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes());
    words.take(length as usize).collect()
}

/// What a policy says of pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// What queries see.
    pub(super) window: Option<KvWindow>,
    /// Whether `flush` stores the page that is not full.
    pub(super) partial: bool,
    /// The encoding of cold pages, if it is not the hot one.
    pub(super) cold: Option<KvEncoding>,
    /// Whether `find` must find what is stored: a store that does not outlive its process need not.
    pub(super) finds: bool,
}

impl Rules {
    /// Of a policy.
    pub(super) fn of(policy: &KvPolicy, finds: bool) -> Self {
        let cold = Some(policy.cold).filter(|cold| *cold != shape().hot);
        Rules { window: policy.window, partial: policy.store_partial, cold, finds }
    }

    /// Whether a query after `tokens` tokens can see a page.
    pub(super) fn sees(&self, page: u32, tokens: u64) -> bool {
        let (first, end) = (u64::from(page) * PAGE, (u64::from(page) + 1) * PAGE);
        self.window.is_none_or(|window| {
            first < u64::from(window.first) || end + u64::from(window.recent) > tokens + 1
        })
    }

    /// The tag of a page of a history, as the pager would store it.
    pub(super) fn tag(&self, keys: &[TokenKey], layer: u32, page: u32) -> PageTag {
        let first = u64::from(page) * PAGE;
        let end = (first + PAGE).min(keys.len() as u64);
        let chain = chain(&keys[..end as usize]);
        // Some whole pages went out cold, some hot.
        let cold = self.cold.filter(|_| end == first + PAGE && chain.0[0].is_multiple_of(2));
        let encoding = cold.unwrap_or(shape().hot);
        let of = shape().layers[layer as usize];
        let bytes = match of.page_bytes(encoding) {
            0 => of.page_bytes(shape().hot) as u32 / 2 + u32::from(chain.0[1]),
            bytes => bytes as u32,
        };
        let crc = checksum(&bytes_of(chain, layer, bytes));
        let (tokens, encoding) = ((end - first) as u32, encoding_word(encoding));
        PageTag { chain, crc, first, layer, tokens, bytes, encoding }
    }
}

/// The longest form of a page, for frames.
pub(super) fn longest(rules: &Rules) -> usize {
    let layers = shape().layers;
    let hot = layers.iter().map(|layer| layer.page_bytes(KvEncoding::Bf16));
    let cold = rules.cold.map_or(0, |cold| {
        layers.iter().map(|layer| layer.page_bytes(cold)).max().unwrap_or_default()
    });
    hot.max().unwrap_or_default().max(cold) as usize + 256
}

/// Tokens of a history, and the tags of its stored pages.
#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct Known {
    pub(super) keys: Vec<TokenKey>,
    pub(super) pages: BTreeMap<(u32, u32), PageTag>,
    /// Layers and chains of pages that left the window: dropped, or stored still.
    pub(super) out: BTreeSet<(u32, ChainHash)>,
}

impl Known {
    pub(super) fn tokens(&self) -> u64 {
        self.keys.len() as u64
    }

    /// Forgets tokens from `to` on, and pages that end past it.
    pub(super) fn cut(&mut self, to: u64) {
        self.keys.truncate(to as usize);
        self.pages.retain(|_, tag| tag.end() <= to);
    }

    /// Forgets pages that a commit pushed out of the window: a store may have dropped them, and
    /// after a rewind they are stored again.
    pub(super) fn slide(&mut self, rules: &Rules) {
        let tokens = self.tokens();
        let gone = self.pages.iter().filter(|((_, page), _)| !rules.sees(*page, tokens));
        self.out.extend(gone.map(|(_, tag)| (tag.layer, tag.chain)));
        self.pages.retain(|(_, page), _| rules.sees(*page, tokens));
    }

    /// Whole pages that are full of committed tokens, and not stored, though a query sees them.
    pub(super) fn unstored(&self, rules: &Rules) -> Vec<(u32, u32)> {
        let pages = (self.tokens() / PAGE) as u32;
        let places = (0..pages).flat_map(|page| PAGED.map(|layer| (layer, page)));
        let whole =
            |place: &(u32, u32)| self.pages.get(place).is_some_and(|tag| tag.tokens == PAGE_TOKENS);
        places.filter(|place| !whole(place) && rules.sees(place.1, self.tokens())).collect()
    }

    /// The pages that a session of the first `at` tokens has, if all were stored.
    pub(super) fn expected(&self, rules: &Rules, at: u64) -> BTreeMap<(u32, u32), PageTag> {
        let keys = &self.keys[..at as usize];
        let pages = at.div_ceil(PAGE) as u32;
        let places = (0..pages).filter(|page| rules.sees(*page, at));
        let places = places.flat_map(|page| PAGED.map(|layer| (layer, page)));
        places.map(|place| (place, rules.tag(keys, place.0, place.1))).collect()
    }

    /// How many of a prompt's tokens this history gives alone: whole pages or all of it, with every
    /// layer's pages stored. Under a window, all of it or nothing.
    pub(super) fn gives(&self, rules: &Rules, prompt: &[TokenKey]) -> u64 {
        if !rules.finds {
            return 0;
        }
        let common = self.keys.iter().zip(prompt).take_while(|(a, b)| a == b).count() as u64;
        let can = |&at: &u64| {
            let whole = at == self.tokens() || (at.is_multiple_of(PAGE) && rules.window.is_none());
            whole
                && (0..at.div_ceil(PAGE) as u32).filter(|page| rules.sees(*page, at)).all(|page| {
                    let rows = (at - u64::from(page) * PAGE).min(PAGE) as u32;
                    PAGED.iter().all(|layer| {
                        self.pages.get(&(*layer, page)).is_some_and(|tag| tag.tokens == rows)
                    })
                })
        };
        (0..=common).rev().find(can).unwrap_or(0)
    }
}

/// The most that a store may answer for a prompt that has any part of these histories, each page
/// from another.
pub(super) fn most<'a>(
    rules: &Rules,
    histories: impl Iterator<Item = &'a Known>,
    prompt: &[TokenKey],
) -> u64 {
    let (mut ends, mut whole, mut pages) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for known in histories {
        ends.extend(chains(&known.keys));
        whole.insert(chain(&known.keys));
        pages.extend(known.pages.values().map(|tag| (tag.layer, tag.chain)));
        pages.extend(&known.out);
    }
    let can = |&at: &u64| {
        let end = chain(&prompt[..at as usize]);
        let is_end = (at.is_multiple_of(PAGE) && ends.contains(&end)) || whole.contains(&end);
        let there = |page: u32| {
            let rows = (u64::from(page) + 1) * PAGE;
            let chain = chain(&prompt[..rows.min(at) as usize]);
            PAGED.iter().all(|layer| pages.contains(&(*layer, chain)))
        };
        let seen = |page: &u32| rules.sees(*page, at);
        is_end && (0..at.div_ceil(PAGE) as u32).filter(seen).all(there)
    };
    (1..=prompt.len() as u64).rev().find(can).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Rules = Rules { window: None, partial: true, cold: None, finds: true };

    fn known(tokens: u64) -> Known {
        let keys = text(3, 0, tokens);
        let mut known = Known { keys, ..Known::default() };
        known.pages = known.expected(&ALL, tokens);
        known
    }

    #[test]
    fn texts_start_alike_and_part_in_a_page_or_at_its_end() {
        let shared = |a, b| {
            let (a, b) = (text(a, 0, 400), text(b, 0, 400));
            a.iter().zip(&b).take_while(|(a, b)| a == b).count()
        };
        assert_eq!((shared(1, 2), shared(7, 8), shared(3, 4)), (64, 145, 192));
    }

    #[test]
    fn a_history_gives_whole_pages_or_all_of_it() {
        let known = known(200);
        let longer = text(3, 0, 300);
        assert_eq!(known.gives(&ALL, &longer), 200);
        assert_eq!(known.gives(&ALL, &longer[..199]), 192);
        let mut less = known.clone();
        less.pages.remove(&(2, 1));
        assert_eq!(less.gives(&ALL, &longer), 64);
        assert_eq!(most(&ALL, [&less, &known].into_iter(), &longer), 200);
        assert_eq!(most(&ALL, [&less].into_iter(), &longer), 64);
    }

    #[test]
    fn under_a_window_only_what_is_seen_is_needed() {
        let window = Some(KvWindow { first: 1, recent: 64 });
        let rules = Rules { window, ..ALL };
        let mut known = known(256);
        assert!(rules.sees(0, 256) && !rules.sees(1, 256) && rules.sees(3, 256));
        known.pages.retain(|(_, page), _| rules.sees(*page, 256));
        assert_eq!(known.gives(&rules, &text(3, 0, 256)), 256);
        assert_eq!(known.gives(&rules, &text(3, 0, 255)), 0);
    }
}
