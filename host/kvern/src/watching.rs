//! Who watches a run: a timeline in a file, and a line on stderr.

use crate::cli::WatchArgs;
use crate::fail::Outcome;
use crate::progress::Bars;
use crate::trace::Trace;
use kvern_engine::Watch;

/// What was asked for. Dropped, files and lines end.
#[derive(Default)]
pub struct Watching {
    trace: Option<Trace>,
    bars: Option<Bars>,
}

impl Watching {
    /// Begins. *Errors*: the timeline's file cannot be made.
    pub fn begin(args: &WatchArgs) -> Outcome<Watching> {
        let trace = args.trace.as_deref().map(Trace::begin).transpose()?;
        let bars = if args.no_progress { None } else { Bars::begin()? };
        Ok(Watching { trace, bars })
    }

    /// For the engine; `drive` is what the drive gives at most, in bytes a second.
    pub fn watch(&self, drive: Option<f64>) -> Watch {
        Watch {
            span: self.trace.as_ref().map(Trace::sink),
            progress: self.bars.as_ref().map(|bars| bars.sink(drive)),
        }
    }
}
