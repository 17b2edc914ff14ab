//! Chain hashes: 128 bits that name every token up to a position, seeded with what makes KV
//! comparable (weights, config, dtype, layout). BLAKE3, keyed by the previous link, cut to 128
//! bits.

use kvern_contract::{ChainHash, PAGE_TOKENS, TokenKey};

/// The seed of an identity's chains.
pub(crate) fn seed(identity: &[(String, String)]) -> ChainHash {
    let mut hash = blake3::Hasher::new();
    for (name, value) in identity {
        for part in [name, value] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
    }
    cut(&hash)
}

/// The link after `keys`, which follow `from`.
pub(crate) fn link(from: ChainHash, keys: &[TokenKey]) -> ChainHash {
    let mut hash = blake3::Hasher::new();
    hash.update(&from.0);
    for key in keys {
        hash.update(&key.id.to_le_bytes());
        hash.update(&key.content.to_le_bytes());
    }
    cut(&hash)
}

fn cut(hash: &blake3::Hasher) -> ChainHash {
    let whole = hash.finalize();
    let mut out = [0; 16];
    out.iter_mut().zip(whole.as_bytes()).for_each(|(to, from)| *to = *from);
    ChainHash(out)
}

/// A session's chain: a link after each whole page.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    seed: ChainHash,
    pages: Vec<ChainHash>,
}

impl Chain {
    pub(crate) fn new(seed: ChainHash) -> Self {
        Chain { seed, pages: Vec::new() }
    }
    /// Links for whole pages of `keys` (all of the session's) that have none yet.
    pub(crate) fn extend(&mut self, keys: &[TokenKey]) {
        let whole = keys.len() / PAGE_TOKENS as usize;
        for page in self.pages.len()..whole {
            let at = page * PAGE_TOKENS as usize;
            let next = link(self.before(page), &keys[at..at + PAGE_TOKENS as usize]);
            self.pages.push(next);
        }
    }
    /// The link at position `tokens`, of a session with these keys.
    pub(crate) fn at(&self, keys: &[TokenKey], tokens: usize) -> ChainHash {
        let page = tokens / PAGE_TOKENS as usize;
        let start = page * PAGE_TOKENS as usize;
        match tokens - start {
            0 => self.before(page),
            _ => link(self.before(page), &keys[start..tokens]),
        }
    }
    /// Links of whole pages, in order.
    pub(crate) fn pages(&self) -> &[ChainHash] {
        &self.pages
    }
    /// Forgets links past `tokens`.
    pub(crate) fn rewind(&mut self, tokens: usize) {
        self.pages.truncate(tokens / PAGE_TOKENS as usize);
    }
    fn before(&self, page: usize) -> ChainHash {
        page.checked_sub(1).map_or(self.seed, |p| self.pages[p])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(n: u32) -> Vec<TokenKey> {
        (0..n).map(|id| TokenKey { id, ..TokenKey::default() }).collect()
    }

    #[test]
    fn a_chain_is_the_same_however_it_grew_and_names_every_token() {
        let start = seed(&[("weights".into(), "x".into())]);
        let all = keys(200);
        let (mut once, mut bit) = (Chain::new(start), Chain::new(start));
        once.extend(&all);
        (0..=200).for_each(|n| bit.extend(&all[..n]));
        assert_eq!(once.pages(), bit.pages());
        assert_eq!(once.pages().len(), 3);
        assert_eq!(once.at(&all, 128), once.pages()[1]);
        let mut other = all.clone();
        other[5].content = 1;
        let mut changed = Chain::new(start);
        changed.extend(&other);
        assert!(changed.pages().iter().zip(once.pages()).all(|(a, b)| a != b));
        assert_ne!(once.at(&all, 130), once.at(&all, 129));
        assert_ne!(
            seed(&[("weights".into(), "x".into())]),
            seed(&[("weightsx".into(), "".into())])
        );
    }
}
