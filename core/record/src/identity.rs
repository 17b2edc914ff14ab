//! Whose root this is: named parts, published before anything else, compared whenever the root is
//! opened.

use crate::fields::{Fields, put_bytes, put_u32};
use crate::frame::{HEADER_BYTES, read_record, write_record};
use kvern_contract::{Error, ErrorKind, FileRead, HostRef, Open, Result};
use std::time::Duration;

/// The file.
const NAME: &str = "identity";
/// An identity is a handful of short parts; a longer file is damage.
const IDENTITY_BYTES_MAX: u64 = 1 << 20;

/// Makes the root that of `parts`, or finds that it is. Publishes `identity` if the root is empty
/// and `read_only` is off; answers whether it did. The caller opens its own files afterwards.
/// *Errors* Mismatch: names the first part that differs and both values; Damaged: the file cannot
/// be read, or the root has files and no identity; NotFound: an empty root, opened read-only; Io,
/// OutOfSpace.
pub fn claim_identity(host: &HostRef, parts: &[(String, String)], read_only: bool) -> Result<bool> {
    let files = host.list()?;
    let Some((_, bytes)) = files.iter().find(|(name, _)| name == NAME) else {
        if let Some((name, _)) = files.iter().find(|(_, bytes)| *bytes > 0) {
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
        host.publish(NAME, &write_record(0, &encode(parts)?)?)?;
        return Ok(true);
    };
    let stored = read(host, *bytes)?;
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

fn read(host: &HostRef, bytes: u64) -> Result<Vec<(String, String)>> {
    let damaged = || {
        let text = format!("{NAME} cannot be read: it is damaged; remove the root");
        Error::new(ErrorKind::Damaged, "kv/open", text)
    };
    if !(HEADER_BYTES as u64..=IDENTITY_BYTES_MAX).contains(&bytes) {
        return Err(damaged());
    }
    let file = host.open(NAME, Open::Read)?;
    let mut record = vec![0; bytes as usize];
    let mut reads = [FileRead { file, offset: 0, into: &mut record, done: Ok(()) }];
    let answer = host.read_batch(&mut reads, Duration::MAX);
    let [FileRead { done, .. }] = reads;
    host.close(file);
    answer.and(done)?;
    let mut fields = Fields::new(read_record(0, &record).ok_or_else(damaged)?);
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
