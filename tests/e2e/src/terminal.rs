//! A terminal of a test's own.

use crate::Ended;
use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};

/// Runs a command to its end with a terminal for its stderr, and for its stdout too where `both`;
/// what the terminal was sent is its stderr.
pub fn on_terminal(mut command: Command, both: bool) -> Ended {
    let (mut ours, theirs) = pair();
    command.env("TERM", "xterm").stdout(Stdio::piped());
    if both {
        command.stdout(theirs.try_clone().expect("another handle of the terminal"));
    }
    let mut child = command.stderr(theirs).spawn().expect("the binary starts");
    // The command holds its side of the terminal, which ends for us when nobody does.
    drop(command);
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.map(|mut from| from.read_to_string(&mut text).expect("stdout is text"));
        text
    });
    let mut sent = Vec::new();
    // Once the other side is closed there is no more to read, which is told as an error.
    let _closed = ours.read_to_end(&mut sent);
    let code = child.wait().expect("it ends").code();
    let stdout = reader.join().expect("stdout was read");
    Ended { code, stdout, stderr: String::from_utf8_lossy(&sent).into_owned() }
}

/// A terminal: our side, and that of a program.
fn pair() -> (File, File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&ours).expect("it is ours");
    unlockpt(&ours).expect("it can be opened");
    let name = ptsname(&ours, Vec::new()).expect("it has a name");
    let name = name.to_str().expect("a name is text").to_owned();
    let theirs = File::options().read(true).write(true).open(name).expect("its other side");
    (ours.into(), theirs)
}
