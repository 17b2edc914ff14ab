//! Fields of a payload: fixed little-endian words and counted bytes.

use kvern_contract::{Error, ErrorKind, Result};

/// Appends a word of four bytes.
pub fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}
/// Appends a word of eight bytes.
pub fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend(value.to_le_bytes());
}
/// Appends a count of bytes (u32) and the bytes. *Errors* Invalid: more than 4 GiB.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    let count = u32::try_from(bytes.len()).map_err(|_| {
        let text = format!("{} bytes do not fit a field of 4 GiB", bytes.len());
        Error::new(ErrorKind::Invalid, "record/fields", text)
    })?;
    put_u32(out, count);
    out.extend(bytes);
    Ok(())
}

/// Takes fields from the front of a payload; whatever the bytes say, nothing past them is read.
pub struct Fields<'a>(&'a [u8]);
impl<'a> Fields<'a> {
    /// The fields of `payload`.
    pub fn new(payload: &'a [u8]) -> Self {
        Fields(payload)
    }
    /// The next `count` bytes. *Errors* Damaged: the payload ends before.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| {
            let text = format!("a record ends {} bytes into a field of {count}", self.0.len());
            Error::new(ErrorKind::Damaged, "record/fields", text)
        })?;
        self.0 = rest;
        Ok(taken)
    }
    /// The next array of bytes. *Errors* Damaged.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }
    /// The next word of four bytes. *Errors* Damaged.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    /// The next word of eight bytes. *Errors* Damaged.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// The next counted bytes. *Errors* Damaged.
    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let count = self.u32()? as usize;
        self.take(count)
    }
    /// A count of items of `each` bytes that follow. *Errors* Damaged: more than the payload has
    /// room for, so that a wrong count never becomes an allocation.
    pub fn count(&mut self, each: usize) -> Result<usize> {
        let count = self.u64()?;
        let room = (self.0.len() / each.max(1)) as u64;
        if count > room {
            let text = format!("a record counts {count} items and has room for {room}");
            return Err(Error::new(ErrorKind::Damaged, "record/fields", text));
        }
        Ok(count as usize)
    }
    /// Whether all bytes were taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_in_order_and_a_short_payload_is_damage() {
        let mut out = Vec::new();
        put_u32(&mut out, 7);
        put_u64(&mut out, u64::MAX);
        put_bytes(&mut out, b"note").unwrap();
        let mut fields = Fields::new(&out);
        assert_eq!((fields.u32().unwrap(), fields.u64().unwrap()), (7, u64::MAX));
        assert_eq!(fields.bytes().unwrap(), b"note");
        assert!(fields.is_empty());
        assert_eq!(fields.u32().unwrap_err().kind, ErrorKind::Damaged);
        let mut cut = Fields::new(&out[..out.len() - 1]);
        cut.take(12).unwrap();
        assert_eq!(cut.bytes().unwrap_err().kind, ErrorKind::Damaged);
    }

    #[test]
    fn a_count_beyond_the_payload_is_damage_and_no_allocation() {
        let mut out = Vec::new();
        put_u64(&mut out, 1 << 60);
        out.extend([0; 32]);
        assert_eq!(Fields::new(&out).count(16).unwrap_err().kind, ErrorKind::Damaged);
        out[..8].copy_from_slice(&2u64.to_le_bytes());
        assert_eq!(Fields::new(&out).count(16).unwrap(), 2);
    }
}
