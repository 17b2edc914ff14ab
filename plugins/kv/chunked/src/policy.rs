//! When a layer's tail is spilled: options, their ranges, and the policy that the pager enforces.

use kvern_contract::*;

/// An option: name, default, least, most.
type Ranged = (&'static str, i64, i64, i64);

/// Tokens of a layer's hot tail that start a spill.
const FLUSH_TOKENS: Ranged = ("flush_tokens", 128, 1, 1 << 30);
/// Bytes of K and V of a layer's hot tail that start a spill.
const FLUSH_BYTES: Ranged = ("flush_bytes", 8 << 20, 1 << 10, 1 << 40);
/// The same where the device has memory of its own, which is dearer.
const ACCELERATOR_FLUSH_TOKENS: Ranged = ("accelerator_flush_tokens", 64, 1, 1 << 30);
const ACCELERATOR_FLUSH_BYTES: Ranged = ("accelerator_flush_bytes", 4 << 20, 1 << 10, 1 << 40);
const RANGED: [Ranged; 4] =
    [FLUSH_TOKENS, FLUSH_BYTES, ACCELERATOR_FLUSH_TOKENS, ACCELERATOR_FLUSH_BYTES];
/// Whether `flush` and `end` store the page that is not full.
const STORE_PARTIAL: &str = "store_partial";

/// Every option with its default.
pub(crate) fn defaults() -> Options {
    let ranged = RANGED.iter().map(|&(name, default, ..)| (name, OptionValue::Integer(default)));
    let switch = (STORE_PARTIAL, OptionValue::Switch(true));
    ranged.chain([switch]).map(|(name, value)| (name.to_owned(), value)).collect()
}

fn invalid(text: String) -> Error {
    Error::new(ErrorKind::Invalid, "kv/policy", text)
}

fn show(value: &OptionValue) -> String {
    match value {
        OptionValue::Integer(value) => value.to_string(),
        OptionValue::Float(value) => value.to_string(),
        OptionValue::Text(value) => format!("{value:?}"),
        OptionValue::Switch(value) => value.to_string(),
    }
}

/// An option's value, or its default. *Errors* Invalid: names the option and its range.
fn ranged(options: &Options, (name, default, least, most): Ranged) -> Result<u64> {
    match options.get(name) {
        None => Ok(default.unsigned_abs()),
        Some(OptionValue::Integer(value)) if (least..=most).contains(value) => {
            Ok(value.unsigned_abs())
        }
        Some(other) => Err(invalid(format!(
            "{name} is {}, not a whole number of {least} to {most}",
            show(other)
        ))),
    }
}

/// The policy under these facts.
pub(crate) fn policy(ask: &PolicyAsk) -> Result<KvPolicy> {
    let known = defaults();
    if let Some(name) = ask.options.keys().find(|name| !known.contains_key(*name)) {
        let names: Vec<_> = known.keys().map(String::as_str).collect();
        return Err(invalid(format!("chunked has no option {name}; it has {}", names.join(", "))));
    }
    // All are checked, also those of the other kind of device.
    let [tokens, bytes, accelerator_tokens, accelerator_bytes] =
        RANGED.map(|option| ranged(&ask.options, option));
    let host = Threshold { tokens: Some(tokens?), bytes: Some(bytes?) };
    let accelerator =
        Threshold { tokens: Some(accelerator_tokens?), bytes: Some(accelerator_bytes?) };
    let store_partial = match ask.options.get(STORE_PARTIAL) {
        None => true,
        Some(OptionValue::Switch(value)) => *value,
        Some(other) => {
            return Err(invalid(format!("{STORE_PARTIAL} is {}, not true or false", show(other))));
        }
    };
    Ok(KvPolicy {
        policy_id: if ask.accelerator { "cuda-balanced" } else { "cpu-balanced" }.into(),
        flush: Some(if ask.accelerator { accelerator } else { host }),
        retain: Threshold { tokens: Some(0), bytes: None },
        window: None,
        keep_rows: None,
        cold: ask.shape.hot,
        cold_after: 0,
        store_partial,
    })
}
