//! kv strategies that break a promise, around one that ships: chosen by what it declares.

mod drive;
mod extensions;
mod pages;
mod sessions;
mod strategy;

use super::{Mutant, all_turn_red};
use crate::shipped::{Shipped, of};
use crate::suite::{as_kv, opened};
use kvern_abi::PluginKind;
use kvern_contract::*;
use kvern_testkit::double::{HostHook, StoreHook, Through, ThroughHost, Wrapped};
use kvern_testkit::kv::cases;
use kvern_testkit::{Outcome, Promise, Subject, run};

type Strategy = dyn KvStrategy;

/// A mutant from what it breaks and how.
fn mutant(
    of: &'static str,
    text: &'static str,
    what: &'static str,
    wrap: fn(Box<Strategy>) -> Box<Strategy>,
) -> Mutant<Strategy> {
    Mutant { what, breaks: Promise::new(of, text), wrap }
}

/// A hook around every store that is opened.
fn hooked<H: StoreHook + 'static>(inner: Box<Strategy>, hook: fn() -> H) -> Box<Strategy> {
    Box::new(Wrapped::new(inner).with_store(move |store| Box::new(Through::new(store, hook()))))
}

/// A hook around every host that is given.
fn hosted<H: HostHook + 'static>(inner: Box<Strategy>, hook: fn() -> H) -> Box<Strategy> {
    Box::new(
        Wrapped::new(inner)
            .with_open(move |inner, spec, host| inner.open(spec, ThroughHost::new(host, hook()))),
    )
}

/// A strategy that keeps what it is given across processes: the one that mutants wrap.
fn persistent() -> Shipped {
    let able = |shipped: &Shipped| {
        opened(shipped, as_kv).is_ok_and(|strategy| {
            let able = strategy.describe().capabilities;
            able.store && able.persistent && able.exact && !able.shared
        })
    };
    of(PluginKind::Kv).into_iter().find(able).expect("a strategy with a root that is found again")
}

#[test]
fn every_promise_of_a_kv_strategy_is_tried() {
    let shipped = persistent();
    let mut mutants = strategy::mutants();
    mutants.extend(pages::mutants());
    mutants.extend(sessions::mutants());
    mutants.extend(drive::mutants());
    mutants.extend(extensions::mutants());
    all_turn_red(&cases(), &mutants, &|| opened(&shipped, as_kv));
}

/// What another form changes.
type Form = fn(&mut KvDescription, &mut KvPolicy);

/// A strategy that ships, under a policy of another form.
fn formed(inner: Box<Strategy>, form: Form) -> Box<Strategy> {
    let bent = Wrapped::new(inner).with_description(move |description| {
        let mut policy = KvPolicy {
            policy_id: "form".into(),
            flush: None,
            retain: Threshold::default(),
            window: None,
            keep_rows: None,
            cold: KvEncoding::Bf16,
            cold_after: 0,
            store_partial: false,
        };
        form(description, &mut policy);
    });
    Box::new(bent.with_policy(move |inner, ask| {
        let (mut description, mut policy) = (inner.describe(), inner.policy(ask)?);
        form(&mut description, &mut policy);
        Ok(policy)
    }))
}

#[test]
fn a_store_under_a_policy_of_another_form_keeps_every_case() {
    let shipped = persistent();
    let int8 = |description: &mut KvDescription, policy: &mut KvPolicy| {
        description.capabilities.exact = false;
        policy.cold = KvEncoding::Int8 { key: Granularity::Channel, value: Granularity::Token };
        (policy.cold_after, policy.retain.tokens) = (192, Some(192));
    };
    let whole = |_: &mut KvDescription, policy: &mut KvPolicy| policy.store_partial = false;
    let passing = |description: &mut KvDescription, _: &mut KvPolicy| {
        description.capabilities.persistent = false;
    };
    let forms: [(&str, Form); 3] = [
        ("cold pages in int8", int8),
        ("whole pages alone", whole),
        ("for this run alone", passing),
    ];
    let mut broken = Vec::new();
    for (what, form) in forms {
        let make = || opened(&shipped, as_kv).map(|inner| formed(inner, form));
        let mut kept = 0;
        for case in cases() {
            match run(&case, &Subject::new(&make)).outcome {
                Outcome::Kept => kept += 1,
                Outcome::Skipped(_) => {}
                Outcome::Broken(line) => broken.push(format!("{what}: {}: {line}", case.name)),
            }
        }
        assert!(kept > 20, "{what}: {kept} cases");
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
