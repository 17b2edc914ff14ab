//! What a model is on disk and in words: config, where each tensor lies, tokenizer, chat template,
//! sampling, and the ways a model gets here (the hub, a GGUF file, a seed).
//!
//! No arithmetic of a model, no threads, no device. Weights are located here and read elsewhere.
#![forbid(unsafe_code)]

mod config;
mod digest;
mod error;
mod family;
mod files;
mod generation;
mod gguf;
mod hub;
mod json;
mod model;
mod rng;
mod rope;
mod sample;
mod staged;
mod synth;
mod tensors;
mod text;
mod write;

pub use config::Config;
pub use digest::Digest;
pub use generation::GenerationConfig;
pub use gguf::{Imported, import_gguf};
pub use hub::{PullEvent, PullOptions, pull, pulled};
pub use model::{EmbeddedFiles, Model};
pub use rng::Rng;
pub use rope::{Rope, RopeKind};
pub use sample::{Sampler, Sampling};
pub use synth::{SynthDims, SynthSpec, Synthesized, synth};
pub use tensors::{Dtype, Tensor, TensorIndex, WeightFile};
pub use text::{ChatTemplate, Matched, Message, StopMatcher, Text, TextFiles, TextStream};
