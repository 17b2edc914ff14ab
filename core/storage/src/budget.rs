//! Memory as an object: whoever wants some asks by name, and a refusal says who has it.

use crate::meter::lock;
use kvern_contract::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct State {
    used: u64,
    peak: u64,
    holders: BTreeMap<String, u64>,
}

/// A limit in bytes, and who holds how much of it. Reserving is bookkeeping: it moves no memory.
pub struct Budget {
    limit: Option<u64>,
    state: Mutex<State>,
}
impl Budget {
    /// A budget of `limit` bytes; `None` refuses nothing and counts all the same.
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        Arc::new(Budget { limit, state: Mutex::default() })
    }
    /// Takes `bytes` for `holder`, on top of what it has. *Errors* OverBudget: names what was
    /// asked, what is free, and the holders, largest first; nothing is taken.
    pub fn reserve(&self, holder: &str, bytes: u64) -> Result<()> {
        let mut state = lock(&self.state);
        let free = self.limit.unwrap_or(u64::MAX).saturating_sub(state.used);
        if bytes > free {
            return Err(refusal(holder, bytes, free, self.limit, &largest_first(&state.holders)));
        }
        state.used += bytes;
        state.peak = state.peak.max(state.used);
        *state.holders.entry(holder.to_owned()).or_default() += bytes;
        Ok(())
    }
    /// Gives `bytes` of `holder` back; never more than it has.
    pub fn release(&self, holder: &str, bytes: u64) {
        let mut state = lock(&self.state);
        if let Some(held) = state.holders.get_mut(holder) {
            let back = bytes.min(*held);
            *held -= back;
            if *held == 0 {
                state.holders.remove(holder);
            }
            state.used -= back;
        }
    }
    /// Bytes taken now.
    pub fn used(&self) -> u64 {
        lock(&self.state).used
    }
    /// Most bytes that were ever taken at once.
    pub fn peak(&self) -> u64 {
        lock(&self.state).peak
    }
    /// The limit in bytes, if there is one.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }
    /// Bytes not taken; `None` without a limit.
    pub fn free(&self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_sub(self.used()))
    }
    /// Who holds how many bytes, largest first.
    pub fn holders(&self) -> Vec<(String, u64)> {
        largest_first(&lock(&self.state).holders)
    }
}

fn largest_first(holders: &BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let mut out: Vec<_> = holders.iter().map(|(name, &bytes)| (name.clone(), bytes)).collect();
    out.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    out
}

fn refusal(
    holder: &str,
    asked: u64,
    free: u64,
    limit: Option<u64>,
    held: &[(String, u64)],
) -> Error {
    let limit = limit.unwrap_or(u64::MAX);
    let list: Vec<String> =
        held.iter().map(|(name, bytes)| format!("{name} {}", human(*bytes))).collect();
    let list = if list.is_empty() { "nothing".into() } else { list.join(", ") };
    let text = format!(
        "{holder} asked for {} and {} of {} are free; held: {list}; raise the \
         budget or shrink a holder",
        human(asked),
        human(free),
        human(limit)
    );
    let mut error = Error::new(ErrorKind::OverBudget, "budget/reserve", text);
    for (key, value) in [("asked_bytes", asked), ("free_bytes", free), ("limit_bytes", limit)] {
        error.context.push((key.into(), value.to_string()));
    }
    error
}

/// Bytes for a reader: the exact number below 10 KiB, else with one decimal in binary units.
fn human(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in units {
        if bytes >= 10 << shift || (shift > 10 && bytes >= 1 << shift) {
            return format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_was_asked_what_is_free_and_the_holders_largest_first() {
        let budget = Budget::new(Some(100 << 20));
        budget.reserve("frames", 20 << 20).unwrap();
        budget.reserve("weights", 70 << 20).unwrap();
        let error = budget.reserve("activations", 11 << 20).unwrap_err();
        assert_eq!(error.kind, ErrorKind::OverBudget);
        assert_eq!(
            error.message,
            "activations asked for 11.0 MiB and 10.0 MiB of 100.0 MiB are free; held: weights \
             70.0 MiB, frames 20.0 MiB; raise the budget or shrink a holder"
        );
        assert_eq!(budget.used(), 90 << 20);
    }

    #[test]
    fn nobody_gives_back_more_than_it_holds() {
        let budget = Budget::new(Some(100));
        budget.reserve("a", 60).unwrap();
        budget.reserve("b", 40).unwrap();
        budget.release("a", 1000);
        budget.release("nobody", 5);
        assert_eq!((budget.used(), budget.peak(), budget.free()), (40, 100, Some(60)));
        assert_eq!(budget.holders(), vec![("b".to_owned(), 40)]);
    }

    #[test]
    fn without_a_limit_the_peak_is_still_counted() {
        let budget = Budget::new(None);
        budget.reserve("a", 7).unwrap();
        budget.release("a", 7);
        assert_eq!((budget.used(), budget.peak(), budget.limit()), (0, 7, None));
        assert!(budget.reserve("a", u64::MAX).is_ok());
        assert!(budget.reserve("a", 1).is_err());
    }
}
