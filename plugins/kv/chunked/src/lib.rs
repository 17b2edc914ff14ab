//! History on disk in chunks: a layer's pages are appended as they spill, side by side, and a
//! manifest journal names them. Full history, full precision: bit for bit what stays in memory.
//!
//! Files under the root: `identity`, whose root it is; `chunks`, page bytes; `manifest`, the
//! journal that says which pages make which session. A session is durable when `flush` returns,
//! whatever happens to the power then; `commit` never syncs.
//!
//! Nothing is moved. Space in `chunks` behind all that was ever flushed and all that living
//! sessions hold is used again once a session is rewound or ends, so a store that flushes nothing
//! takes what its living sessions took at once. What was flushed keeps its place, also after its
//! session is gone, and the manifest only grows: the quota says when a fresh root is due. It counts
//! the files as long as they are, used or not, and a record to drop each session; a flush that
//! meets it gives back what `chunks` has behind all that is in use.

mod policy;
mod report;
mod store;

use kvern_contract::*;

kvern_abi::export_kv_strategy!(Chunked);

/// The strategy.
#[derive(Default)]
pub struct Chunked;

impl KvStrategy for Chunked {
    fn describe(&self) -> KvDescription {
        let capabilities = KvCapabilities {
            exact: true,
            store: true,
            persistent: true,
            ..KvCapabilities::default()
        };
        KvDescription {
            name: "chunked".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            persistence_format: "chunked-manifest".into(),
            residency_mode: "buffered-tail".into(),
            window_policy: "full-history".into(),
            cold_tier_encoding: "full-precision".into(),
            cold_store_format: None,
            eviction_policy: None,
            capabilities,
            options: policy::defaults(),
        }
    }

    fn policy(&self, ask: &PolicyAsk) -> Result<KvPolicy> {
        policy::policy(ask)
    }

    fn open(&mut self, spec: &StoreSpec, host: HostRef) -> Result<Opened> {
        let store = store::ChunkedStore::open(spec, host)?;
        Ok(Opened { store: Some(Box::new(store)), attentive: None, codec: None })
    }
}

#[cfg(test)]
mod tests;
