//! The whole history stays in memory: a policy without a store. It is what every other strategy is
//! compared with, so it decides nothing: every layer hot, full precision, no directory.

use kvern_contract::*;

/// The strategy.
#[derive(Default)]
pub struct Resident;

impl KvStrategy for Resident {
    fn describe(&self) -> KvDescription {
        KvDescription {
            name: "resident".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            persistence_format: "resident-only".into(),
            residency_mode: "fully-resident".into(),
            window_policy: "full-history".into(),
            cold_tier_encoding: "full-precision".into(),
            cold_store_format: None,
            eviction_policy: None,
            capabilities: KvCapabilities { exact: true, ..KvCapabilities::default() },
            options: Options::new(),
        }
    }

    fn policy(&self, ask: &PolicyAsk) -> Result<KvPolicy> {
        known_options(&ask.options, "kv/policy", &Options::new())?;
        if ask.lifecycle == Lifecycle::Persistent {
            let message =
                "resident keeps nothing on disk: persistent needs a strategy with a store";
            return Err(Error::new(ErrorKind::Unsupported, "kv/policy", message));
        }
        Ok(KvPolicy {
            policy_id: "resident-baseline".into(),
            flush: None,
            retain: Threshold::default(),
            window: None,
            keep_rows: None,
            cold: ask.shape.hot,
            cold_after: 0,
            store_partial: false,
        })
    }

    fn open(&mut self, _spec: &StoreSpec, _host: HostRef) -> Result<Opened> {
        Ok(Opened { store: None, attentive: None, codec: None })
    }
}

kvern_abi::export_kv_strategy!(Resident);

#[cfg(test)]
mod tests {
    use super::*;

    fn ask() -> PolicyAsk {
        let layer = KvLayer { kind: LayerKind::Full, key_dim: 64, value_dim: 64, kv_heads: 2 };
        PolicyAsk {
            options: Options::new(),
            shape: KvShape { layers: vec![layer; 2], hot: KvEncoding::F16 },
            accelerator: false,
            budget_bytes: 1 << 20,
            context_tokens: 4096,
            lifecycle: Lifecycle::RuntimeScoped,
        }
    }

    #[test]
    fn nothing_ever_leaves_memory_or_full_precision() {
        let policy = Resident.policy(&ask()).unwrap();
        assert_eq!(policy.policy_id, "resident-baseline");
        assert_eq!((policy.flush, policy.window, policy.keep_rows), (None, None, None));
        assert_eq!((policy.cold, policy.cold_after), (KvEncoding::F16, 0));
        let able = Resident.describe().capabilities;
        assert_eq!(able, KvCapabilities { exact: true, ..KvCapabilities::default() });
    }

    #[test]
    fn an_option_and_a_persistent_root_are_refused_by_name() {
        let mut odd = ask();
        odd.options.insert("pages_per_extent".into(), OptionValue::Integer(4));
        let error = Resident.policy(&odd).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains("pages_per_extent"), "{error}");
        let persistent = PolicyAsk { lifecycle: Lifecycle::Persistent, ..ask() };
        assert_eq!(Resident.policy(&persistent).unwrap_err().kind, ErrorKind::Unsupported);
    }
}
