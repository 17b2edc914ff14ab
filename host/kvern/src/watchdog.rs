//! A plugin that does not come back. A call cannot be cancelled, so who hangs is named and the
//! process ends: a run with its exit code, a lane with its reason.
//!
//! Only calls that the engine itself waits for count. A store has a thread of its own, which the
//! pager gives up and does without; so has the opening of a store, which ends with an error.
//!
//! A call has an age, which grows while it is looked at: not while this process is stopped, and not
//! while the host works for the plugin.

use crate::child::seconds;
use crate::out;
use crate::settings::DEADLINE;
use kvern_abi::trail::{self, Call};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// What a call that was told its time may take beyond it.
const GRACE: Duration = Duration::from_secs(2);
/// How often the calls are looked at: the most that a call is found late.
const LOOK: Duration = Duration::from_millis(200);

static ALLOWED_MS: AtomicU64 = AtomicU64::new(DEADLINE.as_millis() as u64);
/// What gives a call longer, as the message says it.
static LONGER: Mutex<&str> = Mutex::new("--plugin-deadline");

/// What gives a call longer in this command: a flag, or a variable.
pub fn longer_with(what: &'static str) {
    *LONGER.lock().unwrap_or_else(PoisonError::into_inner) = what;
}

/// Watches from here on, with this deadline from here on.
pub fn watch(deadline: Duration) {
    static STARTED: OnceLock<()> = OnceLock::new();
    let ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    ALLOWED_MS.store(ms, Ordering::Relaxed);
    STARTED.get_or_init(|| {
        let started = std::thread::Builder::new().name("kvern-watchdog".into()).spawn(run);
        if let Err(error) = started {
            crate::log::line(2, &format!("a plugin that hangs will not be ended: {error}"));
        }
    });
}

fn run() {
    let (mut seen, mut last) = (Vec::new(), Instant::now());
    loop {
        std::thread::sleep(LOOK);
        let deadline = Duration::from_millis(ALLOWED_MS.load(Ordering::Relaxed));
        let now = Instant::now();
        let passed = now.saturating_duration_since(last);
        last = now;
        if let Some((call, allowed)) = look(&mut seen, trail::calls(), passed, deadline) {
            out::note(&format!("kvern: {}", words(&call, allowed)));
            trail::leave(1);
        }
    }
}

fn words(call: &Call, allowed: Duration) -> String {
    let longer = *LONGER.lock().unwrap_or_else(PoisonError::into_inner);
    format!(
        "{} has not come back from {} in {}: ended; report it to its author, or give it longer \
         with {longer}",
        call.who(),
        call.operation,
        seconds(allowed)
    )
}

/// Whether the engine waits for this call with nothing but this watchdog.
fn is_waited_for(call: &Call) -> bool {
    let operation = call.operation.as_str();
    ["abi/", "offload/", "device/"].iter().any(|kind| operation.starts_with(kind))
        || ["kv/new", "kv/describe", "kv/policy", "kv/drop"].contains(&operation)
}

/// Whether the host works for the plugin, which is the host's time. What is over at once is no
/// work: a plugin that asks for nothing else, again and again, does not come back.
fn is_hosts_time(call: &Call) -> bool {
    call.host.as_deref().is_some_and(|host| !["host/now", "host/log", "host/event"].contains(&host))
}

/// The first call that is too old, and how old it may be. `seen` remembers each call's age.
fn look(
    seen: &mut Vec<(Call, Duration)>,
    calls: Vec<Call>,
    passed: Duration,
    deadline: Duration,
) -> Option<(Call, Duration)> {
    // A look that comes much later than it was meant to comes after this process was stopped.
    let passed = passed.min(2 * LOOK);
    let aged = |call: &Call| match seen.iter().find(|(known, _)| is_same(known, call)) {
        None => Duration::ZERO,
        Some((_, age)) if is_hosts_time(call) => *age,
        Some((_, age)) => *age + passed,
    };
    *seen = calls.into_iter().filter(is_waited_for).map(|c| (c.clone(), aged(&c))).collect();
    seen.iter().find_map(|(call, age)| {
        let allowed = call.limit.map_or(deadline, |limit| deadline.max(limit + GRACE));
        (*age >= allowed).then(|| (call.clone(), allowed))
    })
}

/// Whether a call is the one that was there before, whatever it asks of the host by now.
fn is_same(known: &Call, call: &Call) -> bool {
    (known.thread, known.sequence, &known.operation)
        == (call.thread, call.sequence, &call.operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(operation: &str, sequence: u64, limit: Option<u64>) -> Call {
        Call {
            plugin: "device `x`".into(),
            library: "/l/libx.so".into(),
            operation: operation.into(),
            host: None,
            sequence,
            limit: limit.map(Duration::from_secs),
            struck: None,
            thread: 1,
        }
    }

    /// Seconds until a call is ended that never comes back.
    fn ended_after(call: &Call, deadline: u64) -> Option<u64> {
        ended_where(deadline, |_| (call.clone(), LOOK))
    }

    /// Seconds of looks, five each, until one ends what it sees: a call, and the time since the
    /// look before.
    fn ended_where(deadline: u64, at: impl Fn(u64) -> (Call, Duration)) -> Option<u64> {
        let mut seen = Vec::new();
        let ended = (0..500).find(|number| {
            let (call, passed) = at(*number);
            look(&mut seen, vec![call], passed, Duration::from_secs(deadline)).is_some()
        });
        ended.map(|number| number / 5)
    }

    #[test]
    fn a_call_that_does_not_come_back_is_ended_at_its_deadline() {
        assert_eq!(ended_after(&call("device/submit", 1, None), 30), Some(30));
        assert_eq!(ended_after(&call("kv/policy", 1, None), 7), Some(7));
        let wait = call("device/wait", 1, Some(1));
        assert_eq!((ended_after(&wait, 30), ended_after(&wait, 1)), (Some(30), Some(3)));
        assert_eq!(
            words(&call("device/submit", 1, None), Duration::from_secs(30)),
            "device `x` (/l/libx.so) has not come back from device/submit in 30 s: ended; report \
             it to its author, or give it longer with --plugin-deadline"
        );
    }

    #[test]
    fn calls_that_the_pager_survives_and_the_hosts_own_time_are_not_ended() {
        for operation in ["kv/open", "kv/load", "kv/store", "kv/end", "kv/drop-store"] {
            assert_eq!(ended_after(&call(operation, 1, None), 3), None, "{operation}");
        }
        let asks = Call { host: Some("host/sync".into()), ..call("device/open", 1, None) };
        assert_eq!(ended_after(&asks, 3), None);
    }

    #[test]
    fn calls_that_come_and_go_are_alive() {
        let each_second = |number| (call("device/wait", number / 5, Some(1)), LOOK);
        assert_eq!(ended_where(3, each_second), None);
    }

    #[test]
    fn time_in_which_the_process_was_stopped_is_nobodys() {
        let hour = Duration::from_secs(3600);
        let stopped =
            |number| (call("offload/plan", 1, None), if number == 5 { hour } else { LOOK });
        assert_eq!(ended_where(10, stopped), Some(9), "it is two looks, not an hour");
    }

    #[test]
    fn a_call_that_asks_the_time_or_logs_for_ever_is_ended_all_the_same() {
        let asks = |number: u64| {
            let host = ["host/now", "host/log", "host/event"].get(number as usize % 4);
            let host = host.map(|host| (*host).into());
            (Call { host, ..call("device/open", 1, None) }, LOOK)
        };
        assert_eq!(ended_where(3, asks), Some(3));
    }

    #[test]
    fn the_hosts_work_is_taken_off_a_calls_age_and_does_not_begin_it_anew() {
        let works = |number: u64| {
            let host = (number % 2 == 1).then(|| "host/sync".into());
            (Call { host, ..call("device/open", 1, None) }, LOOK)
        };
        assert_eq!(ended_where(3, works), Some(6), "every other look is the host's");
    }
}
