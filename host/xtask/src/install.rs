//! `install --prefix P`: the whole set under P, or what was there before.
//!
//! Everything is made in a directory of its own under P first. Only then each file is renamed into
//! place, and what it replaces is kept until the last one is there.

use crate::build::clean;
use crate::layout::Layout;
use crate::mirror::files;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where completions go, as each shell looks for them.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/kvern"),
    ("zsh", "share/zsh/site-functions/_kvern"),
    ("fish", "share/fish/vendor_completions.d/kvern.fish"),
];

/// What a plugin is built with: its sources go under share/kvern/source, for `kvern plugins new`.
const SOURCES: [&str; 5] =
    ["core/contract", "core/abi", "core/record", "core/storage", "tests/testkit"];

/// Directories that belong to the installation alone.
const WHOLE: [&str; 1] = ["share/kvern/source"];

/// P of `--prefix P` or `--prefix=P`.
pub(crate) fn prefix(args: &[OsString]) -> Result<PathBuf, String> {
    let usage = "usage: cargo kvern install --prefix DIRECTORY";
    let prefix = match args {
        [flag, prefix] if flag == "--prefix" => PathBuf::from(prefix),
        [flag] => match flag.to_str().and_then(|flag| flag.strip_prefix("--prefix=")) {
            Some(prefix) => PathBuf::from(prefix),
            None => return Err(format!("unexpected {}; {usage}", flag.display())),
        },
        _ => return Err(usage.to_owned()),
    };
    if prefix.as_os_str().is_empty() { Err(usage.to_owned()) } else { Ok(prefix) }
}

/// Installs what was built.
pub(crate) fn install(layout: &Layout, prefix: &Path) -> crate::Result<()> {
    let stage = prefix.join(format!(".kvern-install-{}", std::process::id()));
    let is_new = !prefix.exists();
    let done = fill(layout, &stage.join("new")).and_then(|()| swap(&stage, prefix));
    let _ = fs::remove_dir_all(&stage);
    if done.is_err() && is_new {
        let _ = fs::remove_dir(prefix);
    }
    Ok(done?)
}

/// Makes the whole tree under `new`.
fn fill(layout: &Layout, new: &Path) -> Result<(), String> {
    copy(&layout.release.join("kvern"), &new.join("bin/kvern"))?;
    for library in layout.libraries()? {
        copy(&layout.release.join(&library), &new.join("lib/kvern").join(&library))?;
    }
    let manifests = layout.root.join("manifests");
    for name in files(&manifests)? {
        copy(&manifests.join(&name), &new.join("share/kvern/manifests").join(&name))?;
    }
    sources(&layout.root, &new.join("share/kvern/source"))?;
    for (shell, place) in COMPLETIONS {
        let script = output(layout, &["completions".as_ref(), shell.as_ref()])?;
        crate::mirror::write(&new.join(place), &script)?;
    }
    let man = new.join("share/man/man1");
    fs::create_dir_all(&man).map_err(|error| format!("{}: {error}", man.display()))?;
    output(layout, &["man".as_ref(), "--output".as_ref(), man.as_os_str()])?;
    Ok(())
}

/// A workspace of what plugins are built with, without its tests.
fn sources(root: &Path, to: &Path) -> Result<(), String> {
    for name in SOURCES {
        for file in files(&root.join(name).join("src"))? {
            let file = Path::new(name).join("src").join(file);
            copy(&root.join(&file), &to.join(&file))?;
        }
        let manifest = Path::new(name).join("Cargo.toml");
        copy(&root.join(&manifest), &to.join(&manifest))?;
    }
    copy(&root.join("Cargo.lock"), &to.join("Cargo.lock"))?;
    let path = root.join("Cargo.toml");
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let text = trimmed(&text).ok_or_else(|| format!("{}: no members", path.display()))?;
    crate::mirror::write(&to.join("Cargo.toml"), text.as_bytes())
}

/// The workspace's manifest with the members that are installed, and no others.
fn trimmed(text: &str) -> Option<String> {
    let (before, rest) = text.split_once("members = [")?;
    let (_, after) = rest.split_once(']')?;
    let (_, after) = after.split_once("default-members = [")?;
    let (_, after) = after.split_once(']')?;
    let members: Vec<String> = SOURCES.iter().map(|name| format!("\"{name}\"")).collect();
    Some(format!("{before}members = [{}]{after}", members.join(", ")))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
    fs::copy(from, to)
        .map(|_| ())
        .map_err(|error| format!("copy of {} to {}: {error}", from.display(), to.display()))
}

/// What the built binary prints.
fn output(layout: &Layout, args: &[&std::ffi::OsStr]) -> Result<Vec<u8>, String> {
    let mut command = Command::new(layout.release.join("kvern"));
    let output = clean(command.args(args)).output();
    let output = output.map_err(|error| format!("kvern does not start: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or("it said nothing");
    Err(format!("kvern {} failed: {first}", args.join(" ".as_ref()).display()))
}

/// Renames every file of `stage/new` into `prefix`. At a failure every rename is taken back.
fn swap(stage: &Path, prefix: &Path) -> Result<(), String> {
    let (new, old) = (stage.join("new"), stage.join("old"));
    let mut moved: Vec<(PathBuf, PathBuf)> = Vec::new();
    let mut made: Vec<PathBuf> = Vec::new();
    // Sources are replaced as a whole: a file that moved must not stay beside what it became.
    let mut wholes: Vec<(PathBuf, PathBuf)> = Vec::new();
    for name in WHOLE {
        let (place, kept) = (prefix.join(name), old.join(name));
        if place.is_dir() {
            let say = |error| format!("{}: {error}; nothing was installed", place.display());
            fs::create_dir_all(kept.parent().unwrap_or(&old)).map_err(say)?;
            fs::rename(&place, &kept).map_err(say)?;
            wholes.push((place, kept));
        }
    }
    for name in files(&new)? {
        let place = prefix.join(&name);
        let mut step = || -> std::io::Result<()> {
            make(place.parent().unwrap_or(prefix), &mut made)?;
            if place.symlink_metadata().is_ok() {
                let kept = old.join(&name);
                fs::create_dir_all(kept.parent().unwrap_or(&old))?;
                fs::rename(&place, &kept)?;
                moved.push((place.clone(), kept));
            }
            fs::rename(new.join(&name), &place)?;
            moved.push((new.join(&name), place.clone()));
            Ok(())
        };
        if let Err(error) = step() {
            for (back, from) in moved.iter().rev() {
                let _ = fs::rename(from, back);
            }
            for directory in made.iter().rev() {
                let _ = fs::remove_dir(directory);
            }
            for (back, from) in &wholes {
                let _ = fs::rename(from, back);
            }
            return Err(format!("{}: {error}; nothing was installed", place.display()));
        }
    }
    Ok(())
}

/// Creates a directory and its parents, and notes those that were not there.
fn make(directory: &Path, made: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make(parent, made)?;
    }
    fs::create_dir(directory)?;
    made.push(directory.to_path_buf());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::tests::Scratch;
    use crate::mirror::write;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn the_prefix_is_asked_for_and_nothing_else_is_taken() {
        assert_eq!(prefix(&words(&["--prefix", "/p"])), Ok(PathBuf::from("/p")));
        assert_eq!(prefix(&words(&["--prefix=p q"])), Ok(PathBuf::from("p q")));
        let refused: [&[&str]; 5] =
            [&[], &["--prefix"], &["--prefix="], &["/p"], &["--prefix", "/p", "x"]];
        for args in refused {
            assert!(prefix(&words(args)).is_err_and(|line| line.contains("usage")), "{args:?}");
        }
    }

    #[test]
    fn the_installed_workspace_has_the_installed_members() {
        let text =
            "[workspace]\nmembers = [\n \"core/*\",\n]\ndefault-members = [\"x\"]\n\n[p]\na = 1\n";
        let text = trimmed(text).expect("it has members");
        assert!(text.starts_with("[workspace]\nmembers = [\"core/contract\", "), "{text}");
        assert!(text.ends_with("\"tests/testkit\"]\n\n[p]\na = 1\n"), "{text}");
        assert_eq!(trimmed("[package]"), None);
    }

    #[test]
    fn a_swap_replaces_old_files_and_leaves_strangers_alone() {
        let scratch = Scratch::new("swap");
        let stage = scratch.0.join("stage");
        write(&stage.join("new/bin/kvern"), b"new").expect("written");
        write(&stage.join("new/share/a/b"), b"new").expect("written");
        write(&scratch.0.join("bin/kvern"), b"old").expect("written");
        write(&scratch.0.join("bin/other"), b"theirs").expect("written");
        write(&stage.join("new/share/kvern/source/a/mod.rs"), b"new").expect("written");
        write(&scratch.0.join("share/kvern/source/a.rs"), b"old").expect("written");
        swap(&stage, &scratch.0).expect("swapped");
        assert_eq!(fs::read(scratch.0.join("bin/kvern")).expect("read"), b"new");
        assert_eq!(fs::read(scratch.0.join("share/a/b")).expect("read"), b"new");
        assert_eq!(fs::read(scratch.0.join("bin/other")).expect("read"), b"theirs");
        let source = scratch.0.join("share/kvern/source");
        assert_eq!(fs::read(source.join("a/mod.rs")).expect("read"), b"new");
        assert!(!source.join("a.rs").exists(), "sources are replaced as a whole");
    }

    #[test]
    fn a_swap_that_fails_takes_everything_back() {
        let scratch = Scratch::new("swap-fails");
        let stage = scratch.0.join("stage");
        write(&stage.join("new/bin/kvern"), b"new").expect("written");
        write(&stage.join("new/lib/kvern/x.so"), b"new").expect("written");
        write(&stage.join("new/share/kvern/source/a/mod.rs"), b"new").expect("written");
        write(&stage.join("new/zsh/x"), b"new").expect("written");
        write(&scratch.0.join("bin/kvern"), b"old").expect("written");
        write(&scratch.0.join("share/kvern/source/a.rs"), b"old").expect("written");
        // `zsh` is a file, so that nothing can be put under it.
        write(&scratch.0.join("zsh"), b"in the way").expect("written");
        let line = swap(&stage, &scratch.0).expect_err("zsh is no directory");
        assert!(line.contains("nothing was installed"), "{line}");
        assert_eq!(fs::read(scratch.0.join("bin/kvern")).expect("read"), b"old");
        assert!(!scratch.0.join("lib").exists());
        let source = scratch.0.join("share/kvern/source");
        assert_eq!(fs::read(source.join("a.rs")).expect("read"), b"old");
        assert!(!source.join("a").exists());
    }
}
