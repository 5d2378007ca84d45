//! Credential provider plug-ins: programs that know passwords of registries (`CredentialProviderConfig` of
//! `kubelet.config.k8s.io/v1` names them; they are asked by `CredentialProviderRequest` on their input).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::v1::AuthConfig;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Api;
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::docker::matches_host;
use super::split_registry;
use crate::context::Context;
use crate::metrics::{CREDENTIAL_ERRORS, CREDENTIAL_PLUGINS};
use crate::podutil::{self, spec};

/// How long a plug-in may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer.
const MOST_BYTES: u64 = 1 << 20;
/// Answers that are kept at once.
const MAX_CACHED: usize = 1000;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {reason}", path.display())]
    Invalid { path: PathBuf, reason: String },
}

/// A Go duration such as `12h0m0s`.
fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    parse_duration(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no duration")))
}

fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok())?
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenAttributes {
    service_account_token_audience: String,
    cache_type: String,
    #[serde(default)]
    require_service_account: bool,
    #[serde(default)]
    required_service_account_annotation_keys: Vec<String>,
    #[serde(default)]
    optional_service_account_annotation_keys: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Provider {
    name: String,
    match_images: Vec<String>,
    #[serde(deserialize_with = "duration")]
    default_cache_duration: Duration,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    #[serde(default)]
    token_attributes: Option<TokenAttributes>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    api_version: String,
    kind: String,
    providers: Vec<Provider>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    kind: String,
    api_version: String,
    #[serde(default)]
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: HashMap<String, Login>,
}

#[derive(Debug, Clone, Deserialize)]
struct Login {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// The plug-ins of this node.
#[derive(Clone, Default)]
pub(crate) struct Providers {
    bin_dir: PathBuf,
    list: Arc<Vec<Provider>>,
    cache: Arc<Mutex<HashMap<String, (Vec<AuthConfig>, Instant)>>>,
}

/// Whose token a plug-in was shown, if any: the pod's service account then stands for the credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// What one plug-in gave.
pub(crate) struct Given {
    pub auths: Vec<AuthConfig>,
    pub account: Option<Account>,
}

impl Providers {
    /// Reads the configuration: a file, or all files of a folder in the order of their names.
    pub(crate) fn load(config: &Path, bin_dir: &Path) -> Result<Self, ConfigError> {
        let read = |path: &Path, source| ConfigError::Read { path: path.to_owned(), source };
        let mut files = vec![config.to_owned()];
        if config.is_dir() {
            let entries = std::fs::read_dir(config).map_err(|error| read(config, error))?;
            let wanted = |path: &PathBuf| {
                path.extension().is_some_and(|end| ["json", "yaml", "yml"].iter().any(|known| end == *known))
            };
            files = entries.flatten().map(|entry| entry.path()).filter(wanted).collect();
            files.sort();
        }
        let mut list: Vec<Provider> = Vec::new();
        for file in files {
            let invalid = |reason: String| ConfigError::Invalid { path: file.clone(), reason };
            let text = std::fs::read_to_string(&file).map_err(|error| read(&file, error))?;
            let config: Config = serde_saphyr::from_str(&text).map_err(|error| invalid(error.to_string()))?;
            if config.kind != "CredentialProviderConfig"
                || !config.api_version.starts_with("kubelet.config.k8s.io/v1")
            {
                let found = format!("{}, {}", config.api_version, config.kind);
                return Err(invalid(format!(
                    "{found} is no CredentialProviderConfig of kubelet.config.k8s.io/v1"
                )));
            }
            if config.providers.is_empty() {
                return Err(invalid("providers: Required value: at least one provider is required".into()));
            }
            for (index, provider) in config.providers.into_iter().enumerate() {
                let at = format!("providers[{index}]");
                check(&provider, bin_dir).map_err(|(field, why)| invalid(format!("{at}.{field}: {why}")))?;
                if list.iter().any(|known| known.name == provider.name) {
                    return Err(invalid(format!("{at}.name: Duplicate value: {:?}", provider.name)));
                }
                list.push(provider);
            }
        }
        Ok(Providers { bin_dir: bin_dir.to_owned(), list: Arc::new(list), cache: Arc::default() })
    }

    /// Asks every plug-in that knows of the image's registry. One that fails is told of and left out.
    pub(crate) async fn credentials(&self, context: &Context, pod: &Pod, image: &str) -> Vec<Given> {
        let mut all = Vec::new();
        for provider in self.list.iter() {
            if !provider.match_images.iter().any(|pattern| matches_image(pattern, image)) {
                continue;
            }
            match self.ask(context, provider, pod, image).await {
                Ok(given) => all.push(given),
                Err(error) => {
                    context.metrics.count(CREDENTIAL_ERRORS, &[("plugin_name", &provider.name)]);
                    tracing::warn!(plugin = provider.name, image, error, "a credential provider failed");
                }
            }
        }
        all
    }

    async fn ask(
        &self,
        context: &Context,
        provider: &Provider,
        pod: &Pod,
        image: &str,
    ) -> Result<Given, String> {
        let mut request = serde_json::json!({
            "kind": "CredentialProviderRequest", "apiVersion": provider.api_version, "image": image,
        });
        let mut identity = String::new();
        let mut account = None;
        if let Some(attributes) = &provider.token_attributes {
            let name = spec(pod).service_account_name.as_deref().unwrap_or_default();
            if name.is_empty() {
                if attributes.require_service_account {
                    return Ok(Given { auths: Vec::new(), account: None });
                }
            } else {
                let namespace = podutil::namespace(pod);
                let accounts: Api<ServiceAccount> = Api::namespaced(context.config.client.clone(), namespace);
                let found = accounts.get(name).await.map_err(|error| error.to_string())?;
                let annotations = found.metadata.annotations.unwrap_or_default();
                let mut passed = BTreeMap::new();
                for key in &attributes.required_service_account_annotation_keys {
                    // Without what it needs the plug-in is not meant for this account.
                    let Some(value) = annotations.get(key) else {
                        return Ok(Given { auths: Vec::new(), account: None });
                    };
                    passed.insert(key.clone(), value.clone());
                }
                for key in &attributes.optional_service_account_annotation_keys {
                    passed.extend(annotations.get(key).map(|value| (key.clone(), value.clone())));
                }
                let audience = Some(attributes.service_account_token_audience.as_str());
                let token =
                    context.tokens.get(pod, audience, 3600).await.map_err(|error| error.to_string())?;
                request["serviceAccountToken"] = token.text.clone().into();
                request["serviceAccountAnnotations"] = serde_json::json!(passed);
                let uid = found.metadata.uid.unwrap_or_default();
                identity = format!("{namespace}/{name}/{uid}/{passed:?}");
                if attributes.cache_type == "Token" {
                    identity.push_str(&token.text);
                }
                account = Some(Account { namespace: namespace.to_owned(), name: name.to_owned(), uid });
            }
        }
        let (registry, repository) = split_registry(image);
        let key = |kind: &str| {
            let scope = match kind {
                "Image" => format!("image {registry}/{repository}"),
                "Global" => "global".to_owned(),
                _ => format!("registry {registry}"),
            };
            format!("{}\0{scope}\0{identity}", provider.name)
        };
        {
            let cache = self.cache.lock();
            let now = Instant::now();
            for kind in ["Image", "Registry", "Global"] {
                if let Some((auths, until)) = cache.get(&key(kind))
                    && *until > now
                {
                    return Ok(Given { auths: fitting(auths, image), account });
                }
            }
        }
        let begun = Instant::now();
        let answer = self.run(provider, &request.to_string()).await;
        context.metrics.took(CREDENTIAL_PLUGINS, &[("plugin_name", &provider.name)], begun.elapsed());
        let answer = answer?;
        let auths: Vec<AuthConfig> = answer
            .auth
            .into_iter()
            .map(|(place, login)| AuthConfig {
                username: login.username,
                password: login.password,
                server_address: place,
                ..AuthConfig::default()
            })
            .collect();
        let kept = match &answer.cache_duration {
            None => provider.default_cache_duration,
            Some(text) => {
                parse_duration(text).ok_or_else(|| format!("cacheDuration {text:?} is no duration"))?
            }
        };
        if !kept.is_zero() {
            let mut cache = self.cache.lock();
            let now = Instant::now();
            if cache.len() >= MAX_CACHED {
                cache.retain(|_, (_, until)| *until > now);
            }
            if cache.len() < MAX_CACHED {
                cache.insert(key(&answer.cache_key_type), (auths.clone(), now + kept));
            }
        }
        Ok(Given { auths: fitting(&auths, image), account })
    }

    async fn run(&self, provider: &Provider, request: &str) -> Result<Answer, String> {
        let mut child = tokio::process::Command::new(self.bin_dir.join(&provider.name))
            .args(&provider.args)
            .envs(provider.env.iter().map(|variable| (&variable.name, &variable.value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot run it: {error}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let work = async {
            if let Some(mut input) = stdin {
                // One that does not read its input may still answer.
                let _ = input.write_all(request.as_bytes()).await;
            }
            let mut text = Vec::new();
            if let Some(output) = stdout {
                output.take(MOST_BYTES).read_to_end(&mut text).await?;
            }
            Ok::<_, std::io::Error>((child.wait().await?, text))
        };
        let (status, text) = tokio::time::timeout(PATIENCE, work)
            .await
            .map_err(|_| format!("it did not answer within {} s", PATIENCE.as_secs()))?
            .map_err(|error| error.to_string())?;
        if !status.success() {
            return Err(format!("it ended with {status}"));
        }
        let answer: Answer =
            serde_json::from_slice(&text).map_err(|error| format!("its answer does not parse: {error}"))?;
        if answer.kind != "CredentialProviderResponse" || answer.api_version != provider.api_version {
            return Err(format!("it answered with {}, {}", answer.api_version, answer.kind));
        }
        if !["Image", "Registry", "Global"].contains(&answer.cache_key_type.as_str()) {
            return Err(format!("cacheKeyType {:?} is not known", answer.cache_key_type));
        }
        Ok(answer)
    }
}

fn check(provider: &Provider, bin_dir: &Path) -> Result<(), (&'static str, String)> {
    let name = &provider.name;
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', ' ']) {
        return Err(("name", format!("Invalid value: {name:?}: it has to be the name of a file")));
    }
    if !bin_dir.join(name).is_file() {
        return Err((
            "name",
            format!("plugin binary executable {} did not exist", bin_dir.join(name).display()),
        ));
    }
    if !["v1", "v1beta1", "v1alpha1"]
        .map(|v| format!("credentialprovider.kubelet.k8s.io/{v}"))
        .contains(&provider.api_version)
    {
        return Err(("apiVersion", format!("Unsupported value: {:?}", provider.api_version)));
    }
    if provider.match_images.is_empty() || provider.match_images.iter().any(String::is_empty) {
        return Err(("matchImages", "Required value: at least one pattern is required".into()));
    }
    if let Some(attributes) = &provider.token_attributes {
        if attributes.service_account_token_audience.is_empty() {
            return Err(("tokenAttributes.serviceAccountTokenAudience", "Required value".into()));
        }
        if !["Token", "ServiceAccount"].contains(&attributes.cache_type.as_str()) {
            let why = format!(
                "Unsupported value: {:?}: supported values: \"ServiceAccount\", \"Token\"",
                attributes.cache_type
            );
            return Err(("tokenAttributes.cacheType", why));
        }
        if !provider.api_version.ends_with("/v1") {
            return Err((
                "tokenAttributes",
                "Forbidden: only allowed with credentialprovider.kubelet.k8s.io/v1".into(),
            ));
        }
    }
    Ok(())
}

/// Whether an image is below a pattern: host by parts, port exactly, path by its beginning.
fn matches_image(pattern: &str, image: &str) -> bool {
    let pattern = pattern.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let (registry, repository) = split_registry(image);
    matches_host(host, registry) && repository.starts_with(path)
}

/// Those for the image, the most specific first.
fn fitting(auths: &[AuthConfig], image: &str) -> Vec<AuthConfig> {
    let mut list: Vec<AuthConfig> =
        auths.iter().filter(|auth| matches_image(&auth.server_address, image)).cloned().collect();
    list.sort_by_key(|auth| std::cmp::Reverse(auth.server_address.len()));
    list
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, seconds) in
            [("12h", 43200.0), ("1h30m0s", 5400.0), ("0s", 0.0), ("0", 0.0), ("1.5s", 1.5), ("100ms", 0.1)]
        {
            assert_eq!(parse_duration(text).map(|time| time.as_secs_f64()), Some(seconds), "{text}");
        }
        for bad in ["", "5", "h", "5x", "-1s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn patterns_match_by_parts() {
        for (pattern, image, expect) in [
            ("*.dkr.ecr.*.amazonaws.com", "123.dkr.ecr.eu-1.amazonaws.com/x", true),
            ("*.dkr.ecr.*.amazonaws.com", "dkr.ecr.eu-1.amazonaws.com/x", false),
            ("r.test", "r.test:5000/x", false),
            ("r.test:5000/team", "r.test:5000/team/x", true),
            ("r.test/team", "r.test/other/x", false),
            ("docker.io", "nginx", true),
            ("app*.r.test", "apple.r.test/x", true),
        ] {
            assert_eq!(matches_image(pattern, image), expect, "{pattern} {image}");
        }
    }

    fn config(text: &str) -> Result<Providers, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("plugin"), "#!/bin/sh\n").unwrap();
        std::fs::write(dir.path().join("config.yaml"), text).unwrap();
        Providers::load(&dir.path().join("config.yaml"), dir.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_configuration_is_checked() {
        let head = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\n";
        let one = |more: &str| {
            format!(
                "{head}providers:\n- name: plugin\n  matchImages: [r.test]\n  defaultCacheDuration: 12h\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n{more}"
            )
        };
        assert_eq!(config(&one("")).unwrap().list.len(), 1);
        config(&one("  args: [a]\n  env: [{name: A, value: b}]\n  tokenAttributes: {serviceAccountTokenAudience: a, cacheType: Token, requireServiceAccount: true}\n")).unwrap();
        for (text, why) in [
            (format!("{head}providers: []\n"), "at least one provider"),
            (one("").replace("plugin", "absent"), "did not exist"),
            (one("").replace("plugin", "../plugin"), "name of a file"),
            (one("").replace("12h", "soon"), "is no duration"),
            (one("").replace("kubelet.k8s.io/v1", "kubelet.k8s.io/v9"), "providers[0].apiVersion"),
            (one("").replace("[r.test]", "[]"), "providers[0].matchImages"),
            (one("  tokenAttributes: {serviceAccountTokenAudience: a, cacheType: Other}\n"), "cacheType"),
            (one("").replace("CredentialProviderConfig", "Other"), "is no CredentialProviderConfig"),
        ] {
            let error = config(&text).err().unwrap_or_else(|| panic!("accepted: {text}"));
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn a_plugin_is_asked_and_its_answer_checked() {
        let dir = tempfile::tempdir().unwrap();
        let plugin = dir.path().join("plugin");
        let script = "#!/bin/sh\ncat > \"$0.asked\"\n[ \"$WRONG\" = 1 ] && { echo '{}'; exit 0; }\n[ \"$WRONG\" = 2 ] && exit 3\n\
            echo '{\"kind\": \"CredentialProviderResponse\", \"apiVersion\": \"credentialprovider.kubelet.k8s.io/v1\", \"cacheKeyType\": \"Registry\",\n\
            \"auth\": {\"r.test\": {\"username\": \"u\", \"password\": \"p\"}, \"r.test/a\": {\"username\": \"a\", \"password\": \"p\"}}}'\n";
        std::fs::write(&plugin, script).unwrap();
        std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
        let provider = |wrong: &str| Provider {
            name: "plugin".into(),
            match_images: vec!["r.test".into()],
            default_cache_duration: Duration::ZERO,
            api_version: "credentialprovider.kubelet.k8s.io/v1".into(),
            args: Vec::new(),
            env: vec![Variable { name: "WRONG".into(), value: wrong.into() }],
            token_attributes: None,
        };
        let providers = Providers { bin_dir: dir.path().to_owned(), ..Providers::default() };
        let answer = providers.run(&provider("0"), "{\"image\": \"r.test/a/x\"}").await.unwrap();
        let asked = std::fs::read_to_string(dir.path().join("plugin.asked")).unwrap();
        assert_eq!(asked, "{\"image\": \"r.test/a/x\"}");
        let auths: Vec<AuthConfig> = answer
            .auth
            .into_iter()
            .map(|(place, login)| AuthConfig {
                username: login.username,
                server_address: place,
                ..Default::default()
            })
            .collect();
        let users: Vec<String> =
            fitting(&auths, "r.test/a/x:1").into_iter().map(|auth| auth.username).collect();
        assert_eq!(users, ["a", "u"]);
        for (wrong, why) in [("1", "does not parse"), ("2", "exit status: 3")] {
            let error = providers.run(&provider(wrong), "{}").await.unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
