//! Images for containers and image volumes: present or pulled, by policy, with the credentials of `imagePullSecrets`, of the node's
//! docker config and of credential provider plug-ins. What one pod's credentials brought here another one gets only with
//! credentials that are good for it too.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::v1::{AuthConfig, Image, ImageSpec, ImageStatusRequest, PodSandboxConfig, PullImageRequest};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tonic::Status;

use crate::config::KubeletConfig;
use crate::context::Context;
use crate::error::Error;
use crate::events;
use crate::metrics::{IMAGE_PULL, IMAGE_VOLUMES, IMAGE_VOLUMES_ERRORS, IMAGE_VOLUMES_MOUNTED};
use crate::objects::Kind as ObjectKind;
use crate::podutil::{Kind, namespace, spec};
use crate::runtime::Cri;
use crate::status::Waiting;

mod docker;
mod providers;
mod records;

use docker::credentials;
use providers::{Account, Providers};
pub use records::VerificationPolicy;
use records::{Proof, Records, Secret};

/// How often a pull that goes on is told of.
const PROGRESS: Duration = Duration::from_secs(60);

/// What the node knows of images.
#[derive(Clone)]
pub(crate) struct Images {
    /// Pulls of one image are done one after another, so that a hundred pods of one image pull it once.
    turns: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
    /// Pulls that may be under way at once.
    places: Arc<Semaphore>,
    /// How many may begin in a second.
    rate: Option<Arc<Mutex<Rate>>>,
    providers: Providers,
    records: Arc<Records>,
}

impl Images {
    /// Reads the credential providers' configuration and opens the records of pulls.
    pub(crate) fn open(config: &KubeletConfig) -> Result<Self, Error> {
        let providers = match &config.credential_provider_config {
            Some(file) => Providers::load(file, &config.credential_provider_bin_dir)
                .map_err(|error| Error::Config(format!("credential providers: {error}")))?,
            None => Providers::default(),
        };
        let settings = &config.settings;
        let rate = Rate {
            each_second: f64::from(settings.registry_pull_qps),
            most: f64::from(settings.registry_burst),
            tokens: f64::from(settings.registry_burst),
            at: Instant::now(),
        };
        Ok(Images {
            turns: Arc::default(),
            places: Arc::new(Semaphore::new(config.max_parallel_image_pulls.max(1))),
            // Nothing a second is upstream's "no limit".
            rate: (settings.registry_pull_qps > 0).then(|| Arc::new(Mutex::new(rate))),
            providers,
            records: Arc::new(Records::open(&config.root_dir, config.image_verification.clone())),
        })
    }

    /// Looks after pulls that were cut off when the kubelet last ended, and forgets images that are gone.
    pub(crate) async fn settle(&self, cri: &Cri) {
        for name in self.records.cut_off() {
            let found = find(cri, &name).await.ok().flatten();
            self.records.settle(&name, found.as_ref().map(|image| image.id.as_str()));
        }
        let list = cri.images().list_images(cri::v1::ListImagesRequest { filter: None }).await;
        if let Ok(list) = list {
            let images = list.into_inner().images;
            self.records.retain(&|image_ref| images.iter().any(|image| image.id == image_ref));
        }
    }
}

/// A bucket of pulls that may begin.
struct Rate {
    each_second: f64,
    most: f64,
    tokens: f64,
    at: Instant,
}

impl Rate {
    /// Whether one more may begin now.
    fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.each_second;
        self.tokens = (self.tokens + gained).min(self.most);
        self.at = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

/// SHA-256 in hexadecimal.
fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
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
    let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
    let object = || events::container(pod, kind, &container.name);
    Wanted { context, pod, name, policy, sandbox, what: "Container image" }.get(&object).await
}

/// The images behind the image volumes that a container mounts, by volume.
pub(crate) async fn volumes(
    context: &Context,
    pod: &Pod,
    container: &Container,
    sandbox: &PodSandboxConfig,
) -> Result<HashMap<String, Image>, ImageError> {
    let mut found = HashMap::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = spec(pod).volumes.iter().flatten().find(|volume| volume.name == mount.name);
        let Some(source) = volume.and_then(|volume| volume.image.as_ref()) else { continue };
        if found.contains_key(&mount.name) {
            continue;
        }
        context.metrics.count(IMAGE_VOLUMES, &[]);
        let name = source.reference.as_deref().unwrap_or_default();
        let default = if name.ends_with(":latest") || !has_tag(name) { "Always" } else { "IfNotPresent" };
        let policy = source.pull_policy.as_deref().unwrap_or(default);
        let wanted = Wanted { context, pod, name, policy, sandbox, what: "Image" };
        match wanted.get(&|| events::pod(pod)).await {
            Ok(image) => {
                context.metrics.count(IMAGE_VOLUMES_MOUNTED, &[]);
                found.insert(mount.name.clone(), image);
            }
            Err(error) => {
                context.metrics.count(IMAGE_VOLUMES_ERRORS, &[]);
                return Err(error);
            }
        }
    }
    Ok(found)
}

fn has_tag(name: &str) -> bool {
    name.contains('@') || split_registry(name).1.contains(':')
}

/// An image that somebody needs.
struct Wanted<'a> {
    context: &'a Context,
    pod: &'a Pod,
    name: &'a str,
    policy: &'a str,
    sandbox: &'a PodSandboxConfig,
    what: &'static str,
}

/// Credentials with where they are from.
type Candidate = (Option<AuthConfig>, Proof);

impl Wanted<'_> {
    async fn get(&self, object: &(dyn Fn() -> ObjectReference + Sync)) -> Result<Image, ImageError> {
        let Wanted { context, name, .. } = *self;
        check_name(name).map_err(|message| error("InvalidImageName", message, false))?;
        let mut secrets = None;
        if let Some(image) = self.usable(object, &mut secrets).await? {
            return Ok(image);
        }
        let asked = Instant::now();
        let turn = {
            let mut turns = context.images.turns.lock();
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(name.to_owned()).or_default().clone()
        };
        let _turn = turn.lock().await;
        if let Some(image) = self.usable(object, &mut secrets).await? {
            return Ok(image);
        }
        if context.images.rate.as_ref().is_some_and(|rate| !rate.lock().take(Instant::now())) {
            return Err(error("ErrImagePull", "pull QPS exceeded".to_owned(), true));
        }
        let _place = context.images.places.acquire().await;
        context.recorder.normal(object(), "Pulling", format!("Pulling image {name:?}"));
        let begun = Instant::now();
        let candidates = self.candidates(secrets).await;
        let records = &context.images.records;
        records.begin(name);
        let telling = async {
            loop {
                tokio::time::sleep(PROGRESS).await;
                let message = format!("Still pulling image {name:?} after {}", short(begun.elapsed()));
                context.recorder.normal(object(), "Pulling", message);
            }
        };
        let pulled = tokio::select! {
            pulled = self.pull(&candidates) => pulled,
            () = telling => return Err(error("ErrImagePull", String::new(), true)),
        };
        let (image_ref, proof) = match pulled {
            Ok(pulled) => pulled,
            Err(status) => {
                records.end(name, None);
                let (reason, message) = explain(name, status.message());
                let text = format!("Failed to pull image {name:?}: {message}");
                context.recorder.warning(object(), "Failed", text);
                context.recorder.warning(object(), "Failed", format!("Error: {reason}"));
                return Err(error(reason, message, true));
            }
        };
        let found = self.present().await?;
        let Some(image) = found else {
            records.end(name, None);
            return Err(error("ErrImagePull", format!("image {name:?} is not there after its pull"), true));
        };
        let image_ref = if image_ref.is_empty() { &image.id } else { &image_ref };
        records.end(name, Some((image_ref, proof)));
        if *image_ref != image.id {
            records.end(name, Some((&image.id, proof)));
        }
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

    async fn present(&self) -> Result<Option<Image>, ImageError> {
        let found = find(&self.context.cri, self.name).await;
        found.map_err(|status| error("ImageInspectError", status.message().to_owned(), false))
    }

    /// The image that is here, if this pod may have it without a pull.
    async fn usable(
        &self,
        object: &(dyn Fn() -> ObjectReference + Sync),
        secrets: &mut Option<Vec<(Secret, Vec<AuthConfig>)>>,
    ) -> Result<Option<Image>, ImageError> {
        let Wanted { context, name, policy, what, .. } = *self;
        if policy == "Always" {
            return Ok(None);
        }
        if let Some(image) = self.present().await? {
            if secrets.is_none() {
                *secrets = Some(self.secrets().await);
            }
            let known: Vec<Secret> = secrets.iter().flatten().map(|(secret, _)| secret.clone()).collect();
            let account = self.account();
            if !context.images.records.must_pull(name, &image.id, &known, account.as_ref()) {
                let message =
                    format!("{what} {name:?} already present on machine and can be accessed by the pod");
                context.recorder.normal(object(), "Pulled", message);
                return Ok(Some(image));
            }
            if policy == "Never" {
                let message = format!(
                    "{what} {name:?} is present with pull policy of Never but does not have the proper credentials to \
                     access the image"
                );
                context.recorder.warning(object(), "ErrImageNeverPull", message.clone());
                return Err(error("ErrImageNeverPull", message, false));
            }
            return Ok(None);
        }
        if policy == "Never" {
            let message = format!("{what} {name:?} is not present with pull policy of Never");
            context.recorder.warning(object(), "ErrImageNeverPull", message.clone());
            return Err(error("ErrImageNeverPull", message, false));
        }
        Ok(None)
    }

    /// The pod's service account, as far as it is known without asking.
    fn account(&self) -> Option<Account> {
        let name = spec(self.pod).service_account_name.clone().filter(|name| !name.is_empty())?;
        Some(Account { namespace: namespace(self.pod).to_owned(), name, uid: String::new() })
    }

    /// The pod's pull secrets that say something about this image.
    async fn secrets(&self) -> Vec<(Secret, Vec<AuthConfig>)> {
        let Wanted { context, pod, name, .. } = *self;
        let mut found = Vec::new();
        for secret in spec(pod).image_pull_secrets.iter().flatten() {
            let secret = secret.name.as_str();
            match context.objects.get(ObjectKind::Secret, namespace(pod), secret).await {
                Ok(data) => {
                    for key in [".dockerconfigjson", ".dockercfg"] {
                        let Some(bytes) = data.get(key) else { continue };
                        let auths = credentials(bytes, key == ".dockercfg", name);
                        if auths.is_empty() {
                            continue;
                        }
                        let secret = Secret {
                            uid: data.uid.clone(),
                            namespace: namespace(pod).to_owned(),
                            name: secret.to_owned(),
                            credential_hash: hash(format!("{auths:?}").as_bytes()),
                        };
                        found.push((secret, auths));
                    }
                }
                Err(error) => {
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({secret}); attempting to pull the image may not \
                         succeed. ({error})"
                    );
                    context.recorder.warning(events::pod(pod), "FailedToRetrieveImagePullSecret", message);
                }
            }
        }
        found
    }

    /// All that may open the registry, the pod's own first; none at all is worth a try alone.
    async fn candidates(&self, secrets: Option<Vec<(Secret, Vec<AuthConfig>)>>) -> Vec<Candidate> {
        let Wanted { context, pod, name, .. } = *self;
        let secrets = match secrets {
            Some(secrets) => secrets,
            None => self.secrets().await,
        };
        let mut list: Vec<Candidate> = Vec::new();
        for (secret, auths) in secrets {
            list.extend(auths.into_iter().map(|auth| (Some(auth), Proof::Secret(secret.clone()))));
        }
        for given in context.images.providers.credentials(context, pod, name).await {
            let proof = given.account.map_or(Proof::Anyone, |account| {
                // Records know an account by its name in what `account` can tell of a later pod.
                Proof::Account(Account { uid: String::new(), ..account })
            });
            list.extend(given.auths.into_iter().map(|auth| (Some(auth), proof.clone())));
        }
        let own = context.config.root_dir.join("config.json");
        for file in [own.as_path(), Path::new("/var/lib/kubelet/config.json")] {
            if let Ok(bytes) = tokio::fs::read(file).await {
                let auths = credentials(&bytes, false, name);
                list.extend(auths.into_iter().map(|auth| (Some(auth), Proof::Anyone)));
            }
        }
        if list.is_empty() {
            list.push((None, Proof::Anyone));
        }
        list
    }

    async fn pull<'c>(&self, candidates: &'c [Candidate]) -> Result<(String, &'c Proof), Status> {
        let mut last = Status::unknown("no credentials");
        for (auth, proof) in candidates {
            let request = PullImageRequest {
                image: Some(ImageSpec {
                    image: self.name.to_owned(),
                    user_specified_image: self.name.to_owned(),
                    ..ImageSpec::default()
                }),
                auth: auth.clone(),
                sandbox_config: Some(self.sandbox.clone()),
            };
            match self.context.cri.images().pull_image(request).await {
                Ok(answer) => return Ok((answer.into_inner().image_ref, proof)),
                Err(status) => last = status,
            }
        }
        Err(last)
    }
}

/// Reason and message of a failed pull; CRI has words for two causes, with which a message then begins.
fn explain(name: &str, message: &str) -> (&'static str, String) {
    for (word, why) in [
        ("RegistryUnavailable", "the registry is unavailable"),
        ("SignatureValidationFailed", "the signature validation failed"),
    ] {
        if let Some(rest) = message.strip_prefix(word) {
            let rest = rest.trim_start_matches(':');
            return (word, format!("image pull failed for {name} because {why}:{rest}"));
        }
    }
    ("ErrImagePull", message.to_owned())
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
    fn pulls_are_bounded_in_time() {
        let start = Instant::now();
        let mut rate = Rate { each_second: 2.0, most: 2.0, tokens: 2.0, at: start };
        assert_eq!([rate.take(start), rate.take(start), rate.take(start)], [true, true, false]);
        assert!(rate.take(start + Duration::from_millis(500)));
        assert!(!rate.take(start + Duration::from_millis(600)));
    }

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
}
