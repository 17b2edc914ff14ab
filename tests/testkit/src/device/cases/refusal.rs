//! What does not run, what is out of range, and what a table leads to: refused, and no byte of
//! nobody's touched.

use super::super::bench::{Answer, Bench, Device, each, first, shown};
use super::super::desk::{ARENA, BYTES};
use super::super::reference::{Write, writes};
use super::super::samples::{self, ALL};
use super::always;
use crate::case::need;
use crate::{Case, Check, Promise, Subject};
use kvern_contract::*;

const RUNS: Promise = Promise::new("DeviceBackend::supports", "Run what it said yes to.");
const CHECK: Promise = Promise::new(
    "DeviceBackend::submit",
    "Check every range and table entry before it reads through it.",
);
const ERRORS: Promise = Promise::new("DeviceBackend::submit", "Unsupported, Invalid: nothing ran.");

pub fn cases() -> Vec<Case<Device>> {
    vec![
        always("what_it_says_yes_to_runs_and_what_not_is_refused", &[RUNS, ERRORS], supported),
        always("a_list_that_is_refused_did_not_run", &[ERRORS], nothing_ran),
        always("a_place_out_of_range_is_refused", &[CHECK], places),
        always("a_table_that_leads_out_of_range_is_refused", &[CHECK], tables),
    ]
}

/// What makes no sense, or what some devices leave out.
fn odd(op: &Op) -> Vec<Op> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut Op)| {
        let mut other = *op;
        change(&mut other);
        all.push(other);
    };
    let layout = |weight: &Weight| Weight { layout: 77, ..*weight };
    match op {
        Op::Linear { weights, epilogue: Epilogue::None, .. } => {
            let weights = weights.as_slice().to_vec();
            let first = weights[0];
            with(&move |op| {
                if let Op::Linear { weights, .. } = op {
                    *weights = Few::of(&[layout(&first)]);
                }
            });
            with(&|op| {
                if let Op::Linear { weights, .. } = op {
                    *weights = Few::default();
                }
            });
            with(&move |op| {
                if let Op::Linear { weights, epilogue, .. } = op {
                    (*weights, *epilogue) = (Few::of(&[first]), Epilogue::SiluGated);
                }
            });
            with(&move |op| {
                if let Op::Linear { weights, .. } = op {
                    *weights = Few::of(&[Weight { encoding: WeightEncoding::None, ..first }]);
                }
            });
        }
        Op::Embed { .. } => with(&|op| {
            if let Op::Embed { table, .. } = op {
                *table = layout(table);
            }
        }),
        Op::RopeWrite { .. } => {
            let (key, value) = (Granularity::Channel, Granularity::Token);
            for word in [0, 4, 255, encoding_word(KvEncoding::Int8 { key, value })] {
                with(&|op| {
                    if let Op::RopeWrite { encoding, .. } = op {
                        *encoding = word;
                    }
                });
            }
            with(&|op| {
                if let Op::RopeWrite { rotary, key_dim, .. } = op {
                    *rotary = *key_dim + 2;
                }
            });
        }
        Op::Attention { .. } => {
            with(&|op| {
                if let Op::Attention { heads, kv_heads, .. } = op {
                    (*heads, *kv_heads) = (5, 2);
                }
            });
            with(&|op| {
                if let Op::Attention { kv_heads, .. } = op {
                    *kv_heads = 0;
                }
            });
        }
        Op::Top { .. } => with(&|op| {
            if let Op::Top { top, width, .. } = op {
                *top = *width + 1;
            }
        }),
        _ => {}
    }
    all
}

/// An op without its places, as `supports` is asked.
fn bare(op: &Op) -> Op {
    let mut words = Vec::new();
    op.put(&mut words);
    for at in places_of(&words) {
        words[at..at + 3].fill(0);
    }
    Op::take(&mut words.as_slice()).unwrap_or(*op)
}

/// Where an op's words name a place of the arena.
fn places_of(words: &[u32]) -> Vec<usize> {
    let at = words.iter().enumerate().filter(|(_, word)| **word == ARENA.0);
    at.map(|(at, _)| at).collect()
}

fn supported(subject: &Subject<'_, Device>) -> Check {
    each(subject, |bench| {
        for (_, make, count) in ALL {
            for (n, seed) in subject.seeds(count.min(16)).enumerate() {
                bench.desk.clear(seed);
                let ops = make(&mut bench.desk, n as u64);
                for op in ops.iter().chain(&odd(&ops[0])) {
                    bench.load()?;
                    let says = bench.device.supports(&bare(op));
                    let found = bench.run(&[*op])?;
                    let ran = found == Answer::Done;
                    match says {
                        Support::Yes { .. } => {
                            need(ran, || format!("yes to {}, which is {found:?}", shown(op)))?;
                        }
                        Support::No => {
                            let kind = found.kind();
                            let kinds = [ErrorKind::Unsupported, ErrorKind::Invalid].map(Some);
                            need(kinds.contains(&kind), || {
                                format!("no to {}, which is {found:?}", shown(op))
                            })?;
                        }
                    }
                    if !ran {
                        let same = bench.read()? == bench.desk.bytes();
                        need(same || matches!(found, Answer::Failed(_)), || {
                            format!("{} is refused, and something was written", shown(op))
                        })?;
                    }
                }
            }
        }
        Ok(())
    })
}

fn nothing_ran(subject: &Subject<'_, Device>) -> Check {
    each(subject, |bench| {
        for n in 0..7 {
            let Some(ops) = bench.sample(samples::map, n, 9 + n) else { continue };
            let good = ops[0];
            let mut bad = good;
            if let Op::Map { a, .. } = &mut bad {
                a.at.offset = BYTES as u64 - 2;
            }
            bench.load()?;
            let ops = bench.device.usage().ops;
            let found = bench.run(&[good, bad])?;
            need(found.kind() == Some(ErrorKind::Invalid), || {
                format!("a list with a place out of range is {found:?}")
            })?;
            if let Answer::Refused(_) = found {
                need(bench.read()? == bench.desk.bytes(), || {
                    format!("a list is refused, and {} of it ran", shown(&good))
                })?;
                let now = bench.device.usage().ops;
                need(now == ops, || format!("{} ops of a refused list are counted", now - ops))?;
            }
        }
        Ok(())
    })
}

/// Runs an op that the reference refuses: so must the device, and leave alone what a sound one
/// would not write. Bytes from `out` on may be garbage too: the part of an output that is there.
fn must_refuse(
    bench: &mut Bench,
    sound: &[Write],
    (bad, out): (&Op, usize),
    what: impl Fn() -> String,
) -> Check {
    bench.load()?;
    let mut may = vec![false; BYTES];
    may[out.min(BYTES)..].fill(true);
    for write in sound {
        let at = write.to.offset as usize;
        may[at..at + write.value.bytes().len()].fill(true);
    }
    let found = bench.run(std::slice::from_ref(bad))?;
    let kind = found.kind();
    // A table of other bytes may name an encoding that there is not.
    let told = matches!(kind, Some(ErrorKind::Invalid | ErrorKind::Unsupported));
    need(told, || format!("{}: it is {found:?}, of {}", what(), shown(bad)))?;
    let left = bench.read()?;
    let before = bench.desk.bytes();
    let changed = (0..BYTES).position(|at| left[at] != before[at] && !may[at]);
    need(changed.is_none(), || {
        format!("{}: refused, and byte {changed:?} changed, of {}", what(), shown(bad))
    })
}

/// Samples of every op that runs here, one op each, laid out and loaded.
fn each_op(
    subject: &Subject<'_, Device>,
    count: u32,
    mut check: impl FnMut(&mut Bench, &Op) -> Check,
) -> Check {
    // Checks are the same, whatever is computed in.
    first(subject, |bench| {
        for (_, make, _) in ALL {
            for (n, seed) in subject.seeds(count).enumerate() {
                let Some(ops) = bench.sample(make, 3 * n as u64, seed) else { continue };
                let Some((op, before)) = ops.split_last() else { continue };
                bench.hold(before)?;
                check(bench, op)?;
            }
        }
        Ok(())
    })
}

fn places(subject: &Subject<'_, Device>) -> Check {
    each_op(subject, 3, |bench, op| {
        let sound = writes(op, &bench.desk.image).map_err(|e| e.to_string())?;
        let mut words = Vec::new();
        op.put(&mut words);
        for at in places_of(&words) {
            let place = |buffer: u32, offset: u64| {
                let mut words = words.clone();
                (words[at], words[at + 1], words[at + 2]) =
                    (buffer, offset as u32, (offset >> 32) as u32);
                Op::take(&mut words.as_slice()).map_err(|e| e.to_string())
            };
            let fits = |op: &Op, bench: &Bench| writes(op, &bench.desk.image).is_ok();
            // The first offset, by floats, from which on the operand does not fit.
            let (mut good, mut bad) = (0, BYTES as u64 / 4 + 1);
            let own = u64::from(words[at + 1]) / 4;
            let others = places_of(&words).into_iter().map(|at| u64::from(words[at + 1]));
            let end = others.filter(|other| *other > 4 * own).min().unwrap_or(u64::MAX);
            let is_output = sound.iter().any(|w| (4 * own..end).contains(&w.to.offset));
            good = if fits(&place(ARENA.0, 4 * own)?, bench) { own } else { good };
            while bad - good > 1 {
                let half = u64::midpoint(good, bad);
                match fits(&place(ARENA.0, 4 * half)?, bench) {
                    true => good = half,
                    false => bad = half,
                }
            }
            let end = BYTES as u64;
            let tries = [
                (ARENA.0, 4 * bad),
                (ARENA.0, end - 4),
                (ARENA.0, end),
                (ARENA.0, end + 4096),
                (ARENA.0, u64::MAX - 3),
                (0x7fff_fff1, 0),
                (0, 0),
            ];
            for (buffer, offset) in tries {
                let bad = place(buffer, offset)?;
                if fits(&bad, bench) {
                    continue;
                }
                let out = if is_output { offset as usize } else { BYTES };
                must_refuse(bench, &sound, (&bad, out), || {
                    format!("word {at} is offset {offset} of buffer {buffer:#x}")
                })?;
            }
        }
        Ok(())
    })
}

fn tables(subject: &Subject<'_, Device>) -> Check {
    each_op(subject, 3, |bench, op| {
        let sound = writes(op, &bench.desk.image).map_err(|e| e.to_string())?;
        let before = bench.desk.bytes().to_vec();
        for (table, words) in bench.desk.tables.clone() {
            for word in 0..words {
                let at = table.offset as usize + 4 * word;
                let own = bench.desk.image.words(table, &[words as u32]);
                let own = own.map_err(|e| e.to_string())?[word];
                let far = BYTES as u32;
                for bad in [u32::MAX, u32::MAX - 1, 1 << 31, far, 65, own ^ 1, own ^ 64] {
                    let mut bytes = before.clone();
                    bytes[at..at + 4].copy_from_slice(&bad.to_le_bytes());
                    bench.desk.set(bytes);
                    if writes(op, &bench.desk.image).is_err() {
                        must_refuse(bench, &sound, (op, BYTES), || {
                            format!("word {word} of a table is {bad}, not {own}")
                        })?;
                    }
                }
                bench.desk.set(before.clone());
            }
        }
        Ok(())
    })
}
