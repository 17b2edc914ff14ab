//! The process that judges: it starts lanes, hears what they say, and writes the card.

use super::{Said, engine};
use crate::child;
use crate::cli::VerifyArgs;
use crate::fail::{Failure, Outcome};
use crate::out;
use crate::plugin::{CaseRow, Described, Manifest, Verdict, card_path, digest};
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// Judges a library; `manifest` is the one that named it.
pub fn judge(args: &VerifyArgs, library: &Path, manifest: Option<&Manifest>) -> Outcome<()> {
    let before = digest(library)?;
    let mut heard = Heard::default();
    loop {
        let first = heard.next;
        heard.run_lane(args, library)?;
        if heard.done {
            break;
        }
        if heard.next == first {
            // It ended before it said anything of a case.
            return Err(Failure::new(
                heard.fault.unwrap_or_else(|| "the lane said nothing".into()),
            ));
        }
    }
    let Some(plugin) = heard.plugin else {
        return Err(Failure::new("the lane did not say who the plugin is"));
    };
    if let Some(manifest) = manifest {
        manifest.compare(&plugin)?;
    }
    let mut cases = heard.cases;
    if engine::is_asked(&args.case, plugin.kind) {
        cases.push(engine::run(library, &plugin, deadline(args))?);
    }
    if cases.is_empty() {
        return Err(Failure::usage(format!(
            "no case `{}`; docs/PROMISES.md lists them",
            args.case.join("`, `")
        )));
    }
    if digest(library)? != before {
        return Err(Failure::new(format!(
            "{} was written while it was verified; verify it again when it is whole",
            library.display()
        )));
    }
    let card = Verdict::of(library, before, plugin, cases, args.seed, args.effort)?;
    tell(args, library, &card)
}

fn deadline(args: &VerifyArgs) -> Duration {
    Duration::from_secs(args.case_deadline)
}

/// Writes the card, and says the verdict: on stdout all of it, in the exit code the sum.
fn tell(args: &VerifyArgs, library: &Path, card: &Verdict) -> Outcome<()> {
    let path = args.card.clone().unwrap_or_else(|| card_path(library));
    let text = kvern_report::pretty(card).map_err(Failure::new)? + "\n";
    // A part of the suite is no verdict.
    let kept = match args.case.is_empty() {
        true => out::publish(&path, text.as_bytes()).map(|()| true),
        false => Ok(false),
    };
    if args.json {
        out::say(&text)?;
    } else {
        out::say(&shown(card, &path, matches!(kept, Ok(true))))?;
    }
    kept?;
    match card.cases.iter().find(|row| row.outcome == "broken") {
        None => Ok(()),
        Some(row) => Err(Failure::new(format!(
            "{} `{}` breaks {} of {} cases, {} first; it is not to be trusted with a run",
            card.plugin.kind.title(),
            card.plugin.name,
            card.counts.broken,
            card.cases.len(),
            row.case
        ))),
    }
}

fn shown(card: &Verdict, path: &Path, kept: bool) -> String {
    let Verdict { plugin, library, sha256, counts, .. } = card;
    let mut text = format!(
        "{} `{}` {}\nlibrary   {}\nsha256    {sha256}\n\n",
        plugin.kind.title(),
        plugin.name,
        plugin.version,
        library.display()
    );
    for row in &card.cases {
        let line =
            row.line.as_ref().map(|line| format!("\n            {line}")).unwrap_or_default();
        text += &format!("{:8}  {} ({:.0} ms){line}\n", row.outcome, row.case, row.took_ms);
    }
    let place = match kept {
        true => format!("; {}", path.display()),
        false => String::new(),
    };
    text + &format!(
        "\n{}: {} cases kept, {} broken, {} skipped in {:.1} s{place}\n",
        card.verdict,
        counts.kept,
        counts.broken,
        counts.skipped,
        card.took_ms / 1e3
    )
}

/// What the lanes said so far.
#[derive(Default)]
struct Heard {
    plugin: Option<Described>,
    cases: Vec<CaseRow>,
    /// The case that the next lane starts with.
    next: usize,
    /// The case that began and has not ended.
    open: Option<String>,
    done: bool,
    /// How the last lane ended, where it ended badly.
    fault: Option<String>,
}

impl Heard {
    /// Runs a lane from the next case on, to its end or to the case that ends it.
    fn run_lane(&mut self, args: &VerifyArgs, library: &Path) -> Outcome<()> {
        let arguments = arguments(args, library, self.next);
        let silence = deadline(args);
        let ask =
            child::Ask { arguments: &arguments, budget: Duration::MAX, silence: Some(silence) };
        let ended = child::run(&ask, &mut |line| {
            // A plugin may write to stdout too.
            if let Ok(said) = serde_json::from_str(line) {
                self.hear(said);
            }
        })?;
        self.fault = ended.fault();
        if self.done {
            return Ok(());
        }
        if let Some(case) = self.open.take() {
            let why = self.fault.clone().unwrap_or_else(|| "it ended the process".into());
            self.cases.push(CaseRow {
                case,
                promises: Vec::new(),
                outcome: "broken".into(),
                line: Some(why),
                took_ms: 0.0,
            });
        }
        Ok(())
    }

    fn hear(&mut self, said: Said) {
        match said {
            Said::Opened(plugin) => self.plugin = Some(plugin),
            Said::Begin(number, case) => (self.next, self.open) = (number + 1, Some(case)),
            Said::Ran(row) => {
                self.cases.push(row);
                self.open = None;
            }
            Said::Done => self.done = true,
        }
    }
}

fn arguments(args: &VerifyArgs, library: &Path, first: usize) -> Vec<OsString> {
    let mut out: Vec<OsString> = ["plugins", "verify"].map(Into::into).into();
    out.push(library.into());
    let numbers = [
        ("--lane", first.to_string()),
        ("--seed", args.seed.to_string()),
        ("--effort", args.effort.to_string()),
    ];
    out.extend(numbers.into_iter().flat_map(|(flag, value)| [flag.into(), value.into()]));
    out.extend(args.case.iter().flat_map(|name| ["--case".into(), OsString::from(name)]));
    out
}
