//! This program in a process of its own: started anew, in a group of its own, ended when its time
//! is over. A plugin that crashes or hangs there costs that process alone, and the trail that it
//! keeps says which plugin and which call it was.

use crate::fail::{Failure, Outcome, one_line};
use crate::interrupt;
use kvern_abi::trail::{self, Call, signal_name};
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// The file in which a process keeps its trail, where its parent wants to read it.
const TRAIL: &str = "KVERN_TRAIL";
/// How often a running process is looked at; coarse, so that looking costs it nothing.
const LOOK: Duration = Duration::from_millis(20);

/// What to run.
pub struct Ask<'a> {
    /// The command line, without the program.
    pub arguments: &'a [OsString],
    /// Most time for all of it.
    pub budget: Duration,
    /// Most time until the next line of stdout; `None`: as long as the budget lasts.
    pub silence: Option<Duration>,
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; 124 after its time was over; 128 and the signal's number after a signal.
    pub code: i32,
    /// The signal that ended it, where no time was over.
    pub signal: Option<i32>,
    /// Which time was over.
    pub late: Option<Late>,
    /// All of its stdout.
    pub stdout: String,
    /// All of its stderr.
    pub stderr: String,
    /// The calls into plugins that had not ended when it did.
    pub calls: Vec<Call>,
}

/// Why a process was ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Late {
    /// It did not end in its time.
    Budget(Duration),
    /// It said nothing for so long.
    Silence(Duration),
}

/// Runs this program to its end. `on_line` gets each line of its stdout as it comes.
///
/// *Errors* the system's, and Ctrl-C, which ends the process first.
pub fn run(ask: &Ask<'_>, on_line: &mut dyn FnMut(&str)) -> Outcome<Ended> {
    let program = std::env::current_exe().map_err(Failure::new)?;
    let kept = Kept::new()?;
    let mut child = Command::new(program)
        .args(ask.arguments)
        .env(TRAIL, &kept.0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|e| Failure::new(format!("a process of its own does not start: {e}")))?;
    let (said, lines) = channel();
    let (stdout, stderr) = (read_lines(child.stdout.take(), said), read_all(child.stderr.take()));
    let mut watched = Watched { child: &mut child, lines, kept: &kept };
    let end = watched.wait(ask, on_line)?;
    // What it started and left behind would hold its pipes open.
    end_group(watched.child, Signal::KILL);
    let stdout = stdout.join().unwrap_or_default();
    // What came after the last look.
    watched.lines.try_iter().for_each(|line| on_line(&line));
    let code = end.status.code().unwrap_or_else(|| 128 + end.status.signal().unwrap_or(0));
    Ok(Ended {
        code: if end.late.is_some() { 124 } else { code },
        signal: end.status.signal().filter(|_| end.late.is_none()),
        late: end.late,
        stdout,
        stderr: stderr.join().unwrap_or_default(),
        calls: end.calls,
    })
}

/// Keeps this process's trail where its parent asked for it, and tells crashes.
pub fn keep_trail() {
    let kept = match std::env::var_os(TRAIL) {
        Some(path) => trail::keep_in(Path::new(&path)),
        None => Ok(()),
    };
    if let Err(error) = kept.and_then(|()| trail::tell_crashes()) {
        crate::log::line(2, &format!("a plugin that crashes will not be named: {error}"));
    }
}

impl Ended {
    /// Why it ended badly, in one line that names plugin and call where one is at fault; `None`
    /// where it ended well.
    pub fn fault(&self) -> Option<String> {
        if let Some(late) = self.late {
            let what = match late {
                Late::Budget(time) => format!("it did not end in {}", seconds(time)),
                Late::Silence(time) => format!("nothing was heard of it for {}", seconds(time)),
            };
            let inside: Vec<_> =
                self.calls.iter().map(|c| format!("{} was in {}", c.who(), c.place())).collect();
            let inside =
                if inside.is_empty() { "no plugin was called".into() } else { inside.join(", ") };
            return Some(format!("{what}; {inside}"));
        }
        if let Some(signal) = self.signal {
            let struck = self.calls.iter().find(|call| call.struck.is_some());
            return Some(match (struck, &self.calls[..]) {
                (Some(call), _) => crashed(call, call.struck.unwrap_or(signal)),
                (None, [call]) => crashed(call, signal),
                (None, []) => {
                    format!("it was ended by {} outside of any plugin", signal_name(signal))
                }
                (None, calls) => {
                    let each: Vec<_> =
                        calls.iter().map(|c| format!("{} in {}", c.who(), c.place())).collect();
                    format!("it was ended by {}, with {}", signal_name(signal), each.join(" and "))
                }
            });
        }
        (self.code != 0).then(|| {
            let last = tail(&self.stderr);
            let last = last.lines().last().unwrap_or("it said nothing");
            one_line(last.strip_prefix("kvern: ").unwrap_or(last))
        })
    }
}

fn crashed(call: &Call, signal: i32) -> String {
    format!("{} crashed in {}: {}", call.who(), call.place(), signal_name(signal))
}

/// A time as a sentence says it.
pub fn seconds(time: Duration) -> String {
    format!("{} s", (time.as_secs_f64() * 10.0).round() / 10.0)
}

/// A trail's file, removed with this.
struct Kept(PathBuf);

impl Kept {
    /// Ours alone: made here, not taken over.
    fn new() -> Outcome<Kept> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kvern-trail-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        // What a process of the same number left long ago.
        let _gone = std::fs::remove_file(&path);
        let mut how = std::fs::OpenOptions::new();
        let made = how.write(true).create_new(true).mode(0o600).open(&path);
        made.map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
        Ok(Kept(path))
    }

    /// What it tells; nothing where the process opened no plugin.
    fn calls(&self) -> Vec<Call> {
        trail::read(&self.0).unwrap_or_default()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

fn read_all(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What came before a read failed is still worth keeping.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn read_lines(
    pipe: Option<impl Read + Send + 'static>,
    said: Sender<String>,
) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut all, mut line) = (String::new(), Vec::new());
        let Some(pipe) = pipe else { return all };
        let mut pipe = BufReader::new(pipe);
        while pipe.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let text = String::from_utf8_lossy(&line);
            all.push_str(&text);
            // Nobody listens any more once the process has ended; the text is kept.
            let _ = said.send(text.trim_end_matches('\n').into());
            line.clear();
        }
        all
    })
}

struct Watched<'a> {
    child: &'a mut Child,
    lines: Receiver<String>,
    kept: &'a Kept,
}

struct End {
    status: ExitStatus,
    late: Option<Late>,
    calls: Vec<Call>,
}

impl Watched<'_> {
    fn wait(&mut self, ask: &Ask<'_>, on_line: &mut dyn FnMut(&str)) -> Outcome<End> {
        let began = Instant::now();
        let mut heard = began;
        loop {
            for line in self.lines.try_iter() {
                heard = Instant::now();
                on_line(&line);
            }
            if let Some(status) = self.child.try_wait().map_err(Failure::new)? {
                return Ok(End { status, late: None, calls: self.kept.calls() });
            }
            let late = match ask.silence {
                _ if began.elapsed() >= ask.budget => Some(Late::Budget(ask.budget)),
                Some(most) if heard.elapsed() >= most => Some(Late::Silence(most)),
                _ => None,
            };
            if late.is_some() || interrupt::asked() {
                let calls = self.kept.calls();
                end(self.child);
                let status = self.child.wait().map_err(Failure::new)?;
                return match interrupt::asked() {
                    true => Err(Failure::interrupted()),
                    false => Ok(End { status, late, calls }),
                };
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// Sends a signal to a process and all that it started.
fn end_group(child: &Child, signal: Signal) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // A group that is gone already needs no signal.
        let _ = kill_process_group(group, signal);
    }
}

/// Asks the whole group to end in order, then ends it.
fn end(child: &mut Child) {
    for signal in [Signal::INT, Signal::KILL] {
        end_group(child, signal);
        let patience = Instant::now() + Duration::from_secs(2);
        while Instant::now() < patience {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// The last lines of a text, at most 400 characters.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let kept = lines[lines.len().saturating_sub(5)..].join("\n");
    let skip = kept.chars().count().saturating_sub(400);
    kept.chars().skip(skip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(operation: &str, struck: Option<i32>) -> Call {
        Call {
            plugin: "kv strategy `x`".into(),
            library: "/l/libx.so".into(),
            operation: operation.into(),
            host: None,
            sequence: 1,
            limit: None,
            struck,
            thread: 1,
        }
    }

    fn fault(signal: Option<i32>, late: Option<Late>, calls: &[Call]) -> String {
        let (stdout, stderr) = (String::new(), String::new());
        let ended = Ended { code: 139, signal, late, stdout, stderr, calls: calls.to_vec() };
        ended.fault().unwrap()
    }

    #[test]
    fn a_crash_names_plugin_and_call() {
        let (load, wait) = (call("kv/load", None), call("device/wait", None));
        let crashed = "kv strategy `x` (/l/libx.so) crashed in kv/load: SIGSEGV";
        assert_eq!(fault(Some(11), None, std::slice::from_ref(&load)), crashed);
        let struck = call("kv/load", Some(11));
        assert_eq!(fault(Some(6), None, &[wait.clone(), struck]), crashed, "the one it came in");
        let both = fault(Some(9), None, &[load, wait]);
        assert!(both.starts_with("it was ended by SIGKILL, with kv strategy `x`"), "{both}");
        assert_eq!(fault(Some(9), None, &[]), "it was ended by SIGKILL outside of any plugin");
    }

    #[test]
    fn what_is_late_names_what_it_was_in() {
        let told = fault(None, Some(Late::Silence(Duration::from_millis(1500))), &[]);
        assert_eq!(told, "nothing was heard of it for 1.5 s; no plugin was called");
        let told =
            fault(None, Some(Late::Budget(Duration::from_secs(90))), &[call("kv/open", None)]);
        assert_eq!(told, "it did not end in 90 s; kv strategy `x` (/l/libx.so) was in kv/open");
    }

    #[test]
    fn a_tail_keeps_the_end() {
        assert_eq!(tail("a\n\nb\nc\nd\ne\nf\n"), "b\nc\nd\ne\nf");
        assert_eq!(tail(&"x".repeat(500)).len(), 400);
    }
}
