//! The process that judges: it starts lanes, hears what they say, and writes the card.

use super::{Said, engine, from_line, suite};
use crate::child;
use crate::cli::VerifyArgs;
use crate::fail::{Failure, Outcome};
use crate::interrupt;
use crate::out;
use crate::plugin::{CaseRow, Described, Kind, Manifest, Verdict, card_path, digest};
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

/// Judges a library; `manifest` is the one that named it.
pub fn judge(args: &VerifyArgs, library: &Path, manifest: Option<&Manifest>) -> Outcome<()> {
    interrupt::catch()?;
    let before = digest(library)?;
    let mut heard = Heard::new(args);
    while !heard.done {
        let first = heard.next;
        heard.run_lane(args, library)?;
        if heard.next == first && !heard.done {
            // It ended before it said anything of a case.
            let why = heard.fault.unwrap_or_else(|| "its process ended and said nothing".into());
            return Err(Failure::new(why));
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
        cases.push(engine::run(args, library, &plugin, deadline(args))?);
    }
    let missing = missing(args, plugin.kind, &cases);
    if let Some(name) = missing.first() {
        let known = args.case.is_empty();
        return Err(Failure::usage(match known {
            true => {
                format!("the lanes said nothing of case `{name}`; nothing is said of the library")
            }
            false => format!("the suite of {} plugins has no case `{name}`", plugin.kind.word()),
        }));
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

/// Cases that were asked for, or all of the suite, of which there is no row.
fn missing(args: &VerifyArgs, kind: Kind, cases: &[CaseRow]) -> Vec<String> {
    let asked = match args.case.is_empty() {
        true => suite(kind).into_iter().map(|(name, _)| name.to_owned()).collect(),
        false => args.case.clone(),
    };
    asked.into_iter().filter(|name| !cases.iter().any(|row| row.case == *name)).collect()
}

/// How long a case may be silent: more where it does more.
fn deadline(args: &VerifyArgs) -> Duration {
    let usual = Duration::from_secs(60) * args.effort;
    args.case_deadline.map_or(usual, Duration::from_secs)
}

/// Writes the card, and says the verdict: on stdout all of it, in the exit code the sum.
fn tell(args: &VerifyArgs, library: &Path, card: &Verdict) -> Outcome<()> {
    let path = args.card.clone().unwrap_or_else(|| card_path(library));
    let text = kvern_report::pretty(card).map_err(Failure::new)? + "\n";
    // A part of the suite is no verdict.
    let kept = match args.case.is_empty() {
        true => out::publish(&path, text.as_bytes()).map(|()| true).map_err(|failure| {
            Failure::new(format!(
                "the verdict is `{}`, and is kept nowhere: {}; verify as the owner of the \
                 directory, or name another place with --card",
                card.verdict, failure.message
            ))
        }),
        false => Ok(false),
    };
    if args.json {
        out::say(&text)?;
    } else {
        out::say(&shown(card, &path, matches!(kept, Ok(true))))?;
    }
    match card.cases.iter().find(|row| row.outcome == "broken") {
        None => kept.map(drop),
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
        "{} `{}` {}\nlibrary   {library}\nsha256    {sha256}\n\n",
        plugin.kind.title(),
        plugin.name,
        plugin.version,
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
struct Heard {
    /// Begins every line that is a lane's: a plugin may write to stdout too.
    word: String,
    plugin: Option<Described>,
    cases: Vec<CaseRow>,
    /// The case that the next lane starts with.
    next: usize,
    /// The case that began and has not ended, and when.
    open: Option<(String, Instant)>,
    done: bool,
    /// How the last lane ended, where it ended badly.
    fault: Option<String>,
}

impl Heard {
    fn new(args: &VerifyArgs) -> Heard {
        // Nobody's secret: it only tells a lane's lines from what else is written.
        let now = jiff::Timestamp::now().as_nanosecond();
        let word = format!("kvern-lane-{}-{now}-{}", std::process::id(), args.seed);
        let (cases, fault) = (Vec::new(), None);
        Heard { word, plugin: None, cases, next: 0, open: None, done: false, fault }
    }

    /// Runs a lane from the next case on, to its end or to the case that ends it.
    fn run_lane(&mut self, args: &VerifyArgs, library: &Path) -> Outcome<()> {
        let arguments = self.arguments(args, library);
        let silence = Some(deadline(args));
        let ask = child::Ask { arguments: &arguments, budget: Duration::MAX, silence, apart: None };
        let ended = child::run(&ask, &mut |line| self.hear(line))?;
        self.fault = ended.fault();
        if self.open.is_some() {
            let fault = self.fault.clone();
            self.broken(&fault.unwrap_or_else(|| "it ended its process".into()));
            self.done = false;
        } else if let Some(fault) = self.fault.clone().filter(|_| self.next > 0) {
            // Between two cases, or after the last one.
            self.open = Some((ENDS.into(), Instant::now()));
            self.broken(&fault);
        }
        Ok(())
    }

    fn hear(&mut self, line: &str) {
        let Some(said) = from_line(&self.word, line) else { return };
        match said {
            Said::Opened(plugin) => self.plugin = Some(plugin),
            Said::Begin(number, case) => {
                self.unanswered();
                (self.next, self.open) = (number + 1, Some((case, Instant::now())));
            }
            Said::Ran(row) if self.open.as_ref().is_some_and(|(case, _)| *case == row.case) => {
                self.cases.push(row);
                self.open = None;
            }
            Said::Ran(_) => {}
            Said::Done => {
                self.unanswered();
                self.done = true;
            }
        }
    }

    fn unanswered(&mut self) {
        if self.open.is_some() {
            self.broken("it began, and how it ended was not heard");
        }
    }

    /// The open case is broken, for this reason.
    fn broken(&mut self, why: &str) {
        let Some((case, began)) = self.open.take() else { return };
        let kind = self.plugin.as_ref().map(|plugin| plugin.kind);
        let known = kind.map(suite).unwrap_or_default();
        let promises = known.into_iter().find(|(name, _)| *name == case).map(|(_, p)| p);
        self.cases.push(CaseRow {
            case,
            promises: promises.unwrap_or_default(),
            outcome: "broken".into(),
            line: Some(why.into()),
            took_ms: began.elapsed().as_secs_f64() * 1e3,
        });
    }

    fn arguments(&self, args: &VerifyArgs, library: &Path) -> Vec<OsString> {
        let mut out: Vec<OsString> = ["plugins", "verify"].map(Into::into).into();
        out.push(library.into());
        let values = [
            ("--lane", self.next.to_string()),
            ("--word", self.word.clone()),
            ("--seed", args.seed.to_string()),
            ("--effort", args.effort.to_string()),
            ("--case-deadline", deadline(args).as_secs().to_string()),
        ];
        out.extend(values.into_iter().flat_map(|(flag, value)| [flag.into(), value.into()]));
        out.extend(args.case.iter().flat_map(|name| ["--case".into(), OsString::from(name)]));
        out
    }
}

/// What a lane that ends badly outside of any case breaks.
const ENDS: &str = "its_process_ends_in_order";

#[cfg(test)]
mod tests {
    use super::super::line;
    use super::*;
    use std::collections::BTreeMap;

    fn heard(lines: &[String]) -> Heard {
        let (cases, fault) = (Vec::new(), None);
        let word = "w".into();
        let mut heard =
            Heard { word, plugin: None, cases, next: 0, open: None, done: false, fault };
        lines.iter().flat_map(|text| text.split('\n')).for_each(|line| heard.hear(line));
        heard
    }

    fn begin(number: usize, case: &str) -> String {
        line("w", &Said::Begin(number, case.into())).unwrap()
    }

    fn ran(case: &str) -> String {
        let (case, outcome) = (case.into(), "kept".into());
        let row = CaseRow { case, promises: Vec::new(), outcome, line: None, took_ms: 1.0 };
        line("w", &Said::Ran(row)).unwrap()
    }

    fn outcomes(heard: &Heard) -> Vec<(&str, &str)> {
        heard.cases.iter().map(|row| (row.case.as_str(), row.outcome.as_str())).collect()
    }

    #[test]
    fn a_plugins_own_words_lose_no_case_and_say_none() {
        let noise = |text: &str| text.to_owned();
        let forged = serde_json::to_string(&Said::Done).unwrap();
        let lines =
            [begin(0, "a"), noise("debug: "), ran("a"), noise(&forged), begin(1, "b"), ran("b")];
        // As they come on one stdout, without line ends of the plugin's.
        let heard = heard(&[lines.concat()]);
        assert_eq!(outcomes(&heard), [("a", "kept"), ("b", "kept")]);
        assert!(!heard.done);
    }

    #[test]
    fn a_case_without_an_answer_is_broken() {
        let done = line("w", &Said::Done).unwrap();
        let heard = heard(&[begin(0, "a"), begin(1, "b"), ran("c"), done]);
        assert_eq!(outcomes(&heard), [("a", "broken"), ("b", "broken")]);
        assert!(heard.done && heard.next == 2);
    }

    #[test]
    fn a_suite_names_each_case_once_and_the_engines_last() {
        for kind in Kind::ALL {
            let suite = suite(kind);
            let names: BTreeMap<_, _> = suite.iter().map(|(name, p)| (*name, p)).collect();
            assert_eq!(names.len(), suite.len());
            assert!(suite.last().is_some_and(|(name, _)| name.starts_with("in_the_engine_")));
        }
    }
}
