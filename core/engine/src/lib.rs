//! Kvern's engine: it owns memory and control. It places weights, keeps KV pages, and runs steps
//! over a ragged batch, through the contracts alone: it never opens a library, and holds no unsafe
//! code (host memory comes as leases from the storage service).
//!
//! One loop owns control flow ([`step`]): for each layer wait for its weights and pages, put its
//! ops on the list, run the list. A [`family`] says what a model computes; the [`pager`] says where
//! its history lies; [`weights`] says where its weights lie.
#![forbid(unsafe_code)]

mod budget;
mod calibrate;
mod chain;
mod engine;
mod events;
mod family;
mod guess;
mod io;
mod load;
mod pager;
mod placement;
mod plan;
mod predict;
mod request;
mod scratch;
mod spec;
mod step;
mod told;
mod weights;

#[cfg(test)]
mod tests;

pub use calibrate::{DeviceProbe, ProductShape, RowsRate, device_rates};
pub use engine::Engine;
pub use events::{Event, OnProgress, OnSpan, Progress, Span, Track, Watch};
pub use guess::{Draft, Guess, GuessAsk, Ngram};
pub use plan::{PlanFacts, Prediction, UnitFacts, UnitTier};
pub use spec::{
    CacheFacts, DENSE_CHUNK_ROWS, EngineSpec, Facts, Finish, Flow, LogLine, MlpChunks, Outcome,
    PlacementFacts, Rates, Request, Said, Speculation, StreamFacts, WeightPath,
};
