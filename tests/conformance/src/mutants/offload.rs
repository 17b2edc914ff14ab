//! Offload policies that break a promise.

use super::{Mutant, all_turn_red};
use crate::shipped::of;
use crate::suite::{as_offload, opened};
use kvern_abi::PluginKind;
use kvern_contract::*;
use kvern_testkit::Promise;
use kvern_testkit::offload::cases;
use std::sync::atomic::{AtomicU64, Ordering};

/// A policy with a fault around it.
struct Broken {
    inner: Box<dyn OffloadPolicy>,
    describe: fn(&mut OffloadDescription),
    plan: fn(&dyn OffloadPolicy, &PlanAsk) -> Result<Placement>,
}

impl OffloadPolicy for Broken {
    fn describe(&self) -> OffloadDescription {
        let mut description = self.inner.describe();
        (self.describe)(&mut description);
        description
    }
    fn plan(&self, ask: &PlanAsk) -> Result<Placement> {
        (self.plan)(&*self.inner, ask)
    }
}

fn whole(inner: Box<dyn OffloadPolicy>) -> Broken {
    Broken { inner, describe: |_| (), plan: |inner, ask| inner.plan(ask) }
}

macro_rules! mutants { ($($of:literal $text:literal: $what:literal,
    $field:ident: $fault:expr;)*) => {
    vec![$(Mutant {
        what: $what,
        breaks: Promise::new($of, $text),
        wrap: |inner| Box::new(Broken { $field: $fault, ..whole(inner) }),
    }),*]
} }

fn counter() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

fn tier(placement: &mut Placement, from: Tier, to: Tier) {
    placement.units.iter_mut().filter(|p| p.tier == from).for_each(|p| p.tier = to);
}

fn changed(answer: Result<Placement>, change: impl FnOnce(&mut Placement)) -> Result<Placement> {
    answer.map(|mut placement| {
        change(&mut placement);
        placement
    })
}

fn mutants() -> Vec<Mutant<dyn OffloadPolicy>> {
    mutants! {
        "OffloadPolicy::describe" "Answer the same every time.": "a version that counts",
            describe: |d| d.version = format!("0.{}", counter());
        "OffloadDescription::options" "Defaults, every known name": "a default that it refuses",
            describe: |d| { d.options.insert("unknown".into(), OptionValue::Integer(0)); };
        "OffloadPolicy::plan" "Invalid (an option)": "defaults in place of what was asked",
            plan: |inner, ask| {
                let options = inner.describe().options;
                inner.plan(&PlanAsk { options, ..ask.clone() })
            };
        "OffloadPolicy::plan" "OverBudget (says what is needed)": "numbers are left out",
            plan: |inner, ask| inner.plan(ask).map_err(|mut e| {
                e.message = "it does not fit".into();
                e
            });
        "OffloadPolicy::plan" "Be pure: the same ask gives the same answer": "a reason that counts",
            plan: |inner, ask| changed(inner.plan(ask), |placement| {
                placement.units.iter_mut().for_each(|p| p.reason = counter().to_string());
            });
        "Placement::units" "Every unit exactly once.": "the last unit is forgotten",
            plan: |inner, ask| changed(inner.plan(ask), |placement| {
                placement.units.pop();
            });
        "Placement::units" "Every unit exactly once.": "the first unit is placed twice",
            plan: |inner, ask| changed(inner.plan(ask), |placement| {
                placement.units.extend(placement.units.first().cloned());
            });
        "Placement::units" "Every unit exactly once.": "a unit that there is not",
            plan: |inner, ask| changed(inner.plan(ask), |placement| {
                let reason = "made up".into();
                placement.units.push(Placed { unit: UnitId(999), tier: Tier::Disk, reason });
            });
        "TierFacts::budget_bytes" "Room for weights, in bytes.": "a byte more than there is",
            plan: |inner, ask| {
                let mut ask = ask.clone();
                ask.tiers.iter_mut().filter(|t| t.tier != Tier::Disk)
                    .for_each(|t| t.budget_bytes += 1);
                inner.plan(&ask)
            };
        "PlanAsk::tiers" "The memories there are, nearest first.": "a device that is not there",
            plan: |inner, ask| changed(inner.plan(ask), |p| tier(p, Tier::Host, Tier::Device));
        "Placed::reason" "Why, in a few words for the plan's table.": "no reasons",
            plan: |inner, ask| changed(inner.plan(ask), |placement| {
                placement.units.iter_mut().for_each(|p| p.reason.clear());
            });
        "PlanAsk::host_layers" "Placed layers that the operator asked for on the host":
            "a layer fewer than asked for",
            plan: |inner, ask| inner.plan(&PlanAsk {
                host_layers: ask.host_layers.saturating_sub(1).max(ask.host_layers.min(1)),
                ..ask.clone()
            });
        "PlanAsk::host_layers" "0: the policy decides.": "0 is taken for all",
            plan: |inner, ask| inner.plan(&PlanAsk {
                host_layers: if ask.host_layers == 0 { ask.layers } else { ask.host_layers },
                ..ask.clone()
            });
        "PlanAsk::device_layers" "Placed layers that the operator asked for on the device":
            "the count is ignored",
            plan: |inner, ask| inner.plan(&PlanAsk { device_layers: 0, ..ask.clone() });
        "Placement::expert_cache_bytes" "Room for experts that come and go": "a cache beyond memory",
            plan: |inner, ask| changed(inner.plan(ask), |p| p.expert_cache_bytes = u64::MAX);
        "Placement::read_ahead_units" "How many units to read ahead": "more than there are",
            plan: |inner, ask| changed(inner.plan(ask), |p| p.read_ahead_units = 10_000);
        "OffloadDescription::observes" "Whether it wants [`PlanAsk::observed`]":
            "it follows what was observed",
            plan: |inner, ask| changed(inner.plan(ask), |placement| {
                if !ask.observed.is_empty() {
                    placement.read_ahead_units += 1;
                }
            });
    }
}

#[test]
fn every_promise_of_an_offload_policy_is_tried() {
    let shipped = of(PluginKind::Offload).remove(0);
    all_turn_red(&cases(), &mutants(), &|| opened(&shipped, as_offload));
}
