//! For tests of stores that are built on the page table: a small model's pages, traces beside a
//! naive model, and power cuts.
#![allow(dead_code, reason = "each test uses a part")]

pub mod cut;
pub mod drive;
pub mod trace;
