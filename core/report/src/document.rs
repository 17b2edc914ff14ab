//! JSON as the report spells it: keys sorted, indented by two, floats rounded to 6 decimals.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

/// A value with sorted keys and floats rounded to 6 decimals. What is not a finite number is null:
/// whoever builds the document says why in `null_reasons`.
pub fn rounded(value: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map(normal).map_err(|e| format!("cannot be written as JSON: {e}"))
}

/// The document as it goes to stdout, files and records, without a last newline.
pub fn pretty(value: &impl Serialize) -> Result<String, String> {
    serde_json::to_string_pretty(&rounded(value)?).map_err(|e| e.to_string())
}

/// The document on one line, without blanks: what digests and index lines are made of.
pub fn compact(value: &impl Serialize) -> Result<String, String> {
    serde_json::to_string(&rounded(value)?).map_err(|e| e.to_string())
}

/// Reads a document back. The error says where, in one line.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

fn normal(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            let rounded = number.as_f64().map(|x| (x * 1e6).round_ties_even() / 1e6);
            // Adding zero turns a negative zero, which would print as `-0.0`, into zero.
            let rounded = rounded.map(|x| x + 0.0);
            rounded.and_then(Number::from_f64).map_or(Value::Null, Value::Number)
        }
        Value::Array(items) => Value::Array(items.into_iter().map(normal).collect()),
        Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().map(|(k, v)| (k, normal(v))).collect::<Map<_, _>>())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_sorted_and_floats_rounded_at_every_depth() {
        let value = json!({"b": 1.23456789, "a": [{"d": 2, "c": -0.0000001}]});
        assert_eq!(compact(&value).unwrap(), r#"{"a":[{"c":0.0,"d":2}],"b":1.234568}"#);
        assert!(pretty(&value).unwrap().starts_with("{\n  \"a\": [\n"));
    }

    #[test]
    fn what_is_no_number_is_null() {
        assert_eq!(compact(&f64::INFINITY).unwrap(), "null");
    }

    #[test]
    fn integers_keep_all_their_digits() {
        assert_eq!(compact(&u64::MAX).unwrap(), u64::MAX.to_string());
    }
}
