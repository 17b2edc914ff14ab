//! Words that every contract shares: identities, errors, options, shapes, encodings and page tags.

#[macro_use]
mod ids;
mod error;
mod layer;
mod options;
mod tag;

pub use {error::*, ids::*, layer::*, options::*, tag::*};

/// Tokens of a page, and the block that attention reduces over. Part of every stored format.
pub const PAGE_TOKENS: u32 = 64;
/// A position in a session's history, or a count of its tokens.
pub type TokenIndex = u64;
