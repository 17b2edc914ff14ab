//! A kv strategy over the border: who it is, its policy, and the objects that it opens.
#![allow(unsafe_code)]

use super::attentive::{AttentiveTable, AttentiveTableRef, ForeignAttentive};
use super::codec::{CodecTable, CodecTableRef, ForeignCodec};
use super::store::{ForeignStore, StoreTable, StoreTableRef};
use crate::border::{Foreign, Object, border, cross};
use crate::guard::{Handle, Poison, enter, expose, retire};
use crate::host::{HostObject, borrow, lend};
use crate::trail::Maker;
use crate::wire::{AbiResult, read_doc, write_doc};
use abi_stable::StableAbi;
use abi_stable::std_types::{ROption, RSlice, RVec};
use kvern_contract::*;
use std::sync::Arc;

/// What `open` gives.
#[repr(C)]
#[derive(StableAbi)]
pub struct OpenedRow {
    pub store: ROption<Object<StoreTableRef>>,
    pub attentive: ROption<Object<AttentiveTableRef>>,
    pub codec: ROption<Object<CodecTableRef>>,
}

/// A strategy on the plugin's side, with the poison that its objects share.
pub struct KvSide {
    strategy: Box<dyn KvStrategy>,
    poison: Arc<Poison>,
}

border! {
    /// A kv strategy, as the host's side calls it.
    KvTable, KvTableRef, KvTableFields, KvOperations, &mut KvSide, enter, retire::<KvSide>,
        "kv/drop";
    "kv/describe" describe() -> RVec<u8> = |side| {
        write_doc("kv/describe", &side.strategy.describe()).map(RVec::from)
    };
    "kv/policy" policy(ask: RSlice<'_, u8>) -> RVec<u8> = |side| {
        let ask = read_doc("kv/policy", ask.as_slice())?;
        write_doc("kv/policy", &side.strategy.policy(&ask)?).map(RVec::from)
    };
    "kv/open" open(spec: RSlice<'_, u8>, host: HostObject) -> OpenedRow = |side| {
        let host = borrow(host);
        let spec = read_doc("kv/open", spec.as_slice())?;
        let opened = side.strategy.open(&spec, host)?;
        let poison = || side.poison.clone();
        let store = |o| Object { handle: expose(o, poison()), table: StoreTable::REF };
        let attentive = |o| Object { handle: expose(o, poison()), table: AttentiveTable::REF };
        let codec = |o| Object { handle: expose(o, poison()), table: CodecTable::REF };
        Ok(OpenedRow {
            store: opened.store.map(store).into(),
            attentive: opened.attentive.map(attentive).into(),
            codec: opened.codec.map(codec).into(),
        })
    };
}

/// A strategy on its way to the host.
pub type KvObject = Object<KvTableRef>;

/// Puts a plugin's strategy behind the border.
pub fn expose_kv(strategy: Box<dyn KvStrategy>) -> KvObject {
    let poison = Arc::<Poison>::default();
    let side = Box::new(KvSide { strategy, poison: poison.clone() });
    Object { handle: expose(side, poison), table: KvTable::REF }
}

/// A plugin's strategy. Its description was read once, when it was opened: the contract calls it
/// constant.
pub struct ForeignKv {
    border: Foreign<KvTableRef>,
    description: KvDescription,
}

impl ForeignKv {
    /// Takes a strategy over and asks who it is. *Errors* Panicked, Invalid: its description.
    pub fn new(object: KvObject, maker: Maker) -> Result<Self> {
        let border = Foreign::new(object, maker);
        let doc = cross!(&border, describe)?;
        Ok(ForeignKv { description: read_doc("kv/describe", &doc)?, border })
    }
}

impl KvStrategy for ForeignKv {
    fn describe(&self) -> KvDescription {
        self.description.clone()
    }

    fn policy(&self, ask: &PolicyAsk) -> Result<KvPolicy> {
        let ask = write_doc("kv/policy", ask)?;
        read_doc("kv/policy", &cross!(&self.border, policy, RSlice::from_slice(&ask))?)
    }

    fn open(&mut self, spec: &StoreSpec, host: HostRef) -> Result<Opened> {
        let spec = write_doc("kv/open", spec)?;
        let opened = cross!(&self.border, open, RSlice::from_slice(&spec), lend(host))?;
        let maker = self.border.maker;
        let store = opened.store.into_option().map(|it| ForeignStore::new(it, maker));
        let attentive = opened.attentive.into_option().map(|it| ForeignAttentive::new(it, maker));
        let codec = opened.codec.into_option().map(|it| ForeignCodec::new(it, maker));
        Ok(Opened {
            store: store.map(|it| Box::new(it) as Box<dyn KvStore>),
            attentive: attentive.map(|it| Box::new(it) as Box<dyn KvAttentive>),
            codec: codec.map(|it| Box::new(it) as Box<dyn KvCodec>),
        })
    }
}
