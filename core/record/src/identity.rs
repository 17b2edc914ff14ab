//! Whose root this is: named parts, published before anything else, compared whenever the root is
//! opened.

use crate::fields::{Fields, put_bytes, put_u32};
use crate::publish::{publish, published};
use kvern_contract::{Error, ErrorKind, HostRef, Result};

/// The file.
const NAME: &str = "identity";
/// An identity is a handful of short parts; a longer file is damage.
const IDENTITY_BYTES_MAX: usize = 1 << 20;

/// Makes the root that of `parts`, or finds that it is. Publishes `identity` if the root is empty
/// and `read_only` is off; answers whether it did. The caller opens its own files afterwards.
/// *Errors* Mismatch: names the first part that differs and both values; Damaged: the file cannot
/// be read, or the root has files and no identity; NotFound: an empty root, opened read-only; Io,
/// OutOfSpace.
pub fn claim_identity(host: &HostRef, parts: &[(String, String)], read_only: bool) -> Result<bool> {
    let Some(payload) = published(host, NAME, IDENTITY_BYTES_MAX)? else {
        if let Some((name, _)) = host.list()?.iter().find(|(_, bytes)| *bytes > 0) {
            let text = format!(
                "the root holds {name} and no {NAME}: it is damaged or not ours; remove it or \
                 choose another"
            );
            return Err(Error::new(ErrorKind::Damaged, "kv/open", text));
        }
        if read_only {
            let text = "the root is empty and opened read-only; open it to write first";
            return Err(Error::new(ErrorKind::NotFound, "kv/open", text));
        }
        publish(host, &[], NAME, &encode(parts)?)?;
        return Ok(true);
    };
    let stored = decode(&payload)?;
    match difference(&stored, parts) {
        None => Ok(false),
        Some((part, theirs, ours)) => {
            let text = format!(
                "the root belongs to another {part}: it says {theirs}, this run {ours}; choose \
                 another root"
            );
            let mut error = Error::new(ErrorKind::Mismatch, "kv/open", text);
            error.context.push(("part".into(), part));
            error.context.push(("stored".into(), theirs));
            error.context.push(("asked".into(), ours));
            Err(error)
        }
    }
}

fn encode(parts: &[(String, String)]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    put_u32(&mut out, parts.len() as u32);
    for (name, value) in parts {
        put_bytes(&mut out, name.as_bytes())?;
        put_bytes(&mut out, value.as_bytes())?;
    }
    Ok(out)
}

fn decode(payload: &[u8]) -> Result<Vec<(String, String)>> {
    let mut fields = Fields::new(payload);
    let mut parts = Vec::new();
    for _ in 0..fields.u32()? {
        let name = String::from_utf8_lossy(fields.bytes()?).into_owned();
        parts.push((name, String::from_utf8_lossy(fields.bytes()?).into_owned()));
    }
    Ok(parts)
}

/// The first part that differs, with the stored and the asked value.
fn difference(
    stored: &[(String, String)],
    asked: &[(String, String)],
) -> Option<(String, String, String)> {
    let value = |parts: &[(String, String)], name: &str| {
        let found = parts.iter().find(|part| part.0 == name);
        found.map_or_else(|| "nothing".to_owned(), |part| part.1.clone())
    };
    let names = asked.iter().chain(stored).map(|part| part.0.as_str());
    let mut pairs = names.map(|name| (name, value(stored, name), value(asked, name)));
    let found = pairs.find(|(_, theirs, ours)| theirs != ours);
    found.map(|(name, theirs, ours)| (name.to_owned(), theirs, ours))
}
