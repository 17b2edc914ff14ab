//! Identities: newtypes over integers, so that a layer is never taken for a file.

use super::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

macro_rules! ids { ($($(#[$d:meta])* $name:ident($inner:ty);)*) => { $(
    $(#[$d])*
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
    #[derive(serde::Serialize, serde::Deserialize)]
    pub struct $name(
        /// The bare value.
        pub $inner,
    );
)* } }
ids! {
    /// One history of tokens; chosen by the engine, unique in a process, never reused there: the
    /// next process counts from 1 again, so what is stored needs a name of the store's own.
    SessionId(u64);
    /// A decoder layer, counted from 0.
    LayerIndex(u32);
    /// A piece of weights that moves as one.
    UnitId(u32);
    /// A file that the host opened for a plugin.
    FileId(u32);
    /// What `find` answered; valid until the store begins from it or the next `maintain`.
    FoundId(u64);
    /// 128 bits over a seed (weights digest, config, dtype, encoding, layout, format) and every
    /// token key up to a position. The host computes it; a plugin compares and stores it.
    ChainHash([u8; 16]);
}

impl SessionId {
    /// What a call answers that names a session which is not there: NotFound.
    pub fn unknown(self, operation: &str) -> Error {
        Error::new(ErrorKind::NotFound, operation, format!("session {} is unknown", self.0))
    }
}

/// What makes a row of KV what it is: the token, and the content behind it.
///
/// Two audio clips share placeholder ids and must not share KV, so token ids alone are no identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[repr(C)]
pub struct TokenKey {
    /// Vocabulary id; a placeholder for audio or images.
    pub id: u32,
    /// Unused, zero.
    pub reserved: u32,
    /// Digest of the audio or image that the placeholder stands for; 0 for text.
    pub content: u64,
}
