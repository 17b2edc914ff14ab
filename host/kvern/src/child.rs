//! This program in a process of its own: started anew, in a group of its own, ended when its time
//! is over. A plugin that crashes or hangs there costs that process alone, and the trail that it
//! keeps says which plugin and which call it was.

use crate::fail::{Failure, Outcome, one_line};
use crate::interrupt;
use kvern_abi::trail::{self, Call, signal_name};
use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// `PARENT:FILE`: in which file a process of this parent keeps its trail, for the parent to read.
const TRAIL: &str = "KVERN_TRAIL";
/// How often a running process is looked at; coarse, so that looking costs it nothing.
const LOOK: Duration = Duration::from_millis(20);
/// The most that a look may add to a time: what goes beyond, this process was stopped for.
const STOPPED: Duration = Duration::from_secs(1);
/// How long a process that has ended may still be heard: what it left behind may hold its pipes.
const ECHO: Duration = Duration::from_secs(1);

/// What to run.
pub struct Ask<'a> {
    /// The command line, without the program.
    pub arguments: &'a [OsString],
    /// Most time for all of it.
    pub budget: Duration,
    /// Most time until the next line of stdout; `None`: as long as the budget lasts.
    pub silence: Option<Duration>,
    /// Runs there, without the user's variables; `None`: here, with them.
    pub apart: Option<&'a Path>,
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
    let mut command = Command::new(program);
    if let Some(directory) = ask.apart {
        let ours = |name: &OsString| name.to_string_lossy().starts_with("KVERN_");
        let set: Vec<OsString> = std::env::vars_os().map(|(name, _)| name).filter(ours).collect();
        for name in &set {
            command.env_remove(name);
        }
        command.current_dir(directory);
    }
    let mut child = command
        .args(ask.arguments)
        .env(TRAIL, kept.word())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|e| Failure::new(format!("a process of its own does not start: {e}")))?;
    let (said, lines) = channel();
    let stdout = Reader::of(child.stdout.take(), Some(said));
    let stderr = Reader::of(child.stderr.take(), None);
    let mut watched = Watched { child: &mut child, lines, kept: &kept };
    let end = watched.wait(ask, on_line)?;
    // What it started and left behind would hold its pipes open; what has left its group does.
    end_group(watched.child, Signal::KILL);
    let until = Instant::now() + ECHO;
    let (stdout, stderr) = (stdout.text(until), stderr.text(until));
    // What came after the last look.
    watched.lines.try_iter().for_each(|line| on_line(&line));
    let code = end.status.code().unwrap_or_else(|| 128 + end.status.signal().unwrap_or(0));
    Ok(Ended {
        code: if end.late.is_some() { 124 } else { code },
        signal: end.status.signal().filter(|_| end.late.is_none()),
        late: end.late,
        stdout,
        stderr,
        calls: end.calls,
    })
}

/// Keeps this process's trail where its parent asked for it, and tells crashes. A process that was
/// started for another ends with it.
pub fn keep_trail() {
    if let Some((parent, path)) = std::env::var_os(TRAIL).as_deref().and_then(asked_by) {
        match trail::keep_in(path) {
            Ok(()) => {
                // The parent has it open. Without its name nothing of it stays, whoever ends first.
                let _gone = std::fs::remove_file(path);
                end_with(parent);
            }
            // What a process like this one starts has its variables, and finds the file in use.
            Err(error) => crate::log::line(4, &format!("no trail is kept for another: {error}")),
        }
    }
    if let Err(error) = trail::tell_crashes() {
        crate::log::line(2, &format!("a plugin that crashes will not be named: {error}"));
    }
}

/// Parent and file of the variable's text.
fn asked_by(text: &OsStr) -> Option<(Pid, &Path)> {
    let bytes = text.as_bytes();
    let colon = bytes.iter().position(|byte| *byte == b':')?;
    let parent = std::str::from_utf8(&bytes[..colon]).ok()?.parse().ok()?;
    Some((Pid::from_raw(parent)?, Path::new(OsStr::from_bytes(&bytes[colon + 1..]))))
}

/// This process ends when its parent does, or has already.
fn end_with(parent: Pid) {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        crate::log::line(2, &format!("this process may outlive the one that waits: {error}"));
    }
    if getppid() != Some(parent) {
        trail::leave(1);
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

/// A trail's file. Its name goes with this, or as soon as it is in use.
struct Kept {
    path: PathBuf,
    file: File,
}

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
        let made = how.read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = made.map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
        Ok(Kept { path, file })
    }

    /// The variable's text.
    fn word(&self) -> OsString {
        let mut word = OsString::from(format!("{}:", std::process::id()));
        word.push(&self.path);
        word
    }

    /// What it tells; nothing where the process opened no plugin.
    fn calls(&self) -> Vec<Call> {
        trail::read_from(&self.file).unwrap_or_default()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// What comes out of a pipe, read by a thread of its own.
struct Reader {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Closed when nothing more comes.
    open: Receiver<()>,
}

impl Reader {
    /// Reads from here on; each line goes to `said` as it comes, too.
    fn of(pipe: Option<impl Read + Send + 'static>, said: Option<Sender<String>>) -> Reader {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (held, open) = channel();
        let all = Arc::clone(&bytes);
        std::thread::spawn(move || {
            let _held = held;
            let Some(mut pipe) = pipe else { return };
            let (mut block, mut line) = (vec![0; 1 << 16], Vec::new());
            // Nobody listens any more once the process has ended; the text is kept.
            let say = |line: &[u8]| {
                let line = || String::from_utf8_lossy(line).into_owned();
                said.iter().for_each(|said| drop(said.send(line())));
            };
            // What came before a read failed is still worth keeping.
            while let Some(some) = pipe.read(&mut block).ok().filter(|bytes| *bytes > 0) {
                all.lock().unwrap_or_else(PoisonError::into_inner).extend(&block[..some]);
                for byte in &block[..some] {
                    match byte {
                        b'\n' => {
                            say(&line);
                            line.clear();
                        }
                        byte if said.is_some() => line.push(*byte),
                        _ => {}
                    }
                }
            }
            if !line.is_empty() {
                say(&line);
            }
        });
        Reader { bytes, open }
    }

    /// All that has come, once nothing more comes or it is too late.
    fn text(self, until: Instant) -> String {
        // Nothing is ever sent: it is closed, or it is too late.
        let _ = self.open.recv_timeout(until.saturating_duration_since(Instant::now()));
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
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
        let (mut last, mut age, mut quiet) = (Instant::now(), Duration::ZERO, Duration::ZERO);
        loop {
            let now = Instant::now();
            let passed = now.saturating_duration_since(last).min(STOPPED);
            (last, age, quiet) = (now, age + passed, quiet + passed);
            for line in self.lines.try_iter() {
                quiet = Duration::ZERO;
                on_line(&line);
            }
            if let Some(status) = self.child.try_wait().map_err(Failure::new)? {
                return Ok(End { status, late: None, calls: self.kept.calls() });
            }
            let late = match ask.silence {
                _ if age >= ask.budget => Some(Late::Budget(ask.budget)),
                Some(most) if quiet >= most => Some(Late::Silence(most)),
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
    fn a_pipe_that_another_holds_open_is_not_waited_for() {
        let (pipe, mut held) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut held, b"one\ntwo\nhalf").unwrap();
        let (said, lines) = channel();
        let reader = Reader::of(Some(pipe), Some(said));
        assert_eq!([lines.recv().unwrap(), lines.recv().unwrap()], ["one", "two"]);
        assert_eq!(reader.text(Instant::now() + Duration::from_millis(100)), "one\ntwo\nhalf");
        drop(held);
        assert_eq!(lines.recv().unwrap(), "half", "what has no end of its line comes at the end");
        let (pipe, held) = std::io::pipe().unwrap();
        drop(held);
        let reader = Reader::of(Some(pipe), None);
        assert_eq!(reader.text(Instant::now() + Duration::from_secs(3600)), "");
    }

    #[test]
    fn a_trail_is_asked_for_by_a_parent_and_a_file() {
        let asked = |text: &str| {
            let asked = asked_by(OsStr::new(text))?;
            Some((asked.0.as_raw_nonzero().get(), asked.1.to_string_lossy().into_owned()))
        };
        assert_eq!(asked("7:/tmp/a:b"), Some((7, "/tmp/a:b".into())));
        for wrong in ["", ":", "precious", "/tmp/x", "-:x", "0:x", "x:7", "99999999999:x"] {
            assert_eq!(asked(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_trails_file_is_read_without_its_name() {
        let kept = Kept::new().unwrap();
        assert_eq!(asked_by(&kept.word()).unwrap().1, kept.path);
        std::fs::remove_file(&kept.path).unwrap();
        assert_eq!(kept.calls(), [], "nothing is kept in it yet");
    }

    #[test]
    fn a_tail_keeps_the_end() {
        assert_eq!(tail("a\n\nb\nc\nd\ne\nf\n"), "b\nc\nd\ne\nf");
        assert_eq!(tail(&"x".repeat(500)).len(), 400);
    }
}
