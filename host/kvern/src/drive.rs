//! What the drive under a directory can do, found out by doing it.

use kvern_storage::{OpenHow, Service, ServiceSpec, Storage};
use rustix::fs::statfs;
use std::path::{Path, PathBuf};

/// Facts about a directory's file system.
#[derive(Clone, PartialEq, Debug)]
pub struct Drive {
    /// The directory that was looked at: the nearest one that is there.
    pub directory: PathBuf,
    /// As `ext4`; a number for file systems without a name here.
    pub file_system: Option<String>,
    /// Bytes that this process may still write.
    pub free_bytes: Option<u64>,
    /// Whether a file could be written there.
    pub writable: Result<(), String>,
    /// Whether a read past the page cache worked.
    pub direct: Result<(), String>,
}

const NAMES: [(u64, &str); 11] = [
    (0xEF53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0xF2F5_2010, "f2fs"),
    (0x2FC1_2FC1, "zfs"),
    (0x0102_1994, "tmpfs"),
    (0x794C_7630, "overlay"),
    (0x6969, "nfs"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "fuse"),
    (0xFF53_4D42, "cifs"),
];

impl Drive {
    /// Looks at a directory, or at its nearest ancestor that is there. Writes a page and reads it
    /// back.
    pub fn of(directory: &Path) -> Drive {
        let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.into());
        let there = absolute.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/"));
        let stat = statfs(there).ok();
        let name = |magic: u64| {
            let known = NAMES.iter().find(|(number, _)| *number == magic);
            known.map_or_else(|| format!("{magic:#x}"), |(_, name)| (*name).to_string())
        };
        let (writable, direct) = probe(there);
        Drive {
            directory: there.into(),
            // The kernel's word is 32 bits wide; on some targets it arrives sign-extended.
            file_system: stat.map(|s| name(s.f_type as u64 & 0xFFFF_FFFF)),
            free_bytes: stat.map(|s| s.f_bavail * s.f_bsize as u64),
            writable,
            direct,
        }
    }
}

fn probe(directory: &Path) -> (Result<(), String>, Result<(), String>) {
    let path = directory.join(format!(".kvern-probe-{}", std::process::id()));
    if let Err(e) = std::fs::write(&path, [1u8; 4096]) {
        return (Err(e.to_string()), Err("nothing could be written to read back".into()));
    }
    let service = Service::pool(0);
    let opened = service.open(&path, OpenHow::Direct).and_then(|file| service.facts(file));
    let direct =
        opened.map_err(|e| e.to_string()).and_then(|facts| facts.refused.map_or(Ok(()), Err));
    // A probe that stays behind is only untidy.
    let _ = std::fs::remove_file(&path);
    (Ok(()), direct)
}

/// Whether the kernel lets this process have a ring.
pub fn io_uring() -> Result<(), String> {
    let service = Service::new(ServiceSpec::default());
    service.path_reason().map_or(Ok(()), |reason| Err(reason.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_yet_has_its_ancestors_drive() {
        let drive = Drive::of(&std::env::temp_dir().join("not/there"));
        assert_eq!(drive.directory, std::env::temp_dir());
        assert_eq!(drive.writable, Ok(()));
        assert!(drive.file_system.is_some() && drive.free_bytes.is_some());
    }

    #[test]
    fn what_cannot_be_written_says_so() {
        let drive = Drive::of(Path::new("/proc/nowhere"));
        assert!(drive.writable.is_err() && drive.direct.is_err());
    }
}
