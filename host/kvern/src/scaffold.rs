//! `kvern plugins new`: a crate of its own, outside of any workspace, that builds, passes its test
//! and can be verified before a line of it is changed.
//!
//! The files are templates beside this source; what the tests build is what an author gets.

use crate::fail::{Failure, Outcome, While};
use crate::plugin::{Kind, executable_dir};
use std::path::{Path, PathBuf};

/// A file of a template: where it goes, and its text.
type File = (&'static str, &'static str);

macro_rules! template { ($kind:literal: $($name:literal),* $(,)?) => {
    &[$(($name, include_str!(concat!("../templates/", $kind, "/", $name)))),*]
} }

const KV: &[File] = template!("kv": "README.md", "src/lib.rs", "tests/contract.rs");
const DEVICE: &[File] = template!(
    "device": "README.md", "src/lib.rs", "src/memory.rs", "src/ops.rs", "src/attention.rs",
    "tests/contract.rs",
);
const OFFLOAD: &[File] = template!("offload": "README.md", "src/lib.rs", "tests/contract.rs");
const COMMON: [File; 3] = [
    ("Cargo.toml", include_str!("../templates/common/Cargo.toml.txt")),
    (".gitignore", "/target\n/.kvern\n"),
    (".rustfmt.toml", include_str!("../../../.rustfmt.toml")),
];

/// What is asked for.
pub struct Ask<'a> {
    /// What the plugin is.
    pub kind: Kind,
    /// Its name, as manifests and flags will spell it.
    pub name: &'a str,
    /// The crate's directory; made.
    pub output: &'a Path,
    /// Where Kvern's sources are, if not where they were found.
    pub source: Option<&'a Path>,
}

/// Writes the crate, whole or not at all. Answers the library that a build of it will make.
pub fn write(ask: &Ask<'_>) -> Outcome<PathBuf> {
    check_name(ask.name)?;
    if ask.output.symlink_metadata().is_ok() {
        return Err(Failure::new(format!(
            "{} is there already; name a directory that is not, or remove it",
            ask.output.display()
        )));
    }
    let source = source(ask.source)?;
    let package = format!("kvern-{}-{}", ask.kind.word(), ask.name);
    let library = package.replace('-', "_");
    let words = [
        ("__NAME__", ask.name.to_owned()),
        ("__CRATE__", package),
        ("__LIB__", library.clone()),
        ("__KIND__", ask.kind.title().to_owned()),
        ("__ABI__", dependency(&source, "core/abi")?),
        ("__TESTKIT__", dependency(&source, "tests/testkit")?),
    ];
    let filled = |text: &str| words.iter().fold(text.to_owned(), |t, (w, v)| t.replace(w, v));
    let partial = partial(ask.output)?;
    let parent = partial.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        let (output, parent) = (ask.output.display(), parent.display());
        return Err(Failure::new(format!(
            "{output}: there is no directory {parent} to make it in; make that first"
        )));
    }
    let fill = || -> Outcome<()> {
        for (name, text) in files(ask.kind).iter().chain(&COMMON) {
            let path = partial.join(name);
            let parent = path.parent().unwrap_or(&partial);
            std::fs::create_dir_all(parent).during(parent.display())?;
            std::fs::write(&path, filled(text)).during(path.display())?;
        }
        // The versions that Kvern itself was tested with; cargo drops what the crate does not use.
        let locked = source.join("Cargo.lock");
        std::fs::copy(&locked, partial.join("Cargo.lock")).during(locked.display())?;
        std::fs::rename(&partial, ask.output).during(ask.output.display())
    };
    fill().inspect_err(|_| {
        // The first failure is the one to tell.
        let _ = std::fs::remove_dir_all(&partial);
    })?;
    let file = format!("{}{library}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    Ok(Path::new("target/release").join(file))
}

/// A path as TOML quotes it.
fn dependency(source: &Path, name: &str) -> Outcome<String> {
    let path = source.join(name);
    let text = path.to_str().ok_or_else(|| {
        Failure::new(format!("{} is not UTF-8, as Cargo.toml must be; move it", path.display()))
    })?;
    Ok(toml::Value::String(text.into()).to_string())
}

fn files(kind: Kind) -> &'static [File] {
    match kind {
        Kind::Kv => KV,
        Kind::Offload => OFFLOAD,
        Kind::Device => DEVICE,
    }
}

/// Lower-case words with hyphens, so that one name is good for the crate, the manifest and a flag.
fn check_name(name: &str) -> Outcome<()> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    let rest = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if first && name.bytes().all(rest) && !name.ends_with('-') && name.len() <= 40 {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "`{name}` is no name for a plugin; write lower-case letters, digits and hyphens, a letter \
         first, at most 40, as in `my-idea`"
    )))
}

/// A directory beside the one that is asked for, on the same file system.
fn partial(output: &Path) -> Outcome<PathBuf> {
    let Some(name) = output.file_name() else {
        return Err(Failure::usage(format!("{} names no directory to make", output.display())));
    };
    let mut name = name.to_os_string();
    name.push(format!(".part{}", std::process::id()));
    Ok(output.with_file_name(name))
}

/// Kvern's own sources, which the crate depends on by path: those that were named, those that were
/// installed beside the program, or those that it was built from.
fn source(named: Option<&Path>) -> Outcome<PathBuf> {
    let is_one = |path: &PathBuf| {
        path.join("core/abi/Cargo.toml").is_file() && path.join("Cargo.lock").is_file()
    };
    if let Some(path) = named {
        let path = path.canonicalize().during(path.display())?;
        return Some(path.clone()).filter(is_one).ok_or_else(|| {
            Failure::new(format!("{} holds no core/abi; name Kvern's sources", path.display()))
        });
    }
    let installed = executable_dir().map(|bin| bin.join("../share/kvern/source"));
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let found = installed.into_iter().chain([built]).find(is_one);
    let found = found.ok_or_else(|| {
        Failure::new(
            "Kvern's sources, which a plugin is built with, are neither beside this program nor \
             where it was built; name them with --source",
        )
    })?;
    found.canonicalize().during(found.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask<'a>(name: &'a str, output: &'a Path) -> Ask<'a> {
        Ask { kind: Kind::Kv, name, output, source: None }
    }

    #[test]
    fn names_are_lower_case_words_with_hyphens() {
        for good in ["a", "my-idea", "h2o", "x1-2-3"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        let long = "a".repeat(41);
        for bad in ["", "My", "1st", "-a", "a-", "a b", "a_b", "../a", "é", &long] {
            let failure = check_name(bad).expect_err(bad);
            assert!(failure.code == 2 && failure.message.contains("no name"), "{failure:?}");
        }
    }

    #[test]
    fn a_crate_is_written_whole_and_never_over_another() {
        let root = std::env::temp_dir().join(format!("kvern-scaffold-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let output = root.join("mine");
        let library = write(&ask("my-idea", &output)).unwrap();
        assert!(library.ends_with("libkvern_kv_my_idea.so"), "{}", library.display());
        let text = std::fs::read_to_string(output.join("Cargo.toml")).unwrap();
        assert!(text.contains("name = \"kvern-kv-my-idea\""), "{text}");
        for name in ["src/lib.rs", "tests/contract.rs", "README.md", "Cargo.toml"] {
            let text = std::fs::read_to_string(output.join(name)).unwrap();
            assert!(!text.contains("__"), "{name}: {text}");
        }
        let failure = write(&ask("my-idea", &output)).unwrap_err();
        assert!(failure.message.contains("is there already"), "{}", failure.message);
        let entries = std::fs::read_dir(&root).unwrap().count();
        assert_eq!(entries, 1, "nothing half made is left");
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_place_without_sources_is_refused() {
        let temp = std::env::temp_dir();
        let failure = source(Some(&temp)).unwrap_err();
        assert!(failure.message.contains("core/abi"), "{}", failure.message);
    }
}
