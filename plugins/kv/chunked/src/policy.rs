//! When a layer's tail is spilled: options, their ranges, and the policy that the pager enforces.

use kvern_contract::*;

/// An option: name, default, least, most.
type Ranged = (&'static str, u64, u64, u64);

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
    let ranged = RANGED
        .iter()
        .map(|&(name, default, ..)| (name, OptionValue::Integer(default.cast_signed())));
    let switch = (STORE_PARTIAL, OptionValue::Switch(true));
    ranged.chain([switch]).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The policy under these facts. *Errors* Invalid: names the option and its range.
pub(crate) fn policy(ask: &PolicyAsk) -> Result<KvPolicy> {
    const CALL: &str = "kv/policy";
    known_options(&ask.options, CALL, &defaults())?;
    // All are checked, also those of the other kind of device.
    let [tokens, bytes, accelerator_tokens, accelerator_bytes] =
        RANGED.map(|(name, default, least, most)| {
            whole_option(&ask.options, CALL, name, default, least..=most)
        });
    let host = Threshold { tokens: Some(tokens?), bytes: Some(bytes?) };
    let accelerator =
        Threshold { tokens: Some(accelerator_tokens?), bytes: Some(accelerator_bytes?) };
    let store_partial = switch_option(&ask.options, CALL, STORE_PARTIAL, true)?;
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
