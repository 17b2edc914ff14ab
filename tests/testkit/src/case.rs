//! A case: one thing that holds of every plugin of a kind, and how it is tried.

use kvern_contract::Result;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// A sentence of the contract, by the method that it is written at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Promise {
    /// Trait or type, and method, as `KvStore::load`; an op as `Op::Linear`.
    pub of: &'static str,
    /// Words of its documentation, as they stand there.
    pub text: &'static str,
}

impl Promise {
    /// The words `text` of the documentation of `of`.
    pub const fn new(of: &'static str, text: &'static str) -> Self {
        Promise { of, text }
    }
}

impl std::fmt::Display for Promise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.of, self.text)
    }
}

/// What a case answers: nothing, or one line that says what was found and what was expected.
pub type Check = std::result::Result<(), String>;

/// One thing that holds of every plugin of a kind. `P` is the contract's trait, as `dyn KvStore`.
pub struct Case<P: ?Sized> {
    /// What holds, as the name of a test: `a_page_comes_back_with_its_tag`.
    pub name: &'static str,
    /// The promises that it tries.
    pub promises: &'static [Promise],
    /// Why it is not for this plugin, which declares that it does without; `None`: it is.
    pub skip: fn(&P) -> Option<&'static str>,
    /// Tries it.
    pub check: fn(&Subject<'_, P>) -> Check,
}

/// The plugin under test, and how hard to try.
pub struct Subject<'a, P: ?Sized> {
    make: &'a dyn Fn() -> Result<Box<P>>,
    /// Chooses the random numbers: the same seed, the same test.
    pub seed: u64,
    /// How many times as long as usual random tests go on; 1 is the usual.
    pub effort: u32,
}

impl<'a, P: ?Sized> Subject<'a, P> {
    /// A plugin that `make` makes, as often as a case wants another.
    pub fn new(make: &'a dyn Fn() -> Result<Box<P>>) -> Self {
        Subject { make, seed: 1, effort: 1 }
    }

    /// A new instance.
    pub fn instance(&self) -> std::result::Result<Box<P>, String> {
        (self.make)().map_err(|error| format!("no instance: {error}"))
    }

    /// `usual` seeds of this subject's own, more with more effort.
    pub fn seeds(&self, usual: u32) -> impl Iterator<Item = u64> + use<P> {
        let first = self.seed << 32;
        (0..u64::from(usual) * u64::from(self.effort)).map(move |n| first + n)
    }
}

/// How a case ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It held.
    Kept,
    /// It did not; one line.
    Broken(String),
    /// It is not for this plugin; why.
    Skipped(String),
}

/// A case that was run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ran {
    /// Which.
    pub name: &'static str,
    /// The promises that it tried.
    pub promises: &'static [Promise],
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// Runs a case. A panic on the way is a broken promise like any other.
pub fn run<P: ?Sized>(case: &Case<P>, subject: &Subject<'_, P>) -> Ran {
    let began = Instant::now();
    let tried = catch_unwind(AssertUnwindSafe(|| match (case.skip)(&*subject.instance()?) {
        Some(reason) => Ok(Some(reason)),
        None => (case.check)(subject).map(|()| None),
    }));
    let outcome = match tried {
        Ok(Ok(None)) => Outcome::Kept,
        Ok(Ok(Some(reason))) => Outcome::Skipped(reason.to_owned()),
        Ok(Err(line)) => Outcome::Broken(one_line(&line)),
        Err(payload) => Outcome::Broken(told(&*payload)),
    };
    Ran { name: case.name, promises: case.promises, outcome, took: began.elapsed() }
}

/// Runs all cases, in order.
pub fn sweep<P: ?Sized>(cases: &[Case<P>], subject: &Subject<'_, P>) -> Vec<Ran> {
    cases.iter().map(|case| run(case, subject)).collect()
}

/// Runs all cases, and panics with a line for each that is broken: for a plugin's own test.
///
/// # Panics
/// Where a promise is broken.
pub fn hold<P: ?Sized>(cases: &[Case<P>], subject: &Subject<'_, P>) {
    let broken: Vec<String> = sweep(cases, subject)
        .into_iter()
        .filter_map(|ran| match ran.outcome {
            Outcome::Broken(line) => Some(format!("{}: {line}", ran.name)),
            Outcome::Kept | Outcome::Skipped(_) => None,
        })
        .collect();
    assert!(broken.is_empty(), "{} of {} cases:\n{}", broken.len(), cases.len(), broken.join("\n"));
}

/// Nothing where it holds, else the line.
pub(crate) fn need(holds: bool, line: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(line()) }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(600).collect()
}

/// What a panic says, on one line.
pub(crate) fn told(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    format!("a panic: {}", one_line(&text.unwrap_or_else(|| "without a message".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(check: fn(&Subject<'_, str>) -> Check) -> Case<str> {
        let skip = |text: &str| text.is_empty().then_some("it is empty");
        Case { name: "a_case", promises: &[], skip, check }
    }

    fn outcome(text: &'static str, check: fn(&Subject<'_, str>) -> Check) -> Outcome {
        run(&case(check), &Subject::new(&|| Ok(text.into()))).outcome
    }

    #[test]
    fn a_case_is_kept_broken_or_skipped_and_a_panic_is_a_broken_one() {
        assert_eq!(outcome("x", |_| Ok(())), Outcome::Kept);
        assert_eq!(outcome("x", |_| Err("two\nlines".into())), Outcome::Broken("two lines".into()));
        assert_eq!(
            outcome("", |_| Err("never run".into())),
            Outcome::Skipped("it is empty".into())
        );
        let Outcome::Broken(line) = outcome("x", |_| panic!("boom")) else { panic!("not broken") };
        assert_eq!(line, "a panic: boom");
    }

    #[test]
    fn an_instance_that_cannot_be_made_is_a_broken_promise() {
        let error = || kvern_contract::Error::new(kvern_contract::ErrorKind::Io, "abi/open", "no");
        let make = || Err(error());
        let ran = run(&case(|_| Ok(())), &Subject::new(&make));
        assert_eq!(ran.outcome, Outcome::Broken("no instance: abi/open: no".into()));
    }

    #[test]
    #[should_panic(expected = "a_case: wrong")]
    fn holding_panics_with_what_is_broken() {
        hold(&[case(|_| Err("wrong".into()))], &Subject::new(&|| Ok("x".into())));
    }

    #[test]
    fn seeds_are_as_many_as_the_effort_says_and_differ_by_subject() {
        let mut subject = Subject::<str>::new(&|| Ok("x".into()));
        let few: Vec<u64> = subject.seeds(2).collect();
        (subject.seed, subject.effort) = (2, 3);
        let many: Vec<u64> = subject.seeds(2).collect();
        assert_eq!((few.len(), many.len()), (2, 6));
        assert!(many.iter().all(|seed| !few.contains(seed)));
    }
}
