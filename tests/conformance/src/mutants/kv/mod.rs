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
use std::sync::{Arc, Mutex};
use std::time::Duration;

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

/// A hook around every store that is opened, with a host of its own.
fn beside<H: StoreHook + 'static>(
    inner: Box<Strategy>,
    hook: fn(HostRef) -> H,
) -> Box<Strategy> {
    Box::new(Wrapped::new(inner).with_open(move |inner, spec, host| {
        let mut opened = inner.open(spec, host.clone())?;
        let around = |store| Box::new(Through::new(store, hook(host))) as Box<dyn KvStore>;
        opened.store = opened.store.map(around);
        Ok(opened)
    }))
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

/// Runs every case; how many were kept. Each that is broken is a line of `broken`.
fn sweep(what: &str, make: &dyn Fn() -> Result<Box<Strategy>>, broken: &mut Vec<String>) -> usize {
    let mut kept = 0;
    for case in cases() {
        match run(&case, &Subject::new(make)).outcome {
            Outcome::Kept => kept += 1,
            Outcome::Skipped(_) => {}
            Outcome::Broken(line) => broken.push(format!("{what}: {}: {line}", case.name)),
        }
    }
    kept
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
        let kept = sweep(what, &make, &mut broken);
        assert!(kept > 20, "{what}: {kept} cases");
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Reads pages itself, and uses all of a frame while it is lent.
struct Scratch(HostRef);
impl StoreHook for Scratch {
    fn load(
        &mut self,
        inner: &mut dyn KvStore,
        pages: &mut [PageLoad<'_>],
        within: Duration,
    ) -> Result<()> {
        inner.load(pages, within)?;
        let (mut reads, mut verdicts) = (Vec::new(), Vec::new());
        for page in pages {
            if let Verdict::At { file, offset, tag } = page.verdict {
                page.into.fill(0x77);
                let into = &mut page.into[..tag.bytes as usize];
                reads.push(FileRead { file, offset, into, done: Ok(()) });
                verdicts.push((&mut page.verdict, tag));
            }
        }
        self.0.read_batch(&mut reads, within)?;
        verdicts.into_iter().for_each(|(verdict, tag)| *verdict = Verdict::Filled { tag });
        Ok(())
    }
}

#[test]
fn a_store_that_uses_all_of_a_frame_keeps_every_case() {
    let shipped = persistent();
    let make = || opened(&shipped, as_kv).map(|inner| beside(inner, Scratch));
    let mut broken = Vec::new();
    assert!(sweep("scratch", &make, &mut broken) > 20 && broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_drive_has_a_model_of_its_own_and_keeps_it() {
    let shipped = persistent();
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let models = |name: &str| {
        let cases = cases();
        let case = cases.iter().find(|case| case.name == name).expect("a case");
        let make = || {
            let (inner, seen) = (opened(&shipped, as_kv)?, seen.clone());
            let watched = Wrapped::new(inner).with_open(move |inner, spec, host| {
                seen.lock().expect("what was seen").push(spec.identity.clone());
                inner.open(spec, host)
            });
            Ok(Box::new(watched) as Box<Strategy>)
        };
        assert_eq!(run(case, &Subject::new(&make)).outcome, Outcome::Kept, "{name}");
        let mut all = std::mem::take(&mut *seen.lock().expect("what was seen"));
        let opened = all.len();
        all.sort();
        all.dedup();
        (opened, all)
    };
    let (opened, first) = models("of_pages_of_one_key_the_last_holds");
    assert_eq!((opened, first.len()), (1, 1));
    let (opened, second) = models("of_pages_of_one_key_the_last_holds");
    assert_eq!((opened, second.len()), (1, 1));
    assert_ne!(first, second);
    let (opened, third) = models("what_was_flushed_is_found_by_the_next_process");
    assert_eq!((opened, third.len()), (4, 1));
    assert!(third != first && third != second);
}
