//! Options: what a manifest's `[options]` table says, with the operator's changes applied.

use super::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// A value of a manifest's `[options]`. The option's name carries the unit, as in
/// `pages_per_extent`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum OptionValue {
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// A name or a path.
    Text(String),
    /// On or off.
    Switch(bool),
}

/// Options by name, defaults of the manifest already filled in.
pub type Options = BTreeMap<String, OptionValue>;

/// The whole number that `options` has under `name`, or `default`. `operation` is the call that
/// asks, as `kv/policy`.
///
/// # Errors
/// Invalid: names the option, what it is and its range.
pub fn whole_option(
    options: &Options,
    operation: &str,
    name: &str,
    default: u64,
    range: RangeInclusive<u64>,
) -> Result<u64> {
    let found = match options.get(name) {
        None => return Ok(default),
        Some(OptionValue::Integer(n)) => u64::try_from(*n).ok().filter(|n| range.contains(n)),
        Some(_) => None,
    };
    found.ok_or_else(|| {
        let (found, least, most) = (shown(&options[name]), range.start(), range.end());
        let text = format!("option {name} is {found}, not a whole number of {least} to {most}");
        Error::new(ErrorKind::Invalid, operation, text)
    })
}

/// The switch that `options` has under `name`, or `default`.
///
/// # Errors
/// Invalid: names the option and what it is.
pub fn switch_option(
    options: &Options,
    operation: &str,
    name: &str,
    default: bool,
) -> Result<bool> {
    match options.get(name) {
        None => Ok(default),
        Some(OptionValue::Switch(value)) => Ok(*value),
        Some(other) => {
            let text = format!("option {name} is {}, not true or false", shown(other));
            Err(Error::new(ErrorKind::Invalid, operation, text))
        }
    }
}

/// Whether every one of `options` is among `known`.
///
/// # Errors
/// Invalid: names the first that is not, and all that are.
pub fn known_options(options: &Options, operation: &str, known: &Options) -> Result<()> {
    let Some(name) = options.keys().find(|name| !known.contains_key(*name)) else { return Ok(()) };
    let known: Vec<&str> = known.keys().map(String::as_str).collect();
    let there_is = if known.is_empty() { "none".into() } else { known.join(", ") };
    let text = format!("option {name} is unknown; there is {there_is}");
    Err(Error::new(ErrorKind::Invalid, operation, text))
}

/// A value as a manifest spells it.
fn shown(value: &OptionValue) -> String {
    match value {
        OptionValue::Integer(value) => value.to_string(),
        OptionValue::Float(value) => value.to_string(),
        OptionValue::Text(value) => format!("{value:?}"),
        OptionValue::Switch(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_is_in_its_range_or_refused_by_name() {
        let with = |value| Options::from([("hot".to_owned(), value)]);
        let ask = |options: &Options| whole_option(options, "kv/policy", "hot", 7, 1..=9);
        assert_eq!(ask(&Options::new()), Ok(7));
        assert_eq!(ask(&with(OptionValue::Integer(9))), Ok(9));
        for (wrong, said) in [
            (OptionValue::Integer(-1), "-1"),
            (OptionValue::Integer(10), "10"),
            (OptionValue::Float(1.5), "1.5"),
            (OptionValue::Text("x".into()), "\"x\""),
            (OptionValue::Switch(true), "true"),
        ] {
            let error = ask(&with(wrong)).unwrap_err();
            let text = format!("option hot is {said}, not a whole number of 1 to 9");
            assert_eq!((error.kind, error.message), (ErrorKind::Invalid, text));
        }
    }

    #[test]
    fn a_switch_is_on_or_off_or_refused_by_name() {
        let with = |value| Options::from([("keep".to_owned(), value)]);
        let ask = |options: &Options| switch_option(options, "kv/policy", "keep", true);
        assert_eq!(
            (ask(&Options::new()), ask(&with(OptionValue::Switch(false)))),
            (Ok(true), Ok(false))
        );
        let error = ask(&with(OptionValue::Integer(1))).unwrap_err();
        assert_eq!(error.message, "option keep is 1, not true or false");
    }

    #[test]
    fn an_unknown_option_is_named_with_those_that_there_are() {
        let known = Options::from([("a".into(), OptionValue::Integer(1))]);
        assert_eq!(known_options(&known, "kv/policy", &known), Ok(()));
        let more = Options::from([("b".into(), OptionValue::Integer(1))]);
        let error = known_options(&more, "kv/policy", &known).unwrap_err();
        assert_eq!(error.message, "option b is unknown; there is a");
        let error = known_options(&more, "kv/policy", &Options::new()).unwrap_err();
        assert_eq!(error.message, "option b is unknown; there is none");
    }
}
