//! The engine as a whole: what it owns once it is loaded.

use crate::events::{Event, Recorder};
use crate::family::Family;
use crate::guess::Guesses;
use crate::io::Io;
use crate::pager::Pager;
use crate::scratch::Activations;
use crate::spec::{Facts, MlpChunks, PlacementFacts};
use crate::weights::{RowReader, Weights};
use kvern_contract::{
    DeviceBackend, DeviceDescription, KvDescription, KvEncoding, Result, SessionId, Slice,
};
use kvern_model::Model;
use kvern_storage::{Budget, Storage};
use std::sync::Arc;
use std::time::Duration;

/// A model, ready to run.
pub struct Engine {
    pub(crate) device: Box<dyn DeviceBackend>,
    pub(crate) family: Box<dyn Family>,
    pub(crate) weights: Weights,
    pub(crate) pager: Pager,
    pub(crate) io: Io,
    pub(crate) activations: Activations,
    /// Where an embedding that is not in memory is read from, row by row.
    pub(crate) embedding_rows: Option<RowReader>,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) pool: Slice,
    pub(crate) kv_dtype: KvEncoding,
    /// For each layer the unit of its attention and that of the rest.
    pub(crate) layer_units: Vec<(usize, usize)>,
    pub(crate) head_unit: usize,
    pub(crate) model: Arc<Model>,
    pub(crate) context_tokens: u64,
    pub(crate) rows_most: u32,
    pub(crate) mlp_chunks: MlpChunks,
    /// Sessions of a batch at most.
    pub(crate) sessions: u32,
    /// How long a plugin may do nothing while it is waited for.
    pub(crate) deadline: Duration,
    pub(crate) description: KvDescription,
    pub(crate) device_description: DeviceDescription,
    pub(crate) placement: PlacementFacts,
    pub(crate) budget: Arc<Budget>,
    pub(crate) events: Arc<Recorder>,
    /// Who guesses what requests say next, where somebody does.
    pub(crate) guesses: Option<Guesses>,
}

impl Engine {
    /// Starts a session without history.
    pub fn begin(&mut self) -> Result<SessionId> {
        Ok(self.pager.begin())
    }

    /// Ends a session. *Errors* NotFound.
    pub fn end(&mut self, session: SessionId) -> Result<()> {
        self.pager.end(session)
    }

    /// A session's tokens. *Errors* NotFound.
    pub fn tokens(&self, session: SessionId) -> Result<Vec<u32>> {
        self.pager.tokens(session)
    }

    /// Goes back to at most `to` tokens of a session; answers where it landed: perhaps at the start
    /// of the page that holds `to`, and at 0 where a window has dropped what the next token would
    /// see. *Errors* NotFound.
    pub fn rewind(&mut self, session: SessionId, to: u64) -> Result<u64> {
        self.pager.rewind(session, to)
    }

    /// Most tokens that a session may hold.
    pub fn context_tokens(&self) -> u64 {
        self.context_tokens
    }

    /// What the engine knows of itself, cumulative since the load.
    pub fn facts(&mut self) -> Facts {
        Facts {
            kv: self.pager.facts(),
            description: self.description.clone(),
            policy: self.pager.policy().clone(),
            device: self.device_description.clone(),
            device_usage: self.device.usage(),
            cache_root: self.pager.root(),
            placement: self.placement.clone(),
            mlp_chunks: self.mlp_chunks,
            stream: self.weights.facts(),
            storage: self.storage.counters(),
            budget: self.budget.holders(),
            budget_peak: self.budget.peak(),
        }
    }

    /// Operations since the last call, each with its time and bytes.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.take()
    }
}
