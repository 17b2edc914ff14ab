//! Op lists that repeat. A decode step submits the same lists again and again: the plugin's side
//! keeps each with its words, and a list whose words are known is not decoded a second time.

use kvern_contract::{Op, Result};

/// Ops kept at most; when they are more, all are forgotten and those that still repeat come back.
const KEPT_OPS: usize = 8192;

struct List {
    words: Vec<u32>,
    ops: Vec<Op>,
}

/// The lists seen lately.
#[derive(Default)]
pub struct Lists {
    lists: Vec<List>,
    kept_ops: usize,
    /// Where the next list is expected: lists come round in order.
    next: usize,
}

impl Lists {
    /// The ops that these words spell. *Errors* Unsupported with the code of an op that is unknown
    /// here; Invalid when the words are cut short.
    pub fn ops(&mut self, words: &[u32]) -> Result<&[Op]> {
        let at = match self.find(words) {
            Some(at) => at,
            None => self.add(words)?,
        };
        self.next = at + 1;
        Ok(self.lists.get(at).map_or(&[], |list| &list.ops))
    }

    fn find(&self, words: &[u32]) -> Option<usize> {
        let same = |list: &List| list.words == words;
        match self.lists.get(self.next) {
            Some(list) if same(list) => Some(self.next),
            _ => self.lists.iter().position(same),
        }
    }

    #[cold]
    fn add(&mut self, words: &[u32]) -> Result<usize> {
        let mut ops = Vec::new();
        let mut rest = words;
        while !rest.is_empty() {
            ops.push(Op::take(&mut rest)?);
        }
        if self.kept_ops + ops.len() > KEPT_OPS {
            self.lists.clear();
            self.kept_ops = 0;
        }
        self.kept_ops += ops.len();
        self.lists.push(List { words: words.to_vec(), ops });
        Ok(self.lists.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvern_contract::{ErrorKind, Slice, Weight};

    fn words(rows: u32, count: usize) -> Vec<u32> {
        let op = Op::Embed {
            ids: Slice::default(),
            table: Weight::default(),
            out: Slice::default(),
            rows,
            scale: 1.0,
        };
        let mut words = Vec::new();
        (0..count).for_each(|_| op.put(&mut words));
        words
    }

    #[test]
    fn a_list_that_repeats_is_decoded_once() {
        let mut lists = Lists::default();
        for _ in 0..3 {
            for rows in 1..=4 {
                let ops = lists.ops(&words(rows, 2)).unwrap();
                assert!(matches!(ops, [Op::Embed { rows: r, .. }, _] if *r == rows));
            }
        }
        assert_eq!(lists.lists.len(), 4);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut lists = Lists::default();
        for rows in 0..100 {
            assert_eq!(lists.ops(&words(rows, 1000)).unwrap().len(), 1000);
            assert!(lists.kept_ops <= KEPT_OPS);
        }
    }

    #[test]
    fn words_cut_short_are_invalid_and_an_unknown_op_is_unsupported() {
        let mut lists = Lists::default();
        let whole = words(1, 1);
        for cut in 1..whole.len() {
            assert_eq!(lists.ops(&whole[..cut]).unwrap_err().kind, ErrorKind::Invalid, "{cut}");
        }
        assert_eq!(lists.ops(&[9999, 0]).unwrap_err().kind, ErrorKind::Unsupported);
        assert!(lists.ops(&[]).unwrap().is_empty());
    }
}
