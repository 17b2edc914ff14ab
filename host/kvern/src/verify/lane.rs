//! The process that runs the cases.

use super::{Said, line};
use crate::cli::VerifyArgs;
use crate::fail::{Failure, Outcome};
use crate::plugin::{CaseRow, Kind, describe};
use crate::{out, watchdog};
use kvern_abi::Plugin;
use kvern_contract::{Error, ErrorKind};
use kvern_testkit::{Case, Outcome as Ended, Subject, device, kv, offload, run};
use std::path::Path;
use std::time::Duration;

/// Runs the cases from number `first` on, and says each on stdout.
pub fn lane(args: &VerifyArgs, library: &Path, first: usize) -> Outcome<()> {
    // The judge's deadline is the lane's: a call that hangs is named by whoever sees it first.
    args.case_deadline.map(Duration::from_secs).into_iter().for_each(watchdog::watch);
    let plugin = kvern_abi::open(library)?;
    let described = describe(&plugin)?;
    match described.kind {
        Kind::Kv => cases(args, &described, first, &kv::cases(), &|| match open(library)? {
            Plugin::Kv(plugin) => Ok(plugin),
            _ => Err(another()),
        }),
        Kind::Offload => {
            cases(args, &described, first, &offload::cases(), &|| match open(library)? {
                Plugin::Offload(plugin) => Ok(plugin),
                _ => Err(another()),
            })
        }
        Kind::Device => {
            cases(args, &described, first, &device::cases(), &|| match open(library)? {
                Plugin::Device(plugin) => Ok(plugin),
                _ => Err(another()),
            })
        }
    }
}

fn open(library: &Path) -> kvern_contract::Result<Plugin> {
    kvern_abi::open(library)
}

fn another() -> Error {
    Error::new(ErrorKind::Mismatch, "abi/open", "the library became another kind of plugin")
}

fn say(args: &VerifyArgs, said: &Said) -> Outcome<()> {
    let Some(word) = &args.word else { return Err(Failure::usage("--lane needs --word")) };
    out::say(&line(word, said)?)
}

fn cases<P: ?Sized>(
    args: &VerifyArgs,
    described: &crate::plugin::Described,
    first: usize,
    cases: &[Case<P>],
    make: &dyn Fn() -> kvern_contract::Result<Box<P>>,
) -> Outcome<()> {
    say(args, &Said::Opened(described.clone()))?;
    let mut subject = Subject::new(make);
    (subject.seed, subject.effort) = (args.seed, args.effort);
    for (number, case) in cases.iter().enumerate().skip(first) {
        if !args.case.is_empty() && !args.case.iter().any(|name| name == case.name) {
            continue;
        }
        say(args, &Said::Begin(number, case.name.into()))?;
        let ran = run(case, &subject);
        let (outcome, line) = match ran.outcome {
            Ended::Kept => ("kept", None),
            Ended::Broken(line) => ("broken", Some(line)),
            Ended::Skipped(reason) => ("skipped", Some(reason)),
        };
        say(
            args,
            &Said::Ran(CaseRow {
                case: case.name.into(),
                promises: case.promises.iter().map(ToString::to_string).collect(),
                outcome: outcome.into(),
                line,
                took_ms: ran.took.as_secs_f64() * 1e3,
            }),
        )?;
    }
    say(args, &Said::Done)
}
