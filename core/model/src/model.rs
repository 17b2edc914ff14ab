//! An opened model: config, tensors' places, words; every promise of the config checked against the
//! headers.

use crate::config::Config;
use crate::digest::{Digest, sha256};
use crate::error::{damaged, invalid, missing, unsupported};
use crate::files::{SMALL_FILE_BYTES, TOKENIZER_BYTES, read_optional, read_small};
use crate::generation::GenerationConfig;
use crate::tensors::{Dtype, TensorIndex};
use crate::text::{Text, TextFiles};
use kvern_contract::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const OPERATION: &str = "model/open";

/// The files of a model that travels inside a program.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedFiles {
    /// What to call it.
    pub name: &'static str,
    /// `config.json`.
    pub config: &'static [u8],
    /// `generation_config.json`.
    pub generation_config: Option<&'static [u8]>,
    /// `tokenizer.json`.
    pub tokenizer: &'static [u8],
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<&'static [u8]>,
    /// `chat_template.jinja`.
    pub chat_template: Option<&'static [u8]>,
    /// `model.safetensors`.
    pub weights: &'static [u8],
}

/// An opened Hugging Face directory, or the embedded model. Weights are located, never read.
#[derive(Debug)]
pub struct Model {
    name: String,
    directory: Option<PathBuf>,
    config: Config,
    tensors: TensorIndex,
    generation: GenerationConfig,
    digest: Digest,
    embedded: Option<EmbeddedFiles>,
    text: OnceLock<Result<Text>>,
}

impl Model {
    /// Opens a directory with `config.json` and safetensors. The tokenizer is read at the first
    /// [`Model::text`].
    ///
    /// # Errors
    /// `NotFound` for absent files; `Damaged` where headers are wrong or do not keep the config's
    /// promises, naming the tensor, what was found and what expected; `Unsupported` for unknown
    /// families, rope types and dtypes; `Invalid` for a contradictory config.
    pub fn open(dir: &Path) -> Result<Model> {
        if !dir.is_dir() {
            let message = format!("{} is not a directory with a model", dir.display());
            return Err(missing(OPERATION, message));
        }
        let config = read_small(OPERATION, &dir.join("config.json"), SMALL_FILE_BYTES)?;
        let path = dir.join("generation_config.json");
        let generation = read_optional(OPERATION, &path, SMALL_FILE_BYTES)?;
        let parsed = Config::parse(&config)?;
        let tensors = TensorIndex::open(dir)?;
        let name = name_of(dir);
        Self::assemble(name, Some(dir), &config, parsed, generation.as_deref(), tensors)
    }

    /// Opens a model that lies in memory.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn embedded(files: &EmbeddedFiles) -> Result<Model> {
        let tensors = TensorIndex::memory("model.safetensors", files.weights)?;
        let parsed = Config::parse(files.config)?;
        let name = files.name.to_string();
        let mut model =
            Self::assemble(name, None, files.config, parsed, files.generation_config, tensors)?;
        model.embedded = Some(*files);
        Ok(model)
    }

    fn assemble(
        name: String,
        directory: Option<&Path>,
        config_bytes: &[u8],
        config: Config,
        generation: Option<&[u8]>,
        tensors: TensorIndex,
    ) -> Result<Model> {
        check_promises(&config, &tensors)?;
        let generation = GenerationConfig::parse(generation, &config)?;
        let mut parts = vec![config_bytes];
        let lengths: Vec<[u8; 8]> = tensors.lengths.iter().map(|n| n.to_le_bytes()).collect();
        for (header, length) in tensors.headers().iter().zip(&lengths) {
            parts.extend([&header[..], &length[..]]);
        }
        let digest = Digest(sha256(&parts));
        let (directory, text) = (directory.map(Path::to_path_buf), OnceLock::new());
        Ok(Model { name, directory, config, tensors, generation, digest, embedded: None, text })
    }

    /// What to call it: the directory's name, or `owner/name` inside a hub cache.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it lies; `None` for the embedded model.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// Its shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where its weights are. Every tensor that the config promises is there, in the promised
    /// shape, all matrices in BF16, F16 or F32.
    pub fn tensors(&self) -> &TensorIndex {
        &self.tensors
    }

    /// How its authors want it sampled, and which tokens end a text.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Its identity: config, headers and file lengths.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Tokenizer and chat template, read at the first call.
    ///
    /// # Errors
    /// `NotFound` where the model has no `tokenizer.json`; `Invalid` where it is broken or does not
    /// fit the config's vocabulary.
    pub fn text(&self) -> Result<&Text> {
        self.text.get_or_init(|| self.read_text()).as_ref().map_err(Error::clone)
    }

    fn read_text(&self) -> Result<Text> {
        let vocab = self.config.vocab_size;
        if let Some(files) = &self.embedded {
            let files = TextFiles {
                tokenizer: files.tokenizer,
                tokenizer_config: files.tokenizer_config,
                chat_template: files.chat_template,
            };
            return Text::parse(&self.name, &files, vocab);
        }
        let Some(dir) = &self.directory else {
            return Err(Error::new(ErrorKind::Internal, OPERATION, "a model without files"));
        };
        let path = dir.join("tokenizer.json");
        let Some(tokenizer) = read_optional(OPERATION, &path, TOKENIZER_BYTES)? else {
            let message = format!("{} has no tokenizer.json: it cannot read text", self.name);
            return Err(missing(OPERATION, message));
        };
        let optional = |name: &str| read_optional(OPERATION, &dir.join(name), SMALL_FILE_BYTES);
        let (config, template) =
            (optional("tokenizer_config.json")?, optional("chat_template.jinja")?);
        let files = TextFiles {
            tokenizer: &tokenizer,
            tokenizer_config: config.as_deref(),
            chat_template: template.as_deref(),
        };
        Text::parse(&self.name, &files, vocab)
    }
}

/// Every promised tensor is there in the promised shape and a known dtype, and nothing else is.
fn check_promises(config: &Config, tensors: &TensorIndex) -> Result<()> {
    let family = config.family();
    let mut promised = std::collections::HashSet::new();
    (family.promise)(config, &mut |name, shape| {
        let Some(tensor) = tensors.get(name) else {
            let message = format!("tensor {name} is missing, expected {shape:?} by config.json");
            return Err(damaged(OPERATION, message));
        };
        if !tensor.shape.iter().copied().eq(shape.iter().map(|n| u64::from(*n))) {
            let found = &tensor.shape;
            let message = format!("tensor {name} is {found:?}, expected {shape:?} by config.json");
            return Err(damaged(OPERATION, message));
        }
        if let Dtype::Other(dtype) = tensor.dtype {
            let message = format!("tensor {name} is stored as {dtype}, expected BF16, F16 or F32");
            return Err(unsupported(OPERATION, message));
        }
        promised.insert(name.to_string());
        Ok(())
    })?;
    let extra = |name: &&str| !promised.contains(*name) && !(family.ignored)(config, name);
    if let Some(name) = tensors.names().find(extra) {
        let message = format!(
            "tensor {name} is stored, but config.json promises none of that name ({} of {} layers)",
            config.architecture, config.layers
        );
        return Err(invalid(OPERATION, message));
    }
    Ok(())
}

/// `owner/name` for `models--owner--name/snapshots/<revision>`, else the directory's own name.
fn name_of(dir: &Path) -> String {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    let above = |n: usize| absolute.ancestors().nth(n).and_then(|p| p.file_name());
    if above(1).is_some_and(|n| n == "snapshots")
        && let Some(repo) = above(2).and_then(|n| n.to_str()?.strip_prefix("models--"))
    {
        return repo.replacen("--", "/", 1);
    }
    let own = absolute.components().next_back().map(|c| c.as_os_str().to_string_lossy());
    own.map_or_else(|| dir.display().to_string(), std::borrow::Cow::into_owned)
}
