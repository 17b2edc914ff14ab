//! JSON as Python's `json.dumps` writes it, which is what chat templates were trained with.

use serde_json::Value;

/// The arguments of `json.dumps` that templates use.
pub(super) struct Style {
    pub indent: Option<usize>,
    pub separators: Option<(String, String)>,
    pub ensure_ascii: bool,
    pub sort_keys: bool,
}

/// The text of a value.
pub(super) fn write(value: &Value, style: &Style) -> String {
    let item = if style.indent.is_some() { "," } else { ", " };
    let (item, key) = match &style.separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None => (item, ": "),
    };
    let mut writer = Writer { style, item, key, out: String::new() };
    writer.value(value, 1);
    writer.out
}

struct Writer<'a> {
    style: &'a Style,
    item: &'a str,
    key: &'a str,
    out: String,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::String(text) => self.text(text),
            Value::Array(list) if list.is_empty() => self.out.push_str("[]"),
            Value::Object(map) if map.is_empty() => self.out.push_str("{}"),
            Value::Array(list) => {
                self.out.push('[');
                for (number, inner) in list.iter().enumerate() {
                    self.between(number, depth);
                    self.value(inner, depth + 1);
                }
                self.line(depth - 1);
                self.out.push(']');
            }
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.style.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.out.push('{');
                for (number, (key, inner)) in entries.into_iter().enumerate() {
                    self.between(number, depth);
                    self.text(key);
                    self.out.push_str(self.key);
                    self.value(inner, depth + 1);
                }
                self.line(depth - 1);
                self.out.push('}');
            }
            plain => self.out.push_str(&plain.to_string()),
        }
    }

    fn between(&mut self, number: usize, depth: usize) {
        if number > 0 {
            self.out.push_str(self.item);
        }
        self.line(depth);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.style.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.style.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(value: &Value, indent: Option<usize>, ensure_ascii: bool, expected: &str) {
        let style = Style { indent, separators: None, ensure_ascii, sort_keys: false };
        assert_eq!(write(value, &style), expected);
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let value =
            json!({"b": [1, 2.0, null, true], "a": "<é😀\u{7f}\u{1}\"\\>", "c": {}, "d": []});
        let plain = "{\"b\": [1, 2.0, null, true], \"a\": \"<é😀\u{7f}\\u0001\\\"\\\\>\", \"c\": {}, \"d\": []}";
        check(&value, None, false, plain);
        let ascii = plain.replace('é', "\\u00e9").replace('😀', "\\ud83d\\ude00");
        check(&value, None, true, &ascii);
        check(
            &json!({"a": [1, {"b": 2}]}),
            Some(2),
            false,
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": 2\n    }\n  ]\n}",
        );
    }
}
