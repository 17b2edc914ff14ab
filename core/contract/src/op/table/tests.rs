//! Every op's words, made from its code and nothing else, so that a new op is covered when it is
//! written.

use super::*;

/// What each code means for ever: a list that was encoded by an older build names the same ops.
const CODES: [(u32, &str); 14] = [
    (1, "Embed"),
    (2, "Norm"),
    (3, "Linear"),
    (4, "RopeWrite"),
    (5, "Attention"),
    (6, "AttentionMass"),
    (7, "Route"),
    (8, "Experts"),
    (9, "Conv"),
    (10, "Delta"),
    (11, "Map"),
    (12, "Rows"),
    (13, "Top"),
    (14, "DeltaGates"),
];

/// Any op of this code: words of 1, 2 and 3 are a value of every type that travels, so only the
/// length must fit.
fn sample(code: u32, seed: u32) -> Op {
    let words: Vec<u32> = (0..128).map(|i: u32| 1 + (seed + i * i + i / 3) % 3).collect();
    let of_length = |length: usize| {
        let list = [&[code, length as u32], &words[..length]].concat();
        Op::take(&mut list.as_slice()).ok()
    };
    (0..words.len()).find_map(of_length).expect("some length fits a known code")
}

fn encoded(op: &Op) -> Vec<u32> {
    let mut list = Vec::new();
    op.put(&mut list);
    list
}

#[test]
fn every_op_survives_its_words_and_keeps_its_code() {
    for (code, name) in CODES {
        for seed in 0..9 {
            let op = sample(code, seed);
            let list = encoded(&op);
            assert_eq!((op.name(), list[0]), (name, code));
            assert_eq!(list[1] as usize, list.len() - 2, "{name}");
            let mut rest = list.as_slice();
            assert_eq!(Op::take(&mut rest), Ok(op));
            assert!(rest.is_empty(), "{name} left words");
        }
    }
}

#[test]
fn a_list_is_its_ops_one_after_another() {
    let ops: Vec<Op> = CODES.iter().map(|(code, _)| sample(*code, *code)).collect();
    let mut list = Vec::new();
    ops.iter().for_each(|op| op.put(&mut list));
    let mut rest = list.as_slice();
    let mut back = Vec::new();
    while !rest.is_empty() {
        back.push(Op::take(&mut rest).expect("a whole op"));
    }
    assert_eq!(back, ops);
}

#[test]
fn an_unknown_code_is_unsupported_and_names_itself() {
    for code in [0, 15, 255, u32::MAX] {
        let list = [code, 1, 7, 1, 2];
        let error = Op::take(&mut list.as_slice()).expect_err("no such op");
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert_eq!(error.message, format!("op code {code}"));
        assert_eq!(error.operation, "device/submit");
    }
}

#[test]
fn an_op_cut_short_is_invalid_wherever_it_is_cut() {
    for (code, name) in CODES {
        let list = encoded(&sample(code, 1));
        for length in 0..list.len() {
            let error = Op::take(&mut &list[..length]).expect_err("cut short");
            assert_eq!(error.kind, ErrorKind::Invalid, "{name} cut to {length} words");
        }
    }
}

#[test]
fn an_op_that_says_a_wrong_length_is_invalid() {
    let list = encoded(&Op::Top {
        logits: Slice::default(),
        ids: Slice::default(),
        values: Slice::default(),
        rows: 1,
        width: 2,
        top: 1,
    });
    for length in [0, list[1] - 1, list[1] + 1, u32::MAX] {
        let mut wrong = list.clone();
        wrong[1] = length;
        wrong.push(0);
        let error = Op::take(&mut wrong.as_slice()).expect_err("a wrong length");
        assert_eq!(error.kind, ErrorKind::Invalid, "length {length}");
    }
}
