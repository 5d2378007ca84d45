//! Images for containers: present or pulled, by policy, with the credentials of `imagePullSecrets`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cri::v1::{AuthConfig, Image, ImageSpec, ImageStatusRequest, PodSandboxConfig, PullImageRequest};
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use serde::Deserialize;
use tonic::Status;

use crate::context::Context;
use crate::events;
use crate::metrics::IMAGE_PULL;
use crate::objects::Kind as ObjectKind;
use crate::podutil::{Kind, namespace, spec};
use crate::runtime::Cri;
use crate::status::Waiting;

/// Pulls of one image are done one after another, so that a hundred pods of one image pull it once.
#[derive(Clone, Default)]
pub(crate) struct Images {
    turns: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

/// Why there is no image.
#[derive(Debug, Clone)]
pub(crate) struct ImageError {
    pub waiting: Waiting,
    /// A pull was tried, so the next try has to back off.
    pub pulled: bool,
}

fn error(reason: &str, message: String, pulled: bool) -> ImageError {
    ImageError { waiting: Waiting { reason: reason.to_owned(), message }, pulled }
}

/// Asks the runtime for an image.
pub(crate) async fn find(cri: &Cri, image: &str) -> Result<Option<Image>, Status> {
    let spec = ImageSpec { image: image.to_owned(), ..ImageSpec::default() };
    let request = ImageStatusRequest { image: Some(spec), verbose: false };
    Ok(cri.images().image_status(request).await?.into_inner().image)
}

/// The image of the container, pulled if the policy asks for it.
pub(crate) async fn ensure(
    context: &Context,
    pod: &Pod,
    container: &Container,
    kind: Kind,
    sandbox: &PodSandboxConfig,
) -> Result<Image, ImageError> {
    let name = container.image.as_deref().unwrap_or_default();
    check_name(name).map_err(|message| error("InvalidImageName", message, false))?;
    let object = || events::container(pod, kind, &container.name);
    let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
    let turn = context.images.turns.lock().entry(name.to_owned()).or_default().clone();
    let present = async || {
        find(&context.cri, name)
            .await
            .map_err(|status| error("ImageInspectError", status.message().to_owned(), false))
    };
    if policy != "Always"
        && let Some(image) = present().await?
    {
        let message =
            format!("Container image {name:?} already present on machine and can be accessed by the pod");
        context.recorder.normal(object(), "Pulled", message);
        return Ok(image);
    }
    if policy == "Never" {
        let message = format!("Container image {name:?} is not present with pull policy of Never");
        context.recorder.warning(object(), "ErrImageNeverPull", message.clone());
        return Err(error("ErrImageNeverPull", message, false));
    }
    let asked = Instant::now();
    let _turn = turn.lock().await;
    if policy != "Always"
        && let Some(image) = present().await?
    {
        let message =
            format!("Container image {name:?} already present on machine and can be accessed by the pod");
        context.recorder.normal(object(), "Pulled", message);
        return Ok(image);
    }
    context.recorder.normal(object(), "Pulling", format!("Pulling image {name:?}"));
    let begun = Instant::now();
    let pulled = pull(context, pod, name, sandbox).await;
    if let Err(status) = pulled {
        let message = status.message().to_owned();
        context.recorder.warning(object(), "Failed", format!("Failed to pull image {name:?}: {message}"));
        context.recorder.warning(object(), "Failed", "Error: ErrImagePull".to_owned());
        return Err(error("ErrImagePull", message, true));
    }
    let Some(image) = present().await? else {
        return Err(error("ErrImagePull", format!("image {name:?} is not there after its pull"), true));
    };
    let size = size_class(image.size);
    context.metrics.took(IMAGE_PULL, &[("image_size_in_bytes", size)], begun.elapsed());
    let message = format!(
        "Successfully pulled image {name:?} in {} ({} including waiting). Image size: {} bytes.",
        short(begun.elapsed()),
        short(asked.elapsed()),
        image.size
    );
    context.recorder.normal(object(), "Pulled", message);
    Ok(image)
}

/// The size class that upstream counts pulls by.
fn size_class(bytes: u64) -> &'static str {
    const CLASSES: [(u64, &str); 10] = [
        (100 << 30, "GT100GB"),
        (50 << 30, "50GB-100GB"),
        (20 << 30, "20GB-50GB"),
        (10 << 30, "10GB-20GB"),
        (5 << 30, "5GB-10GB"),
        (1 << 30, "1GB-5GB"),
        (500 << 20, "500MB-1GB"),
        (100 << 20, "100MB-500MB"),
        (50 << 20, "50MB-100MB"),
        (10 << 20, "10MB-50MB"),
    ];
    CLASSES.iter().find(|(from, _)| bytes > *from).map_or("0-10MB", |(_, name)| name)
}

fn short(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{}ms", time.as_millis())
    } else {
        format!("{:.3}s", time.as_secs_f64())
    }
}

async fn pull(context: &Context, pod: &Pod, name: &str, sandbox: &PodSandboxConfig) -> Result<(), Status> {
    let mut candidates: Vec<Option<AuthConfig>> = Vec::new();
    for secret in spec(pod).image_pull_secrets.iter().flatten() {
        let secret = secret.name.as_str();
        match context.objects.get(ObjectKind::Secret, namespace(pod), secret).await {
            Ok(data) => {
                for key in [".dockerconfigjson", ".dockercfg"] {
                    let found = data.get(key).map(|bytes| credentials(bytes, key == ".dockercfg", name));
                    candidates.extend(found.into_iter().flatten().map(Some));
                }
            }
            Err(error) => {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({secret}); attempting to pull the image may not succeed. ({error})"
                );
                context.recorder.warning(events::pod(pod), "FailedToRetrieveImagePullSecret", message);
            }
        }
    }
    if candidates.is_empty() {
        candidates.push(None);
    }
    let mut last = Status::unknown("no credentials");
    for auth in candidates {
        let request = PullImageRequest {
            image: Some(ImageSpec {
                image: name.to_owned(),
                user_specified_image: name.to_owned(),
                ..ImageSpec::default()
            }),
            auth,
            sandbox_config: Some(sandbox.clone()),
        };
        match context.cri.images().pull_image(request).await {
            Ok(_) => return Ok(()),
            Err(status) => last = status,
        }
    }
    Err(last)
}

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

/// The credentials in a docker config that apply to an image, the most specific first.
fn credentials(config: &[u8], old_format: bool, image: &str) -> Vec<AuthConfig> {
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
            let host_matches =
                host == registry || host.strip_prefix('*').is_some_and(|rest| registry.ends_with(rest));
            let path_matches = path.is_empty() || full[registry.len() + 1..].starts_with(path);
            (host_matches && path_matches).then(|| (place.len(), config_of(&key, auth)))
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

/// Registry host and repository of an image name.
fn split_registry(image: &str) -> (&str, &str) {
    match image.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("docker.io", image),
    }
}

/// Refuses names that cannot be image references.
fn check_name(image: &str) -> Result<(), String> {
    let bad = |why: &str| {
        Err(format!(
            "Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {why}"
        ))
    };
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let (registry, repository) = split_registry(name);
    let (path, tag) = repository.rsplit_once(':').map_or((repository, None), |(path, tag)| (path, Some(tag)));
    let allowed = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return bad(&format!("invalid reference format: repository name ({path}) must be lowercase"));
    }
    let good_path = path.split('/').all(|part| allowed(part, "._-") && !part.starts_with(['.', '-', '_']));
    let good_tag = tag.is_none_or(|tag| allowed(tag, "._-") && tag.len() <= 128);
    let good_digest =
        digest.is_none_or(|digest| digest.split_once(':').is_some_and(|(_, hex)| hex.len() >= 32));
    if good_path && good_tag && good_digest && allowed(registry, ".:-[]_") {
        return Ok(());
    }
    bad("invalid reference format")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in [
            "nginx",
            "nginx:1.2",
            "r.example:5000/a/b@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "localhost/x",
        ] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "Nginx", "a b", "x:", "/x", "some..$$"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

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
}
