//! Drives that fail and files that change under a run: the same bits or one clear line, and no
//! token of weights that are not the model's.

use super::drives::{Drive, Log, keeping, on};
use super::{Setup, austen, bits, prose};
use crate::spec::{Finish, Flow, Outcome, Request};
use crate::{Engine, Facts, WeightPath};
use kvern_contract::{Error, ErrorKind, Result};
use kvern_model::{Sampler, Sampling};
use kvern_storage::double::{FaultPlan, Faults, FillFault, MemoryStorage};
use kvern_storage::{PathChoice, Service, ServiceSpec, Storage};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// An engine that streams everything from this storage.
fn streaming(storage: Arc<dyn Storage>) -> Setup {
    Setup { storage, offload: keeping(&[], false, 2), ..Setup::default() }
}

/// A drive that fails at these tries of reads, and an engine on it.
fn failing(fills: &[(u64, FillFault)], deadline: Duration) -> (Arc<Faults>, Result<Engine>) {
    let plan = FaultPlan { fills: fills.to_vec(), ..FaultPlan::default() };
    let faults = Faults::new(Service::pool(1), plan);
    let setup = Setup { deadline, ..streaming(Arc::clone(&faults) as Arc<dyn Storage>) };
    (faults, setup.load())
}

const LONG: Duration = Duration::from_secs(60);

/// Decodes, and hears of every token; how it ended.
fn decode(engine: &mut Engine, new: u32, on_text: &mut dyn FnMut(&str) -> Flow) -> Result<Outcome> {
    let session = engine.begin()?;
    let prompt = prose(9);
    let request = Request {
        prompt: &prompt,
        max_new_tokens: new,
        sampler: Sampler::new(Sampling::greedy())?,
        ignore_eos: true,
        stop: &[],
    };
    let done = engine.generate(session, &request, on_text);
    engine.end(session)?;
    done
}

fn plain(new: u32) -> Outcome {
    let mut engine = Setup::default().load().expect("it loads");
    decode(&mut engine, new, &mut |_| Flow::Go).expect("it generates")
}

fn message(error: &Error) -> String {
    let text = error.to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

#[test]
fn a_read_that_fails_once_changes_nothing() {
    let ids = prose(40);
    let want = bits(&mut Setup::default().load().expect("it loads"), &ids).expect("it scores");
    // Of the units that are read ahead, and of the rows of an embedding.
    for at in [1, 7, 13, 20] {
        let (_, engine) = failing(&[(at, FillFault::Eio)], LONG);
        let mut engine = engine.expect("it loads");
        for _ in 0..2 {
            assert!(bits(&mut engine, &ids).expect("it scores") == want, "read {at}");
        }
        assert_eq!(engine.facts().storage.retries, 1);
    }
}

#[test]
fn a_read_that_fails_twice_ends_the_request_with_file_and_offset_and_not_the_engine() {
    let ids = prose(40);
    let want = bits(&mut Setup::default().load().expect("it loads"), &ids).expect("it scores");
    for at in [1, 7, 13] {
        let (_, engine) = failing(&[(at, FillFault::Eio), (at + 1, FillFault::Eio)], LONG);
        let mut engine = engine.expect("it loads");
        let error = bits(&mut engine, &ids).expect_err("a drive that fails");
        assert_eq!(error.kind, ErrorKind::Io);
        let text = message(&error);
        assert!(text.contains("tiny-austen/model.safetensors: input/output error at"), "{text}");
        assert!(text.contains(" at offset ") && text.contains("twice; check the drive"), "{text}");
        for _ in 0..2 {
            assert!(bits(&mut engine, &ids).expect("it scores") == want, "read {at}, afterwards");
        }
    }
}

#[test]
fn a_read_of_weights_that_stay_that_fails_twice_ends_the_load_with_file_and_offset() {
    let plan =
        FaultPlan { fills: vec![(3, FillFault::Eio), (4, FillFault::Eio)], ..FaultPlan::default() };
    let storage = Faults::new(Service::pool(1), plan);
    let error = Setup { storage, ..Setup::default() }.load().err().expect("a drive that fails");
    let text = message(&error);
    assert!(error.kind == ErrorKind::Io && text.contains("model.safetensors"), "{text}");
    assert!(text.contains(" at offset "), "{text}");
}

#[test]
fn a_file_that_ends_early_is_named_with_what_was_asked_and_what_came() {
    let (_, engine) = failing(&[(5, FillFault::Short)], LONG);
    let error = bits(&mut engine.expect("it loads"), &prose(20)).expect_err("it is short");
    let text = message(&error);
    assert_eq!(error.kind, ErrorKind::Damaged);
    assert!(text.contains("tiny-austen/model.safetensors ends early: asked for"), "{text}");
}

#[test]
fn a_read_that_never_completes_is_named_by_its_deadline_and_keeps_its_memory_alone() {
    let ids = prose(20);
    let want = bits(&mut Setup::default().load().expect("it loads"), &ids).expect("it scores");
    for at in [1, 6, 13] {
        let (faults, engine) = failing(&[(at, FillFault::Hold)], Duration::from_millis(80));
        let mut engine = engine.expect("it loads");
        let error = bits(&mut engine, &ids).expect_err("it never completes");
        assert_eq!(error.kind, ErrorKind::Timeout);
        let text = message(&error);
        assert!(text.contains("a read of /") && text.contains("model.safetensors"), "{text}");
        assert!(text.contains(" at offset "), "{text}");
        assert!(text.contains("was not answered within 0.08 s; check the drive"), "{text}");
        // The drive has it yet: until it has answered, whoever needs its memory hears of it.
        assert_eq!(faults.kept(), 1);
        let again = bits(&mut engine, &ids);
        assert!(again.as_ref().map_or_else(|e| e.kind == ErrorKind::Timeout, |got| *got == want));
        faults.release();
        assert!(bits(&mut engine, &ids).expect("the drive goes on") == want, "read {at}");
    }
}

#[test]
fn an_engine_is_dropped_while_a_read_is_under_way_and_its_memory_stays() {
    for within_a_run in [true, false] {
        let (faults, engine) = failing(&[(2, FillFault::Hold)], Duration::from_millis(50));
        let mut engine = engine.expect("it loads");
        if within_a_run {
            bits(&mut engine, &prose(20)).expect_err("it never completes");
        }
        drop(engine);
        assert_eq!(faults.kept(), 1, "the read's memory is with the drive");
        // What is written now goes to memory that is still there.
        faults.release();
        assert_eq!(faults.kept(), 0);
    }
}

/// A model on a drive in memory, and its file.
fn in_memory() -> (Arc<MemoryStorage>, PathBuf) {
    let drive = MemoryStorage::new();
    on(&drive, &austen());
    (drive, austen().join("model.safetensors"))
}

/// What happens to a file, and how it is told.
type Change = (fn(&MemoryStorage, &Path), &'static str);

const CHANGES: [Change; 3] = [
    (|drive, path| drive.tamper(path, |bytes| bytes.truncate(1_000_000)), "ends early"),
    (
        |drive, path| {
            let bytes = drive.contents(path).expect("the weights");
            let other: Vec<u8> = bytes.iter().map(|byte| byte ^ 1).collect();
            drive.publish(path, &other).expect("it is published");
        },
        "was replaced by another file",
    ),
    (
        |drive, path| drive.tamper(path, |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 1)),
        "was written to",
    ),
];

#[test]
fn a_file_that_changes_between_two_tokens_ends_the_run_before_the_next_one() {
    let want = plain(12);
    for (change, told) in CHANGES {
        let (drive, path) = in_memory();
        let mut engine = streaming(Arc::clone(&drive) as Arc<dyn Storage>).load().expect("a model");
        let (mut tokens, mut said) = (0, String::new());
        let done = decode(&mut engine, 12, &mut |text| {
            tokens += 1;
            said.push_str(text);
            if tokens == 4 {
                change(&drive, &path);
            }
            Flow::Go
        });
        let error = done.expect_err("not that file any more");
        assert_eq!(error.kind, ErrorKind::Damaged, "{error}");
        let text = message(&error);
        let names = text.contains("model.safetensors");
        let cut = text.contains("went from") || text.contains(told);
        assert!(names && cut, "{text}");
        assert_eq!(tokens, 4, "{told}: not a token more");
        assert!(want.text.starts_with(&said), "{said:?}");
    }
}

#[test]
fn a_file_that_changes_in_the_middle_of_a_sweep_gives_no_token_of_torn_weights() {
    let want = plain(12);
    // Reads of the load, of sweep after sweep, and where in them.
    for at in (14..14 + 3 * 13).step_by(4) {
        for (change, told) in CHANGES {
            let (drive, path) = in_memory();
            let tampered = Arc::clone(&drive);
            let on_fill = move |asked| {
                if asked == at {
                    change(&tampered, &path);
                }
            };
            let storage = Drive::telling(drive, &Log::default(), Box::new(on_fill));
            let mut engine = streaming(storage).load().expect("it loads");
            let said = Arc::new(Mutex::new(String::new()));
            let done = decode(&mut engine, 12, &mut |text| {
                said.lock().expect("text").push_str(text);
                Flow::Go
            });
            let error = done.expect_err("not that file any more");
            assert_eq!(error.kind, ErrorKind::Damaged, "{told} at read {at}: {error}");
            let said = said.lock().expect("text").clone();
            assert!(want.text.starts_with(&said), "{told} at read {at}: {said:?}");
            assert!(said.len() < want.text.len());
        }
    }
}

#[test]
fn a_file_that_changes_while_a_prompt_is_taken_leaves_no_session_with_its_pages() {
    let (drive, path) = in_memory();
    let tampered = Arc::clone(&drive);
    let on_fill = move |asked| {
        if asked == 20 {
            tampered.tamper(&path, |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 1));
        }
    };
    let storage = Drive::telling(drive, &Log::default(), Box::new(on_fill));
    let mut engine = Setup { chunk: 64, ..streaming(storage) }.load().expect("it loads");
    let session = engine.begin().expect("a session");
    let prompt = prose(200);
    let request = Request {
        prompt: &prompt,
        max_new_tokens: 1,
        sampler: Sampler::new(Sampling::greedy()).expect("a sampler"),
        ignore_eos: true,
        stop: &[],
    };
    let error = engine.generate(session, &request, &mut |_| Flow::Go).expect_err("it was written");
    assert!(message(&error).contains("was written to"));
    assert_eq!(engine.tokens(session).expect("its tokens").len() % 64, 0);
    assert!(engine.tokens(session).expect("its tokens").len() <= 64, "of whole sweeps alone");
}

#[test]
fn a_file_that_changes_during_a_load_is_not_loaded() {
    for (change, told) in CHANGES {
        let (drive, path) = in_memory();
        let tampered = Arc::clone(&drive);
        let on_fill = move |asked| {
            if asked == 6 {
                change(&tampered, &path);
            }
        };
        let storage = Drive::telling(drive, &Log::default(), Box::new(on_fill));
        let error = Setup { storage, ..Setup::default() }.load().err().expect("another file");
        assert_eq!(error.kind, ErrorKind::Damaged);
        assert!(message(&error).contains(told), "{error}");
    }
}

/// A copy of tiny-austen whose weights start at any offset: its header ends with so many spaces.
fn shifted(spaces: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
    for name in ["config.json", "generation_config.json", "tokenizer.json"] {
        std::fs::copy(austen().join(name), dir.path().join(name)).expect("a copy");
    }
    let bytes = std::fs::read(austen().join("model.safetensors")).expect("the weights");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut out = ((header + spaces) as u64).to_le_bytes().to_vec();
    out.extend(&bytes[8..8 + header]);
    out.extend(std::iter::repeat_n(b' ', spaces));
    out.extend(&bytes[8 + header..]);
    std::fs::write(dir.path().join("model.safetensors"), out).expect("a file");
    dir
}

#[test]
fn weights_at_odd_offsets_are_read_as_a_strict_drive_wants_and_copied_to_where_they_may_be() {
    let ids = prose(60);
    let want = bits(&mut Setup::default().load().expect("it loads"), &ids).expect("it scores");
    let check = |model: &Path, storage: Arc<dyn Storage>, what: &str| -> Facts {
        let offload = keeping(&[0, 3], false, 2);
        let setup = Setup { model: model.to_owned(), storage, offload, ..Setup::default() };
        let mut engine =
            Setup { reading: WeightPath::Direct, chunk: 25, ..setup }.load().expect("it loads");
        assert!(bits(&mut engine, &ids).expect("it scores") == want, "{what}");
        engine.facts()
    };
    for spaces in [0, 1, 2, 3, 64, 511] {
        let model = shifted(spaces);
        for align in [512, 4096] {
            let drive = MemoryStorage::direct(align);
            on(&drive, model.path());
            let facts = check(model.path(), drive, &format!("{spaces} spaces, {align}"));
            assert!(facts.stream.direct);
            assert_eq!(facts.stream.copied_tensors > 0, spaces % 2 == 1, "{spaces} spaces");
            assert!(facts.storage.direct_bytes > 3 * facts.stream.sweep_bytes);
        }
        for path in [PathChoice::Auto, PathChoice::Pool] {
            let storage = Service::new(ServiceSpec { path, ..ServiceSpec::default() });
            check(model.path(), storage, &format!("{spaces} spaces, {path:?}"));
        }
    }
}

#[test]
fn a_request_that_ends_well_after_a_fault_has_the_tokens_of_one_without() {
    let want = plain(8);
    let fills: Vec<_> = (0..6).map(|i| (9 + 7 * i, FillFault::Eio)).collect();
    let (faults, engine) = failing(&fills, LONG);
    let done = decode(&mut engine.expect("it loads"), 8, &mut |_| Flow::Go).expect("it generates");
    assert_eq!((done.token_ids, done.finish), (want.token_ids, Finish::Length));
    assert_eq!(faults.counters().retries, 6);
}

#[test]
fn a_load_has_no_more_under_way_than_is_worth_its_memory() {
    let log = Log::default();
    let fills = (1..100).map(|at| (at, FillFault::Hold)).collect();
    let plan = FaultPlan { fills, ..FaultPlan::default() };
    let storage = Drive::new(Faults::new(Service::pool(1), plan), &log);
    let deadline = Duration::from_millis(20);
    let error = Setup { storage, deadline, ..Setup::default() }.load().err().expect("none comes");
    assert_eq!(error.kind, ErrorKind::Timeout);
    // Of 1 MiB in tests: two units of attention and one of a feed-forward block.
    assert_eq!(log.take().len(), 3);
}
