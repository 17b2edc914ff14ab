//! Headings and links of a Markdown file; what stands in code is neither.

use crate::tree::File;

/// Lines outside fences, with code spans taken out, numbered from 1.
pub fn prose(file: &File) -> Vec<(usize, String)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (line, text) in file.lines() {
        if text.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            let outside: String = text.split('`').step_by(2).collect::<Vec<_>>().join("`");
            lines.push((line, outside));
        }
    }
    lines
}

/// Lines inside fences, numbered from 1.
pub fn fenced(file: &File) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (line, text) in file.lines() {
        if text.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            lines.push((line, text));
        }
    }
    lines
}

/// Targets of `[text](target)`, with their lines.
pub fn links(file: &File) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (line, text) in prose(file) {
        for part in text.split("](").skip(1) {
            if let Some(target) = part.split([')', ' ']).next() {
                links.push((line, target.to_owned()));
            }
        }
    }
    links
}

/// Names by which headings are linked to.
pub fn anchors(file: &File) -> Vec<String> {
    let mut inside = false;
    let mut anchors = Vec::new();
    for (_, text) in file.lines() {
        if text.trim_start().starts_with("```") {
            inside = !inside;
        }
        if inside || !text.starts_with('#') {
            continue;
        }
        let title = text.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        anchors.push(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    anchors
}

#[test]
fn links_and_headings_in_code_do_not_count() {
    let text = "# A `b` c: d\n[x](y.md) `[n](o.md)`\n```\n# no\n[n](o.md)\n```\n[z](#a-b-c-d)\n";
    let tree = crate::tree::Tree::of(&[("a.md", text)]);
    let file = tree.file("a.md").expect("there");
    assert_eq!(links(file), [(2, "y.md".to_owned()), (7, "#a-b-c-d".to_owned())]);
    assert_eq!(anchors(file), ["a-b-c-d"]);
    assert_eq!(fenced(file), [(4, "# no"), (5, "[n](o.md)")]);
}
