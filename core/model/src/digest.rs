//! Who a model is: a digest over what names its bytes, cheap enough for every start.

use sha2::{Digest as _, Sha256};
use std::fmt;

/// SHA-256 that stands for a model: its config, and each weight file's header and length. Two files
/// that differ in weights alone have one digest where header and length agree; a stored cache that
/// must tell them apart hashes the weights too.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// SHA-256 of parts, each preceded by its length, so that no two splits are the same.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}
