//! Keeps one directory of small files equal to another, touching only what differs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Makes `to` hold the files of `from` and no others. A file that is equal already is not written.
pub(crate) fn mirror(from: &Path, to: &Path) -> Result<(), String> {
    let wanted = files(from)?;
    for name in &wanted {
        let bytes = read(&from.join(name))?;
        let target = to.join(name);
        if fs::read(&target).is_ok_and(|there| there == bytes) {
            continue;
        }
        write(&target, &bytes)?;
    }
    if to.is_dir() {
        for name in files(to)?.difference(&wanted) {
            let stale = to.join(name);
            fs::remove_file(&stale).map_err(|error| format!("{}: {error}", stale.display()))?;
        }
    }
    Ok(())
}

/// Paths of all files below, relative to it.
pub(crate) fn files(below: &Path) -> Result<BTreeSet<PathBuf>, String> {
    let mut found = BTreeSet::new();
    let mut open = vec![below.to_path_buf()];
    while let Some(directory) = open.pop() {
        let say = |error| format!("{}: {error}", directory.display());
        for entry in fs::read_dir(&directory).map_err(say)? {
            let path = entry.map_err(say)?.path();
            if path.is_dir() {
                open.push(path);
            } else if let Ok(name) = path.strip_prefix(below) {
                found.insert(name.to_path_buf());
            }
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Writes a file beside its place and renames it there, so that nobody reads half of it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let say = |error| format!("{}: {error}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(say)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(name);
    fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, path)).map_err(|error| {
        let _ = fs::remove_file(&beside);
        say(error)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A directory of this test's own, removed at its end.
    pub(crate) struct Scratch(pub(crate) PathBuf);

    impl Scratch {
        pub(crate) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("kvern-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).expect("a scratch directory");
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_mirror_takes_what_is_new_and_drops_what_is_stale() {
        let scratch = Scratch::new("mirror");
        let (from, to) = (scratch.0.join("from"), scratch.0.join("to"));
        write(&from.join("kv/a.toml"), b"1").expect("written");
        write(&from.join("b.toml"), b"2").expect("written");
        write(&to.join("kv/old.toml"), b"3").expect("written");
        mirror(&from, &to).expect("mirrored");
        assert_eq!(files(&to), files(&from));
        assert_eq!(fs::read(to.join("kv/a.toml")).expect("read"), b"1");
    }

    #[test]
    fn an_equal_file_is_not_written_again() {
        let scratch = Scratch::new("mirror-equal");
        let (from, to) = (scratch.0.join("from"), scratch.0.join("to"));
        write(&from.join("a.toml"), b"1").expect("written");
        mirror(&from, &to).expect("mirrored");
        // A file is replaced by renaming another over it, so its inode number tells.
        let inode = |path: &Path| {
            use std::os::unix::fs::MetadataExt;
            fs::metadata(path).expect("there").ino()
        };
        let before = inode(&to.join("a.toml"));
        mirror(&from, &to).expect("mirrored again");
        assert_eq!(inode(&to.join("a.toml")), before);
        write(&from.join("a.toml"), b"2").expect("written");
        mirror(&from, &to).expect("mirrored once more");
        assert_eq!(fs::read(to.join("a.toml")).expect("read"), b"2");
    }
}
