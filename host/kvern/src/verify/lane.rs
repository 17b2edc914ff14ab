//! The process that runs the cases.

use super::Said;
use crate::cli::VerifyArgs;
use crate::fail::{Failure, Outcome};
use crate::out;
use crate::plugin::{CaseRow, Kind, describe};
use kvern_abi::Plugin;
use kvern_contract::{Error, ErrorKind};
use kvern_testkit::{Case, Outcome as Ended, Subject, device, kv, offload, run};
use std::path::Path;

/// Runs the cases from number `first` on, and says each on stdout.
pub fn lane(args: &VerifyArgs, library: &Path, first: usize) -> Outcome<()> {
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

fn say(said: &Said) -> Outcome<()> {
    let line = serde_json::to_string(said).map_err(Failure::new)?;
    out::say(&(line + "\n"))
}

fn cases<P: ?Sized>(
    args: &VerifyArgs,
    described: &crate::plugin::Described,
    first: usize,
    cases: &[Case<P>],
    make: &dyn Fn() -> kvern_contract::Result<Box<P>>,
) -> Outcome<()> {
    say(&Said::Opened(described.clone()))?;
    let mut subject = Subject::new(make);
    (subject.seed, subject.effort) = (args.seed, args.effort);
    for (number, case) in cases.iter().enumerate().skip(first) {
        if !args.case.is_empty() && !args.case.iter().any(|name| name == case.name) {
            continue;
        }
        say(&Said::Begin(number, case.name.into()))?;
        let ran = run(case, &subject);
        let (outcome, line) = match ran.outcome {
            Ended::Kept => ("kept", None),
            Ended::Broken(line) => ("broken", Some(line)),
            Ended::Skipped(reason) => ("skipped", Some(reason)),
        };
        say(&Said::Ran(CaseRow {
            case: case.name.into(),
            promises: case.promises.iter().map(ToString::to_string).collect(),
            outcome: outcome.into(),
            line,
            took_ms: ran.took.as_secs_f64() * 1e3,
        }))?;
    }
    say(&Said::Done)
}
