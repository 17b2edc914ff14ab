//! Policies: pure, within their bounds, and options refused by name.

use super::trial::{Went, ask, ended, need, went};
use super::{Strategy, always};
use crate::{Case, Check, Promise, Subject};
use kvern_contract::*;

const PURE: Promise = Promise::new("KvStrategy::policy", "Give the same answer to the same ask.");
const INVALID: Promise = Promise::new("KvStrategy::policy", "Invalid (names option and range).");
const DEFAULTS: Promise = Promise::new("KvDescription::options", "Defaults, every known name.");
const EXACT: Promise = Promise::new(
    "KvCapabilities::exact",
    "Full history, full precision: bit-identical to resident.",
);
const AFTER: Promise =
    Promise::new("KvPolicy::cold_after", "Distance in tokens, a multiple of 64.");
const LOSSLESS: Promise = Promise::new("KvPolicy::cold_after", "0 for lossless encodings.");
const NAMED: Promise = Promise::new("KvPolicy::policy_id", "For the report, as `cpu-journal`.");
const NEVER: Promise = Promise::new("KvPolicy::flush", "`None`: never.");

pub(super) fn cases() -> Vec<Case<Strategy>> {
    vec![
        always("the_same_facts_give_the_same_policy", &[PURE], pure),
        always(
            "a_policy_is_what_its_strategy_declares",
            &[EXACT, AFTER, LOSSLESS, NAMED, NEVER],
            bounded,
        ),
        always("an_option_is_taken_or_refused_by_its_name", &[INVALID, DEFAULTS], options),
    ]
}

/// Questions that differ in what a policy may depend on.
fn asks(strategy: &Strategy) -> Vec<PolicyAsk> {
    let plain = ask(strategy);
    let mut all = Vec::new();
    for (budget_bytes, context_tokens) in [(1 << 16, 256), (1 << 26, 8192), (u64::MAX, u64::MAX)] {
        for accelerator in [false, true] {
            for hot in [KvEncoding::F32, KvEncoding::F16, KvEncoding::Bf16] {
                let shape = KvShape { hot, ..plain.shape.clone() };
                let ask =
                    PolicyAsk { budget_bytes, context_tokens, accelerator, shape, ..plain.clone() };
                all.push(ask);
            }
        }
    }
    let none = KvShape { layers: Vec::new(), hot: KvEncoding::Bf16 };
    all.push(PolicyAsk { shape: none, ..plain });
    all
}

fn pure(subject: &Subject<'_, Strategy>) -> Check {
    let (one, other) = (subject.instance()?, subject.instance()?);
    for ask in asks(&*one) {
        let answer = one.policy(&ask);
        let same = one.policy(&ask) == answer && other.policy(&ask) == answer;
        ended(need(same, || format!("one ask gave {answer:?}, then {:?}", other.policy(&ask))))?;
    }
    Ok(())
}

fn bounded(subject: &Subject<'_, Strategy>) -> Check {
    let strategy = subject.instance()?;
    let able = strategy.describe().capabilities;
    for ask in asks(&*strategy) {
        let policy = ended_with(went("policy", strategy.policy(&ask)))?;
        ended(judged(&ask, able, &policy))?;
    }
    Ok(())
}

fn ended_with<T>(answer: Went<T>) -> std::result::Result<T, String> {
    answer.map_err(String::from)
}

fn judged(ask: &PolicyAsk, able: KvCapabilities, policy: &KvPolicy) -> Went {
    let KvPolicy { cold, cold_after, window, keep_rows, flush, .. } = policy;
    let lossless = *cold == ask.shape.hot || *cold == KvEncoding::F32;
    need(!policy.policy_id.trim().is_empty(), || "the policy has no id".into())?;
    need(cold_after.is_multiple_of(u64::from(PAGE_TOKENS)), || {
        format!("pages go cold after {cold_after} tokens, no multiple of {PAGE_TOKENS}")
    })?;
    need(!lossless || *cold_after == 0, || {
        format!("pages go cold after {cold_after} tokens, and {cold:?} loses nothing")
    })?;
    let looks = able.selects || able.observes;
    need(!able.exact || (lossless && window.is_none() && keep_rows.is_none() && !looks), || {
        format!("it is exact, with cold pages in {cold:?}, {window:?} and rows kept: {keep_rows:?}")
    })?;
    need(able.codec || *cold != KvEncoding::Codec, || {
        "cold pages are in a codec's encoding, and it has none".into()
    })?;
    need(window.is_none_or(|window| window.recent > 0), || "a query does not see itself".into())?;
    need(able.store || (flush.is_none() && !policy.store_partial), || {
        "it spills, and has no store".into()
    })
}

fn options(subject: &Subject<'_, Strategy>) -> Check {
    let strategy = subject.instance()?;
    let plain = ask(&*strategy);
    ended_with(went("policy with its own defaults", strategy.policy(&plain)))?;
    // The host refuses names that there are not; what a value may be only the plugin knows.
    for (name, value) in &plain.options {
        let other_type = match value {
            OptionValue::Integer(_) | OptionValue::Float(_) => OptionValue::Text("many".into()),
            OptionValue::Text(_) => OptionValue::Integer(1),
            OptionValue::Switch(_) => OptionValue::Integer(7),
        };
        ended(taken(&*strategy, &plain, &(name.clone(), other_type), false))?;
        let absurd: Vec<OptionValue> = match value {
            OptionValue::Integer(_) => {
                [i64::MIN, -1, 0, 1, i64::MAX].map(OptionValue::Integer).into()
            }
            OptionValue::Float(_) => {
                [f64::NAN, f64::NEG_INFINITY, -1.0, 0.0, 1e300].map(OptionValue::Float).into()
            }
            OptionValue::Text(_) => {
                ["", "\0", "../..", &"x".repeat(9000)].map(|t| OptionValue::Text(t.into())).into()
            }
            OptionValue::Switch(on) => vec![OptionValue::Switch(!on)],
        };
        for value in absurd {
            ended(taken(&*strategy, &plain, &(name.clone(), value), true))?;
        }
    }
    Ok(())
}

/// Whether an option is refused by its name, or, where it `may` be taken, is.
fn taken(
    strategy: &Strategy,
    plain: &PolicyAsk,
    (name, value): &(String, OptionValue),
    may: bool,
) -> Went {
    let mut ask = plain.clone();
    ask.options.insert(name.clone(), value.clone());
    let shown = format!("{value:?}").chars().take(60).collect::<String>();
    match strategy.policy(&ask) {
        Ok(policy) if may => judged(&ask, strategy.describe().capabilities, &policy),
        Ok(_) => need(false, || format!("option {name} = {shown} is taken")),
        Err(error) => {
            need(error.kind == ErrorKind::Invalid && error.message.contains(name.as_str()), || {
                format!("option {name} = {shown} answers {:?}: {error}", error.kind)
            })
        }
    }
}
