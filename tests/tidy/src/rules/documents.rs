//! Markdown: one title a file, links that lead somewhere.

use crate::markdown::{anchors, links, prose};
use crate::tree::{File, Tree, finds, holds};

fn titles(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in tree.below("", ".md") {
        let lines = prose(file);
        let titles: Vec<usize> = lines
            .iter()
            .filter(|(_, text)| text.starts_with("# "))
            .map(|(line, _)| *line)
            .collect();
        let first = lines.iter().find(|(_, text)| !text.trim().is_empty()).map(|(line, _)| *line);
        if titles.len() != 1 || first != titles.first().copied() {
            let what = format!("{} titles `# …`; one, as the first line", titles.len());
            findings.push(file.at(titles.get(1).copied().unwrap_or(1), &what));
        }
    }
    findings
}

/// The path that a link from a file means, from the root.
fn resolve(from: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => _ = parts.pop()?,
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

fn is_broken(tree: &Tree, file: &File, link: &str) -> bool {
    if link.contains("://") || link.starts_with("mailto:") {
        return false;
    }
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() { Some(file.path.clone()) } else { resolve(&file.path, path) };
    let Some(target) = target.filter(|target| tree.has(target)) else { return true };
    let page = tree.file(&target).filter(|page| page.path.ends_with(".md"));
    !anchor.is_empty() && page.is_some_and(|page| !anchors(page).iter().any(|a| a == anchor))
}

fn broken_links(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in tree.below("", ".md") {
        for (line, link) in links(file).iter().filter(|(_, link)| is_broken(tree, file, link)) {
            findings.push(file.at(*line, &format!("the link to {link} leads nowhere")));
        }
    }
    findings
}

/// Fenced text under `<!-- source: PATH -->` that is not in that file, with the words of a template
/// filled in as the page fills them in.
fn stale_excerpts(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in tree.below("docs", ".md") {
        let lines: Vec<&str> = file.lines().map(|(_, text)| text).collect();
        for (i, text) in lines.iter().enumerate() {
            let path = text.strip_prefix("<!-- source: ").and_then(|t| t.strip_suffix(" -->"));
            let Some(path) = path else { continue };
            let block = lines[i + 1..].iter().skip(1).take_while(|line| !line.starts_with("```"));
            let block = block.copied().collect::<Vec<_>>().join("\n");
            let fenced = lines.get(i + 1).is_some_and(|line| line.starts_with("```"));
            let source = tree.file(path).map(|source| filled(&source.text));
            if !fenced || block.is_empty() || !source.is_some_and(|s| s.contains(&block)) {
                findings.push(file.at(i + 1, &format!("this does not stand in {path}")));
            }
        }
    }
    findings
}

/// A template's text as pages show it.
fn filled(text: &str) -> String {
    text.replace("__NAME__", "my-idea")
}

/// Names of tests in code spans: at least three words with `_` between, and nothing else.
fn test_names(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|name| {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        name.matches('_').count() > 2 && name.chars().all(is_plain)
    })
}

/// Tests that docs/ARCHITECTURE.md names and nothing defines.
fn missing_tests(tree: &Tree) -> Vec<String> {
    let Some(page) = tree.file("docs/ARCHITECTURE.md") else { return Vec::new() };
    let code: Vec<_> = tree.below("", ".rs").flat_map(|file| file.source().code).collect();
    let mut findings = Vec::new();
    for (line, text) in page.lines() {
        for name in test_names(text) {
            let head = format!("fn {name}(");
            if !code.iter().any(|line| line.contains(&head)) {
                findings.push(page.at(line, &format!("there is no test `{name}`")));
            }
        }
    }
    findings
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let page =
        "# A\n`a_test_that_is_there` `a_test_that_is_not` `b_test_in_a_comment`\n`x_y` `A_b_c_d`\n";
    let tree = Tree::of(&[
        ("docs/ARCHITECTURE.md", page),
        ("a.rs", "fn a_test_that_is_there() {}\n// fn b_test_in_a_comment()\n"),
    ]);
    finds(missing_tests(&tree), &["docs/ARCHITECTURE.md:2", "docs/ARCHITECTURE.md:2"]);
    holds(missing_tests(&Tree::checkout()));
}

#[test]
fn every_document_has_one_title() {
    let tree = Tree::of(&[
        ("a.md", "# A\n\n## B\n```\n# comment\n```\n"),
        ("b.md", "# A\n\n# B\n"),
        ("c.md", "text\n"),
        ("d.md", "text\n# late\n"),
    ]);
    finds(titles(&tree), &["b.md:3", "c.md:1", "d.md:1"]);
    holds(titles(&Tree::checkout()));
}

#[test]
fn every_link_leads_somewhere() {
    let tree = Tree::of(&[
        ("README.md", "# R\n[a](docs/a.md) [b](docs) [c](https://x.invalid/y)\n[d](docs/b.md)\n"),
        ("docs/a.md", "# A\n[r](../README.md#r) [up](../..)\n[s](#a)\n[t](#none)\n"),
    ]);
    finds(broken_links(&tree), &["README.md:3", "docs/a.md:2", "docs/a.md:4"]);
    holds(broken_links(&Tree::checkout()));
}

#[test]
fn code_in_a_document_is_the_code_that_is_built() {
    let page = |block: &str| format!("# A\n<!-- source: a/lib.rs -->\n```rust\n{block}\n```\n");
    let tree = |page: &str| {
        Tree::of(&[("a/lib.rs", "fn a() {}\nlet b = \"__NAME__\";\n"), ("docs/A.md", page)])
    };
    holds(stale_excerpts(&tree(&page("let b = \"my-idea\";"))));
    finds(stale_excerpts(&tree(&page("let c = 1;"))), &["docs/A.md:2"]);
    finds(stale_excerpts(&tree(&page(""))), &["docs/A.md:2"]);
    finds(stale_excerpts(&tree(&page("x").replace("a/lib", "b/lib"))), &["docs/A.md:2"]);
    finds(stale_excerpts(&tree("# A\n<!-- source: a/lib.rs -->\nfn a() {}\n")), &["docs/A.md:2"]);
    holds(stale_excerpts(&Tree::checkout()));
}
