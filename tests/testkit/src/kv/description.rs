//! Who a strategy says it is, and whether what it opens is that.

use super::trial::{Stop, Went, ended, need, spec, went};
use super::{Strategy, always};
use crate::{Case, Check, Promise, Subject};
use kvern_contract::*;
use kvern_storage::double::MemoryStorage;
use kvern_storage::{Budget, NoSink, RootHost};
use std::sync::Arc;

const SAME: Promise = Promise::new("KvStrategy::describe", "Answer a constant.");
const NAME: Promise = Promise::new("KvDescription::name", "The plugin's name.");
const VERSION: Promise = Promise::new("KvDescription::version", "The plugin's version.");
const FORMAT: Promise = Promise::new(
    "KvDescription::persistence_format",
    "As `resident-only`, `chunked-manifest`, `log-structured-journal`.",
);
const RESIDENCY: Promise = Promise::new(
    "KvDescription::residency_mode",
    "As `fully-resident`, `buffered-tail`, `tiered-write-back`.",
);
const WINDOW: Promise =
    Promise::new("KvDescription::window_policy", "As `full-history`, `sliding-window`.");
const COLD: Promise =
    Promise::new("KvDescription::cold_tier_encoding", "As `full-precision`, `quantized`.");
const STORE: Promise = Promise::new("KvCapabilities::store", "`open` gives a store.");
const CODEC: Promise = Promise::new("KvCapabilities::codec", "`open` gives a codec.");
const SELECTS: Promise = Promise::new("KvCapabilities::selects", "`select` is called");
const OBSERVES: Promise = Promise::new("KvCapabilities::observes", "`observe` is called");
const SEES: Promise = Promise::new("KvCapabilities::sees_pages", "`sealed` is called");

pub(super) fn cases() -> Vec<Case<Strategy>> {
    vec![
        always("a_description_is_a_constant", &[SAME], constant),
        always(
            "a_description_names_plugin_and_axes_as_the_report_spells_them",
            &[NAME, VERSION, FORMAT, RESIDENCY, WINDOW, COLD],
            spelled,
        ),
        always(
            "what_is_opened_is_what_the_capabilities_say",
            &[STORE, CODEC, SELECTS, OBSERVES, SEES],
            opened,
        ),
    ]
}

fn constant(subject: &Subject<'_, Strategy>) -> Check {
    let (one, other) = (subject.instance()?, subject.instance()?);
    let described = one.describe();
    ended(need(one.describe() == described && other.describe() == described, || {
        format!("it described itself as {described:?}, then as {:?}", other.describe())
    }))
}

fn spelled(subject: &Subject<'_, Strategy>) -> Check {
    let KvDescription {
        name,
        version,
        persistence_format,
        residency_mode,
        window_policy,
        cold_tier_encoding,
        ..
    } = subject.instance()?.describe();
    let plain = |word: &str| {
        let of = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        word.starts_with(|c: char| c.is_ascii_lowercase()) && word.chars().all(of)
    };
    for (what, word) in [
        ("name", name),
        ("persistence_format", persistence_format),
        ("residency_mode", residency_mode),
        ("window_policy", window_policy),
        ("cold_tier_encoding", cold_tier_encoding),
    ] {
        ended(need(plain(&word), || {
            format!("{what} is {word:?}, not words in lower case with hyphens")
        }))?;
    }
    let numbers = version.split('.').filter(|part| !part.is_empty()).count();
    ended(need(numbers >= 2 && version.starts_with(|c: char| c.is_ascii_digit()), || {
        format!("version is {version:?}, no version")
    }))
}

fn opened(subject: &Subject<'_, Strategy>) -> Check {
    ended(opens(subject.instance()?))
}

fn opens(mut strategy: Box<Strategy>) -> Went {
    let able = strategy.describe().capabilities;
    let spec = spec(&*strategy)?;
    let storage = MemoryStorage::new();
    let host = RootHost::new(storage, "/root".into(), Budget::new(None), Arc::new(NoSink));
    let opened = went("open", strategy.open(&spec, host))?;
    let looks = able.selects || able.observes || able.sees_pages;
    for (what, declared, given) in [
        ("a store", able.store, opened.store.is_some()),
        ("a codec", able.codec, opened.codec.is_some()),
        ("an attentive side", looks, opened.attentive.is_some()),
    ] {
        if declared != given {
            let said = |is| if is { "" } else { "not " };
            let (declared, given) = (said(declared), said(given));
            return Err(Stop::Wrong(format!("{what} is {declared}declared and {given}opened")));
        }
    }
    need(able.store || !able.persistent, || "it is persistent and has no store".into())
}
