//! What the pager counts, and what can only be counted by looking.

use super::Pager;
use super::page::Kept;
use super::store::Ask;
use crate::spec::CacheFacts;
use std::time::Instant;

impl Pager {
    /// Counts of the cache now. Waits, at most until the deadline, for what the store was given and
    /// for its own report, so that what it says is of this moment.
    pub(crate) fn facts(&mut self) -> CacheFacts {
        self.ask_report();
        let mut facts = self.counts;
        let has_store = self.home.is_some();
        for layer in 0..self.layers.len() {
            let per_token = self.layers[layer].page_bytes(self.hot) / 64;
            let (mut resident, mut hot) = (0, 0);
            for page in self.sessions.values().flat_map(|s| &s.layers[layer]) {
                let rows = u64::from(page.rows);
                if page.frame.is_some() {
                    resident += rows;
                    facts.resident_bytes += self.layers[layer].page_bytes(page.encoding);
                }
                if has_store && page.kept != Kept::Stored && !page.gone {
                    hot += rows;
                }
            }
            facts.resident_tokens += resident;
            facts.resident_layer_count += u64::from(resident > 0);
            facts.hot_tokens += hot;
            facts.hot_bytes += hot * per_token;
            facts.hot_layer_count += u64::from(hot > 0);
        }
        facts.persisted_layer_count = self.report.persisted_layer_count;
        facts.persisted_tokens = self.report.persisted_tokens;
        facts.persisted_artifact_count = self.report.persisted_artifact_count;
        facts.compaction_count = self.report.compaction_count;
        facts.eviction_count += self.report.quota_eviction_count;
        facts.evicted_tokens += self.report.quota_evicted_tokens;
        facts
    }

    /// Tokens that were computed again.
    pub(crate) fn count_recomputed(&mut self, tokens: u64) {
        self.counts.recomputed_tokens += tokens;
    }

    fn ask_report(&mut self) {
        if self.store.is_none() {
            return;
        }
        self.tell(Ask::Report);
        self.reports += 1;
        let until = Instant::now() + self.deadline;
        while self.reports > 0 {
            if self.listen(until.saturating_duration_since(Instant::now())).is_err() {
                return;
            }
        }
    }
}
