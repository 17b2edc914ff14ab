//! The ring of weights: what is under way while something is computed, and that no order, place or
//! path changes a bit. Each unit of tiny-austen is one read: 12 of its layers, and the head.

use super::drives::{Drive, Log, Step, Worker, keeping};
use super::{Setup, bits, greedy, prose};
use crate::{Engine, WeightPath};
use kvern_storage::double::{FaultPlan, Faults, FillFault};
use kvern_storage::{PathChoice, Service, ServiceSpec, Storage};
use std::sync::Arc;

/// Units of layers.
const LAYERS: usize = 12;

/// An engine whose reads and work are written down; nothing of the load is left in the log but the
/// reads that it started.
fn logged(head: bool, read_ahead: u32, chunk: u32) -> (Engine, Log) {
    let log = Log::default();
    let setup = Setup {
        offload: keeping(&[], head, read_ahead),
        storage: Drive::new(Service::pool(2), &log),
        device: Worker::new(&log),
        chunk,
        ..Setup::default()
    };
    let engine = setup.load().expect("it loads");
    if head {
        // It was read once and stays.
        let first = log.take().into_iter().skip(1).collect::<Vec<_>>();
        first.into_iter().for_each(|step| log.push(step));
    }
    (engine, log)
}

/// How many units were asked for before each piece of work.
fn asked_before(steps: &[Step]) -> Vec<usize> {
    let before = |at: usize| steps[..at].iter().filter(|s| **s != Step::Computed).count();
    let work = steps.iter().enumerate().filter(|(_, s)| **s == Step::Computed);
    work.map(|(at, _)| before(at)).collect()
}

#[test]
fn while_one_unit_is_computed_the_next_ones_are_under_way_round_the_ring() {
    for (head, ahead) in [(true, 1), (true, 3), (false, 1), (false, 2)] {
        let (mut engine, log) = logged(head, ahead as u32, 512);
        greedy(&mut engine, &[5], 4).expect("it generates");
        let asked = asked_before(&log.take());
        // The embedding, the units of the layers, the head.
        let works = LAYERS + 2;
        assert_eq!(asked.len(), 4 * works, "four sweeps");
        let streamed = if head { LAYERS } else { LAYERS + 1 };
        for (sweep, asked) in asked.chunks(works).enumerate() {
            let before = sweep * streamed;
            for (unit, asked) in asked[1..].iter().enumerate() {
                let what = format!("sweep {sweep}, unit {unit}, head {head}, {ahead} ahead");
                let want = before + unit + 1 + ahead;
                match unit + ahead < LAYERS {
                    true => assert_eq!(*asked, want, "{what}"),
                    // A head that streams is larger than what the memory of others leaves it: it
                    // may have to wait for the last of them. The next sweep's units do not.
                    false => assert!((before + unit.max(LAYERS - 1) + 1..=want).contains(asked)),
                }
            }
            let (head_work, next) = (asked[works - 1], before + streamed);
            assert!(head_work > next, "sweep {sweep}: the next one's first unit is under way");
            if head {
                // No memory is held: one unit more than ahead.
                assert_eq!(head_work, next + 1 + ahead, "sweep {sweep}");
            }
        }
    }
}

#[test]
fn units_are_asked_for_in_the_order_of_the_ring_and_once_a_turn() {
    let (mut engine, log) = logged(false, 2, 512);
    greedy(&mut engine, &[5], 5).expect("it generates");
    let steps = log.take();
    let offsets: Vec<u64> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Asked(offset) => Some(*offset),
            Step::Computed => None,
        })
        .collect();
    let units = LAYERS + 1;
    assert_eq!(offsets.len(), 5 * units + 2, "five sweeps, and two units of the next");
    let mut round = offsets[..units].to_vec();
    assert!(offsets.iter().enumerate().all(|(i, offset)| *offset == round[i % units]));
    round.sort_unstable();
    round.dedup();
    assert_eq!(round.len(), units);
}

#[test]
fn chunks_that_leave_out_the_head_read_nothing_for_it_and_keep_the_ring_going() {
    let ids = prose(230);
    let want = {
        let mut engine = Setup { chunk: 50, ..Setup::default() }.load().expect("it loads");
        greedy(&mut engine, &ids, 3).expect("it generates")
    };
    for (head, ahead) in [(true, 1), (true, 3), (false, 1)] {
        let (mut engine, log) = logged(head, ahead, 50);
        for turn in 1..=2 {
            let before = engine.facts().stream.streamed_bytes;
            assert!(greedy(&mut engine, &ids, 3).expect("it generates") == want, "turn {turn}");
            let stream = engine.facts().stream;
            // Four chunks that nobody wants logits of leave out the last mlp and the head.
            let left_out = 4 * (3 * 512 * 192 + if head { 0 } else { 2048 * 192 }) * 2;
            assert_eq!(stream.streamed_bytes - before, 7 * stream.sweep_bytes - left_out);
        }
        let fills = asked_before(&log.take()).last().copied();
        let streamed = if head { LAYERS } else { LAYERS + 1 };
        let used = 2 * (7 * streamed - 4 * if head { 1 } else { 2 });
        // Beside a head that stays no memory is held, and one more is under way.
        let under_way = ahead as usize + usize::from(head);
        assert_eq!(fills, Some(used + under_way), "nothing is read in vain, {ahead} ahead");
    }
}

#[test]
fn every_placement_and_depth_of_reading_ahead_gives_the_bits_of_everything_in_memory() {
    let ids = prose(140);
    let want = bits(&mut Setup::default().load().expect("it loads"), &ids).expect("it scores");
    let kept = [("none", &[][..]), ("interleaved", &[0, 2, 4]), ("prefix", &[0, 1, 2])];
    let kept = kept.into_iter().chain([("suffix", &[3, 4, 5][..]), ("middle", &[2, 3])]);
    for (name, layers) in kept {
        for (ahead, head) in [(1, false), (2, true), (3, false), (3, true)] {
            let offload = keeping(layers, head, ahead);
            let mut engine =
                Setup { offload, chunk: 70, ..Setup::default() }.load().expect("it loads");
            // Sweeps that want logits, and sweeps that do not, in turn.
            for _ in 0..2 {
                assert!(bits(&mut engine, &ids).expect("it scores") == want, "{name}, {ahead}");
                greedy(&mut engine, &ids, 2).expect("it generates");
            }
        }
    }
}

#[test]
fn the_path_that_bytes_take_changes_no_bit() {
    let ids = prose(100);
    let want = bits(&mut Setup::default().load().expect("it loads"), &ids).expect("it scores");
    for path in [PathChoice::Auto, PathChoice::Pool] {
        for (direct, piece_bytes) in [(false, 512 << 10), (true, 512 << 10), (true, 4096)] {
            let storage = Service::new(ServiceSpec { path, piece_bytes, ..ServiceSpec::default() });
            let seen = Arc::clone(&storage) as Arc<dyn Storage>;
            let offload = keeping(&[1], false, 2);
            let reading = if direct { WeightPath::Direct } else { WeightPath::Cached };
            let setup = Setup { offload, storage: seen, reading, chunk: 64, ..Setup::default() };
            let mut engine = setup.load().expect("it loads");
            assert!(bits(&mut engine, &ids).expect("it scores") == want, "{path:?}, {direct}");
            let (facts, counters) = (engine.facts().stream, storage.counters());
            assert_eq!(facts.direct, direct && facts.refused.is_none());
            assert_eq!(counters.direct_bytes > 2 * facts.sweep_bytes, facts.direct);
        }
    }
}

#[test]
fn staging_memory_for_less_than_two_units_works_and_says_that_nothing_is_read_ahead() {
    let ids = prose(100);
    let want = bits(&mut Setup::default().load().expect("it loads"), &ids).expect("it scores");
    let of = |memory_budget| {
        let (offload, context) = (keeping(&[], false, 3), Some(256));
        Setup { memory_budget, context, offload, chunk: 64, ..Setup::default() }
    };
    let least = Engine::plan(of(None).spec().expect("a spec").0).expect("a plan").least_budget;
    for (more, whole) in [(0, 0), (100_000, 0), (1_500_000, 1)] {
        let mut engine = of(Some(least + more)).load().expect("it loads");
        for _ in 0..2 {
            assert!(bits(&mut engine, &ids).expect("it scores") == want, "{more} more");
        }
        let facts = engine.facts().stream;
        assert_eq!(facts.read_ahead_units.min(1), whole, "{more} more: {facts:?}");
    }
}

#[test]
fn memory_that_units_take_turns_in_is_pinned_once() {
    let drive = Drive::new(Service::pool(2), &Log::default());
    let storage = Arc::clone(&drive) as Arc<dyn Storage>;
    let setup = Setup { offload: keeping(&[1], false, 2), storage, ..Setup::default() };
    let mut engine = setup.load().expect("it loads");
    greedy(&mut engine, &[5], 3).expect("it generates");
    let pinned = drive.pinned.lock().expect("regions").clone();
    assert_eq!(pinned, [engine.facts().stream.staging_bytes]);
}

#[test]
fn after_a_read_that_failed_a_sweep_begins_with_its_first_unit_and_reads_nothing_in_vain() {
    let log = Log::default();
    let fills = vec![(7, FillFault::Eio), (8, FillFault::Eio)];
    let faults = Faults::new(Service::pool(1), FaultPlan { fills, ..FaultPlan::default() });
    let storage = Drive::new(faults, &log);
    let setup = Setup { offload: keeping(&[], false, 2), storage, ..Setup::default() };
    let mut engine = setup.load().expect("it loads");
    greedy(&mut engine, &[5], 1).expect_err("a drive that fails");
    let first = log.take()[0];
    greedy(&mut engine, &[5], 1).expect("the drive goes on");
    let asked = log.take();
    assert_eq!(asked[0], first);
    // All units and two of the next sweep.
    assert_eq!(asked.len(), LAYERS + 1 + 2, "{asked:?}");
}
