//! Which codebase a run measured: a remote's address, reduced to what names the repository.

/// `host/owner/repo` of a remote's address: user, secret, port, query and `.git` go. `None` where
/// nothing is left to name it by, and for `file://`: the caller takes the directory's name.
pub fn codebase_label(remote: &str) -> Option<String> {
    let remote = remote.trim().split(['?', '#']).next().unwrap_or_default();
    if remote.starts_with("file://") {
        return None;
    }
    let label = if let Some((_, rest)) = remote.split_once("://") {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        host_and_path(authority, path)
    } else if let Some((authority, path)) = scp_form(remote) {
        host_and_path(authority, path)
    } else {
        remote.to_string()
    };
    let label = label.trim_matches('/');
    let label = label.strip_suffix(".git").unwrap_or(label).trim_matches('/');
    (!label.is_empty()).then(|| label.to_string())
}

/// `user@host:path` and `host:path`; a slash before the colon makes it a path.
fn scp_form(remote: &str) -> Option<(&str, &str)> {
    let (authority, path) = remote.split_once(':')?;
    (!authority.is_empty() && !authority.contains('/')).then_some((authority, path))
}

fn host_and_path(authority: &str, path: &str) -> String {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    format!("{}/{}", host.to_ascii_lowercase(), path.trim_start_matches('/'))
}

/// A remote's address without user and secret, fit to be stored.
pub fn without_credentials(remote: &str) -> String {
    let Some((scheme, rest)) = remote.split_once("://") else { return remote.to_string() };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if path.is_empty() { format!("{scheme}://{host}") } else { format!("{scheme}://{host}/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_remote_names_the_same_repository() {
        for remote in [
            "git@Host:o/r.git",
            "https://user:secret@host:443/o/r.git/",
            "ssh://git@host:2222/o/r",
            "alice@host:o/r.git",
            "host:o/r.git",
            "https://host/o/r?token=x",
        ] {
            assert_eq!(codebase_label(remote).as_deref(), Some("host/o/r"), "{remote}");
        }
        assert_eq!(codebase_label("/srv/git/r.git").as_deref(), Some("srv/git/r"));
        assert_eq!(codebase_label("../r.git").as_deref(), Some("../r"));
        assert_eq!(codebase_label("file:///srv/r"), None);
        assert_eq!(codebase_label(" "), None);
    }

    #[test]
    fn secrets_are_not_stored() {
        assert_eq!(without_credentials("https://u:s@host/o/r"), "https://host/o/r");
        assert_eq!(without_credentials("git@host:o/r"), "git@host:o/r");
    }
}
