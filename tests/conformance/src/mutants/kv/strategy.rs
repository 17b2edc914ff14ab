//! Descriptions, policies and openings that break a promise.

use super::*;
use std::sync::atomic::{AtomicU64, Ordering};

fn counter() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

fn described(inner: Box<Strategy>, bend: fn(&mut KvDescription)) -> Box<Strategy> {
    Box::new(Wrapped::new(inner).with_description(bend))
}

fn policed(inner: Box<Strategy>, bend: fn(&mut KvPolicy)) -> Box<Strategy> {
    Box::new(Wrapped::new(inner).with_policy(move |inner, ask| {
        let mut policy = inner.policy(ask)?;
        bend(&mut policy);
        Ok(policy)
    }))
}

/// Opens under another specification.
fn opened_as(inner: Box<Strategy>, bend: fn(&mut StoreSpec)) -> Box<Strategy> {
    Box::new(Wrapped::new(inner).with_open(move |inner, spec, host| {
        let mut spec = spec.clone();
        bend(&mut spec);
        inner.open(&spec, host)
    }))
}

/// Opens, and answers another error where that fails.
fn failing(inner: Box<Strategy>, bend: fn(&mut Error)) -> Box<Strategy> {
    Box::new(Wrapped::new(inner).with_open(move |inner, spec, host| {
        inner.open(spec, host).map_err(|mut error| {
            bend(&mut error);
            error
        })
    }))
}

pub(super) fn mutants() -> Vec<Mutant<Strategy>> {
    vec![
        mutant("KvStrategy::describe", "Answer a constant.", "a version that counts", |inner| {
            described(inner, |d| d.version = format!("0.1.{}", counter()))
        }),
        mutant("KvDescription::name", "The plugin's name.", "a name in capitals", |inner| {
            described(inner, |d| d.name = "My Store".into())
        }),
        mutant("KvDescription::version", "The plugin's version.", "no version", |inner| {
            described(inner, |d| d.version.clear())
        }),
        mutant(
            "KvDescription::persistence_format",
            "As `resident-only`, `chunked-manifest`, `log-structured-journal`.",
            "an axis that is empty",
            |inner| described(inner, |d| d.persistence_format.clear()),
        ),
        mutant(
            "KvDescription::residency_mode",
            "As `fully-resident`, `buffered-tail`, `tiered-write-back`.",
            "an axis with underscores",
            |inner| described(inner, |d| d.residency_mode = "buffered_tail".into()),
        ),
        mutant(
            "KvDescription::window_policy",
            "As `full-history`, `sliding-window`.",
            "an axis that is empty",
            |inner| described(inner, |d| d.window_policy.clear()),
        ),
        mutant(
            "KvDescription::cold_tier_encoding",
            "As `full-precision`, `quantized`.",
            "an axis with a space",
            |inner| described(inner, |d| d.cold_tier_encoding = "full precision".into()),
        ),
        mutant("KvCapabilities::store", "`open` gives a store.", "a store that is not", |inner| {
            Box::new(Wrapped::new(inner).with_open(|inner, spec, host| {
                let opened = inner.open(spec, host)?;
                Ok(Opened { store: None, ..opened })
            }))
        }),
        mutant("KvCapabilities::codec", "`open` gives a codec.", "a codec that is not", |inner| {
            described(inner, |d| d.capabilities.codec = true)
        }),
        mutant("KvCapabilities::selects", "`select` is called", "nothing selects", |inner| {
            described(inner, |d| d.capabilities.selects = true)
        }),
        mutant("KvCapabilities::observes", "`observe` is called", "nothing observes", |inner| {
            described(inner, |d| d.capabilities.observes = true)
        }),
        mutant("KvCapabilities::sees_pages", "`sealed` is called", "nothing sees", |inner| {
            described(inner, |d| d.capabilities.sees_pages = true)
        }),
        mutant(
            "KvStrategy::policy",
            "Give the same answer to the same ask.",
            "an id that counts",
            |inner| policed(inner, |p| p.policy_id = format!("n{}", counter())),
        ),
        mutant("KvStrategy::policy", "Invalid (names option and range).", "no name", |inner| {
            Box::new(Wrapped::new(inner).with_policy(|inner, ask| {
                inner.policy(ask).map_err(|mut error| {
                    error.message = "an option is wrong".into();
                    error
                })
            }))
        }),
        mutant(
            "KvDescription::options",
            "Defaults, every known name.",
            "a default that it refuses",
            |inner| {
                described(inner, |d| {
                    d.options.insert("unknown".into(), OptionValue::Integer(1));
                })
            },
        ),
        mutant(
            "KvCapabilities::exact",
            "Full history, full precision: bit-identical to resident.",
            "a window",
            |inner| policed(inner, |p| p.window = Some(KvWindow { first: 1, recent: 128 })),
        ),
        mutant(
            "KvPolicy::cold_after",
            "Distance in tokens, a multiple of 64.",
            "a distance of 100",
            |inner| policed(inner, |p| p.cold_after = 100),
        ),
        mutant(
            "KvPolicy::cold_after",
            "0 for lossless encodings.",
            "a distance without a loss",
            |inner| policed(inner, |p| p.cold_after = 64),
        ),
        mutant("KvPolicy::policy_id", "For the report, as `cpu-journal`.", "no id", |inner| {
            policed(inner, |p| p.policy_id.clear())
        }),
        mutant("KvPolicy::flush", "`None`: never.", "it spills to nowhere", |inner| {
            described(inner, |d| d.capabilities.store = false)
        }),
        mutant(
            "KvCapabilities::shared",
            "Several hosts write one root at once: the host takes no lock, every file is published.",
            "one that writes into its files",
            |inner| described(inner, |d| d.capabilities.shared = true),
        ),
        mutant("StoreSpec::read_only", "Nothing may be written.", "it is ignored", |inner| {
            opened_as(inner, |spec| spec.read_only = false)
        }),
        mutant(
            "StoreSpec::identity",
            "A store that finds others under the root answers Mismatch and names the part.",
            "it is not looked at",
            |inner| opened_as(inner, |spec| spec.identity.truncate(1)),
        ),
        mutant(
            "StoreSpec::quota_bytes",
            "Most bytes under the root; `None`: no limit.",
            "there is no limit",
            |inner| opened_as(inner, |spec| spec.quota_bytes = None),
        ),
        mutant(
            "KvStrategy::open",
            "Mismatch, Damaged, OutOfSpace, Io.",
            "what fails is internal",
            |inner| failing(inner, |error| error.kind = ErrorKind::Internal),
        ),
        mutant(
            "KvStrategy::open",
            "Opens a root and repairs what a crash left.",
            "damage is a panic",
            |inner| failing(inner, |error| assert_ne!(error.kind, ErrorKind::Damaged, "a page")),
        ),
    ]
}
