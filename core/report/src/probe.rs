//! What a probe process prints: one lane's raw measurements.

use crate::request::{Request, Resources};
use serde::{Deserialize, Serialize};

/// `bench probe --mode cold`: one load and one request in a fresh process.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ColdProbe {
    /// From before the model is resolved to a runtime that can answer.
    pub load_ms: f64,
    /// During that time.
    pub load_resources: Resources,
    /// The one request.
    pub request: Request,
}

/// `bench probe --mode warm`: one load, requests thrown away, requests measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WarmProbe {
    /// From before the model is resolved to a runtime that can answer.
    pub runtime_load_ms: f64,
    /// During that time.
    pub runtime_load_resources: Resources,
    /// Requests thrown away.
    pub warmup_iterations: u32,
    /// Requests measured, each from an empty history.
    pub measured_iterations: Vec<Request>,
}
