//! The store against a drive that loses power, and against a naive model.

mod drive;
mod promises;
mod space;
mod traces;
