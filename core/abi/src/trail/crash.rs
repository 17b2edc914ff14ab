//! What a process says when a signal ends it inside a plugin: one line on stderr, and a mark in the
//! thread's slot. Everything in the handler is safe in a handler: atomics, a buffer of its own
//! stack, one `write`.
#![allow(unsafe_code)]

use super::SLOT;
use super::table::{self, Slot};
use kvern_contract::{Error, ErrorKind, Result};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

/// The signals by which a crash shows.
const SIGNALS: [(i32, &str); 6] = [
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGTRAP, "SIGTRAP"),
];

/// What was there before: it has its turn afterwards.
static BEFORE: [OnceLock<libc::sigaction>; SIGNALS.len()] =
    [const { OnceLock::new() }; SIGNALS.len()];
static TOLD: AtomicBool = AtomicBool::new(false);

/// A signal's name, or its number where it has none here.
pub fn signal_name(signal: i32) -> String {
    let more = [(libc::SIGKILL, "SIGKILL"), (libc::SIGTERM, "SIGTERM"), (libc::SIGSYS, "SIGSYS")];
    let known = SIGNALS.iter().chain(&more).find(|(number, _)| *number == signal);
    known.map_or_else(|| format!("signal {signal}"), |(_, name)| (*name).into())
}

/// From here on a signal that ends the process inside a plugin's call is told on stderr in one
/// line that names plugin, library and call, and is marked in the trail. Then the process ends by
/// it as it would have. *Errors* Internal: the system refuses the handler.
pub fn tell_crashes() -> Result<()> {
    for ((signal, name), before) in SIGNALS.iter().zip(&BEFORE) {
        if before.get().is_some() {
            continue;
        }
        // SAFETY: all zeros is a `sigaction`: no flags, an empty mask, the default handler.
        let (mut new, mut old): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
        new.sa_sigaction = strike as extern "C" fn(_, _, _) as usize;
        // On the stack that the standard library sets aside for stacks that overflow.
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: both point to live values of this frame, and the handler is what the flags say.
        if unsafe { libc::sigaction(*signal, &new, &mut old) } != 0 {
            let text = format!("{name} cannot be caught: {}", std::io::Error::last_os_error());
            return Err(Error::new(ErrorKind::Internal, table::OPERATION, text));
        }
        let _ = before.set(old);
    }
    Ok(())
}

/// Ends the process here and now. Nothing that a plugin registered for the end is run: it may be
/// what hangs.
pub fn leave(code: i32) -> ! {
    // SAFETY: it takes any number and does not return.
    unsafe { libc::_exit(code) }
}

extern "C" fn strike(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let (at, name) = match SIGNALS.iter().position(|(number, _)| *number == signal) {
        Some(at) => (at, SIGNALS.get(at).map_or("a signal", |(_, name)| name)),
        None => return,
    };
    if !TOLD.swap(true, Relaxed) {
        tell(signal, name);
    }
    // SAFETY: the kernel passes a live `siginfo_t`, since the handler asked for one.
    let sent = unsafe { info.as_ref() }.is_none_or(|info| info.si_code <= 0);
    // The old handler is back when the signal repeats.
    if let Some(mut before) = BEFORE.get(at).and_then(OnceLock::get).copied() {
        if sent && before.sa_sigaction != libc::SIG_IGN {
            // The standard library's handler would take what was sent for a fault, and return.
            before.sa_sigaction = libc::SIG_DFL;
        }
        // SAFETY: `before` is what `sigaction` gave for this signal, or that with the default.
        unsafe { libc::sigaction(signal, &before, std::ptr::null_mut()) };
    }
    if sent || [libc::SIGABRT, libc::SIGTRAP].contains(&signal) {
        // A fault repeats by itself. Nothing repeats what somebody sent, and a breakpoint's
        // instruction is over when it is told. It comes as soon as this returns.
        // SAFETY: raising a signal has no preconditions.
        unsafe { libc::raise(signal) };
    }
}

fn tell(signal: i32, name: &str) {
    let Some(table) = super::TABLE.get() else { return };
    let own = SLOT.get().filter(|slot| slot.state.load(Relaxed) != 0);
    if let Some(slot) = own {
        slot.struck.store(signal as u64, Relaxed);
    }
    let Some(slot) = own.or_else(|| table.busy()) else { return };
    let mut line = Line { bytes: [0; 900], length: 0 };
    line.add(b"kvern: ");
    table.who(slot, &mut |bytes| line.add(bytes));
    line.add(if own.is_some() { b" crashed in " } else { b" was called when it crashed: " });
    Slot::place(slot, &mut |bytes| line.add(bytes));
    line.add(b": ");
    line.add(name.as_bytes());
    line.add(b"\n");
    // SAFETY: the buffer is this frame's and `length` of it is written.
    unsafe { libc::write(2, line.bytes.as_ptr().cast(), line.length) };
}

/// A line without an allocation; what does not fit is left out.
struct Line {
    bytes: [u8; 900],
    length: usize,
}

impl Line {
    fn add(&mut self, bytes: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.length).zip(bytes) {
            *to = *from;
            self.length += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_what_fits() {
        let mut line = Line { bytes: [0; 900], length: 0 };
        (0..100).for_each(|_| line.add(b"0123456789"));
        assert_eq!((line.length, line.bytes[899]), (900, b'9'));
    }

    #[test]
    fn signals_have_names() {
        assert_eq!([11, 6, 9, 63].map(signal_name), ["SIGSEGV", "SIGABRT", "SIGKILL", "signal 63"]);
    }
}
