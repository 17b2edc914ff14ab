//! Memory by address, in safe code: it is read and written through `/proc/self/mem`, so that an
//! address which is none is an error, never a crash.
//!
//! Whoever calls sees to it that nobody else uses the bytes meanwhile, as
//! [`span`](kvern_contract::DeviceBackend::span) says.

use kvern_contract::{Error, ErrorKind, HostSpan, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

fn own() -> Result<&'static File> {
    static OWN: OnceLock<Option<File>> = OnceLock::new();
    let open = || File::options().read(true).write(true).open("/proc/self/mem").ok();
    let none = || Error::new(ErrorKind::Io, "memory", "/proc/self/mem cannot be opened");
    OWN.get_or_init(open).as_ref().ok_or_else(none)
}

fn wrong(span: HostSpan, offset: u64, bytes: usize, what: &std::io::Error) -> Error {
    let (at, all) = (span.address, span.bytes);
    let text = format!("{bytes} bytes at {offset} of {all} at {at:#x} are no memory: {what}");
    Error::new(ErrorKind::Invalid, "memory", text)
}

/// Copies bytes of a span, from `offset` on.
///
/// # Errors
/// Invalid (no memory there), Io.
pub fn peek(span: HostSpan, offset: u64, into: &mut [u8]) -> Result<()> {
    let at = (span.address as u64).saturating_add(offset);
    own()?.read_exact_at(into, at).map_err(|e| wrong(span, offset, into.len(), &e))
}

/// Sets bytes of a span, from `offset` on.
///
/// # Errors
/// Invalid (no memory there), Io.
pub fn poke(span: HostSpan, offset: u64, bytes: &[u8]) -> Result<()> {
    let at = (span.address as u64).saturating_add(offset);
    own()?.write_all_at(bytes, at).map_err(|e| wrong(span, offset, bytes.len(), &e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvern_storage::Region;

    #[test]
    fn bytes_by_address_are_the_regions_own_and_no_address_is_an_error() {
        let region = Region::new(10_000).unwrap();
        poke(region.span(), 5000, b"abc").unwrap();
        assert_eq!(&region.lend(5000, 3).unwrap()[..], b"abc");
        region.lend(9999, 1).unwrap()[0] = 7;
        let mut last = [0];
        peek(region.span(), 9999, &mut last).unwrap();
        assert_eq!(last, [7]);
        let nowhere = HostSpan { address: 8, bytes: 8 };
        assert_eq!(peek(nowhere, 0, &mut last).unwrap_err().kind, ErrorKind::Invalid);
        assert_eq!(poke(nowhere, 0, &last).unwrap_err().kind, ErrorKind::Invalid);
    }
}
