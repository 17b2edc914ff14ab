//! Option values as TOML, as flags and as the contract has them.

use crate::fail::{Failure, Outcome};
use kvern_contract::{OptionValue, Options};

/// What a value is, in a word.
pub fn kind_of(value: &OptionValue) -> &'static str {
    match value {
        OptionValue::Integer(_) => "an integer",
        OptionValue::Float(_) => "a float",
        OptionValue::Text(_) => "a text",
        OptionValue::Switch(_) => "true or false",
    }
}

/// The value as TOML spells it.
pub fn show(value: &OptionValue) -> String {
    match value {
        OptionValue::Integer(n) => n.to_string(),
        OptionValue::Float(x) => format!("{x:?}"),
        OptionValue::Text(t) => toml::Value::String(t.clone()).to_string(),
        OptionValue::Switch(b) => b.to_string(),
    }
}

/// A TOML value as an option; `None` for what options cannot be.
pub fn from_toml(value: &toml::Value) -> Option<OptionValue> {
    match value {
        toml::Value::Integer(n) => Some(OptionValue::Integer(*n)),
        toml::Value::Float(x) => Some(OptionValue::Float(*x)),
        toml::Value::String(t) => Some(OptionValue::Text(t.clone())),
        toml::Value::Boolean(b) => Some(OptionValue::Switch(*b)),
        _ => None,
    }
}

/// `KEY=VALUE` flags over defaults, each of the default's own type. An unknown key names the known
/// ones.
pub fn parse_pairs(flag: &str, pairs: &[String], defaults: &Options) -> Outcome<Options> {
    let mut out = Options::new();
    for pair in pairs {
        let Some((key, text)) = pair.split_once('=') else {
            return Err(Failure::usage(format!("{flag} {pair}: KEY=VALUE is expected")));
        };
        let Some(default) = defaults.get(key) else {
            let hint = crate::near::hint(key, defaults.keys().map(String::as_str));
            return Err(Failure::usage(format!(
                "{flag}: no option `{key}`{hint} known: {}",
                known(defaults)
            )));
        };
        let value = parse_as(default, text).ok_or_else(|| {
            Failure::usage(format!("{flag} {key}: {} is expected, not `{text}`", kind_of(default)))
        })?;
        out.insert(key.to_string(), value);
    }
    Ok(out)
}

/// The names, for a message.
pub fn known(options: &Options) -> String {
    if options.is_empty() {
        return "none".into();
    }
    options.keys().cloned().collect::<Vec<_>>().join(", ")
}

fn parse_as(default: &OptionValue, text: &str) -> Option<OptionValue> {
    Some(match default {
        OptionValue::Integer(_) => OptionValue::Integer(text.parse().ok()?),
        OptionValue::Float(_) => OptionValue::Float(text.parse().ok()?),
        OptionValue::Text(_) => OptionValue::Text(text.into()),
        OptionValue::Switch(_) => OptionValue::Switch(text.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_takes_its_defaults_type() {
        let defaults = Options::from([
            ("tokens".to_string(), OptionValue::Integer(1)),
            ("sync".to_string(), OptionValue::Switch(false)),
        ]);
        let pairs = ["tokens=128".to_string(), "sync=true".to_string()];
        let parsed = parse_pairs("--kv-option", &pairs, &defaults).unwrap();
        assert_eq!(parsed["tokens"], OptionValue::Integer(128));
        assert_eq!(parsed["sync"], OptionValue::Switch(true));
        for (pair, said) in
            [("tokens=x", "an integer"), ("tokns=1", "`tokens`"), ("tokens", "KEY=VALUE")]
        {
            let failure = parse_pairs("--kv-option", &[pair.to_string()], &defaults).unwrap_err();
            assert_eq!(failure.code, 2);
            assert!(failure.message.contains(said), "{}", failure.message);
        }
    }
}
