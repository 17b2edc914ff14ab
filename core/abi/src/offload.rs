//! An offload policy over the border: one document each way.
#![allow(unsafe_code)]

use crate::border::{Foreign, Object, border, cross};
use crate::guard::{Handle, Poison, enter, expose, retire};
use crate::trail::Maker;
use crate::wire::{AbiResult, read_doc, write_doc};
use abi_stable::std_types::{RSlice, RVec};
use kvern_contract::*;
use std::sync::Arc;

border! {
    /// An offload policy, as the host's side calls it.
    OffloadTable, OffloadTableRef, OffloadTableFields, OffloadOperations,
        &mut (dyn OffloadPolicy + 'static), enter, retire::<dyn OffloadPolicy>, "offload/drop";
    "offload/describe" describe() -> RVec<u8> = |policy| {
        write_doc("offload/describe", &policy.describe()).map(RVec::from)
    };
    "offload/plan" plan(ask: RSlice<'_, u8>) -> RVec<u8> = |policy| {
        let ask = read_doc("offload/plan", ask.as_slice())?;
        write_doc("offload/plan", &policy.plan(&ask)?).map(RVec::from)
    };
}

/// A policy on its way to the host.
pub type OffloadObject = Object<OffloadTableRef>;

/// Puts a plugin's policy behind the border.
pub fn expose_offload(policy: Box<dyn OffloadPolicy>) -> OffloadObject {
    Object { handle: expose(policy, Arc::<Poison>::default()), table: OffloadTable::REF }
}

/// A plugin's policy. Its description was read once, when it was opened.
pub struct ForeignOffload {
    border: Foreign<OffloadTableRef>,
    description: OffloadDescription,
}

impl ForeignOffload {
    /// Takes a policy over and asks who it is. *Errors* Panicked, Invalid: its description.
    pub fn new(object: OffloadObject, maker: Maker) -> Result<Self> {
        let border = Foreign::new(object, maker);
        let doc = cross!(&border, describe)?;
        Ok(ForeignOffload { description: read_doc("offload/describe", &doc)?, border })
    }
}

impl OffloadPolicy for ForeignOffload {
    fn describe(&self) -> OffloadDescription {
        self.description.clone()
    }

    fn plan(&self, ask: &PlanAsk) -> Result<Placement> {
        let ask = write_doc("offload/plan", ask)?;
        read_doc("offload/plan", &cross!(&self.border, plan, RSlice::from_slice(&ask))?)
    }
}
