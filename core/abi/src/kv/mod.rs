//! The kv contract over the border: a strategy, and the objects that it opens.

pub mod attentive;
pub mod codec;
pub mod rows;
pub mod store;
pub mod strategy;
