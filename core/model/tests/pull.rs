//! Pulling from a hub: the cache's layout, resuming at any byte, and refusals that say what to do.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

#[path = "support/hub.rs"]
mod hub;
mod support;

use hub::{COMMIT, Hub, digest, small_etag};
use kvern_contract::{ErrorKind, Result};
use kvern_model::{Model, PullEvent, PullOptions, pull, pulled};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::*;

fn weights() -> Vec<u8> {
    safetensors(&tensors(), "BF16", 16)
}

fn start() -> Hub {
    let (config, weights) = (config().to_string(), weights());
    Hub::start(&[
        ("config.json", config.as_bytes()),
        ("model.safetensors", &weights),
        ("pytorch_model.bin", b"pickled"),
        ("README.md", b"words"),
        ("onnx/model.onnx", b"other"),
    ])
}

fn options(hub: &Hub, cache: &Path) -> PullOptions {
    PullOptions {
        endpoint: hub.endpoint.clone(),
        cache: cache.to_path_buf(),
        token: None,
        attempts: 2,
        silence: Duration::from_secs(20),
    }
}

fn go(hub: &Hub, cache: &Path) -> Result<PathBuf> {
    pull("some/model", &options(hub, cache), &mut |_| {})
}

#[test]
fn a_model_arrives_in_the_layout_of_the_hub_s_own_tools() {
    let (hub, cache) = (start(), tempfile::tempdir().unwrap());
    let mut events = Vec::new();
    let dir = pull("some/model", &options(&hub, cache.path()), &mut |event| {
        events.push(format!("{event:?}"))
    })
    .unwrap();
    let root = cache.path().join("models--some--model");
    assert_eq!(dir, root.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let link = std::fs::read_link(dir.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(digest(&weights())));
    let link = std::fs::read_link(dir.join("config.json")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(small_etag(config().to_string().as_bytes())));
    let mut names: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    assert_eq!(std::fs::read_dir(root.join("blobs")).unwrap().count(), 2);
    assert_eq!(Model::open(&dir).unwrap().name(), "some/model");
    assert!(events[0].starts_with("Found"), "{events:?}");
    assert!(
        events.last().unwrap().contains(&format!("done: {0}, bytes: {0}", weights().len())),
        "{events:?}"
    );
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let (hub, cache) = (start(), tempfile::tempdir().unwrap());
    let first = go(&hub, cache.path()).unwrap();
    assert_eq!(hub.asked("GET /content").len(), 1);
    assert_eq!(go(&hub, cache.path()).unwrap(), first);
    assert_eq!(hub.asked("GET /content").len(), 1);
}

#[test]
fn a_cut_connection_goes_on_where_it_ended() {
    let (hub, cache) = (start(), tempfile::tempdir().unwrap());
    hub.set(|state| state.cuts = [100, 0, 50, 1].into());
    let mut resumed = Vec::new();
    let dir = pull("some/model", &options(&hub, cache.path()), &mut |event| {
        if let PullEvent::Resuming { done, .. } = event {
            resumed.push(done);
        }
    })
    .unwrap();
    assert_eq!(resumed, [100, 100, 150, 151]);
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights());
    let ranges: Vec<String> = hub.asked("GET /content");
    assert!(ranges[1].ends_with("bytes=100-") && ranges[4].ends_with("bytes=151-"), "{ranges:?}");
}

/// A process killed while it fetched leaves a beginning of the file, of any length.
#[test]
fn a_killed_pull_goes_on_from_any_byte_to_the_same_content() {
    let hub = start();
    let weights = weights();
    for at in (0..weights.len()).step_by(97).chain([weights.len() - 1, weights.len()]) {
        let cache = tempfile::tempdir().unwrap();
        let blobs = cache.path().join("models--some--model/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        let part = blobs.join(format!("{}.incomplete", digest(&weights)));
        std::fs::write(&part, &weights[..at]).unwrap();
        let before = hub.asked("GET /content").len();
        let dir = go(&hub, cache.path()).unwrap();
        assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights, "{at}");
        assert!(!part.exists());
        let asked = hub.asked("GET /content");
        match at {
            0 => assert!(asked[before].ends_with(' ')),
            _ if at == weights.len() => assert_eq!(asked.len(), before, "nothing was missing"),
            _ => assert!(asked[before].ends_with(&format!("bytes={at}-")), "{asked:?}"),
        }
    }
}

#[test]
fn a_hub_that_ignores_ranges_is_taken_from_the_start() {
    let (hub, cache) = (start(), tempfile::tempdir().unwrap());
    hub.set(|state| {
        state.cuts = [300].into();
        state.ignore_range = true;
    });
    let dir = go(&hub, cache.path()).unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn a_connection_that_never_brings_a_byte_is_given_up() {
    let (hub, cache) = (start(), tempfile::tempdir().unwrap());
    hub.set(|state| state.cuts = [200, 0, 0, 0, 0].into());
    let error = go(&hub, cache.path()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io, "{error}");
    assert!(error.message.contains("model.safetensors"), "{error}");
    assert_eq!(hub.asked("GET /content").len(), 3);
    // What came is kept.
    hub.set(|state| state.cuts.clear());
    assert!(go(&hub, cache.path()).is_ok());
    assert!(hub.asked("GET /content").last().unwrap().ends_with("bytes=200-"));
}

#[test]
fn a_wrong_digest_is_refused_and_thrown_away() {
    let (hub, cache) = (start(), tempfile::tempdir().unwrap());
    hub.set(|state| state.corrupt = true);
    let error = go(&hub, cache.path()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Damaged);
    assert!(
        error.message.contains("has the sha256") && error.message.contains(&digest(&weights())),
        "{error}"
    );
    let snapshot = cache.path().join("models--some--model/snapshots").join(COMMIT);
    assert!(!snapshot.join("model.safetensors").exists());
    hub.set(|state| state.corrupt = false);
    assert!(go(&hub, cache.path()).is_ok());
}

#[test]
fn a_beginning_that_is_not_the_file_s_is_found_by_the_digest() {
    let (hub, cache) = (start(), tempfile::tempdir().unwrap());
    let blobs = cache.path().join("models--some--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let part = |bytes: &[u8]| {
        std::fs::write(blobs.join(format!("{}.incomplete", digest(&weights()))), bytes).unwrap()
    };
    part(&[9; 500]);
    assert_eq!(go(&hub, cache.path()).unwrap_err().kind, ErrorKind::Damaged);
    part(&vec![9; weights().len() + 5]);
    assert!(go(&hub, cache.path()).is_ok(), "more than the file is no beginning of it");
}

#[test]
fn a_length_that_is_not_what_was_named_is_refused() {
    let (hub, cache) = (start(), tempfile::tempdir().unwrap());
    hub.set(|state| state.overstate = 5);
    let error = go(&hub, cache.path()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Damaged, "{error}");
    let bytes = weights().len();
    assert!(
        error.message.contains(&format!("sends {bytes} bytes, it named {}", bytes + 5)),
        "{error}"
    );
    hub.set(|state| (state.overstate, state.excess) = (0, 5));
    let error = go(&hub, cache.path()).unwrap_err();
    assert!(
        error.message.contains(&format!("sends more than the {bytes} bytes it named")),
        "{error}"
    );
}

#[test]
fn refusals_of_the_hub_say_what_to_do() {
    let (hub, cache) = (start(), tempfile::tempdir().unwrap());
    let ask = |text, status, token: Option<&str>| {
        hub.set(|state| state.refuse = Some((text, status)));
        let options = PullOptions { token: token.map(String::from), ..options(&hub, cache.path()) };
        pull("some/model", &options, &mut |_| {}).unwrap_err()
    };
    let error = ask("/api/", 401, None);
    assert_eq!(error.kind, ErrorKind::Mismatch);
    assert!(
        error
            .message
            .contains("some/model (as asked): it is gated, private or not there: set HF_TOKEN"),
        "{error}"
    );
    let error = ask("/resolve/", 403, Some("secret"));
    assert!(error.message.contains("the token has no access"), "{error}");
    assert!(!format!("{error:?}").contains("secret"));
    let error = ask("/api/", 404, None);
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message.contains("no such model, revision or file"), "{error}");
    let error = ask("/content/", 503, None);
    assert_eq!(error.kind, ErrorKind::Io);
    assert!(error.message.contains("503"), "{error}");
    assert_eq!(hub.asked("GET /content").len(), 2, "a server's error is tried again");
}

#[test]
fn a_token_goes_to_the_hub_and_into_no_log() {
    let (hub, cache) = (start(), tempfile::tempdir().unwrap());
    let options = PullOptions { token: Some("secret".into()), ..options(&hub, cache.path()) };
    pull("some/model", &options, &mut |_| {}).unwrap();
    let tokens = hub.state.lock().unwrap().tokens.clone();
    assert_eq!(tokens["/api/models/some/model/revision/main"], "Bearer secret");
    assert!(!format!("{options:?}").contains("secret"));
}

#[test]
fn a_revision_has_its_own_name_in_the_cache() {
    let (hub, cache) = (start(), tempfile::tempdir().unwrap());
    pull("some/model@refs/pr/1", &options(&hub, cache.path()), &mut |_| {}).unwrap();
    let path = cache.path().join("models--some--model/refs/refs/pr/1");
    assert_eq!(std::fs::read_to_string(path).unwrap(), COMMIT);
}

#[test]
fn what_was_pulled_is_found_without_the_hub() {
    let (hub, cache) = (start(), tempfile::tempdir().unwrap());
    let options = options(&hub, cache.path());
    assert_eq!(pulled("some/model", &options).unwrap(), None);
    hub.set(|state| state.corrupt = true);
    pull("some/model", &options, &mut |_| {}).unwrap_err();
    assert_eq!(pulled("some/model", &options).unwrap(), None, "not whole");
    hub.set(|state| state.corrupt = false);
    let dir = pull("some/model", &options, &mut |_| {}).unwrap();
    let asked = hub.asked("").len();
    assert_eq!(pulled("some/model", &options).unwrap(), Some(dir.clone()));
    assert_eq!(pulled(&format!("some/model@{COMMIT}"), &options).unwrap(), Some(dir));
    assert_eq!(pulled("some/model@other", &options).unwrap(), None);
    assert!(pulled("../x", &options).is_err());
    assert_eq!(hub.asked("").len(), asked);
}

#[test]
fn names_that_leave_the_cache_are_refused() {
    let (hub, cache) = (start(), tempfile::tempdir().unwrap());
    for name in [
        "",
        "a/b/c",
        "../x",
        "a/..",
        "a b",
        "some/model@",
        "some/model@../../x",
        "some/model@a//b",
        "/x",
        "x/",
        ".x/y",
    ] {
        let error = pull(name, &options(&hub, cache.path()), &mut |_| {}).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{name}: {error}");
    }
    for etag in ["../../../etc/passwd", "", ".hidden", "a/b"] {
        hub.set(|state| state.etag = Some(etag.into()));
        assert_eq!(go(&hub, cache.path()).unwrap_err().kind, ErrorKind::Damaged, "{etag}");
    }
}

#[test]
fn a_model_without_safetensors_says_what_it_has() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[("config.json", b"{}"), ("pytorch_model.bin", b"x")]);
    let error = go(&hub, cache.path()).unwrap_err();
    assert!(
        error.message.contains("some/model has no model*.safetensors; it has pytorch_model.bin"),
        "{error}"
    );
}

#[test]
fn a_file_that_another_process_fetches_is_left_to_it() {
    let (hub, cache) = (start(), tempfile::tempdir().unwrap());
    let blobs = cache.path().join("models--some--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let held =
        std::fs::File::create(blobs.join(format!("{}.incomplete", digest(&weights())))).unwrap();
    held.lock().unwrap();
    let error = go(&hub, cache.path()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy, "{error}");
    drop(held);
    assert!(go(&hub, cache.path()).is_ok());
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let options = PullOptions {
        endpoint: endpoint.clone(),
        cache: cache.path().to_path_buf(),
        token: None,
        attempts: 1,
        silence: Duration::from_secs(5),
    };
    let error = pull("some/model", &options, &mut |_| {}).unwrap_err();
    assert!(error.message.contains(&endpoint), "{error}");
}
