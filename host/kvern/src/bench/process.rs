//! A lane's process: started anew, in a group of its own, ended when its time is over.

use crate::fail::{Failure, Outcome};
use crate::interrupt;
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How a process ended.
pub struct Ended {
    /// Its exit code; 124 after its time was over; 128 and the signal's number after a signal.
    pub code: i32,
    /// Whether its time was over.
    pub timed_out: bool,
    /// All of its stdout.
    pub stdout: String,
    /// All of its stderr.
    pub stderr: String,
}

/// How often a running process is looked at; coarse, so that looking costs it nothing.
const LOOK: Duration = Duration::from_millis(20);

/// Runs this program with these arguments, at most for `budget`.
pub fn run(arguments: &[OsString], budget: Duration) -> Outcome<Ended> {
    let program = std::env::current_exe().map_err(Failure::new)?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|e| Failure::new(format!("a lane's process does not start: {e}")))?;
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let (status, timed_out) = wait(&mut child, budget)?;
    let text = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
    let code = if timed_out { 124 } else { code_of(status) };
    Ok(Ended { code, timed_out, stdout: text(stdout), stderr: text(stderr) })
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What came before a read failed is still worth keeping.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child, budget: Duration) -> Outcome<(ExitStatus, bool)> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(Failure::new)? {
            return Ok((status, false));
        }
        let (late, asked) = (began.elapsed() >= budget, interrupt::asked());
        if late || asked {
            end(child);
            let status = child.wait().map_err(Failure::new)?;
            return if asked { Err(Failure::interrupted()) } else { Ok((status, late)) };
        }
        std::thread::sleep(LOOK);
    }
}

/// Asks the whole group to end in order, then ends it.
fn end(child: &mut Child) {
    let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
    for signal in [Signal::INT, Signal::KILL] {
        // A group that is gone already needs no signal.
        let _ = kill_process_group(group, signal);
        let patience = Instant::now() + Duration::from_secs(2);
        while Instant::now() < patience {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn code_of(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
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

    #[test]
    fn a_tail_keeps_the_end() {
        assert_eq!(tail("a\n\nb\nc\nd\ne\nf\n"), "b\nc\nd\ne\nf");
        assert_eq!(tail(&"x".repeat(500)).len(), 400);
    }
}
