//! Several sessions over one store that is far, late, silent, or lies: each session's bits are
//! those of everything in memory, whichever of them the pages were of.

use super::doubles::{Fault, Keep};
use super::{Setup, bits, prose};
use crate::Engine;
use crate::step::{Next, StepAsk, Want};
use kvern_contract::{Error, ErrorKind, KvStrategy, Result, SessionId};
use std::time::Duration;

/// Frames of three sessions whose history does not fit.
const FRAMES: u64 = 40 * 32 * 1024;

type Rows = [Vec<Vec<u32>>; 3];

/// Three texts, and how many tokens of each a step takes.
struct Texts {
    ids: [Vec<u32>; 3],
    pieces: [usize; 3],
}

impl Texts {
    fn new(lengths: [usize; 3], pieces: [usize; 3]) -> Self {
        let mut all = prose(lengths.iter().sum());
        Texts { ids: lengths.map(|length| all.drain(..length).collect()), pieces }
    }
    /// The history of each leaves memory.
    fn long() -> Self {
        Texts::new([170, 290, 300], [40, 64, 50])
    }
    /// The first is a page that never fills, so that nothing of it leaves memory, and it is there
    /// for as long as the others.
    fn one_short() -> Self {
        Texts::new([60, 290, 300], [3, 64, 50])
    }

    /// Each text's bits, of everything in memory.
    fn want(&self) -> Rows {
        let mut engine = Setup::default().load().expect("it loads");
        self.ids.each_ref().map(|ids| bits(&mut engine, ids).expect("it scores"))
    }
}

/// What three sessions in one batch came to.
#[derive(Default)]
struct Batch {
    rows: Rows,
    sessions: Vec<SessionId>,
    /// Pages that sessions lost.
    losses: u32,
    /// Those of the first.
    first: u32,
    /// Steps in which one session lost a page and another went on.
    others: u32,
}

/// Feeds the texts in uneven pieces; a session that loses a page goes back to it, and no other.
fn feed(engine: &mut Engine, texts: &Texts, out: &mut Batch) -> Result<()> {
    let sessions = [engine.begin()?, engine.begin()?, engine.begin()?];
    out.sessions = sessions.to_vec();
    let (texts, pieces, mut at) = (&texts.ids, texts.pieces, [0; 3]);
    while out.losses < 200 {
        let open: Vec<usize> = (0..3).filter(|i| at[*i] < texts[*i].len()).collect();
        if open.is_empty() {
            return Ok(());
        }
        let ends: [usize; 3] = std::array::from_fn(|i| texts[i].len().min(at[i] + pieces[i]));
        let asks: Vec<StepAsk<'_>> = (open.iter())
            .map(|&i| StepAsk {
                session: sessions[i],
                ids: &texts[i][at[i]..ends[i]],
                want: Want::All,
            })
            .collect();
        let mut rows: Rows = Default::default();
        let lost = engine.step(&asks, &mut |ask, _, logits| {
            rows[open[ask]].push(logits.iter().map(|x| x.to_bits()).collect());
            Ok(Next::Go)
        })?;
        out.losses += lost.len() as u32;
        out.first += lost.iter().filter(|lost| lost.session == sessions[0]).count() as u32;
        out.others += u32::from(!lost.is_empty() && lost.len() < open.len());
        for i in open {
            match lost.iter().find(|lost| lost.session == sessions[i]) {
                None => {
                    at[i] = ends[i];
                    out.rows[i].append(&mut rows[i]);
                }
                Some(lost) => {
                    at[i] = engine.rewind(sessions[i], lost.position)? as usize;
                    out.rows[i].truncate(at[i]);
                }
            }
        }
    }
    let text = "pages are lost without an end";
    Err(Error::new(ErrorKind::Damaged, "test", text))
}

/// Three sessions in one batch over a store that does as told.
fn run(texts: &Texts, kv: Keep, deadline: Duration) -> (Batch, crate::CacheFacts) {
    let kv: Box<dyn KvStrategy> = Box::new(kv);
    let setup = Setup { kv, kv_budget: Some(FRAMES), sessions: 3, deadline, ..Setup::default() };
    let mut engine = setup.load().expect("it loads");
    let mut batch = Batch::default();
    feed(&mut engine, texts, &mut batch).expect("every session goes on");
    (batch, engine.facts().kv)
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_lie_about_one_sessions_page_becomes_no_sessions_text() {
    let texts = Texts::long();
    let want = texts.want();
    for lie in Fault::FALSE {
        let told: Vec<_> = [3, 40, 41, 90].map(|at| (at, lie)).into();
        let (got, facts) = run(&texts, Keep::with(&told), LONG);
        assert!(got.rows == want, "{lie:?}");
        // Nothing was rewound, so there is no older page of a name to lie with.
        match lie {
            Fault::OldGeneration => assert_eq!(got.losses, 0, "{facts:?}"),
            _ => assert!(got.losses > 0 && got.others > 0, "{lie:?}: {facts:?}"),
        }
    }
}

#[test]
fn a_page_of_a_rewound_past_becomes_no_text() {
    let (ids, other) = (prose(700), prose(1400)[700..].to_vec());
    let want = bits(&mut Setup::default().load().expect("it loads"), &other).expect("it scores");
    let kv =
        Keep::with(&(1..400).step_by(23).map(|at| (at, Fault::OldGeneration)).collect::<Vec<_>>());
    let kv_budget = Some(20 * 2 * 64 * 64 * 4);
    let setup = Setup { kv: Box::new(kv), kv_budget, chunk: 128, ..Setup::default() };
    let mut engine = setup.load().expect("it loads");
    let session = engine.begin().expect("a session");
    engine.score(session, &ids, &mut |_, _| Ok(())).expect("it scores");
    assert_eq!(engine.rewind(session, 0).expect("it goes back"), 0);
    let mut rows = Vec::new();
    let mut keep = |_: usize, row: &[f32]| {
        rows.push(row.iter().map(|x| x.to_bits()).collect::<Vec<u32>>());
        Ok(())
    };
    engine.score(session, &other, &mut keep).expect("it scores");
    assert!(rows == want);
    let facts = engine.facts().kv;
    assert!(facts.checksum_failures > 0 && facts.recomputed_tokens > 0, "{facts:?}");
}

#[test]
fn a_far_store_answers_every_session_in_its_own_time() {
    let kv = Keep { latency: Duration::from_millis(50), ..Keep::store() };
    let texts = Texts::long();
    let (got, facts) = run(&texts, kv, LONG);
    assert!(got.rows == texts.want());
    assert!(facts.pages_read > 0, "nothing was read back");
    assert_eq!((facts.checksum_failures, got.losses), (0, 0));
}

#[test]
fn a_store_that_is_late_or_silent_for_one_session_keeps_no_other_from_its_text() {
    let texts = Texts::one_short();
    let want = texts.want();
    let late = Fault::Sleep(Duration::from_millis(1200));
    for lies in [vec![(5, late)], vec![(30, late), (60, Fault::Never)], vec![(40, Fault::Panic)]] {
        let (got, facts) = run(&texts, Keep::with(&lies), Duration::from_millis(400));
        assert!(got.rows == want, "{lies:?}");
        assert!(got.losses > 0 && got.others > 0, "{lies:?}: {facts:?}");
        assert_eq!(got.first, 0, "{lies:?}: what never left memory is not lost");
    }
}

#[test]
fn a_far_store_whose_deadline_is_shorter_than_its_way_gives_no_wrong_row() {
    let kv = Keep { latency: Duration::from_millis(50), ..Keep::store() };
    let deadline = Duration::from_millis(20);
    let kv: Box<dyn KvStrategy> = Box::new(kv);
    let setup = Setup { kv, kv_budget: Some(FRAMES), sessions: 3, deadline, ..Setup::default() };
    let mut engine = setup.load().expect("it loads");
    // No load is ever in time: it may end, and says why; it may not make anything up.
    let (texts, mut got) = (Texts::one_short(), Batch::default());
    let want = texts.want();
    if let Err(error) = feed(&mut engine, &texts, &mut got) {
        let kinds = [ErrorKind::OverBudget, ErrorKind::Damaged];
        assert!(kinds.contains(&error.kind), "{error}");
        // The session whose page is in memory needs no call to end.
        let first = got.sessions[0];
        let at = engine.rewind(first, got.rows[0].len() as u64).expect("it goes back") as usize;
        got.rows[0].truncate(at);
        for piece in texts.ids[0][at..].chunks(texts.pieces[0]) {
            let ask = StepAsk { session: first, ids: piece, want: Want::All };
            let lost = engine.step(&[ask], &mut |_, _, logits| {
                got.rows[0].push(logits.iter().map(|x| x.to_bits()).collect());
                Ok(Next::Go)
            });
            assert!(lost.expect("it goes on").is_empty());
        }
    }
    assert_eq!(got.first, 0);
    assert!(got.rows[0] == want[0], "the first is whole");
    let starts = got.rows.iter().zip(&want).all(|(got, want)| want.starts_with(got));
    assert!(starts && got.rows.iter().all(|rows| !rows.is_empty()));
}

#[test]
fn frames_of_an_abandoned_call_that_wakes_later_are_nobodys() {
    let ids = prose(700);
    let want = bits(&mut Setup::default().load().expect("it loads"), &ids).expect("it scores");
    let wakes = Duration::from_millis(900);
    let kv = Keep::with(&[(5, Fault::Overwrite(wakes))]);
    let deadline = Duration::from_millis(300);
    let kv_budget = Some(20 * 2 * 64 * 64 * 4);
    let setup = Setup { kv: Box::new(kv), kv_budget, deadline, chunk: 64, ..Setup::default() };
    let mut engine = setup.load().expect("it loads");
    let session: SessionId = engine.begin().expect("a session");
    let mut rows = Vec::new();
    let mut keep = |_: usize, row: &[f32]| {
        rows.push(row.iter().map(|x| x.to_bits()).collect::<Vec<u32>>());
        Ok(())
    };
    engine.score(session, &ids[..400], &mut keep).expect("it scores");
    // The call wakes, and writes over what it was lent.
    std::thread::sleep(wakes);
    engine.score(session, &ids[400..], &mut keep).expect("it scores");
    assert!(rows == want);
    assert!(engine.facts().kv.recomputed_tokens > 0, "the call was in time");
}
