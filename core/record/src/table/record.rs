//! What the journal says of sessions, as bytes.
//!
//! kind u32 = 1 session: number u64, base u64, count u64 of keys from base on (id u32, reserved
//! u32, content u64), count u64 of entries (layer u32, part u32: 0 page, 1 state, which u64, the
//! format's place, tag 48 bytes), note (u32, bytes). kind 2 dropped: number u64. Little endian.

use super::Place;
use super::history::{Entry, Spot};
use crate::fields::{Fields, put_bytes, put_u32, put_u64};
use kvern_contract::*;

const SESSION: u32 = 1;
const DROPPED: u32 = 2;
/// Bytes of a record that says that a session is gone.
pub(crate) const DROPPED_BYTES: usize = 12;
const KEY_BYTES: usize = 16;
/// Bytes of an entry beside its place.
const ENTRY_BYTES: usize = 64;

/// One record.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Record<P> {
    /// The session `number` is cut at `base`, then goes on with these tokens and entries.
    Session {
        number: u64,
        base: u64,
        keys: Vec<TokenKey>,
        entries: Vec<(Spot, Entry<P>)>,
        note: Vec<u8>,
    },
    /// The session is gone.
    Dropped { number: u64 },
}
impl<P: Place> Record<P> {
    /// The payload.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        match self {
            Record::Dropped { number } => {
                put_u32(&mut out, DROPPED);
                put_u64(&mut out, *number);
            }
            Record::Session { number, base, keys, entries, note } => {
                out.reserve(
                    64 + KEY_BYTES * keys.len()
                        + (ENTRY_BYTES + P::BYTES) * entries.len()
                        + note.len(),
                );
                put_u32(&mut out, SESSION);
                put_u64(&mut out, *number);
                put_u64(&mut out, *base);
                put_u64(&mut out, keys.len() as u64);
                for key in keys {
                    put_u32(&mut out, key.id);
                    put_u32(&mut out, key.reserved);
                    put_u64(&mut out, key.content);
                }
                put_u64(&mut out, entries.len() as u64);
                for ((layer, part), entry) in entries {
                    let (kind, which) = match *part {
                        Part::Page(page) => (0, u64::from(page)),
                        Part::State { at } => (1, at),
                    };
                    put_u32(&mut out, *layer);
                    put_u32(&mut out, kind);
                    put_u64(&mut out, which);
                    entry.place.put(&mut out);
                    out.extend(entry.tag.to_bytes());
                }
                put_bytes(&mut out, note)?;
            }
        }
        Ok(out)
    }

    /// The reverse. *Errors* Damaged: these bytes are no record of this version.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self> {
        let mut fields = Fields::new(payload);
        let record = match fields.u32()? {
            DROPPED => Record::Dropped { number: fields.u64()? },
            SESSION => {
                let (number, base) = (fields.u64()?, fields.u64()?);
                let keys = fields.count(KEY_BYTES)?;
                let keys = (0..keys).map(|_| key(&mut fields)).collect::<Result<_>>()?;
                let entries = fields.count(ENTRY_BYTES + P::BYTES)?;
                let entries = (0..entries).map(|_| entry(&mut fields)).collect::<Result<_>>()?;
                let note = fields.bytes()?.to_vec();
                Record::Session { number, base, keys, entries, note }
            }
            other => {
                return Err(damaged(format!(
                    "a record of the journal has the unknown kind {other}"
                )));
            }
        };
        match fields.is_empty() {
            true => Ok(record),
            false => Err(damaged("a record of the journal has bytes left over".into())),
        }
    }
}

pub(crate) fn damaged(text: String) -> Error {
    Error::new(ErrorKind::Damaged, "kv/open", text)
}

fn key(fields: &mut Fields<'_>) -> Result<TokenKey> {
    Ok(TokenKey { id: fields.u32()?, reserved: fields.u32()?, content: fields.u64()? })
}

fn entry<P: Place>(fields: &mut Fields<'_>) -> Result<(Spot, Entry<P>)> {
    let (layer, kind, which) = (fields.u32()?, fields.u32()?, fields.u64()?);
    let part = match (kind, u32::try_from(which)) {
        (0, Ok(page)) => Part::Page(page),
        (1, _) => Part::State { at: which },
        _ => {
            return Err(damaged(format!(
                "a record of the journal names part {which} of kind {kind}"
            )));
        }
    };
    let place = P::take(fields)?;
    let tag = PageTag::from_bytes(&fields.array()?);
    Ok(((layer, part), Entry { place, tag }))
}
