//! A plugin that does not come back. A call cannot be cancelled, so who hangs is named and the
//! process ends: a run with its exit code, a lane with its reason.
//!
//! Only calls that the engine itself waits for count. A store has a thread of its own, which the
//! pager gives up and does without; so has the opening of a store, which ends with an error.

use crate::child::seconds;
use crate::out;
use kvern_abi::trail::{self, Call};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a call may take where nobody said otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// The environment's word on it, for commands without the flag.
pub fn default_deadline() -> Duration {
    let asked = std::env::var("KVERN_PLUGIN_DEADLINE").ok().and_then(|text| text.parse().ok());
    asked.map_or(DEADLINE, |seconds: u32| Duration::from_secs(seconds.max(1).into()))
}

/// What a call that was told its time may take beyond it.
const GRACE: Duration = Duration::from_secs(2);
/// How often the calls are looked at: the most that a call is found late.
const LOOK: Duration = Duration::from_millis(200);

static ALLOWED_MS: AtomicU64 = AtomicU64::new(DEADLINE.as_millis() as u64);

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
    let mut seen = Vec::new();
    loop {
        std::thread::sleep(LOOK);
        let deadline = Duration::from_millis(ALLOWED_MS.load(Ordering::Relaxed));
        if let Some((call, allowed)) = look(&mut seen, trail::calls(), Instant::now(), deadline) {
            out::note(&format!("kvern: {}", words(&call, allowed)));
            trail::leave(1);
        }
    }
}

fn words(call: &Call, allowed: Duration) -> String {
    format!(
        "{} has not come back from {} in {}: ended; report it to its author, or give it longer \
         with --plugin-deadline",
        call.who(),
        call.operation,
        seconds(allowed)
    )
}

/// Whether the engine waits for this call with nothing but this watchdog.
fn is_waited_for(call: &Call) -> bool {
    let operation = call.operation.as_str();
    // What the host does for a plugin is the host's time.
    call.host.is_none()
        && (["abi/", "offload/", "device/"].iter().any(|kind| operation.starts_with(kind))
            || ["kv/new", "kv/describe", "kv/policy", "kv/drop"].contains(&operation))
}

/// The first call that has been there too long, and how long it was allowed. `seen` remembers
/// since when each has been there.
fn look(
    seen: &mut Vec<(Call, Instant)>,
    calls: Vec<Call>,
    now: Instant,
    deadline: Duration,
) -> Option<(Call, Duration)> {
    let since = |call: &Call| seen.iter().find(|(c, _)| c == call).map_or(now, |(_, at)| *at);
    *seen = calls.into_iter().filter(is_waited_for).map(|c| (c.clone(), since(&c))).collect();
    seen.iter().find_map(|(call, at)| {
        let allowed = call.limit.map_or(deadline, |limit| deadline.max(limit + GRACE));
        (now.saturating_duration_since(*at) >= allowed).then(|| (call.clone(), allowed))
    })
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

    /// Seconds until a call is ended that never comes back, looked at each second.
    fn ended_after(call: &Call, deadline: u64) -> Option<u64> {
        let (mut seen, start) = (Vec::new(), Instant::now());
        (0..100).find(|second| {
            let now = start + Duration::from_secs(*second);
            look(&mut seen, vec![call.clone()], now, Duration::from_secs(deadline)).is_some()
        })
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
        let (mut seen, start) = (Vec::new(), Instant::now());
        for second in 0..100 {
            let (now, deadline) = (start + Duration::from_secs(second), Duration::from_secs(3));
            let calls = vec![call("device/wait", second / 2, Some(1))];
            assert_eq!(look(&mut seen, calls, now, deadline), None, "{second}");
        }
    }
}
