//! The hub's questions: what a revision holds, what a file is, and its bytes from a place on.

use super::{OPERATION, PullOptions, checked_etag, is_hex};
use crate::error::{damaged, missing};
use kvern_contract::{Error, ErrorKind, Result};
use std::time::Duration;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body, config::RedirectAuthHeaders};

/// Largest answer about a model, in bytes.
const ANSWER_BYTES: u64 = 64 << 20;
/// Most redirects inside the hub before a file's facts.
const REDIRECTS: u32 = 5;

/// A revision as the hub resolves it.
pub(super) struct Info {
    pub commit: String,
    pub files: Vec<String>,
}

/// What the hub says of a file.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Names the content in the cache.
    pub etag: String,
    pub bytes: u64,
    /// Whether the etag is the content's SHA-256.
    pub is_digest: bool,
}

/// A failed attempt: whether another may go better.
pub(super) struct Failed {
    pub error: Error,
    pub again: bool,
}

pub(super) struct Http {
    agent: Agent,
    endpoint: String,
    repo: String,
    authorization: Option<String>,
    pub attempts: u32,
}

impl Http {
    pub fn new(options: &PullOptions, repo: &str) -> Http {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("kvern/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(options.silence.max(Duration::from_secs(1)) * 2))
            .timeout_per_read(Some(options.silence));
        let host = options.endpoint.split("//").nth(1).unwrap_or_default();
        if ["127.0.0.1", "localhost", "[::1]"].iter().any(|local| host.starts_with(local)) {
            config = config.proxy(None);
        }
        Http {
            agent: config.build().new_agent(),
            endpoint: options.endpoint.clone(),
            repo: repo.to_string(),
            authorization: options.token.as_ref().map(|token| format!("Bearer {token}")),
            attempts: options.attempts.max(1),
        }
    }

    /// The commit that a revision names, and its files.
    pub fn model(&self, revision: &str) -> Result<Info> {
        let revision = revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.endpoint, self.repo);
        let json = self.again(|| {
            let mut answer = self.get(&url, None)?;
            self.good(&answer, None)?;
            let body = answer.body_mut().with_config().limit(ANSWER_BYTES).read_to_vec();
            body.map_err(|e| self.broken(&e))
        })?;
        let wrong = |what: &str| damaged(OPERATION, format!("{url} answers without {what}"));
        let json: serde_json::Value = serde_json::from_slice(&json)
            .map_err(|e| damaged(OPERATION, format!("{url} answers no JSON: {e}")))?;
        let commit = json.get("sha").and_then(|v| v.as_str()).filter(|sha| is_hex(sha, 40));
        let files =
            json.get("siblings").and_then(|v| v.as_array()).ok_or_else(|| wrong("files"))?;
        let name = |file: &serde_json::Value| Some(file.get("rfilename")?.as_str()?.to_string());
        Ok(Info {
            commit: commit.ok_or_else(|| wrong("a commit"))?.to_string(),
            files: files.iter().filter_map(name).collect(),
        })
    }

    /// What a file is, without its bytes. Redirects inside the hub are followed; one that leads
    /// elsewhere carries the facts itself.
    pub fn facts(&self, commit: &str, file: &str) -> Result<Facts> {
        let mut url = self.url(commit, file);
        for _ in 0..REDIRECTS {
            let answer = self.again(|| {
                let request = self.agent.head(&url).config().max_redirects(0).build();
                let request = match &self.authorization {
                    Some(value) => request.header("authorization", value),
                    None => request,
                };
                let answer = request.call().map_err(|e| self.broken(&e))?;
                if !answer.status().is_redirection() {
                    self.good(&answer, Some(file))?;
                }
                Ok(answer)
            })?;
            let header = |key: &str| text(answer.headers(), key);
            let inside = header("location").filter(|to| to.starts_with('/'));
            if answer.status().is_redirection()
                && let Some(to) = inside
            {
                url = format!("{}{to}", self.endpoint);
                continue;
            }
            let number = |key: &str| header(key).and_then(|text| text.trim().parse::<u64>().ok());
            let etag = header("x-linked-etag").or_else(|| header("etag"));
            let length = || number("content-length").filter(|_| answer.status().is_success());
            let (Some(etag), Some(bytes)) = (etag, number("x-linked-size").or_else(length)) else {
                let message = format!("{file}: the hub names no etag or no size");
                return Err(damaged(OPERATION, message));
            };
            let etag = checked_etag(file, etag)?;
            return Ok(Facts { is_digest: is_hex(&etag, 64), etag, bytes });
        }
        Err(damaged(OPERATION, format!("{file}: more than {REDIRECTS} redirects")))
    }

    /// A file's bytes from a place on, and the place where they really start.
    pub fn bytes(
        &self,
        commit: &str,
        file: &str,
        from: u64,
        bytes: u64,
    ) -> std::result::Result<(Response<Body>, u64), Failed> {
        let answer = self.get(&self.url(commit, file), Some(from).filter(|n| *n > 0))?;
        self.good(&answer, Some(file))?;
        let stop = |message: String| Failed { error: damaged(OPERATION, message), again: false };
        if answer.status() == StatusCode::PARTIAL_CONTENT {
            let range = text(answer.headers(), "content-range").unwrap_or_default();
            let expected = format!("bytes {from}-");
            if !range.starts_with(&expected) || !range.ends_with(&format!("/{bytes}")) {
                return Err(stop(format!(
                    "{file}: the hub sends '{range}' of {bytes} bytes, asked from {from}"
                )));
            }
            return Ok((answer, from));
        }
        let length = text(answer.headers(), "content-length").and_then(|n| n.parse::<u64>().ok());
        if length.is_some_and(|n| n != bytes) {
            let length = length.unwrap_or_default();
            return Err(stop(format!("{file}: the hub sends {length} bytes, it named {bytes}")));
        }
        Ok((answer, 0))
    }

    fn url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.endpoint, self.repo)
    }

    fn get(&self, url: &str, from: Option<u64>) -> std::result::Result<Response<Body>, Failed> {
        let mut request = self.agent.get(url);
        if let Some(value) = &self.authorization {
            request = request.header("authorization", value);
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        request.call().map_err(|e| self.broken(&e))
    }

    /// Repeats a short question while that may help.
    fn again<T>(&self, ask: impl Fn() -> std::result::Result<T, Failed>) -> Result<T> {
        let mut attempt = 1;
        loop {
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(failed) if !failed.again || attempt >= self.attempts => {
                    return Err(failed.error);
                }
                Err(_) => pause(attempt),
            }
            attempt += 1;
        }
    }

    /// Refuses an answer that is none, in words that say what to do.
    fn good(&self, answer: &Response<Body>, file: Option<&str>) -> std::result::Result<(), Failed> {
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let what = file.map_or(self.repo.clone(), |file| format!("{} {file}", self.repo));
        let said = text(answer.headers(), "x-error-message");
        let said = said.map_or(String::new(), |text| format!(" ({text})"));
        let hub = &self.endpoint;
        let (kind, message) = match status.as_u16() {
            401 | 403 => {
                let cure = match self.authorization {
                    Some(_) => {
                        "the token has no access: accept the model's terms, or check the name"
                    }
                    None => "it is gated, private or not there: set HF_TOKEN, or check the name",
                };
                (ErrorKind::Mismatch, format!("{hub} answers {status} for {what}{said}: {cure}"))
            }
            404 => {
                let cure = "no such model, revision or file";
                (ErrorKind::NotFound, format!("{hub} answers {status} for {what}{said}: {cure}"))
            }
            _ => (ErrorKind::Io, format!("{hub} answers {status} for {what}{said}")),
        };
        let again = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
        Err(Failed { error: Error::new(kind, OPERATION, message), again })
    }

    /// A connection that did not work.
    fn broken(&self, error: &ureq::Error) -> Failed {
        let (hub, repo) = (&self.endpoint, &self.repo);
        let (error, again) = match error {
            ureq::Error::Timeout(what) => {
                let message = format!("{hub} is silent about {repo} ({what})");
                (Error::new(ErrorKind::Timeout, OPERATION, message), true)
            }
            ureq::Error::HostNotFound => {
                (missing(OPERATION, format!("there is no host at {hub}; check HF_ENDPOINT")), true)
            }
            ureq::Error::BadUri(text) => {
                let message = format!("{hub} is no endpoint ({text}); check HF_ENDPOINT");
                (crate::error::invalid(OPERATION, message), false)
            }
            other => {
                let message = format!("{hub} failed for {repo}: {other}");
                (Error::new(ErrorKind::Io, OPERATION, message), true)
            }
        };
        Failed { error, again }
    }
}

/// Waits before an attempt: a quarter of a second, doubled each time, at most four.
pub(super) fn pause(attempt: u32) {
    std::thread::sleep(Duration::from_millis(250 << attempt.saturating_sub(1).min(4)));
}

fn text<'a>(headers: &'a HeaderMap, key: &str) -> Option<&'a str> {
    headers.get(key)?.to_str().ok()
}
