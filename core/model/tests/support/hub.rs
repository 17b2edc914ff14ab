//! A hub on this machine that misbehaves when asked to.

use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// The commit that the hub's `main` is.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub holds and how it behaves.
#[derive(Default)]
pub struct State {
    /// Files by name; weights are kept elsewhere, under their digest.
    pub files: BTreeMap<String, Vec<u8>>,
    /// How many bytes of the next answers' bodies to send before the connection closes.
    pub cuts: VecDeque<usize>,
    /// Answer the whole file to a range.
    pub ignore_range: bool,
    /// Change the last byte of weights.
    pub corrupt: bool,
    /// Bytes to name beyond a file's own in answers about it.
    pub overstate: u64,
    /// Bytes to send beyond what was named.
    pub excess: usize,
    /// Status to answer to paths that contain a text.
    pub refuse: Option<(&'static str, u16)>,
    /// Etag to name in place of the right one.
    pub etag: Option<String>,
    /// Requests so far: method, path, range.
    pub log: Vec<String>,
    /// Value of the last authorization header, by path.
    pub tokens: BTreeMap<String, String>,
}

/// A running hub.
pub struct Hub {
    pub endpoint: String,
    pub state: Arc<Mutex<State>>,
}

impl Hub {
    pub fn start(files: &[(&str, &[u8])]) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Hub { endpoint, state }
    }

    /// Changes how it behaves.
    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// Requests that contain a text.
    pub fn asked(&self, text: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.log.iter().filter(|line| line.contains(text)).cloned().collect()
    }
}

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The name of a small file's content, as long as git's.
pub fn small_etag(bytes: &[u8]) -> String {
    digest(bytes)[..40].to_string()
}

/// One request, one answer, then the connection closes.
fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let mut headers = BTreeMap::new();
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        if let Some((key, value)) = line.split_once(": ") {
            headers.insert(key.to_lowercase(), value.to_string());
        }
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let range = headers.get("range").cloned().unwrap_or_default();
    let mut state = state.lock().unwrap();
    state.log.push(format!("{method} {path} {range}"));
    if let Some(token) = headers.get("authorization") {
        state.tokens.insert(path.to_string(), token.clone());
    }
    let (head, body) = answer(&mut state, method, path, &range);
    let cut =
        if method == "GET" && path.contains("/content/") { state.cuts.pop_front() } else { None };
    drop(state);
    let mut stream = stream;
    let body = &body[..cut.unwrap_or(body.len()).min(body.len())];
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn answer(state: &mut State, method: &str, path: &str, range: &str) -> (String, Vec<u8>) {
    let reply = |status: u16, headers: &str, body: Vec<u8>| {
        let length = if headers.contains("content-length") {
            String::new()
        } else {
            format!("content-length: {}\r\n", body.len())
        };
        (format!("HTTP/1.1 {status} X\r\nconnection: close\r\n{length}{headers}\r\n"), body)
    };
    if let Some((text, status)) = state.refuse
        && path.contains(text)
    {
        return reply(status, "x-error-message: as asked\r\n", vec![]);
    }
    if path == "/api/models/some/model/revision/main"
        || path == "/api/models/some/model/revision/refs%2Fpr%2F1"
    {
        let siblings: Vec<_> = state.files.keys().map(|name| json!({"rfilename": name})).collect();
        return reply(
            200,
            "",
            json!({"sha": COMMIT, "siblings": siblings}).to_string().into_bytes(),
        );
    }
    // Weights answer with a redirect to where contents are; small files with one inside the hub.
    if let Some(name) = path.strip_prefix(&format!("/some/model/resolve/{COMMIT}/"))
        && let Some(bytes) = state.files.get(name)
    {
        let length = bytes.len() as u64 + state.overstate;
        if name.ends_with(".safetensors") {
            let etag = state.etag.clone().unwrap_or_else(|| digest(bytes));
            let headers = format!(
                "location: /content/{name}\r\nx-linked-etag: \"{etag}\"\r\nx-linked-size: {length}\r\netag: \"other\"\r\n"
            );
            // Of an absolute place the client must not ask for facts.
            let headers = if method == "HEAD" {
                headers.replace("location: /", "location: http://elsewhere.invalid/")
            } else {
                headers
            };
            return reply(302, &headers, vec![]);
        }
        return reply(307, &format!("location: /api/resolve-cache/{name}\r\n"), vec![]);
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some(bytes) = state
        .files
        .get(name)
        .filter(|_| path.starts_with("/content/") || path.starts_with("/api/resolve-cache/"))
    else {
        return reply(404, "", vec![]);
    };
    let mut bytes = bytes.clone();
    let etag = state.etag.clone().unwrap_or_else(|| small_etag(&bytes));
    if state.corrupt && name.ends_with(".safetensors") {
        *bytes.last_mut().unwrap() ^= 1;
    }
    if method == "HEAD" {
        return reply(
            200,
            &format!("etag: W/\"{etag}\"\r\ncontent-length: {}\r\n", bytes.len()),
            vec![],
        );
    }
    let from =
        range.strip_prefix("bytes=").and_then(|r| r.trim_end_matches('-').parse::<usize>().ok());
    match from.filter(|_| !state.ignore_range) {
        Some(from) => {
            let content_range =
                format!("content-range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
            reply(206, &content_range, bytes[from..].to_vec())
        }
        None => {
            bytes.extend(vec![7; state.excess]);
            let unnamed = if state.excess > 0 { "x-no-content-length: 1\r\n" } else { "" };
            reply(200, unnamed, bytes)
        }
    }
}
