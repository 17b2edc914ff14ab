//! Pages go in and come back: right away, in batches, over what was there before.

use super::model::*;
use super::trial::*;
use super::{Strategy, stored};
use crate::double::Frame;
use crate::{Case, Check, Promise, Subject};
use kvern_contract::*;

const COPY: Promise = Promise::new("KvStore::store", "Copy or write before it returns;");
const VISIBLE: Promise = Promise::new(
    "KvStore::store",
    "pages are visible to `load` at once, to `find` once committed.",
);
const MANY: Promise = Promise::new("KvStore::store", "Takes pages of many layers and sessions.");
const TAG: Promise =
    Promise::new("PageTag", "A store keeps it with the page and gives it back unchanged.");
const AT: Promise = Promise::new("Verdict::At", "In which file, opened by the store.");
const FILLED: Promise = Promise::new("Verdict::Filled", "The first `tag.bytes` of `into` hold it");
const MISSING: Promise = Promise::new("Verdict::Missing", "Not here: recompute.");
const LAST: Promise = Promise::new(
    "PageKey",
    "A session's key may be stored again after a rewind; the last one holds, once committed.",
);
const TRUE: Promise = Promise::new(
    "KvStore::load",
    "Keep `At` true until then, and while the page is in the policy's window.",
);
const BATCH: Promise = Promise::new(
    "KvStore::load",
    "One call at a time: a far store hides its latency by the batch, which the host sizes by \
     `Found::cost`.",
);

pub(super) fn cases() -> Vec<Case<Strategy>> {
    vec![
        stored(
            "a_page_comes_back_at_once_with_its_tag_and_bytes",
            &[COPY, VISIBLE, TAG, AT, FILLED],
            comes_back,
        ),
        stored("a_batch_takes_pages_of_many_sessions_and_layers_in_no_order", &[MANY], many),
        stored("what_is_not_stored_is_missing", &[MISSING], missing),
        stored("of_pages_of_one_key_the_last_holds", &[LAST], last),
        stored("where_a_page_lies_stays_true_while_others_come", &[TRUE], stays),
        stored("a_batch_of_pages_is_one_way_to_the_drive", &[BATCH], one_way),
    ]
}

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);

fn comes_back(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    let keys = text(1, 0, 200);
    trial.begin(A, Origin::Fresh)?;
    let mut known = Known { keys: keys.clone(), ..Known::default() };
    // Not committed yet.
    trial.put(A, &mut known, &keys, &[(2, 0), (0, 0)])?;
    trial.check(A, &known)?;
    need(trial.find(&keys)?.tokens == 0, || "tokens are found that are not committed".into())?;
    went("commit", trial.commit(A, &keys, 0))?;
    known.slide(&trial.rules);
    trial.put_all(A, &mut known, false)?;
    trial.check(A, &known)?;
    let found = trial.find(&keys)?.tokens;
    let least = known.gives(&trial.rules, &keys);
    need(found >= least, || format!("{found} tokens are found of {least} that are stored"))?;
    // The answers of a call do not depend on each other's frames, nor on a frame's length.
    let page = key(A, 0, 2);
    for length in [longest(&trial.rules), longest(&trial.rules) * 3] {
        let mut frame = Frame::new(length);
        let mut loads = [PageLoad { key: page, into: frame.lent(), verdict: Verdict::Missing }];
        went("load", trial.store.load(&mut loads, HOUR))?;
        let verdict = loads[0].verdict;
        let Some(tag) = known.pages.get(&(0, 2)).copied() else {
            // Out of a window that narrow.
            continue;
        };
        match verdict {
            Verdict::Filled { tag: came } => {
                let bytes = frame.bytes()[..tag.bytes as usize].to_vec();
                right(page, &tag, Ok((came, bytes)))?;
                need(frame.guarded(), || format!("{page:?}: bytes behind the frame are written"))?;
            }
            Verdict::At { tag: came, .. } => {
                right(page, &tag, Ok((came, trial.read(page, verdict)?)))?
            }
            other => right(page, &tag, Err(other))?,
        }
    }
    Ok(())
}

fn many(subject: &Subject<'_, Strategy>) -> Check {
    for seed in subject.seeds(3) {
        let mut random = crate::Random::new(seed);
        let mut trial = Trial::new(subject.instance()?)?;
        let mut sessions = Vec::new();
        let mut pages = Vec::new();
        for n in 1..=5 {
            let keys = text(n, 0, 64 * (1 + random.below(5)));
            trial.begin(SessionId(n), Origin::Fresh)?;
            let mut known = Known { keys, ..Known::default() };
            went("commit", trial.commit(SessionId(n), &known.keys, 0))?;
            for (layer, page) in known.unstored(&trial.rules) {
                let tag = trial.rules.tag(&known.keys, layer, page);
                known.pages.insert((layer, page), tag);
                pages.push((random.bits(), key(SessionId(n), layer, page), tag));
            }
            sessions.push((SessionId(n), known));
        }
        pages.sort_by_key(|(order, ..)| *order);
        let pages: Vec<_> = pages.into_iter().map(|(_, key, tag)| (key, tag)).collect();
        went("store", trial.store(&pages))?;
        // Asked for in one batch too, in another order.
        let mut asked = pages.clone();
        asked.reverse();
        let keys: Vec<PageKey> = asked.iter().map(|(key, _)| *key).collect();
        for ((key, tag), got) in asked.iter().zip(trial.load(&keys, HOUR)?) {
            right(*key, tag, got)?;
        }
        for (id, known) in &sessions {
            trial.check(*id, known)?;
        }
    }
    Ok(())
}

fn missing(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    let keys = text(1, 0, 200);
    let known = trial.fill(A, &keys)?;
    trial.begin(B, Origin::Fresh)?;
    let tags: Vec<_> = known.pages.iter().map(|(at, tag)| (*at, *tag)).collect();
    let ((layer, page), tag) = tags[0];
    // A page between others that are not there, of every way of not being there.
    let asked = [
        key(A, layer, 40),
        key(SessionId(99), layer, page),
        key(A, layer, page),
        key(B, layer, page),
        key(A, 1, page),
        key(A, 77, page),
        PageKey { session: A, layer: LayerIndex(layer), part: Part::State { at: 64 } },
    ];
    let mut answers = trial.load(&asked, HOUR)?.into_iter().zip(asked);
    if trial.rules.sees(page, known.tokens()) {
        let there = answers.by_ref().nth(2);
        let (got, _) = there.ok_or_else(|| "an answer is missing".to_owned())?;
        right(asked[2], &tag, got)?;
    }
    for (index, (answer, key)) in trial.load(&asked, HOUR)?.into_iter().zip(asked).enumerate() {
        if index != 2 {
            ended(need(answer == Err(Verdict::Missing), || {
                format!("{key:?} was never stored and is {answer:?}, not Missing")
            }))?;
        }
    }
    went("load of nothing", trial.store.load(&mut [], HOUR))?;
    went("store of nothing", trial.store.store(&[]))?;
    Ok(())
}

fn last(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    let (old, new) = (text(2, 0, 250), text(4, 0, 250));
    let mut known = trial.fill(A, &old)?;
    // A page that fills: first its part, then all of it.
    if trial.rules.partial {
        let mut grown = Known { keys: text(2, 0, 300), ..known.clone() };
        went("commit", trial.commit(A, &grown.keys, 250))?;
        grown.slide(&trial.rules);
        trial.put_all(A, &mut grown, true)?;
        trial.check(A, &grown)?;
        known = grown;
    }
    for (to, keys) in [(70, &new), (0, &old)] {
        let landed = went("rewind", trial.store.rewind(A, to))?;
        need(landed == to, || format!("a rewind to {to} lands at {landed}"))?;
        known.cut(to);
        known.keys.extend_from_slice(&keys[to as usize..]);
        let places = known.unstored(&trial.rules);
        let keys = known.keys.clone();
        trial.put(A, &mut known, &keys, &places)?;
        went("commit", trial.commit(A, &keys, to))?;
        known.slide(&trial.rules);
        trial.check(A, &known)?;
    }
    Ok(())
}

fn stays(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    let known = trial.fill(A, &text(1, 0, 320))?;
    let seen = known.pages.iter().filter(|((_, page), _)| trial.rules.sees(*page, 320));
    let asked: Vec<(PageKey, PageTag)> =
        seen.map(|((layer, page), tag)| (key(A, *layer, *page), *tag)).collect();
    let mut frames: Vec<Frame> = asked.iter().map(|_| Frame::new(longest(&trial.rules))).collect();
    let mut loads: Vec<PageLoad<'_>> = (asked.iter().zip(&mut frames))
        .map(|((key, _), frame)| PageLoad {
            key: *key,
            into: frame.lent(),
            verdict: Verdict::Missing,
        })
        .collect();
    went("load", trial.store.load(&mut loads, HOUR))?;
    let verdicts: Vec<Verdict> = loads.iter().map(|load| load.verdict).collect();
    // The host reads them only after they were stored again, and after other sessions came, were
    // flushed, looked up and copied: their old places are free only after the next upkeep.
    went("store of the same pages again", trial.store(&asked))?;
    let mut other = trial.fill(B, &text(2, 0, 300))?;
    trial.begin(SessionId(3), Origin::Fork { of: A, at: 320 })?;
    went("flush", trial.store.flush(A))?;
    trial.find(&text(2, 0, 300))?;
    trial.grow(B, &mut other, &text(2, 0, 500))?;
    went("flush", trial.store.flush(B))?;
    for ((key, tag), verdict) in asked.iter().zip(verdicts) {
        if let Verdict::At { tag: came, .. } = verdict {
            right(*key, tag, Ok((came, trial.read(*key, verdict)?)))?;
        }
    }
    trial.check(A, &known)?;
    Ok(())
}

/// Calls to the host that a batch may cost, however long it is.
const CALLS_MOST: u64 = 4;

fn one_way(subject: &Subject<'_, Strategy>) -> Check {
    let mut trial = Trial::new(subject.instance()?)?;
    let known = trial.fill(A, &text(1, 0, 512))?;
    went("flush", trial.store.flush(A))?;
    let seen = known.pages.keys().filter(|(_, page)| trial.rules.sees(*page, 512));
    let keys: Vec<PageKey> = seen.map(|(layer, page)| key(A, *layer, *page)).collect();
    let before = trial.watch.count("read");
    let answers = trial.load(&keys, HOUR)?;
    let calls = trial.watch.count("read") - before;
    ended(need(calls <= CALLS_MOST && answers.len() == keys.len(), || {
        format!("a batch of {} pages costs {calls} reads one after another", keys.len())
    }))
}
