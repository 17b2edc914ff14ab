//! An attentive strategy over the border: what attention saw, and what may be left out.
#![allow(unsafe_code)]

use super::rows::ViewRow;
use crate::border::{Foreign, border, cross};
use crate::guard::{Handle, enter, retire};
use crate::wire::AbiResult;
use abi_stable::StableAbi;
use abi_stable::std_types::{ROption, RSlice, RVec};
use kvern_contract::*;

/// Queries of a session at a layer.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct QueryRow<'a> {
    pub session: u64,
    pub layer: u32,
    pub heads: u32,
    pub key_dim: u32,
    pub reserved: u32,
    pub queries: RSlice<'a, f32>,
}

/// Pages, a bit each.
#[repr(C)]
#[derive(StableAbi)]
pub struct MaskRow {
    pub words: RVec<u64>,
    pub pages: u32,
    pub reserved: u32,
}

/// What one kv head's rows received.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct HeadRow<'a> {
    pub positions: RSlice<'a, u32>,
    pub mass: RSlice<'a, f32>,
}

/// Attention mass of a session at a layer.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct MassRow<'a> {
    pub session: u64,
    pub layer: u32,
    pub queries: u32,
    pub heads: RSlice<'a, HeadRow<'a>>,
}

/// A row to forget: kv head, position.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct DropRow {
    pub head: u32,
    pub position: u32,
}

fn drops_out(edits: &RowEdits) -> Vec<DropRow> {
    edits.drops.iter().map(|&(head, position)| DropRow { head, position }).collect()
}

fn drops_in(rows: &[DropRow]) -> Vec<(u32, u32)> {
    rows.iter().map(|row| (row.head, row.position)).collect()
}

border! {
    /// An attentive strategy, as the host's side calls it.
    AttentiveTable, AttentiveTableRef, AttentiveTableFields, AttentiveOperations,
        &mut (dyn KvAttentive + 'static), enter, retire::<dyn KvAttentive>, "kv/drop-attentive";
    "kv/begin" begin(session: u64, from: ROption<u64>, saved: RSlice<'_, u8>) -> () = |it| {
        it.begin(SessionId(session), from.into_option().map(SessionId), saved.as_slice())
    };
    "kv/sealed" sealed(page: ViewRow<'_>) -> () = |it| it.sealed(&page.view("kv/sealed")?);
    "kv/select" select(ask: QueryRow<'_>, words: RSlice<'_, u64>, pages: u32) -> MaskRow = |it| {
        let mut mask = PageMask { words: words.as_slice().to_vec(), pages };
        it.select(&query(&ask), &mut mask)?;
        Ok(MaskRow { words: mask.words.into(), pages: mask.pages, reserved: 0 })
    };
    "kv/observe" observe(mass: MassRow<'_>, drops: RSlice<'_, DropRow>) -> RVec<DropRow> = |it| {
        let heads: Vec<_> = mass
            .heads
            .as_slice()
            .iter()
            .map(|h| HeadMass { positions: h.positions.as_slice(), mass: h.mass.as_slice() })
            .collect();
        let session = SessionId(mass.session);
        let layer = LayerIndex(mass.layer);
        let mass = AttentionMass { session, layer, queries: mass.queries, heads: &heads };
        let mut edits = RowEdits { drops: drops_in(drops.as_slice()) };
        it.observe(&mass, &mut edits)?;
        Ok(drops_out(&edits).into())
    };
    "kv/rewind" rewind(session: u64, to: u64) -> () = |it| it.rewind(SessionId(session), to);
    "kv/save" save(session: u64) -> RVec<u8> = |it| it.save(SessionId(session)).map(RVec::from);
    "kv/end" end(session: u64) -> () = |it| {
        it.end(SessionId(session));
        Ok(())
    };
}

fn query<'a>(row: &QueryRow<'a>) -> QueryAsk<'a> {
    QueryAsk {
        session: SessionId(row.session),
        layer: LayerIndex(row.layer),
        heads: row.heads,
        key_dim: row.key_dim,
        queries: row.queries.as_slice(),
    }
}

/// A plugin's attentive strategy.
pub type ForeignAttentive = Foreign<AttentiveTableRef>;

impl KvAttentive for ForeignAttentive {
    fn begin(&mut self, session: SessionId, from: Option<SessionId>, saved: &[u8]) -> Result<()> {
        let from = from.map(|id| id.0).into();
        cross!(self, begin, session.0, from, RSlice::from_slice(saved))
    }

    fn sealed(&mut self, page: &PageView<'_>) -> Result<()> {
        cross!(self, sealed, ViewRow::out(page))
    }

    fn select(&mut self, ask: &QueryAsk<'_>, visible: &mut PageMask) -> Result<()> {
        let row = QueryRow {
            session: ask.session.0,
            layer: ask.layer.0,
            heads: ask.heads,
            key_dim: ask.key_dim,
            reserved: 0,
            queries: RSlice::from_slice(ask.queries),
        };
        let mask = cross!(self, select, row, RSlice::from_slice(&visible.words), visible.pages)?;
        if (mask.pages, mask.words.len()) != (visible.pages, visible.words.len()) {
            let (got, asked) = (mask.words.len(), visible.words.len());
            let line = format!(
                "the plugin answered {} pages in {got} words for {} pages in {asked}",
                mask.pages, visible.pages
            );
            return Err(Error::new(ErrorKind::Invalid, "kv/select", line));
        }
        // It may only clear: a page that it set would be one that attention may not see.
        for (word, kept) in visible.words.iter_mut().zip(&mask.words) {
            *word &= kept;
        }
        Ok(())
    }

    fn observe(&mut self, mass: &AttentionMass<'_>, edits: &mut RowEdits) -> Result<()> {
        let heads: Vec<_> = mass
            .heads
            .iter()
            .map(|head| HeadRow {
                positions: RSlice::from_slice(head.positions),
                mass: RSlice::from_slice(head.mass),
            })
            .collect();
        let row = MassRow {
            session: mass.session.0,
            layer: mass.layer.0,
            queries: mass.queries,
            heads: RSlice::from_slice(&heads),
        };
        let drops = drops_out(edits);
        edits.drops = drops_in(&cross!(self, observe, row, RSlice::from_slice(&drops))?);
        Ok(())
    }

    fn rewind(&mut self, session: SessionId, to: TokenIndex) -> Result<()> {
        cross!(self, rewind, session.0, to)
    }

    fn save(&self, session: SessionId) -> Result<Vec<u8>> {
        cross!(self, save, session.0).map(RVec::into_vec)
    }

    fn end(&mut self, session: SessionId) {
        let _ = cross!(self, end, session.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::border::Object;
    use crate::guard::{Poison, expose};
    use crate::trail::Maker;

    /// Answers a mask of its own.
    struct Wild(PageMask);

    impl KvAttentive for Wild {
        fn begin(&mut self, _: SessionId, _: Option<SessionId>, _: &[u8]) -> Result<()> {
            Ok(())
        }
        fn sealed(&mut self, _: &PageView<'_>) -> Result<()> {
            Ok(())
        }
        fn select(&mut self, _: &QueryAsk<'_>, visible: &mut PageMask) -> Result<()> {
            *visible = PageMask { words: self.0.words.clone(), pages: self.0.pages };
            Ok(())
        }
        fn observe(&mut self, _: &AttentionMass<'_>, _: &mut RowEdits) -> Result<()> {
            Ok(())
        }
        fn rewind(&mut self, _: SessionId, _: TokenIndex) -> Result<()> {
            Ok(())
        }
        fn save(&self, _: SessionId) -> Result<Vec<u8>> {
            Ok(Vec::new())
        }
        fn end(&mut self, _: SessionId) {}
    }

    fn answered(words: &[u64], pages: u32) -> (Result<()>, Vec<u64>) {
        let wild = Wild(PageMask { words: words.to_vec(), pages });
        let inner: Box<dyn KvAttentive> = Box::new(wild);
        let handle = expose(inner, std::sync::Arc::<Poison>::default());
        let mut foreign =
            ForeignAttentive::new(Object { handle, table: AttentiveTable::REF }, Maker::NONE);
        let (session, layer) = (SessionId(1), LayerIndex(0));
        let ask = QueryAsk { session, layer, heads: 1, key_dim: 1, queries: &[0.5] };
        let mut visible = PageMask { words: vec![0b1101, 0b1], pages: 65 };
        let result = foreign.select(&ask, &mut visible);
        assert_eq!(visible.pages, 65);
        (result, visible.words)
    }

    #[test]
    fn a_mask_only_clears() {
        assert_eq!(answered(&[u64::MAX, u64::MAX], 65), (Ok(()), vec![0b1101, 0b1]));
        assert_eq!(answered(&[0b0111, 0], 65), (Ok(()), vec![0b0101, 0]));
    }

    #[test]
    fn a_mask_of_another_size_is_refused_and_changes_nothing() {
        for (words, pages) in [(&[1u64][..], 65), (&[1, 1, 1], 65), (&[1, 1], 64), (&[], 0)] {
            let (result, left) = answered(words, pages);
            assert_eq!(result.unwrap_err().kind, ErrorKind::Invalid);
            assert_eq!(left, [0b1101, 0b1]);
        }
    }
}
