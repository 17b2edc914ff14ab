//! The pager owns KV frames and page tables. It decides where every page of every session is, gives
//! sealed pages to the strategy's store and takes them back checked. The strategy's policy is data;
//! this is what enforces it.
//!
//! 1. The device alone writes rows, while their page is not sealed. Sealed by the fence. The host
//!    zeroes a frame before, and encodes it when it goes cold, with no work left.
//! 2. A frame leaves its page only once the store has the page, or nobody can see the page again.
//! 3. What comes back is used only if tag and checksum are those of what was stored.
//! 4. What is lost is computed again: `Lost` names the page, and the engine goes back to it.

mod cold;
mod cool;
mod cut;
mod facts;
mod frames;
mod home;
mod layer;
mod lost;
mod open;
mod page;
mod queue;
mod room;
mod spill;
mod store;
mod tag;

use home::StoreHome;
pub(crate) use layer::{Lost, Segment, Ticket};
pub(crate) use open::{Frugality, Opening};
pub(crate) use page::Rows;

use crate::events::Recorder;
use crate::spec::CacheFacts;
use frames::Frames;
use kvern_contract::{
    ChainHash, Error, ErrorKind, KvEncoding, KvLayer, KvPolicy, KvReport, Result, SessionId,
};
use page::Session;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use store::{Ask, StoreThread};

/// A page by session, layer and number.
type Place = (SessionId, usize, usize);

/// Frames, page tables, and the way to the store.
pub(crate) struct Pager {
    frames: Frames,
    layers: Vec<KvLayer>,
    hot: KvEncoding,
    policy: KvPolicy,
    /// Most rows of a step.
    chunk_tokens: u32,
    seed: ChainHash,
    sessions: BTreeMap<SessionId, Session>,
    next_session: u64,
    next_ticket: u64,
    /// Loads up to this ticket went down with a lost instance.
    void: u64,
    /// Stored pages whose frames may be taken, the latest last: the latest go first, so that the
    /// oldest stay for good (a cyclic scan defeats any recency order).
    evictable: Vec<Place>,
    /// Pages that the store was given and has not answered for.
    going: BTreeMap<u64, Vec<Place>>,
    /// Pages that came back before anybody waited for them.
    came: BTreeMap<u64, layer::Came>,
    store: Option<StoreThread>,
    home: Option<StoreHome>,
    /// Frames of the ring that loads fill or have filled.
    live: BTreeMap<u64, Vec<frames::Frame>>,
    /// Frames that belong to nothing any more and that a call still has.
    lent: Vec<frames::Frame>,
    /// Reports asked for and not answered.
    reports: u64,
    /// What the store last refused pages with.
    refused: Option<Error>,
    /// Commits until it is asked again.
    patience: u32,
    deadline: Duration,
    events: Arc<Recorder>,
    counts: CacheFacts,
    report: KvReport,
}

impl Pager {
    /// Starts a session without history.
    pub(crate) fn begin(&mut self) -> SessionId {
        self.next_session += 1;
        let id = SessionId(self.next_session);
        self.sessions.insert(id, Session::new(id, self.seed, self.layers.len()));
        self.tell(Ask::Begin(id));
        id
    }

    /// Ends a session and frees what it holds. *Errors* NotFound.
    pub(crate) fn end(&mut self, session: SessionId) -> Result<()> {
        self.cut(session, 0)?;
        self.sessions.remove(&session);
        self.evictable.retain(|place| place.0 != session);
        self.tell(Ask::End(session));
        Ok(())
    }

    /// A session's committed tokens.
    pub(crate) fn tokens(&self, session: SessionId) -> Result<Vec<u32>> {
        let session = self.session(session)?;
        Ok(session.keys[..session.committed].iter().map(|k| k.id).collect())
    }

    /// How many tokens are committed.
    pub(crate) fn length(&self, session: SessionId) -> Result<u64> {
        Ok(self.session(session)?.committed as u64)
    }

    /// Adds a step's tokens; they are the session's once committed.
    pub(crate) fn append(&mut self, session: SessionId, ids: &[u32]) -> Result<Rows> {
        let session = self.session_mut(session)?;
        let position = session.keys.len() as u64;
        session.append(ids);
        Ok(Rows { session: session.id, position, rows: ids.len() as u32 })
    }

    /// Makes a step's tokens the session's, spills what the policy says and frees what no later
    /// query can see.
    pub(crate) fn commit(&mut self, rows: &Rows) -> Result<()> {
        let session = self.session_mut(rows.session)?;
        let (from, to) = (session.committed, session.keys.len());
        session.committed = to;
        let page = kvern_contract::PAGE_TOKENS as usize;
        let commit = Ask::Commit {
            session: session.id,
            tokens: to as u64,
            keys: session.keys[from..].to_vec(),
            chains: session.chain.pages()[from / page..].to_vec(),
            chain: session.chain.at(&session.keys, to),
        };
        if self.is_lossy() {
            self.session_mut(rows.session)?.steps.push(to as u64);
        }
        self.drop_unseen(rows.session)?;
        self.spill_due(rows.session)?;
        self.tell(commit);
        self.hear()
    }

    /// Goes back to `to` tokens, or fewer: a page that would be cut is forgotten whole unless its
    /// frame can be written again, and a window that has lost what the next query would see starts
    /// again at 0. Answers where it landed. *Caller*: no work is left.
    pub(crate) fn rewind(&mut self, session: SessionId, to: u64) -> Result<u64> {
        self.abandon_loads();
        let landed = self.landing(session, to)?;
        self.cut(session, landed)?;
        self.tell(Ask::Rewind { session, to: landed });
        self.mend_ring();
        Ok(landed)
    }

    /// The strategy's directory.
    pub(crate) fn root(&self) -> Option<std::path::PathBuf> {
        self.home.as_ref().and_then(StoreHome::root).map(std::path::Path::to_path_buf)
    }

    /// What the device reads pages from.
    pub(crate) fn pool(&self) -> &kvern_storage::Region {
        self.frames.region()
    }

    /// The strategy's policy.
    pub(crate) fn policy(&self) -> &KvPolicy {
        &self.policy
    }

    /// Whether what attention reads depends on the steps that wrote it.
    fn is_lossy(&self) -> bool {
        self.policy.cold != self.hot
    }

    /// Where a session that lost a page must go back to, and where its steps ended: an exact
    /// history is computed again from that page, by any steps, a lossy one from 0, by the same.
    pub(crate) fn retreat(&self, lost: &Lost) -> Result<(u64, Vec<u64>)> {
        match self.is_lossy() {
            true => Ok((0, self.session(lost.session)?.steps.clone())),
            false => Ok((lost.position, Vec::new())),
        }
    }

    fn session(&self, id: SessionId) -> Result<&Session> {
        self.sessions.get(&id).ok_or_else(|| unknown(id))
    }

    fn session_mut(&mut self, id: SessionId) -> Result<&mut Session> {
        self.sessions.get_mut(&id).ok_or_else(|| unknown(id))
    }

    /// Tells the store something that needs no answer.
    fn tell(&self, ask: Ask) {
        if let Some(store) = &self.store {
            store.ask(ask);
        }
    }

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Bytes of a layer's page in an encoding.
    fn page_bytes(&self, layer: usize, encoding: KvEncoding) -> u32 {
        self.layers[layer].page_bytes(encoding) as u32
    }
}

fn unknown(id: SessionId) -> Error {
    Error::new(ErrorKind::NotFound, "kv/session", format!("session {} is not known", id.0))
}

impl Drop for Pager {
    fn drop(&mut self) {
        for id in std::mem::take(&mut self.sessions).into_keys() {
            self.tell(Ask::End(id));
        }
        if let Some(store) = self.store.take()
            && let Some(doing) = store.finish(self.deadline)
        {
            let text = format!("it did not end in {:?}: left behind", self.deadline);
            self.events_log(&Error::new(ErrorKind::Timeout, doing, text));
        }
        if let Some(home) = self.home.take() {
            home.remove();
        }
    }
}
