//! Each promise of each contract, broken once on purpose around a plugin that ships, or around a
//! reference where none has it: a case that names the promise must turn red. A promise without a
//! mutant is one that nobody knows to be tried, so there is none.

mod device;
mod kv;
mod offload;

use kvern_contract::Result;
use kvern_testkit::{Case, Outcome, Promise, Subject, run};

/// A plugin that breaks a promise.
pub struct Mutant<P: ?Sized> {
    /// What is broken, in a few words.
    pub what: &'static str,
    /// The promise.
    pub breaks: Promise,
    /// Puts the fault around a plugin that keeps it.
    pub wrap: fn(Box<P>) -> Box<P>,
}

/// Runs the cases that name each mutant's promise, on the mutant; and looks for promises that no
/// mutant breaks.
pub fn all_turn_red<P: ?Sized>(
    cases: &[Case<P>],
    mutants: &[Mutant<P>],
    make: &dyn Fn() -> Result<Box<P>>,
) {
    let mut wrong = not_found(cases, mutants, make);
    for case in cases {
        for promise in case.promises {
            if !mutants.iter().any(|mutant| mutant.breaks == *promise) {
                wrong.push(format!("no mutant breaks {promise} (case {})", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A line for each mutant that no case that names its promise finds.
pub fn not_found<P: ?Sized>(
    cases: &[Case<P>],
    mutants: &[Mutant<P>],
    make: &dyn Fn() -> Result<Box<P>>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for mutant in mutants {
        let make = || make().map(mutant.wrap);
        let subject = Subject::new(&make);
        let named = cases.iter().filter(|case| case.promises.contains(&mutant.breaks));
        let mut outcomes = Vec::new();
        let red = named.into_iter().any(|case| {
            let ran = run(case, &subject);
            outcomes.push(format!("{} {:?}", case.name, ran.outcome));
            matches!(ran.outcome, Outcome::Broken(_))
        });
        if !red {
            let (what, breaks) = (mutant.what, mutant.breaks);
            wrong.push(format!("{what} ({breaks}) is not found: {}", outcomes.join(", ")));
        }
    }
    wrong
}
