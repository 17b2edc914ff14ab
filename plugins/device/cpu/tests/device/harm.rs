//! Ops that are well formed and mean harm: outputs over the tables that steer them, absurd sizes,
//! nothing to do.

use crate::attention::ready;
use crate::pages::{Case, PLAIN, data};
use crate::refusal::{kind, linear};
use crate::rig::*;
use kvern_contract::*;

fn case() -> Case {
    Case { encodings: vec![KvEncoding::Bf16], sequences: vec![(3, 100), (1, 300)], ..PLAIN }
}

#[test]
fn ops_of_no_rows_do_nothing() {
    let data = data(&case(), 6);
    for (name, rig) in rigs() {
        let mut ready = ready(rig, &case(), &data);
        let Op::Attention { spans: at, .. } = ready.op else { return };
        let mut words = ready.rig.words_of(at, 16);
        (words[1], words[9]) = (0, 0);
        let table = ready.rig.words(&words);
        let mut product = linear(&mut ready.rig);
        if let Op::Linear { rows, .. } = &mut product {
            *rows = 0;
        }
        if let Op::Attention { spans, .. } = &mut ready.op {
            *spans = table;
        }
        for op in [product, ready.op] {
            assert_eq!(ready.rig.try_run(&[op]), Ok(FenceState::Done), "{name}: {op:?}");
        }
    }
}

#[test]
fn an_op_whose_scratch_is_absurd_is_refused_and_a_long_product_needs_no_more_than_a_short_one() {
    let data = data(&case(), 6);
    for threads in [1, 2] {
        let mut ready = ready(Rig::open("auto", threads).unwrap(), &case(), &data);
        if let Op::Attention { heads, kv_heads, key_dim, value_dim, .. } = &mut ready.op {
            (*heads, *kv_heads, *key_dim, *value_dim) = (1 << 16, 1, 1 << 16, 1 << 16);
        }
        let mut long = linear(&mut ready.rig);
        if let Op::Linear { weights, rows, .. } = &mut long {
            let buffer = ready.rig.device.alloc(1 << 25, Space::Device).unwrap();
            let data = Slice { buffer, offset: 0 };
            let weight = Weight { data, inputs: 1 << 24, outputs: 1, ..weights.as_slice()[0] };
            (*weights, *rows) = (Few::of(&[weight]), 0);
        }
        assert_eq!(ready.rig.device.supports(&ready.op), Support::No);
        let error = ready.rig.try_run(&[ready.op]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
        assert!(error.message.contains("scratch"), "{error}");
        assert_ne!(ready.rig.device.supports(&long), Support::No);
        assert_eq!(ready.rig.try_run(&[long]), Ok(FenceState::Done));
    }
}

#[test]
fn an_output_over_a_table_fails_its_fence() {
    for (_, mut rig) in rigs() {
        // Table and output in one buffer, and the same memory under two names.
        let mut own = vec![0u32; 64];
        let span = HostSpan { address: own.as_mut_ptr() as usize, bytes: 256 };
        let names = [rig.device.import(span), rig.device.import(span)];
        let [a, b] = names.map(|name| Slice { buffer: name.unwrap().unwrap(), offset: 0 });
        let x = rig.floats(&[1.0; 30]);
        let encoding = WeightEncoding::F32;
        let table = Weight { data: x, encoding, outputs: 10, inputs: 3, ..Weight::default() };
        for (ids, at) in [(a, a), (a, b), (Slice { offset: 20, ..a }, b)] {
            let embed = Op::Embed { ids, table, out: at, rows: 2, scale: 1.0 };
            assert_eq!(kind(rig.try_run(&[embed])), ErrorKind::Invalid);
            for kinds in [RowsKind::Gather, RowsKind::Scatter, RowsKind::ScatterAdd] {
                let op = Op::Rows { x, indices: ids, out: at, kind: kinds, rows: 2, width: 6 };
                assert_eq!(kind(rig.try_run(&[op])), ErrorKind::Invalid, "{kinds:?}");
            }
        }
        let beside = Slice { offset: 24, ..b };
        rig.run(&[Op::Embed { ids: a, table, out: beside, rows: 2, scale: 1.0 }]);
        assert_eq!((own[6..12].to_vec(), own[12]), (vec![1f32.to_bits(); 6], 0));
    }
}

#[test]
fn new_rows_over_their_own_places_fail_their_fence() {
    for (_, mut rig) in rigs() {
        let page = 64 * 8 * 4;
        let pool = rig.bytes(&vec![0; page as usize + 32]);
        let (positions, writes) = (rig.words(&[0, 1]), rig.words(&[0, 0, 1, 0, 0, 0, 2, 0]));
        let apart = rig.floats(&[0.5; 8]);
        let over = Slice { offset: pool.offset + page, ..pool };
        for (q, positions, writes, sound) in [
            (apart, positions, writes, true),
            (positions, positions, writes, false),
            (apart, pool, writes, false),
            (apart, positions, pool, false),
            (apart, positions, over, true),
        ] {
            let op = Op::RopeWrite {
                q,
                k: rig.floats(&[0.0; 8]),
                v: rig.floats(&[0.0; 8]),
                positions,
                cos: rig.floats(&[1.0; 4]),
                sin: rig.floats(&[0.0; 4]),
                writes,
                pool,
                rows: 2,
                heads: 1,
                kv_heads: 1,
                key_dim: 4,
                value_dim: 4,
                rotary: 2,
                table_rows: 4,
                interleaved: false,
                encoding: encoding_word(KvEncoding::F32),
            };
            match sound {
                true => rig.run(&[op]),
                false => assert_eq!(kind(rig.try_run(&[op])), ErrorKind::Invalid),
            }
        }
    }
}

#[test]
fn answers_over_spans_or_entries_fail_their_fence() {
    let data = data(&case(), 6);
    for (name, rig) in rigs() {
        let mut ready = ready(rig, &case(), &data);
        let sound = ready.op;
        let Op::Attention { spans: a, entries: b, .. } = sound else { return };
        for table in [a, b] {
            // A copy of the table, with room behind it for whatever the answer is.
            let length = ready.rig.device.span(table.buffer).unwrap().bytes - table.offset;
            let mut bytes = ready.rig.read_bytes(table, length as usize);
            bytes.resize(bytes.len() + (1 << 16), 0);
            let both = ready.rig.bytes(&bytes);
            let mut bad = sound;
            if let Op::Attention { spans, entries, out, .. } = &mut bad {
                *(if table.buffer == a.buffer { spans } else { entries }) = both;
                *out = both;
            }
            assert_eq!(kind(ready.rig.try_run(&[bad])), ErrorKind::Invalid, "{name}");
            if let Op::Attention { out, .. } = &mut bad {
                *out = Slice { offset: both.offset + length, ..both };
            }
            ready.rig.run(&[bad]);
        }
    }
}
