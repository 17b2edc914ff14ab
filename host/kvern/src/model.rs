//! From a model's reference to its files.

use crate::fail::{Failure, Outcome};
use kvern_model::{EmbeddedFiles, Model, PullOptions, pulled};
use std::path::{Path, PathBuf};

/// Name of the model that travels inside this program.
pub const EMBEDDED: &str = "tiny-austen";

macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("../embedded/tiny-austen/", $name))
    };
}

static FILES: EmbeddedFiles = EmbeddedFiles {
    name: EMBEDDED,
    config: file!("config.json"),
    generation_config: Some(file!("generation_config.json")),
    tokenizer: file!("tokenizer.json"),
    tokenizer_config: Some(file!("tokenizer_config.json")),
    chat_template: None,
    weights: file!("model.safetensors"),
};

/// Where a reference leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reference {
    /// The embedded model.
    Embedded,
    /// A directory, which may hold a model.
    Directory(PathBuf),
}

impl Reference {
    /// Nothing or `tiny-austen` is the embedded model; else a directory, or a name in the models
    /// directory, where `owner/name@revision` is `owner--name--revision`, or what was pulled under
    /// that name.
    pub fn resolve(reference: Option<&str>, models_dir: &Path) -> Outcome<Reference> {
        let Some(text) = reference.filter(|text| *text != EMBEDDED) else {
            return Ok(Reference::Embedded);
        };
        let direct = PathBuf::from(text);
        if direct.is_dir() {
            return Ok(Reference::Directory(direct));
        }
        let flat = text.replace(['/', '@'], "--");
        let named = [models_dir.join(text), models_dir.join(&flat)];
        if let Some(found) = named.into_iter().find(|p| !text.is_empty() && p.is_dir()) {
            return Ok(Reference::Directory(found));
        }
        if text.contains('/')
            && let Ok(options) = PullOptions::from_env()
            && let Ok(Some(found)) = pulled(text, &options)
        {
            return Ok(Reference::Directory(found));
        }
        let known: Vec<String> = names(models_dir);
        let hint = crate::near::hint(text, known.iter().map(String::as_str));
        let hint = if hint.is_empty() { ";".to_string() } else { hint };
        Err(Failure::new(format!(
            "no model `{text}`{hint} it is neither a directory nor in `{}`, which holds {}",
            models_dir.display(),
            if known.len() < 2 { "none".into() } else { known[1..].join(", ") }
        )))
    }

    /// Opens the model: config and headers are read and checked, weights are not read.
    pub fn open(&self) -> Outcome<Model> {
        Ok(match self {
            Reference::Embedded => Model::embedded(&FILES)?,
            Reference::Directory(path) => Model::open(path)?,
        })
    }

    /// The bytes of `config.json`.
    pub fn config(&self) -> Outcome<Vec<u8>> {
        match self {
            Reference::Embedded => Ok(FILES.config.to_vec()),
            Reference::Directory(path) => {
                let path = path.join("config.json");
                std::fs::read(&path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))
            }
        }
    }

    /// The directory; `None` for the embedded model.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Reference::Embedded => None,
            Reference::Directory(path) => Some(path),
        }
    }
}

/// The embedded model's name, then those in the models directory, sorted.
pub fn names(models_dir: &Path) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(models_dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("config.json").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    found.insert(0, EMBEDDED.into());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_and_its_name_are_the_embedded_model() {
        for reference in [None, Some(EMBEDDED)] {
            let found = Reference::resolve(reference, Path::new("/nowhere")).unwrap();
            assert_eq!(found, Reference::Embedded);
            assert_eq!(found.path(), None);
        }
        assert_eq!(Reference::Embedded.open().unwrap().name(), EMBEDDED);
    }

    #[test]
    fn an_owner_and_a_revision_are_part_of_the_directorys_name() {
        let root = std::env::temp_dir().join(format!("kvern-models-{}", std::process::id()));
        std::fs::create_dir_all(root.join("o--n--r")).unwrap();
        let found = Reference::resolve(Some("o/n@r"), &root).unwrap();
        assert_eq!(found.path(), Some(root.join("o--n--r").as_path()));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn an_unknown_name_is_told_what_it_may_have_meant() {
        let failure = Reference::resolve(Some("tiny-austin"), Path::new("/nowhere")).unwrap_err();
        assert!(failure.message.contains("did you mean `tiny-austen`?"), "{}", failure.message);
    }
}
