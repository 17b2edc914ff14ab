//! Strategies and stores of other forms than ship, which break nothing and keep every case.

use super::*;
use std::collections::BTreeSet;

/// What another form changes.
type Form = fn(&mut KvDescription, &mut KvPolicy);

/// A strategy that ships, under a policy of another form.
fn formed(inner: Box<Strategy>, form: Form) -> Box<Strategy> {
    let bent = Wrapped::new(inner).with_description(move |description| {
        let mut policy = KvPolicy {
            policy_id: "form".into(),
            flush: None,
            retain: Threshold::default(),
            window: None,
            keep_rows: None,
            cold: KvEncoding::Bf16,
            cold_after: 0,
            store_partial: false,
        };
        form(description, &mut policy);
    });
    Box::new(bent.with_policy(move |inner, ask| {
        let (mut description, mut policy) = (inner.describe(), inner.policy(ask)?);
        form(&mut description, &mut policy);
        Ok(policy)
    }))
}

/// Runs every case; how many were kept. Each that is broken is a line of `broken`.
fn sweep(what: &str, make: &dyn Fn() -> Result<Box<Strategy>>, broken: &mut Vec<String>) -> usize {
    let mut kept = 0;
    for case in cases() {
        match run(&case, &Subject::new(make)).outcome {
            Outcome::Kept => kept += 1,
            Outcome::Skipped(_) => {}
            Outcome::Broken(line) => broken.push(format!("{what}: {}: {line}", case.name)),
        }
    }
    kept
}

#[test]
fn a_store_under_a_policy_of_another_form_keeps_every_case() {
    let shipped = persistent();
    let int8 = |description: &mut KvDescription, policy: &mut KvPolicy| {
        description.capabilities.exact = false;
        policy.cold = KvEncoding::Int8 { key: Granularity::Channel, value: Granularity::Token };
        (policy.cold_after, policy.retain.tokens) = (192, Some(192));
    };
    let whole = |_: &mut KvDescription, policy: &mut KvPolicy| policy.store_partial = false;
    let passing = |description: &mut KvDescription, _: &mut KvPolicy| {
        description.capabilities.persistent = false;
    };
    let forms: [(&str, Form); 3] = [
        ("cold pages in int8", int8),
        ("whole pages alone", whole),
        ("for this run alone", passing),
    ];
    let mut broken = Vec::new();
    for (what, form) in forms {
        let make = || opened(&shipped, as_kv).map(|inner| formed(inner, form));
        let kept = sweep(what, &make, &mut broken);
        assert!(kept > 20, "{what}: {kept} cases");
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Reads pages itself, and uses all of a frame while it is lent.
struct Scratch(HostRef);
impl StoreHook for Scratch {
    fn load(
        &mut self,
        inner: &mut dyn KvStore,
        pages: &mut [PageLoad<'_>],
        within: Duration,
    ) -> Result<()> {
        inner.load(pages, within)?;
        let (mut reads, mut verdicts) = (Vec::new(), Vec::new());
        for page in pages {
            if let Verdict::At { file, offset, tag } = page.verdict {
                page.into.fill(0x77);
                let into = &mut page.into[..tag.bytes as usize];
                reads.push(FileRead { file, offset, into, done: Ok(()) });
                verdicts.push((&mut page.verdict, tag));
            }
        }
        self.0.read_batch(&mut reads, within)?;
        verdicts.into_iter().for_each(|(verdict, tag)| *verdict = Verdict::Filled { tag });
        Ok(())
    }
}

#[test]
fn a_store_that_uses_all_of_a_frame_keeps_every_case() {
    let shipped = persistent();
    let make = || opened(&shipped, as_kv).map(|inner| beside(inner, Scratch));
    let mut broken = Vec::new();
    assert!(sweep("scratch", &make, &mut broken) > 20 && broken.is_empty(), "{broken:#?}");
}

/// Drops pages as soon as a commit pushes them out of the window.
#[derive(Default)]
struct Drops(BTreeSet<(SessionId, u32)>);
const WINDOW: KvWindow = KvWindow { first: 4, recent: 100 };
impl StoreHook for Drops {
    fn begin(&mut self, inner: &mut dyn KvStore, id: SessionId, from: Origin) -> Result<()> {
        inner.begin(id, from)?;
        self.0.retain(|(session, _)| *session != id);
        if let Origin::Fork { of, .. } = from {
            let parents = self.0.iter().filter(|(session, _)| *session == of);
            let own: Vec<_> = parents.map(|(_, page)| (id, *page)).collect();
            self.0.extend(own);
        }
        Ok(())
    }
    fn store(&mut self, inner: &mut dyn KvStore, pages: &[PageRef<'_>]) -> Result<()> {
        inner.store(pages)?;
        for PageKey { session, part, .. } in pages.iter().map(|page| page.key) {
            if let Part::Page(page) = part {
                self.0.remove(&(session, page));
            }
        }
        Ok(())
    }
    fn commit(&mut self, inner: &mut dyn KvStore, commits: &[Commit<'_>]) -> Result<()> {
        inner.commit(commits)?;
        for commit in commits {
            // A later query sees `first` rows and the last `recent`, its own among them.
            let past = (commit.tokens + 1).saturating_sub(u64::from(WINDOW.recent)) / 64;
            let pages = u64::from(WINDOW.first).div_ceil(64)..past;
            self.0.extend(pages.map(|page| (commit.session, page as u32)));
        }
        Ok(())
    }
    fn load(
        &mut self,
        inner: &mut dyn KvStore,
        pages: &mut [PageLoad<'_>],
        within: Duration,
    ) -> Result<()> {
        inner.load(pages, within)?;
        for page in pages {
            if let Part::Page(at) = page.key.part
                && self.0.contains(&(page.key.session, at))
            {
                page.verdict = Verdict::Missing;
            }
        }
        Ok(())
    }
}

#[test]
fn a_store_that_drops_what_left_its_window_keeps_every_case() {
    let shipped = persistent();
    let form = |description: &mut KvDescription, policy: &mut KvPolicy| {
        (description.capabilities.persistent, description.capabilities.exact) = (false, false);
        policy.window = Some(WINDOW);
    };
    let make = || {
        let formed = opened(&shipped, as_kv).map(|inner| formed(inner, form))?;
        Ok(hooked(formed, Drops::default))
    };
    let mut broken = Vec::new();
    let kept = sweep("a window", &make, &mut broken);
    assert!(kept > 20 && broken.is_empty(), "{kept} kept, {broken:#?}");
}

#[test]
fn every_drive_has_a_model_of_its_own_and_keeps_it() {
    let shipped = persistent();
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let models = |name: &str| {
        let cases = cases();
        let case = cases.iter().find(|case| case.name == name).expect("a case");
        let make = || {
            let (inner, seen) = (opened(&shipped, as_kv)?, seen.clone());
            let watched = Wrapped::new(inner).with_open(move |inner, spec, host| {
                seen.lock().expect("what was seen").push(spec.identity.clone());
                inner.open(spec, host)
            });
            Ok(Box::new(watched) as Box<Strategy>)
        };
        assert_eq!(run(case, &Subject::new(&make)).outcome, Outcome::Kept, "{name}");
        let mut all = std::mem::take(&mut *seen.lock().expect("what was seen"));
        let opened = all.len();
        all.sort();
        all.dedup();
        (opened, all)
    };
    let (opened, first) = models("of_pages_of_one_key_the_last_holds");
    assert_eq!((opened, first.len()), (1, 1));
    let (opened, second) = models("of_pages_of_one_key_the_last_holds");
    assert_eq!((opened, second.len()), (1, 1));
    assert_ne!(first, second);
    let (opened, third) = models("what_was_flushed_is_found_by_the_next_process");
    assert_eq!((opened, third.len()), (4, 1));
    assert!(third != first && third != second);
}
