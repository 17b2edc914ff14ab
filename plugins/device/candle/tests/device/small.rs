//! Embeddings, rows by index, and the largest values.

use crate::harness::*;
use kvern_contract::*;

#[test]
fn embedded_rows_are_the_tables_times_the_scale() {
    let mut dice = Dice::new(1);
    for encoding in ENCODINGS {
        for (vocabulary, width, rows) in [(3, 1, 4), (100, 33, 70), (50, 4097, 11)] {
            for adapted in [false, true] {
                let mut rig = Rig::new();
                let values = dice.floats(vocabulary * width);
                let (mut table, held) = rig.weight(&values, vocabulary, width, encoding);
                if adapted {
                    table = rig.device.adapt(&table).unwrap();
                }
                let picked: Vec<u32> =
                    (0..rows).map(|_| dice.between(0, vocabulary - 1) as u32).collect();
                let (ids, out) = (rig.words(&picked), rig.zeros(rows * width));
                rig.run(Op::Embed { ids, table, out, rows: rows as u32, scale: 2.5 });
                let line = |id: &u32| held[*id as usize * width..][..width].to_vec();
                let want: Vec<f64> = picked.iter().flat_map(line).map(|x| 2.5 * x).collect();
                close("embed", &rig.get(out, want.len()), &want, 1e-6);
            }
        }
    }
}

fn rows(x: Slice, indices: Slice, out: Slice, kind: RowsKind, rows: u32, width: u32) -> Op {
    Op::Rows { x, indices, out, kind, rows, width }
}

#[test]
fn rows_are_gathered_scattered_and_added_where_an_index_comes_twice() {
    let mut rig = Rig::new();
    let x = rig.floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let indices = rig.words(&[2, 0, 2]);
    let out = rig.floats(&[0.5; 6]);
    rig.run(rows(x, indices, out, RowsKind::Gather, 3, 2));
    assert_eq!(rig.get(out, 6), [5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
    let out = rig.floats(&[0.5; 6]);
    rig.run(rows(x, indices, out, RowsKind::Scatter, 3, 2));
    assert_eq!(rig.get(out, 6), [3.0, 4.0, 0.5, 0.5, 5.0, 6.0]);
    let out = rig.floats(&[0.5; 6]);
    rig.run(rows(x, indices, out, RowsKind::ScatterAdd, 3, 2));
    assert_eq!(rig.get(out, 6), [3.5, 4.5, 0.5, 0.5, 6.5, 8.5]);
}

#[test]
fn the_top_is_descending_and_ties_go_to_the_lower_id() {
    let mut rig = Rig::new();
    let line = [1.0, 7.0, f32::NAN, 7.0, -3.0, 9.0, f32::NEG_INFINITY, 7.0];
    let logits = rig.floats(&[line, [0.0; 8]].concat());
    let (ids, values) = (rig.zeros(8), rig.zeros(8));
    rig.run(Op::Top { logits, ids, values, rows: 2, width: 8, top: 4 });
    assert_eq!(rig.get_words(ids, 8), [5, 1, 3, 7, 0, 1, 2, 3]);
    assert_eq!(rig.get(values, 8), [9.0, 7.0, 7.0, 7.0, 0.0, 0.0, 0.0, 0.0]);
    let (ids, values) = (rig.zeros(8), rig.zeros(8));
    rig.run(Op::Top { logits, ids, values, rows: 1, width: 8, top: 8 });
    assert_eq!(rig.get_words(ids, 8), [5, 1, 3, 7, 0, 4, 6, 2], "what is no number comes last");
}

#[test]
fn the_top_of_a_large_row_is_what_sorting_gives() {
    let mut dice = Dice::new(3);
    let mut rig = Rig::new();
    let line = dice.floats(49_152);
    let mut order: Vec<u32> = (0..line.len() as u32).collect();
    order.sort_by(|a, b| line[*b as usize].total_cmp(&line[*a as usize]).then(a.cmp(b)));
    let logits = rig.floats(&line);
    let (ids, values) = (rig.zeros(40), rig.zeros(40));
    rig.run(Op::Top { logits, ids, values, rows: 1, width: 49_152, top: 40 });
    assert_eq!(rig.get_words(ids, 40), order[..40]);
}
