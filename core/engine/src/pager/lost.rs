//! A store that is lost: another instance is opened, and what only the lost one held is named.

use super::Pager;
use super::layer::Lost;
use super::page::{Kept, first_of};
use super::store::{Ask, Silence};
use kvern_contract::{Error, ErrorKind, PAGE_TOKENS, Result, SessionId};

const PAGE: u64 = PAGE_TOKENS as u64;

impl Pager {
    /// Gives a store up that does not answer, and opens the strategy anew on an empty root; where
    /// it cannot be opened, history goes on in memory alone. What only the lost instance held comes
    /// back as lost.
    pub(super) fn replace_store(&mut self, silence: Silence) -> Result<Vec<Lost>> {
        if let Some(lost) = self.store.take() {
            let doing = lost.give_up();
            let what = match silence {
                Silence::Pending => format!("it did not answer in {:?}", self.deadline),
                Silence::Gone => "it has panicked".into(),
            };
            let text = format!("{what}: what it held is computed again");
            self.events_log(&Error::new(ErrorKind::Timeout, doing, text));
        }
        self.void = self.next_ticket;
        self.going.clear();
        self.came.clear();
        self.evictable.clear();
        (self.reports, self.patience) = (0, 0);
        let lost = self.forget_stored();
        if let Some(home) = &mut self.home {
            match home.reopen() {
                Ok(store) => self.store = Some(store),
                Err(error) => {
                    self.events_log(&error);
                    self.refused = Some(error);
                }
            }
        }
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.tell(Ask::Begin(id));
            self.tell_again(id)?;
        }
        Ok(lost)
    }

    /// No page is stored any more; sessions whose pages have no frame have lost them.
    fn forget_stored(&mut self) -> Vec<Lost> {
        let mut lost = Vec::new();
        for s in self.sessions.values_mut() {
            let mut first = None;
            for pages in &mut s.layers {
                for (number, page) in pages.iter_mut().enumerate().filter(|(_, p)| !p.gone) {
                    page.kept = Kept::Here;
                    if page.frame.is_none() {
                        first = Some(first.map_or(number, |f: usize| f.min(number)));
                    }
                }
            }
            let at = |number| Lost { session: s.id, position: first_of(number) };
            lost.extend(first.map(at));
        }
        lost
    }

    /// Commits to a new instance what the sessions hold already.
    fn tell_again(&self, session: SessionId) -> Result<()> {
        let s = self.session(session)?;
        self.tell(Ask::Commit {
            session,
            tokens: s.committed as u64,
            keys: s.keys[..s.committed].to_vec(),
            chains: s.chain.pages()[..s.committed / PAGE as usize].to_vec(),
            chain: s.chain.at(&s.keys, s.committed),
        });
        Ok(())
    }
}
