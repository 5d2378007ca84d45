//! Credentials from docker configs (`.dockerconfigjson` and the older `.dockercfg`), by image.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cri::v1::AuthConfig;
use serde::Deserialize;

use super::split_registry;

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, DockerAuth>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerAuth {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

/// Whether a host, whose parts may hold `*` each, is meant by a pattern with the same port.
pub(super) fn matches_host(pattern: &str, host: &str) -> bool {
    let split = |text: &str| -> (Vec<String>, Option<String>) {
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, Some(port.to_owned())),
            _ => (text, None),
        };
        (name.split('.').map(str::to_owned).collect(), port)
    };
    let ((pattern, wanted), (parts, port)) = (split(pattern), split(host));
    let fits = |pattern: &str, part: &str| match pattern.split_once('*') {
        None => pattern == part,
        Some((before, after)) => {
            part.len() >= before.len() + after.len() && part.starts_with(before) && part.ends_with(after)
        }
    };
    wanted == port && pattern.len() == parts.len() && pattern.iter().zip(&parts).all(|(p, h)| fits(p, h))
}

/// The credentials in a docker config that apply to an image, the most specific first.
pub(super) fn credentials(config: &[u8], old_format: bool, image: &str) -> Vec<AuthConfig> {
    let auths = if old_format {
        serde_json::from_slice(config).unwrap_or_default()
    } else {
        serde_json::from_slice::<DockerConfig>(config).map(|config| config.auths).unwrap_or_default()
    };
    let (registry, repository) = split_registry(image);
    let full = format!("{registry}/{repository}");
    let mut found: Vec<(usize, AuthConfig)> = auths
        .into_iter()
        .filter_map(|(key, auth)| {
            let place =
                key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
            let place = place.trim_end_matches("/v1").trim_end_matches("/v2");
            let place = if place == "index.docker.io" { "docker.io" } else { place };
            let (host, path) = place.split_once('/').unwrap_or((place, ""));
            let below = &full[registry.len() + 1..];
            let path_matches = path.is_empty()
                || below
                    .strip_prefix(path)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
            (matches_host(host, registry) && path_matches).then(|| (place.len(), config_of(&key, auth)))
        })
        .collect();
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn config_of(key: &str, auth: DockerAuth) -> AuthConfig {
    let (mut username, mut password) = (auth.username, auth.password);
    if username.is_empty()
        && let Ok(plain) = STANDARD.decode(auth.auth.trim())
        && let Some((user, secret)) = String::from_utf8_lossy(&plain).split_once(':')
    {
        (username, password) = (user.to_owned(), secret.to_owned());
    }
    AuthConfig {
        username,
        password,
        auth: String::new(),
        server_address: key.to_owned(),
        identity_token: auth.identitytoken,
        registry_token: auth.registrytoken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_credentials_come_first() {
        let config = br#"{"auths": {"https://r.example/v2/": {"auth": "dTpw"}, "r.example/team": {"username": "t", "password": "s"},
            "other.example": {"username": "o"}}}"#;
        let found = credentials(config, false, "r.example/team/app:1");
        let users: Vec<_> =
            found.iter().map(|auth| (auth.username.as_str(), auth.password.as_str())).collect();
        assert_eq!(users, [("t", "s"), ("u", "p")]);
        let hub = br#"{"https://index.docker.io/v1/": {"username": "h"}}"#;
        assert_eq!(credentials(hub, true, "nginx").len(), 1);
    }

    #[test]
    fn every_form_is_read() {
        let check = |config: &str, old: bool, image: &str, user: Option<&str>| {
            let found = credentials(config.as_bytes(), old, image);
            assert_eq!(found.first().map(|auth| auth.username.as_str()), user, "{config} {image}");
        };
        check(r#"{"auths": {"r.test:5000": {"auth": "dTpw"}}}"#, false, "r.test:5000/a", Some("u"));
        check(r#"{"auths": {"r.test:5000": {"auth": "dTpw"}}}"#, false, "r.test/a", None);
        check(
            r#"{"r.test": {"username": "u", "password": "p", "email": "e"}}"#,
            true,
            "r.test/a:1",
            Some("u"),
        );
        check(r#"{"auths": {"*.r.test": {"username": "u"}}}"#, false, "a.r.test/x", Some("u"));
        check(r#"{"auths": {"*.r.test": {"username": "u"}}}"#, false, "a.b.r.test/x", None);
        check(r#"{"auths": {"r.test/team/": {"username": "u"}}}"#, false, "r.test/teams/x", None);
        check(r#"{"auths": {"https://index.docker.io/v1/": {"username": "u"}}}"#, false, "nginx", Some("u"));
        check("not json", false, "nginx", None);
        let token = r#"{"auths": {"r.test": {"identitytoken": "t"}}}"#;
        assert_eq!(credentials(token.as_bytes(), false, "r.test/x")[0].identity_token, "t");
    }
}
