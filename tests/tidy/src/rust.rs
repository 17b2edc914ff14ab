//! Rust text apart: code without comments and without what strings hold, the comments, the strings.

/// A file of Rust, line by line; line n is at index n - 1.
pub struct Source {
    /// Code, comments taken out and strings emptied.
    pub code: Vec<String>,
    /// Comments, with their slashes.
    pub comments: Vec<String>,
    /// Strings with the line on which each begins.
    pub strings: Vec<(usize, String)>,
    /// Whether a line is inside something that only tests see.
    pub is_test: Vec<bool>,
}

/// Whether an identifier stands in a line of code.
pub fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

impl Source {
    /// Takes a file apart.
    pub fn of(text: &str) -> Source {
        let mut reader = Reader {
            text: text.chars().collect(),
            at: 0,
            code: vec![String::new()],
            comments: vec![String::new()],
            strings: Vec::new(),
        };
        while reader.at < reader.text.len() {
            reader.step();
        }
        let is_test = test_lines(&reader.code);
        Source { code: reader.code, comments: reader.comments, strings: reader.strings, is_test }
    }

    /// Lines of code that are not tests, numbered from 1.
    pub fn live(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.iter().zip(&self.is_test).enumerate();
        lines.filter(|(_, (_, test))| !**test).map(|(i, (line, _))| (i + 1, line.as_str()))
    }
}

struct Reader {
    text: Vec<char>,
    at: usize,
    code: Vec<String>,
    comments: Vec<String>,
    strings: Vec<(usize, String)>,
}

impl Reader {
    fn peek(&self, ahead: usize) -> char {
        self.text.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn newline(&mut self) {
        self.code.push(String::new());
        self.comments.push(String::new());
    }

    /// Moves one character into the code or the comments.
    fn keep(&mut self, comment: bool) {
        let c = self.peek(0);
        self.at += 1;
        let side = if comment { &mut self.comments } else { &mut self.code };
        match c {
            '\n' => self.newline(),
            c => side.last_mut().expect("a line").push(c),
        }
    }

    fn step(&mut self) {
        match (self.peek(0), self.peek(1)) {
            ('/', '/') => {
                while self.at < self.text.len() && self.peek(0) != '\n' {
                    self.keep(true);
                }
            }
            ('/', '*') => self.block_comment(),
            ('"', _) => self.string(None),
            ('r', '"' | '#') if !self.in_word() => self.raw(1),
            ('b' | 'c', 'r') if !self.in_word() && matches!(self.peek(2), '"' | '#') => self.raw(2),
            ('\'', _) => self.quote(),
            _ => self.keep(false),
        }
    }

    /// Whether the character before belongs to an identifier.
    fn in_word(&self) -> bool {
        let before = self.at.checked_sub(1).and_then(|at| self.text.get(at));
        before.is_some_and(|c| c.is_alphanumeric() || *c == '_')
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.text.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => depth += 1,
                ('*', '/') => depth -= 1,
                _ => {
                    self.keep(true);
                    continue;
                }
            }
            self.keep(true);
            self.keep(true);
            if depth == 0 {
                return;
            }
        }
    }

    /// A raw string whose marks begin after `skip` letters, or an identifier such as `r#type`.
    fn raw(&mut self, skip: usize) {
        let marks = (skip..).take_while(|ahead| self.peek(*ahead) == '#').count();
        if self.peek(skip + marks) != '"' {
            self.keep(false);
            return;
        }
        for _ in 0..skip + marks {
            self.keep(false);
        }
        self.string(Some(marks));
    }

    /// A string, at its opening mark; raw ones end at a mark with as many `#` behind it.
    fn string(&mut self, raw: Option<usize>) {
        let line = self.code.len();
        let mut held = String::new();
        self.keep(false);
        while self.at < self.text.len() {
            let c = self.peek(0);
            let closed = c == '"' && (1..=raw.unwrap_or(0)).all(|i| self.peek(i) == '#');
            if closed {
                self.keep(false);
                break;
            }
            if c == '\n' {
                self.newline();
            }
            held.push(c);
            self.at += 1;
            if c == '\\' && raw.is_none() {
                if self.peek(0) == '\n' {
                    self.newline();
                }
                held.push(self.peek(0));
                self.at += 1;
            }
        }
        self.strings.push((line, held));
    }

    /// A character, emptied like a string, or a lifetime.
    fn quote(&mut self) {
        let length = match (self.peek(1), self.peek(2)) {
            ('\\', _) => (3..12).find(|ahead| self.peek(*ahead) == '\''),
            (_, '\'') => Some(2),
            _ => None,
        };
        match length {
            Some(length) => {
                self.at += length + 1;
                self.code.last_mut().expect("a line").push_str("''");
            }
            None => self.keep(false),
        }
    }
}

/// Marks what stands behind `#[cfg(test)]`, up to its closing brace or its semicolon.
fn test_lines(code: &[String]) -> Vec<bool> {
    let mut is_test = vec![false; code.len()];
    let mut depth: Option<i32> = None;
    for (i, line) in code.iter().enumerate() {
        let starts = line.contains("#[cfg(test)]") || line.contains("#[cfg(all(test");
        if starts && depth.is_none() {
            depth = Some(0);
        }
        if line.contains("#![cfg(test)]") {
            return vec![true; code.len()];
        }
        let Some(open) = depth.as_mut() else { continue };
        is_test[i] = true;
        for c in line.chars() {
            match c {
                '{' => *open += 1,
                '}' => *open -= 1,
                _ => {}
            }
        }
        let ends = line.trim_end().ends_with(['}', ';']) || line.contains('}');
        if *open <= 0 && ends {
            depth = None;
        }
    }
    is_test
}

#[test]
fn code_comments_and_strings_come_apart() {
    let source =
        Source::of("let a = \"x // y\"; // why \"z\"\nlet b = r#\"q\"r\"#; /* c\n*/ let c;");
    assert_eq!(source.code, ["let a = \"\"; ", "let b = r#\"\"#; ", " let c;"]);
    assert_eq!(source.comments, ["// why \"z\"", "/* c", "*/"]);
    assert_eq!(source.strings, [(1, "x // y".to_owned()), (2, "q\"r".to_owned())]);
}

#[test]
fn characters_are_not_lifetimes_and_a_quoted_quote_opens_nothing() {
    let source = Source::of("fn f<'a>(c: &'a char) { c == '\"' || c == '\\'' || c == '{' } // e");
    assert_eq!(source.code, ["fn f<'a>(c: &'a char) { c == '' || c == '' || c == '' } "]);
    assert!(source.strings.is_empty());
}

#[test]
fn lines_stay_in_step_through_strings_that_span_them() {
    let source = Source::of("let a = \"1\\\n2\n3\";\nlet b = \"\\\"4\";");
    assert_eq!(source.code.len(), 4);
    assert_eq!(source.code[3], "let b = \"\";");
    assert_eq!(source.strings[1], (4, "\\\"4".to_owned()));
}

#[test]
fn test_modules_are_marked_and_what_follows_them_is_not() {
    let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n\
                #[cfg(test)]\nmod more;\nfn d() {}";
    let source = Source::of(text);
    let live: Vec<usize> = source.live().map(|(line, _)| line).collect();
    assert_eq!(live, [1, 6, 9]);
}
