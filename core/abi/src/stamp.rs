//! The stamp: plain bytes in every plugin that say what it was built for, read from the file before
//! any of its code runs. Its first five fields never move; what is added later comes at the end.
#![allow(unsafe_code)]

use crate::PluginKind;
use crate::device::{CopyRow, SpanRow, StateRow, SupportRow};
use crate::host::{ReadRow, WriteRow};
use crate::kv::attentive::{HeadRow, MassRow, QueryRow};
use crate::kv::rows::{
    CommitRow, FoundRow, LayerRow, LoadRow, OriginRow, PageRow, PrefixRow, ViewRow,
};
use crate::wire::AbiError;
use kvern_contract::{Error, ErrorKind, Result};
use std::path::Path;

/// The contract epoch that this crate speaks: raised when a slot or a struct changes, not when one
/// is added behind a capability. docs/ABI.md has the table.
pub const EPOCH: u32 = 1;

const MAGIC: [u8; 16] = *b"kvern-plugin\0\r\n\x1a";

/// What a plugin says about itself before it is loaded.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    magic: [u8; 16],
    bytes: u32,
    epoch: u32,
    kind: u32,
    panic: u32,
    target: [u8; 40],
    version: [u8; 24],
    sizes: [u32; 24],
}

// SAFETY of reading it from a file: every field is an integer or an array of them, without padding,
// so any bytes are a value.
const _: () = assert!(size_of::<Stamp>() == 16 + 16 + 40 + 24 + 96);

const fn text<const N: usize>(parts: &[&str]) -> [u8; N] {
    let mut out = [0; N];
    let (mut part, mut at) = (0, 0);
    while part < parts.len() {
        let bytes = parts[part].as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            out[at] = bytes[i];
            (i, at) = (i + 1, at + 1);
        }
        part += 1;
    }
    out
}

const ENVIRONMENT: &str = if cfg!(target_env = "gnu") {
    "gnu"
} else if cfg!(target_env = "musl") {
    "musl"
} else {
    "other"
};

const fn sizes() -> [u32; 24] {
    let known = [
        size_of::<AbiError>(),
        size_of::<PageRow<'_>>(),
        size_of::<LoadRow<'_>>(),
        size_of::<CommitRow<'_>>(),
        size_of::<PrefixRow<'_>>(),
        size_of::<FoundRow>(),
        size_of::<OriginRow>(),
        size_of::<LayerRow>(),
        size_of::<ViewRow<'_>>(),
        size_of::<QueryRow<'_>>(),
        size_of::<MassRow<'_>>(),
        size_of::<HeadRow<'_>>(),
        size_of::<ReadRow<'_>>(),
        size_of::<WriteRow<'_>>(),
        size_of::<CopyRow>(),
        size_of::<SpanRow>(),
        size_of::<SupportRow>(),
        size_of::<StateRow>(),
        size_of::<usize>(),
    ];
    let mut out = [0; 24];
    let mut i = 0;
    while i < known.len() {
        out[i] = known[i] as u32;
        i += 1;
    }
    out
}

impl Stamp {
    /// The stamp of a plugin that is compiled here; `unwinds` is the plugin's own panic strategy.
    pub const fn new(kind: PluginKind, unwinds: bool) -> Self {
        Stamp {
            magic: MAGIC,
            bytes: size_of::<Stamp>() as u32,
            epoch: EPOCH,
            kind: kind as u32,
            panic: if unwinds { 1 } else { 2 },
            target: text(&[std::env::consts::ARCH, "-", std::env::consts::OS, "-", ENVIRONMENT]),
            version: text(&[env!("CARGO_PKG_VERSION")]),
            sizes: sizes(),
        }
    }

    /// The contract epoch that the plugin was built for.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// What the plugin is. *Errors* Unsupported: a kind that this host does not know.
    pub fn kind(&self) -> Result<PluginKind> {
        PluginKind::ALL.into_iter().find(|kind| *kind as u32 == self.kind).ok_or_else(|| {
            let number = self.kind;
            Error::new(
                ErrorKind::Unsupported,
                "abi/open",
                format!("plugin kind {number} is unknown"),
            )
        })
    }

    /// Whether the plugin was built with `panic = "unwind"`.
    pub fn unwinds(&self) -> bool {
        self.panic == 1
    }

    /// Where it runs, as `x86_64-linux-gnu`.
    pub fn target(&self) -> String {
        shown(&self.target)
    }

    /// The version of kvern-abi that it was built with.
    pub fn version(&self) -> String {
        shown(&self.version)
    }

    /// The stamp in a plugin's bytes; what an older, shorter one lacks is zero.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Stamp> {
        let mut whole = [0; size_of::<Stamp>()];
        let length = bytes.len().min(whole.len());
        whole.get_mut(..length)?.copy_from_slice(bytes.get(..length)?);
        // SAFETY: `Stamp` is integers without padding (asserted above): any bytes of its size are
        // one.
        let stamp = unsafe { std::mem::transmute::<[u8; size_of::<Stamp>()], Stamp>(whole) };
        (length >= 32 && stamp.magic == MAGIC).then_some(stamp)
    }

    /// Whether this host can load it. *Errors* Mismatch or Unsupported, in one line: what it was
    /// built for, what this host speaks, what to do.
    pub(crate) fn check(&self, path: &Path) -> Result<PluginKind> {
        let (name, host) = (path.display(), Stamp::new(PluginKind::Kv, true));
        let (built, here) = (self.version(), host.version());
        let refuse = |text: String| Err(Error::new(ErrorKind::Mismatch, "abi/open", text));
        if self.epoch != EPOCH {
            return refuse(format!(
                "{name} was built for epoch {} (kvern-abi {built}), this host speaks epoch \
                 {EPOCH}: build it against kvern-abi {here}",
                self.epoch
            ));
        }
        if self.target != host.target {
            return refuse(format!(
                "{name} was built for {}, this host runs on {}: build it for this target",
                self.target(),
                host.target()
            ));
        }
        if !self.unwinds() {
            return refuse(format!(
                "{name} was built with panic = \"abort\", so a panic would end this process: build \
                 it with panic = \"unwind\""
            ));
        }
        if (self.bytes, self.sizes) != (host.bytes, host.sizes) {
            return refuse(format!(
                "{name} was built with kvern-abi {built}, whose structs have other sizes than \
                 those of this host's {here}: build it against kvern-abi {here}"
            ));
        }
        self.kind().map_err(|error| Error {
            message: format!("{name}: {}: this host is older than the plugin", error.message),
            ..error
        })
    }
}

fn shown(text: &[u8]) -> String {
    let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
    let text = String::from_utf8_lossy(text.get(..end).unwrap_or_default()).into_owned();
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut Stamp)) -> Error {
        let mut stamp = Stamp::new(PluginKind::Device, true);
        change(&mut stamp);
        stamp.check(Path::new("libx.so")).unwrap_err()
    }

    #[test]
    fn a_stamp_of_this_build_passes() {
        let stamp = Stamp::new(PluginKind::Offload, true);
        assert_eq!(stamp.check(Path::new("x")).unwrap(), PluginKind::Offload);
        assert_eq!(stamp.version(), env!("CARGO_PKG_VERSION"));
        assert!(stamp.target().starts_with(std::env::consts::ARCH), "{}", stamp.target());
    }

    #[test]
    fn each_mismatch_names_both_values_in_one_line() {
        let epoch = refusal(|s| s.epoch = 7);
        assert!(epoch.message.contains("epoch 7") && epoch.message.contains("epoch 1"));
        let target = refusal(|s| s.target = text(&["riscv64-linux-gnu"]));
        assert!(target.message.contains("riscv64-linux-gnu"), "{target}");
        let panic = refusal(|s| s.panic = 2);
        assert!(panic.message.contains("panic = \"abort\""), "{panic}");
        let sizes = refusal(|s| s.sizes[3] += 8);
        assert!(sizes.message.contains("other sizes"), "{sizes}");
        for error in [epoch, target, panic, sizes] {
            assert_eq!(error.kind, ErrorKind::Mismatch);
            assert!(!error.message.contains('\n'));
        }
        assert_eq!(refusal(|s| s.kind = 9).kind, ErrorKind::Unsupported);
    }

    #[test]
    fn bytes_that_are_no_stamp_are_none() {
        assert!(Stamp::parse(b"").is_none());
        assert!(Stamp::parse(&[0; 300]).is_none());
        let mut short = MAGIC.to_vec();
        assert!(Stamp::parse(&short).is_none(), "no epoch");
        short.extend([1, 0, 0, 0].repeat(4));
        assert_eq!(Stamp::parse(&short).map(|s| s.epoch()), Some(1), "an older one is shorter");
    }
}
