//! Typed reads from a JSON object whose author is not trusted: each says which key was wrong, and
//! how.

use crate::error::invalid;
use kvern_contract::Result;
use serde_json::{Map, Value};

/// An object with the name of the file it came from, for messages.
#[derive(Clone, Copy)]
pub(crate) struct Object<'a> {
    pub map: &'a Map<String, Value>,
    pub file: &'a str,
    pub operation: &'a str,
}

impl<'a> Object<'a> {
    /// The value of a key; `None` where it is absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn wrong<T>(&self, key: &str, value: &Value, expected: &str) -> Result<T> {
        let found = shorten(&value.to_string());
        let message = format!("{}: {key} is {found}, expected {expected}", self.file);
        Err(invalid(self.operation, message))
    }

    /// The error for a key that has to be there.
    pub fn absent<T>(&self, key: &str) -> Result<T> {
        Err(invalid(self.operation, format!("{}: {key} is missing", self.file)))
    }

    /// A count from `least` to `u32::MAX`.
    pub fn count(&self, key: &str, least: u32) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n >= least) {
            Some(n) => Ok(Some(n)),
            None => self.wrong(key, value, &format!("a whole number from {least} to {}", u32::MAX)),
        }
    }

    /// A count that has to be there, at least 1.
    pub fn size(&self, key: &str) -> Result<u32> {
        self.count(key, 1)?.map_or_else(|| self.absent(key), Ok)
    }

    /// A finite number as f32 for which `good` holds.
    pub fn number(
        &self,
        key: &str,
        expected: &str,
        good: impl Fn(f32) -> bool,
    ) -> Result<Option<f32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().map(|x| x as f32).filter(|x| x.is_finite() && good(*x)) {
            Some(x) => Ok(Some(x)),
            None => self.wrong(key, value, expected),
        }
    }

    /// true or false.
    pub fn switch(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map_or_else(|| self.wrong(key, value, "true or false"), |b| Ok(Some(b)))
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map_or_else(|| self.wrong(key, value, "a text"), |s| Ok(Some(s)))
    }

    /// An object inside.
    pub fn object(&self, key: &str) -> Result<Option<Object<'a>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_object() {
            Some(map) => Ok(Some(Object { map, ..*self })),
            None => self.wrong(key, value, "an object"),
        }
    }

    /// One token id or a list of them; `None` where the key is absent.
    pub fn ids(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match value {
            Value::Array(list) => list.iter().map(id).collect::<Option<Vec<_>>>(),
            one => id(one).map(|n| vec![n]),
        };
        ids.map_or_else(
            || self.wrong(key, value, "a token id or a list of them"),
            |ids| Ok(Some(ids)),
        )
    }
}

/// Parses a whole file as one JSON object.
pub(crate) fn parse_object(
    operation: &str,
    file: &str,
    bytes: &[u8],
) -> Result<Map<String, Value>> {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(invalid(operation, format!("{file} holds no JSON object"))),
        Err(e) => Err(invalid(operation, format!("{file} is not JSON: {e}"))),
    }
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= 80 {
        return text.to_string();
    }
    text.chars().take(80).chain(['…']).collect()
}
