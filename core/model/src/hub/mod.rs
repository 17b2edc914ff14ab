//! Models from a hub of the Hugging Face kind, into the cache that its own tools use: resumable,
//! checked, and a file appears whole or not at all.

mod cache;
mod download;
mod http;

use crate::error::{damaged, invalid, missing};
use cache::Cache;
use http::Http;
use kvern_contract::Result;
use std::path::PathBuf;
use std::time::Duration;

const OPERATION: &str = "model/pull";
/// The hub that the protocol's own tools ask when nothing else is said.
const ENDPOINT: &str = "https://huggingface.co";

/// Where from, where to, and how patiently.
#[derive(Clone, PartialEq, Eq)]
pub struct PullOptions {
    /// The hub, as `https://host`, without a slash at its end.
    pub endpoint: String,
    /// The cache's directory; it holds `models--owner--name`.
    pub cache: PathBuf,
    /// What proves who asks, for gated and private models.
    pub token: Option<String>,
    /// How often in a row an attempt may end without one more byte before it is given up.
    pub attempts: u32,
    /// Longest silence of a connection.
    pub silence: Duration,
}

impl std::fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token stays out of logs.
        write!(f, "PullOptions({} to {})", self.endpoint, self.cache.display())
    }
}

impl PullOptions {
    /// The settings that the hub's own tools read: `HF_ENDPOINT`, `HF_HUB_CACHE` or `HF_HOME`, and
    /// `HF_TOKEN` or the token file that a login left.
    ///
    /// # Errors
    /// `NotFound` where no cache directory is named and there is no home directory.
    pub fn from_env() -> Result<PullOptions> {
        let set = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty());
        let home = set("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache")));
            cache.map(|dir| dir.join("huggingface"))
        });
        let cache = set("HF_HUB_CACHE").map(PathBuf::from);
        let Some(cache) = cache.or_else(|| home.as_ref().map(|dir| dir.join("hub"))) else {
            return Err(missing(OPERATION, "no directory for the cache: set HF_HOME or HOME"));
        };
        let text = |key: &str| std::env::var(key).ok().filter(|value| !value.trim().is_empty());
        let file = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home?.join("token")));
        let stored = || std::fs::read_to_string(file?).ok();
        let token = text("HF_TOKEN").or_else(stored).map(|token| token.trim().to_string());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        Ok(PullOptions {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            cache,
            token: token.filter(|token| !token.is_empty()),
            attempts: 5,
            silence: Duration::from_secs(30),
        })
    }
}

/// How a pull goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullEvent<'a> {
    /// The revision is known, and what it needs.
    Found {
        /// The commit.
        revision: &'a str,
        /// Files to have.
        files: usize,
        /// Their bytes together.
        bytes: u64,
    },
    /// A file grew, or was there.
    Advanced {
        /// Its name.
        file: &'a str,
        /// Bytes that are there now.
        done: u64,
        /// Bytes that it will have.
        bytes: u64,
    },
    /// A connection broke; the next attempt goes on where it ended.
    Resuming {
        /// The file.
        file: &'a str,
        /// Bytes that are there.
        done: u64,
    },
}

/// Fetches a model, named `owner/name` or `owner/name@revision`, and gives its directory in the
/// cache: config, tokenizer, template and safetensors; nothing else is fetched. What is there
/// already is not fetched again, and a file cut off before, by a kill too, goes on where it ended.
/// Files whose SHA-256 the hub names are checked against it.
///
/// # Errors
/// `Invalid` for a name that is none; `NotFound` and `Mismatch` as the hub says, with what to do;
/// `Damaged` where a file is not what the hub promised; `Busy` while another process fetches the
/// same file; `Io`, `Timeout`, `OutOfSpace`.
pub fn pull(
    repo: &str,
    options: &PullOptions,
    progress: &mut dyn FnMut(PullEvent<'_>),
) -> Result<PathBuf> {
    let (name, revision) = parse(repo)?;
    let http = Http::new(options, name);
    let info = http.model(revision)?;
    let wanted: Vec<&String> = info.files.iter().filter(|file| is_wanted(file)).collect();
    if !wanted.iter().any(|file| file.ends_with(".safetensors")) {
        let other =
            info.files.iter().find(|file| file.ends_with(".bin") || file.ends_with(".gguf"));
        let hint = other.map_or(String::new(), |file| format!("; it has {file}"));
        return Err(missing(OPERATION, format!("{name} has no model*.safetensors{hint}")));
    }
    if !wanted.iter().any(|file| *file == "config.json") {
        return Err(missing(OPERATION, format!("{name} has no config.json")));
    }
    let cache = Cache::open(&options.cache, name)?;
    let mut files = Vec::new();
    for file in wanted {
        files.push((file.as_str(), http.facts(&info.commit, file)?));
    }
    let bytes = files.iter().map(|(_, facts)| facts.bytes).fold(0, u64::saturating_add);
    progress(PullEvent::Found { revision: &info.commit, files: files.len(), bytes });
    for (file, facts) in &files {
        download::fetch(&http, &cache, &info.commit, file, facts, progress)?;
        cache.link(&info.commit, file, &facts.etag)?;
    }
    cache.point(revision, &info.commit)?;
    Ok(cache.snapshot(&info.commit))
}

/// The directory of a model that was pulled before, without asking anyone; `None` where there is
/// none.
///
/// # Errors
/// `Invalid` for a name that is none.
pub fn pulled(repo: &str, options: &PullOptions) -> Result<Option<PathBuf>> {
    let (name, revision) = parse(repo)?;
    Ok(cache::find(&options.cache, name, revision))
}

/// Splits `owner/name@revision`.
fn parse(repo: &str) -> Result<(&str, &str)> {
    let (name, revision) = repo.split_once('@').unwrap_or((repo, "main"));
    let word = |text: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        !text.is_empty()
            && !text.starts_with('.')
            && !text.contains("..")
            && text.chars().all(allowed)
    };
    let segments = name.split('/').count();
    if segments > 2 || !name.split('/').all(word) || name.len() > 96 {
        return Err(invalid(OPERATION, format!("'{repo}' is no model, expected owner/name")));
    }
    if !revision.split('/').all(word) || revision.len() > 200 {
        return Err(invalid(OPERATION, format!("'{revision}' is no revision of a model")));
    }
    Ok((name, revision))
}

/// Whether a file is one that an engine reads: plain names in the repository's root.
fn is_wanted(file: &str) -> bool {
    const WORDS: [&str; 7] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
    ];
    let weights = file.starts_with("model") && file.ends_with(".safetensors");
    (WORDS.contains(&file) || weights) && crate::tensors::is_plain_file_name(file)
}

/// Whether a text is so many lower-case hexadecimal digits.
fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A name that the hub gave and that becomes a file's: letters, digits, dashes, dots inside.
fn checked_etag(file: &str, etag: &str) -> Result<String> {
    let plain = etag.trim().trim_start_matches("W/").trim_matches('"');
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if plain.is_empty() || plain.len() > 128 || plain.starts_with('.') || !plain.bytes().all(good) {
        return Err(damaged(OPERATION, format!("{file}: the hub names it by the etag '{etag}'")));
    }
    Ok(plain.to_string())
}
