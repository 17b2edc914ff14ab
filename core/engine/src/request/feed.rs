//! Tokens on their way into a session: how far they are, and where a session that lost pages goes
//! on from.

use crate::pager::{Lost, Pager};
use kvern_contract::{Error, ErrorKind, Result, SessionId};

/// How often one request may lose pages before the store is not believed any more.
const LOSSES_MOST: u32 = 32;

/// What a session holds and what is to follow.
pub(super) struct Feed {
    /// Every token that is known: the session's, then those to be fed.
    pub all: Vec<u32>,
    /// How many of them the session holds.
    pub at: usize,
    /// Where steps must end that are computed again; elsewhere they are as long as may be.
    ends: Vec<u64>,
    losses: u32,
}

impl Feed {
    pub(super) fn new(all: Vec<u32>, at: usize) -> Self {
        Feed { all, at, ends: Vec::new(), losses: 0 }
    }

    /// Where the next step must end, if there is such a place.
    pub(super) fn must_end(&self) -> Option<usize> {
        let end = self.ends.iter().find(|end| **end > self.at as u64);
        end.map(|end| (*end as usize).min(self.all.len()))
    }

    /// Tokens that are to be fed.
    pub(super) fn pending(&self) -> usize {
        self.all.len() - self.at
    }

    /// The session lost a page: it goes back, and computes again what follows. *Errors* Damaged
    /// when this has happened too often; the pager's.
    pub(super) fn go_back(&mut self, pager: &mut Pager, lost: &Lost) -> Result<()> {
        self.losses += 1;
        if self.losses > LOSSES_MOST {
            let text = format!(
                "kv pages were lost {} times in one request, last at token {}: check the drive and \
                 the strategy's log lines",
                self.losses, lost.position
            );
            return Err(Error::new(ErrorKind::Damaged, "kv/load", text));
        }
        let (back, recorded) = pager.retreat(lost)?;
        if recorded.len() > self.ends.len() {
            self.ends = recorded;
        }
        let landed = pager.rewind(lost.session, back)?;
        pager.count_recomputed((self.at as u64).saturating_sub(landed));
        self.at = landed as usize;
        Ok(())
    }

    /// The session is given up for the memory that it takes: another one computes everything again.
    pub(super) fn start_again(&mut self, pager: &mut Pager, session: SessionId) -> Result<()> {
        let (_, recorded) = pager.retreat(&Lost { session, position: 0 })?;
        if recorded.len() > self.ends.len() {
            self.ends = recorded;
        }
        pager.end(session)?;
        pager.count_recomputed(self.at as u64);
        self.at = 0;
        Ok(())
    }
}
