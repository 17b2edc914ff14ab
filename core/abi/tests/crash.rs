//! A process that tells crashes still ends by the signal that came, whoever sent it.
#![allow(clippy::unwrap_used, unsafe_code)]

use kvern_abi::trail;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

/// In the process that is to end: by what.
const BY: &str = "KVERN_TEST_CRASH";

/// How this test's own program ends where it is told to end by this.
fn ended_by(what: &str) -> Option<i32> {
    let program = std::env::current_exe().unwrap();
    let this = ["--exact", "every_signal_that_comes_ends_the_process"];
    Command::new(program).args(this).env(BY, what).output().unwrap().status.signal()
}

fn end_by(what: &str) {
    trail::tell_crashes().unwrap();
    let raise = |signal: i32| {
        // SAFETY: raising a signal has no preconditions.
        unsafe { libc::raise(signal) };
    };
    match what {
        "SIGABRT" => raise(libc::SIGABRT),
        "SIGTRAP" => raise(libc::SIGTRAP),
        "SIGSEGV" => raise(libc::SIGSEGV),
        "abort" => std::process::abort(),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a breakpoint touches nothing but the program's course.
        "breakpoint" => unsafe { std::arch::asm!("int3") },
        // SAFETY: it is not sound, and is to end this process.
        "fault" => unsafe { std::ptr::null_mut::<u8>().write_volatile(1) },
        _ => {}
    }
}

#[test]
fn every_signal_that_comes_ends_the_process() {
    if let Ok(what) = std::env::var(BY) {
        return end_by(&what);
    }
    let ends = [
        ("SIGABRT", libc::SIGABRT),
        ("SIGTRAP", libc::SIGTRAP),
        ("SIGSEGV", libc::SIGSEGV),
        ("abort", libc::SIGABRT),
        #[cfg(target_arch = "x86_64")]
        ("breakpoint", libc::SIGTRAP),
        ("fault", libc::SIGSEGV),
    ];
    for (what, signal) in ends {
        assert_eq!(ended_by(what), Some(signal), "{what}");
    }
    assert_eq!(ended_by("nothing"), None);
}
