//! Code law as tests: what docs/ARCHITECTURE.md says of the tree, checked on the tree.
//!
//! A rule is a function from a [`Tree`] to findings. Each has a test that the checkout keeps it,
//! and a test that a small tree which breaks it is found out, so that no rule passes because it
//! looks at nothing. Every finding is `path:line: what is wrong`.
#![cfg(test)]

mod cargo;
mod markdown;
mod rules;
mod rust;
mod sha256;
mod tree;
