//! `kvern chat`: a conversation, a line of stdin a turn. The session keeps what it has computed.

use super::prompt;
use crate::cli::ChatArgs;
use crate::fail::{Failure, Outcome};
use crate::runtime::{Ask, Prepared, Room, Runtime};
use crate::settings::Settings;
use crate::watching::Watching;
use crate::{interrupt, out};
use kvern_contract::SessionId;
use kvern_engine::Finish;
use kvern_model::Message;
use std::io::{BufRead, IsTerminal, Write};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

struct Conversation {
    runtime: Runtime,
    session: SessionId,
    /// With a template: the messages so far.
    messages: Vec<Message>,
    templated: bool,
}

/// Runs the command.
pub fn run(args: &ChatArgs) -> Outcome<()> {
    interrupt::catch()?;
    let watching = Watching::begin(&args.watch)?;
    let settings = Settings::of(&args.run)?.speculating(&args.speculate, &args.run.plugins)?;
    let prepared = Prepared::new(settings)?.watched(watching);
    let templated = prepared.text()?.has_template();
    if args.system.is_some() && !templated {
        return Err(Failure::usage(format!(
            "--system: {} has no chat template; leave it out, or choose another model",
            prepared.model.name()
        )));
    }
    let mut runtime = prepared.load(Room::default())?;
    let session = runtime.engine.begin()?;
    let messages = args.system.iter().map(|s| Message::new("system", s)).collect();
    let mut talk = Conversation { runtime, session, messages, templated };
    let lines = lines();
    let terminal = std::io::stdin().is_terminal();
    if terminal && !templated {
        out::note("this model has no chat template: it continues what you write; Ctrl-D ends");
    }
    loop {
        if terminal {
            // A prompt for a person, who sees stderr too.
            let _ = write!(std::io::stderr(), "> ").and_then(|()| std::io::stderr().flush());
        }
        // A sender that is gone is the end of stdin.
        let Ok(line) = lines.recv() else { break };
        let Some(line) = line else { return Err(Failure::interrupted()) };
        if !line.trim().is_empty() {
            talk.turn(&line, args)?;
        }
    }
    let session = talk.session;
    talk.runtime.engine.end(session)?;
    Ok(())
}

/// Lines of stdin as they come, and `None` at Ctrl-C: so that waiting for a line can be
/// interrupted.
fn lines() -> Receiver<Option<String>> {
    let (sender, receiver) = channel();
    let reader = sender.clone();
    interrupt::wake(sender);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if reader.send(Some(line)).is_err() {
                return;
            }
        }
        interrupt::forget();
    });
    receiver
}

impl Conversation {
    fn turn(&mut self, line: &str, args: &ChatArgs) -> Outcome<()> {
        let began = Instant::now();
        let all = self.all_ids(line)?;
        let kept = self.keep(&all)?;
        let left = self.runtime.engine.context_tokens().saturating_sub(all.len() as u64);
        if left == 0 {
            return Err(Failure::new(format!(
                "the conversation has {} tokens, and the context holds {}; start a new one",
                all.len(),
                self.runtime.engine.context_tokens()
            )));
        }
        let generation = self.runtime.model.generation().clone();
        let ask = Ask {
            ids: &all[kept..],
            prepared: began.elapsed(),
            max_new_tokens: prompt::max_new_tokens(&args.sampling, &generation),
            sampler: prompt::sampler(&args.sampling, &generation)?,
            ignore_eos: args.sampling.ignore_eos,
            stop: &args.sampling.stop,
        };
        let answer = self.runtime.ask(self.session, ask, &mut |piece| out::say(piece))?;
        out::say("\n")?;
        if self.templated {
            self.messages.push(Message::new("assistant", answer.outcome.text));
        }
        if answer.outcome.finish == Finish::Interrupted || interrupt::asked() {
            return Err(Failure::interrupted());
        }
        Ok(())
    }

    /// Every id of the conversation with this line, up to where the answer begins.
    fn all_ids(&mut self, line: &str) -> Outcome<Vec<u32>> {
        let model = std::sync::Arc::clone(&self.runtime.model);
        let text = model.text()?;
        if self.templated {
            self.messages.push(Message::new("user", line));
            return Ok(text.chat(&self.messages, true)?);
        }
        let mut ids = self.runtime.engine.tokens(self.session)?;
        let line = format!("{line}\n");
        ids.extend(if ids.is_empty() { text.encode(&line)? } else { text.encode_plain(&line)? });
        Ok(ids)
    }

    /// Goes back to where the session and the ids part, and answers how many are kept: at least one
    /// id is left to run.
    fn keep(&mut self, all: &[u32]) -> Outcome<usize> {
        let held = self.runtime.engine.tokens(self.session)?;
        let common = held.iter().zip(all).take_while(|(a, b)| a == b).count();
        let wanted = common.min(all.len().saturating_sub(1));
        if wanted == held.len() {
            return Ok(wanted);
        }
        let landed = self.runtime.engine.rewind(self.session, wanted as u64)?;
        Ok(landed.min(wanted as u64) as usize)
    }
}
