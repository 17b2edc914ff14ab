//! The library that a manifest names: where it may lie, who may write to it, and its digest.

use super::manifest::Manifest;
use crate::fail::{Outcome, While};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// SHA-256 of bytes, in hex.
pub fn hex_digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of a file, in hex.
pub fn digest(path: &Path) -> Outcome<String> {
    let mut file = std::fs::File::open(path).during(path.display())?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).during(path.display())? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Directories that may hold a manifest's library: its own, the executable's, `../lib/kvern` beside
/// that.
fn homes(manifest: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    out.extend(manifest.parent().map(Path::to_path_buf));
    if let Some(bin) = executable_dir() {
        out.push(bin.join("../lib/kvern"));
        out.push(bin);
    }
    out
}

/// Where this program lies.
pub fn executable_dir() -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    exe.canonicalize().unwrap_or(exe).parent().map(Path::to_path_buf)
}

/// The file of a manifest's library, with everything checked that can be checked without opening
/// it.
pub fn locate(manifest: &Manifest) -> Outcome<PathBuf> {
    let file = format!(
        "{}{}{}",
        std::env::consts::DLL_PREFIX,
        manifest.library.value,
        std::env::consts::DLL_SUFFIX
    );
    let place = manifest.place(manifest.library.line, "plugin.library");
    let homes = homes(&manifest.path);
    let Some(path) = homes.iter().map(|h| h.join(&file)).find(|p| p.exists()) else {
        let wrong = format!("no {file} beside the manifest or the executable");
        return Err(place.fault(wrong, "build or install the plugin, or remove the manifest"));
    };
    let real = path.canonicalize().during(path.display())?;
    let inside = |home: &PathBuf| home.canonicalize().is_ok_and(|h| real.parent() == Some(&h));
    if !homes.iter().any(inside) {
        let wrong = format!("{} is a link to {}", path.display(), real.display());
        return Err(
            place.fault(wrong, "put the library itself beside the manifest or the executable")
        );
    }
    let mode = std::fs::metadata(&real).during(real.display())?.mode();
    if mode & 0o002 != 0 {
        let wrong = format!("{} can be written by everyone", real.display());
        return Err(place.fault(wrong, format!("run `chmod o-w {}`", real.display())));
    }
    if let Some(expected) = &manifest.sha256 {
        let found = digest(&real)?;
        if found != expected.value {
            let wrong = format!("{} has {found}", real.display());
            let cure = "restore the library that was pinned, or pin this one if it is meant";
            return Err(manifest.place(expected.line, "plugin.sha256").fault(wrong, cure));
        }
    }
    Ok(real)
}
