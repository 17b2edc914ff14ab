//! What a mistyped name may have meant.

/// `, did you mean `x`?` where a known name is close enough, else nothing.
pub fn hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(name, known) {
        Some(near) => format!(", did you mean `{near}`?"),
        None => String::new(),
    }
}

/// The known name that takes the fewest edits, at most a third of the name's length and one.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = name.chars().count() / 3 + 1;
    let closest = known.into_iter().map(|k| (distance(name, k), k)).min();
    closest.filter(|(edits, _)| *edits <= most).map(|(_, k)| k)
}

/// Letters to insert, remove, replace, or swap with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best =
                (row[j - 1] + 1).min(rows[i - 1][j] + 1).min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_fingers_is_recognised() {
        assert_eq!(nearest("alhpa", ["alpha", "beta"]), Some("alpha"));
        assert_eq!(hint("beto", ["alpha", "beta"]), ", did you mean `beta`?");
    }

    #[test]
    fn another_word_is_not() {
        assert_eq!(nearest("gamma-rays", ["alpha", "beta"]), None);
        assert_eq!(hint("x", []), "");
    }
}
