//! `__NAME__`: the host keeps the newest tokens in memory; older pages lie one after another in a
//! file, which the host reads with its own queue, and checks.

use kvern_abi::contract::*;
use std::{collections::BTreeMap, time::Duration};

#[derive(Default)]
pub struct Strategy;

impl KvStrategy for Strategy {
    fn describe(&self) -> KvDescription {
        let options = Options::from([("hot_tokens".into(), OptionValue::Integer(64))]);
        KvDescription::exact("__NAME__", env!("CARGO_PKG_VERSION"), "append-only-file", options)
    }

    fn policy(&self, ask: &PolicyAsk) -> Result<KvPolicy> {
        ask.shape.without_recurrence("kv/policy")?;
        let hot = whole_option(&ask.options, "kv/policy", "hot_tokens", 64, 1..=1 << 30)?;
        Ok(KvPolicy::exact("__NAME__", ask, hot))
    }

    fn open(&mut self, spec: &StoreSpec, host: HostRef) -> Result<Opened> {
        let (file, quota) = (host.open("pages", Open::Write)?, spec.quota_bytes);
        let store = Store { host, file, quota, end: 0, sessions: BTreeMap::new() };
        Ok(Opened { store: Some(Box::new(store)), attentive: None, codec: None })
    }
}

kvern_abi::export_kv_strategy!(Strategy);

/// Where the pages of a session lie: the first byte of each, and the tag that came with it.
type Places = BTreeMap<(LayerIndex, Part), (u64, PageTag)>;

struct Store {
    host: HostRef,
    file: FileId,
    quota: Option<u64>,
    end: u64,
    sessions: BTreeMap<SessionId, Places>,
}

impl Store {
    fn places(&mut self, session: SessionId) -> Result<&mut Places> {
        self.sessions.get_mut(&session).ok_or_else(|| session.unknown("kv/__NAME__"))
    }
}

impl KvStore for Store {
    fn find(&mut self, prompts: &[Prefix<'_>]) -> Result<Vec<Found>> {
        Ok(vec![Found::default(); prompts.len()])
    }

    fn begin(&mut self, session: SessionId, from: Origin) -> Result<()> {
        let places = match from {
            Origin::Fresh => Places::new(),
            Origin::Fork { of, at } => {
                let before = self.places(of)?.iter().filter(|(_, (_, tag))| tag.end() <= at);
                before.map(|(key, place)| (*key, *place)).collect()
            }
            Origin::Stored { .. } => return self.places(session).map(drop),
        };
        self.sessions.insert(session, places);
        Ok(())
    }

    fn store(&mut self, pages: &[PageRef<'_>]) -> Result<()> {
        let (file, mut end, mut writes) = (self.file, self.end, Vec::new());
        for PageRef { bytes, .. } in pages {
            writes.push(FileWrite { file, offset: end, bytes });
            end += bytes.len() as u64;
        }
        let full = || Error::new(ErrorKind::OutOfSpace, "kv/store", "the quota is full");
        self.quota.is_none_or(|quota| end <= quota).then_some(()).ok_or_else(full)?;
        self.host.write_batch(&writes, Duration::MAX)?;
        self.end = end;
        for (PageRef { key, tag, .. }, write) in pages.iter().zip(&writes) {
            self.places(key.session)?.insert((key.layer, key.part), (write.offset, *tag));
        }
        Ok(())
    }

    fn load(&mut self, pages: &mut [PageLoad<'_>], _within: Duration) -> Result<()> {
        for PageLoad { key, verdict, .. } in pages {
            let places = self.sessions.get(&key.session);
            if let Some((offset, tag)) = places.and_then(|p| p.get(&(key.layer, key.part))) {
                *verdict = Verdict::At { file: self.file, offset: *offset, tag: *tag };
            }
        }
        Ok(())
    }

    fn commit(&mut self, commits: &[Commit<'_>]) -> Result<()> {
        commits.iter().try_for_each(|commit| self.places(commit.session).map(drop))
    }

    fn rewind(&mut self, session: SessionId, to: TokenIndex) -> Result<TokenIndex> {
        self.places(session)?.retain(|_, (_, tag)| tag.end() <= to);
        Ok(to)
    }

    fn flush(&mut self, session: SessionId) -> Result<()> {
        self.places(session).map(drop)
    }

    fn end(&mut self, session: SessionId, _keep: bool) -> Result<()> {
        self.flush(session).map(|()| drop(self.sessions.remove(&session)))
    }

    fn maintain(&mut self, _budget: Duration) -> Result<()> {
        Ok(())
    }

    fn report(&self) -> KvReport {
        let places = self.sessions.values().flat_map(BTreeMap::values);
        let live = KvReport::of(places.map(|(_, tag)| tag));
        KvReport { dead_bytes: self.end.saturating_sub(live.live_bytes), ..live }
    }
}
