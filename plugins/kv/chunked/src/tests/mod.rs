//! The store against a drive that loses power, and what is chunked's own: options, places, space.

mod cuts;
#[path = "../../../../../core/record/tests/kit/mod.rs"]
mod kit;
mod promises;
mod space;

use crate::Chunked;
use kit::drive::{host, shape};
use kvern_contract::*;
use kvern_storage::Storage;
use std::sync::Arc;

fn ask(options: Options, accelerator: bool) -> PolicyAsk {
    PolicyAsk {
        options,
        shape: shape(),
        accelerator,
        budget_bytes: 1 << 20,
        context_tokens: 4096,
        lifecycle: Lifecycle::Persistent,
    }
}
fn spec() -> StoreSpec {
    StoreSpec {
        identity: vec![("weights".into(), "aa".into())],
        shape: shape(),
        cold: KvEncoding::F32,
        policy: Chunked.policy(&ask(Options::new(), false)).unwrap(),
        lifecycle: Lifecycle::Persistent,
        quota_bytes: None,
        io_align: 512,
        step_pages: 4,
        read_only: false,
        options: Options::new(),
    }
}
fn open_as(spec: &StoreSpec, storage: Arc<dyn Storage>) -> Result<Box<dyn KvStore>> {
    let opened = Chunked.open(spec, host(storage))?;
    Ok(opened.store.unwrap())
}
fn open(storage: Arc<dyn Storage>) -> Result<Box<dyn KvStore>> {
    open_as(&spec(), storage)
}
