//! The encryption configuration file (`apiserver.config.k8s.io/v1`): which resources are sealed, and with what.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::cipher::Cipher;
use crate::config_file::{self, FileError};
use crate::duration;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    resources: Vec<ResourceFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourceFile {
    resources: Vec<String>,
    providers: Vec<ProviderFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderFile {
    aesgcm: Option<KeysFile>,
    aescbc: Option<KeysFile>,
    secretbox: Option<KeysFile>,
    identity: Option<Empty>,
    kms: Option<KmsFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    keys: Vec<KeyFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    name: String,
    secret: String,
}

impl std::fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyFile").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct KmsFile {
    #[serde(default)]
    api_version: String,
    name: String,
    endpoint: String,
    timeout: Option<String>,
    /// Of KMS v1 alone.
    cachesize: Option<i64>,
}

/// How a KMS plug-in is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsConfig {
    pub name: String,
    /// The path of its socket.
    pub socket: String,
    pub timeout: Duration,
}

/// One way to seal and open.
pub enum ProviderConfig {
    Identity,
    /// The prefix with the key's name, and the cipher.
    Keyed(Vec<u8>, Cipher),
    Kms(KmsConfig),
}

/// Resources and how they are sealed: the first provider seals, all open.
pub struct Rule {
    /// `RESOURCE.GROUP`, `RESOURCE`, `*.GROUP`, `*.` or `*.*`.
    pub resources: Vec<String>,
    pub providers: Vec<ProviderConfig>,
}

/// Whether an entry of a rule names this resource, itself or by a wildcard.
pub fn names(entry: &str, group: &str, resource: &str) -> bool {
    match entry.split_once('.') {
        None => group.is_empty() && entry == resource,
        Some(("*", "*")) => true,
        Some(("*", own)) => own == group,
        Some((own, own_group)) => own == resource && own_group == group,
    }
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3);
const LONGEST_NAME: usize = 100;

/// Reads a configuration file.
pub fn load(path: &Path) -> Result<Vec<Rule>, FileError> {
    let versions = ["apiserver.config.k8s.io/v1"];
    let file: File = config_file::read(path, &versions, "EncryptionConfiguration")?;
    rules(file).map_err(|reason| FileError::invalid(path, reason))
}

fn rules(file: File) -> Result<Vec<Rule>, String> {
    if file.resources.is_empty() {
        return Err("resources: must name at least one resource with its providers".to_owned());
    }
    let mut rules = Vec::new();
    let mut seen: Vec<String> = Vec::new();
    let mut kms = BTreeSet::new();
    for (i, rule) in file.resources.into_iter().enumerate() {
        let at = format!("resources[{i}]");
        if rule.resources.is_empty() {
            return Err(format!("{at}.resources: must not be empty"));
        }
        if rule.providers.is_empty() {
            return Err(format!("{at}.providers: must not be empty"));
        }
        for (j, entry) in rule.resources.iter().enumerate() {
            check_entry(entry, &seen).map_err(|why| format!("{at}.resources[{j}]: {why}"))?;
            seen.push(entry.clone());
        }
        let mut providers = Vec::new();
        for (j, provider) in rule.providers.into_iter().enumerate() {
            let at = format!("{at}.providers[{j}]");
            providers.extend(
                read_provider(provider, &mut kms).map_err(|(field, why)| format!("{at}{field}: {why}"))?,
            );
        }
        rules.push(Rule { resources: rule.resources, providers });
    }
    Ok(rules)
}

fn check_entry(entry: &str, seen: &[String]) -> Result<(), String> {
    let (resource, group) = entry.split_once('.').unwrap_or((entry, ""));
    if resource.is_empty() || (entry == "*") {
        return Err(format!("{entry:?} is no resource; use '*.' for the core group or '*.*' for all"));
    }
    if resource.contains('*') && resource != "*" || group.contains('*') && (group != "*" || resource != "*") {
        return Err(format!("{entry:?}: wildcards are '*.GROUP', '*.' and '*.*'"));
    }
    if entry.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(format!("{entry:?} must be lower case"));
    }
    if resource.contains('/') || group.contains('/') {
        return Err(format!("{entry:?} must be a resource without a version or subresource"));
    }
    let masked =
        seen.iter().find(|own| *own == entry || (own.starts_with("*.") && names(own, group, resource)));
    match masked {
        Some(own) => Err(format!("{entry:?} is masked by the earlier {own:?}")),
        None => Ok(()),
    }
}

type Fault = (String, String);

fn read_provider(provider: ProviderFile, kms: &mut BTreeSet<String>) -> Result<Vec<ProviderConfig>, Fault> {
    let fault = |field: &str, why: &str| (field.to_owned(), why.to_owned());
    let ProviderFile { aesgcm, aescbc, secretbox, identity, kms: plugin } = provider;
    let count =
        [aesgcm.is_some(), aescbc.is_some(), secretbox.is_some(), identity.is_some(), plugin.is_some()];
    if count.iter().filter(|present| **present).count() != 1 {
        return Err(fault("", "must name exactly one of aesgcm, aescbc, secretbox, identity and kms"));
    }
    if identity.is_some() {
        return Ok(vec![ProviderConfig::Identity]);
    }
    if let Some(plugin) = plugin {
        return Ok(vec![ProviderConfig::Kms(read_kms(plugin, kms)?)]);
    }
    type Make = fn(&[u8]) -> Result<Cipher, super::cipher::CipherError>;
    let kinds: [(&str, Option<KeysFile>, Make); 3] = [
        ("aesgcm", aesgcm, Cipher::gcm),
        ("aescbc", aescbc, Cipher::cbc),
        ("secretbox", secretbox, Cipher::secretbox),
    ];
    let mut providers = Vec::new();
    for (kind, keys, make) in kinds {
        let Some(keys) = keys else { continue };
        if keys.keys.is_empty() {
            return Err((format!(".{kind}.keys"), "must hold at least one key".to_owned()));
        }
        for (i, key) in keys.keys.into_iter().enumerate() {
            let at = |field: &str| format!(".{kind}.keys[{i}].{field}");
            if key.name.is_empty() || key.name.contains(':') {
                return Err((at("name"), "must be a name without a colon".to_owned()));
            }
            let secret =
                STANDARD.decode(&key.secret).map_err(|_| (at("secret"), "must be base64".to_owned()))?;
            let cipher = make(&secret).map_err(|error| (at("secret"), error.to_string()))?;
            let prefix = format!("k8s:enc:{kind}:v1:{}:", key.name).into_bytes();
            providers.push(ProviderConfig::Keyed(prefix, cipher));
        }
    }
    Ok(providers)
}

fn read_kms(plugin: KmsFile, seen: &mut BTreeSet<String>) -> Result<KmsConfig, Fault> {
    let fault = |field: &str, why: String| (format!(".kms.{field}"), why);
    match plugin.api_version.as_str() {
        "v2" => {}
        "" | "v1" => return Err(fault("apiVersion", "KMS v1 is not supported; use a v2 plug-in".to_owned())),
        other => return Err(fault("apiVersion", format!("{other:?} is not \"v2\""))),
    }
    if plugin.cachesize.is_some() {
        return Err(fault("cachesize", "is not supported by KMS v2".to_owned()));
    }
    if plugin.name.is_empty() || plugin.name.contains(':') || plugin.name.len() > LONGEST_NAME {
        return Err(fault("name", format!("must be a name without a colon, at most {LONGEST_NAME} bytes")));
    }
    if !seen.insert(plugin.name.clone()) {
        return Err(fault("name", format!("{:?} is used by another provider", plugin.name)));
    }
    let socket = plugin.endpoint.strip_prefix("unix://").filter(|path| !path.is_empty());
    let socket =
        socket.ok_or_else(|| fault("endpoint", "must be unix:// and the path of a socket".to_owned()))?;
    let timeout = match plugin.timeout.as_deref() {
        None => DEFAULT_TIMEOUT,
        Some(text) => duration::parse(text).map_err(|why| fault("timeout", why))?,
    };
    if timeout.is_zero() {
        return Err(fault("timeout", "must be more than nothing".to_owned()));
    }
    Ok(KmsConfig { name: plugin.name, socket: socket.to_owned(), timeout })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Rule>, String> {
        let text = format!("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n{text}");
        let versions = ["apiserver.config.k8s.io/v1"];
        config_file::parse(text.as_bytes(), &versions, "EncryptionConfiguration").and_then(rules)
    }

    #[test]
    fn entries_name_resources() {
        let check = |entry: &str, group: &str, resource: &str, expect: bool| {
            assert_eq!(names(entry, group, resource), expect, "{entry} {group}/{resource}");
        };
        check("secrets", "", "secrets", true);
        check("secrets", "x", "secrets", false);
        check("deployments.apps", "apps", "deployments", true);
        check("pandas.awesome.bears", "awesome.bears", "pandas", true);
        check("*.apps", "apps", "deployments", true);
        check("*.apps", "", "secrets", false);
        check("*.", "", "secrets", true);
        check("*.", "apps", "deployments", false);
        check("*.*", "apps", "deployments", true);
    }

    #[test]
    fn a_whole_file() {
        let rules = read(
            "resources:\n\
             - resources: [events]\n\
             \x20 providers: [{identity: {}}]\n\
             - resources: [secrets, pandas.awesome.bears]\n\
             \x20 providers:\n\
             \x20 - aesgcm: {keys: [{name: a, secret: MDEyMzQ1Njc4OTAxMjM0NQ==}, {name: b, secret: MDEyMzQ1Njc4OTAxMjM0NQ==}]}\n\
             \x20 - secretbox: {keys: [{name: c, secret: MDEyMzQ1Njc4OTAxMjM0NTAxMjM0NTY3ODkwMTIzNDU=}]}\n\
             \x20 - kms: {apiVersion: v2, name: k, endpoint: \"unix:///run/kms.sock\", timeout: 5s}\n\
             \x20 - identity: {}\n\
             - resources: [\"*.*\"]\n\
             \x20 providers: [{aescbc: {keys: [{name: d, secret: MDEyMzQ1Njc4OTAxMjM0NQ==}]}}]\n",
        )
        .expect("rules");
        assert_eq!(rules.iter().map(|r| r.providers.len()).collect::<Vec<_>>(), [1, 5, 1]);
        let ProviderConfig::Keyed(prefix, _) = &rules[1].providers[1] else { panic!("a key") };
        assert_eq!(prefix, b"k8s:enc:aesgcm:v1:b:");
        let ProviderConfig::Kms(kms) = &rules[1].providers[3] else { panic!("a plug-in") };
        assert_eq!((kms.socket.as_str(), kms.timeout), ("/run/kms.sock", Duration::from_secs(5)));
    }

    #[test]
    fn faults_are_named() {
        let check = |text: &str, expect: &str| {
            let error = read(text).map(drop).expect_err("a fault");
            assert!(error.contains(expect), "{text}: {error}");
        };
        let rule = |resources: &str, provider: &str| {
            format!("resources: [{{resources: [{resources}], providers: [{provider}]}}]")
        };
        check("resources: []", "resources:");
        check(&rule("", "{identity: {}}"), "resources[0].resources");
        check(&rule("secrets", ""), "resources[0].providers");
        check(&rule("secrets", "{}"), "resources[0].providers[0]: must name exactly one");
        check(&rule("'*'", "{identity: {}}"), "resources[0].resources[0]");
        check(&rule("Secrets", "{identity: {}}"), "lower case");
        check(&rule("'*.*', secrets", "{identity: {}}"), "masked");
        check(&rule("'s*.apps'", "{identity: {}}"), "wildcards");
        check(&rule("secrets", "{aesgcm: {keys: []}}"), "providers[0].aesgcm.keys");
        check(&rule("secrets", "{aesgcm: {keys: [{name: 'a:b', secret: x}]}}"), "aesgcm.keys[0].name");
        check(
            &rule("secrets", "{aesgcm: {keys: [{name: a, secret: '?'}]}}"),
            "aesgcm.keys[0].secret: must be base64",
        );
        check(&rule("secrets", "{aesgcm: {keys: [{name: a, secret: eA==}]}}"), "a key of 1 bytes");
        check(&rule("secrets", "{kms: {name: a, endpoint: x}}"), "kms.apiVersion");
        check(&rule("secrets", "{kms: {apiVersion: v2, name: a, endpoint: x}}"), "kms.endpoint");
        let twice = "{kms: {apiVersion: v2, name: a, endpoint: 'unix:///x'}}";
        check(&rule("secrets", &format!("{twice}, {twice}")), "kms.name");
        check(&rule("secrets", "{rot13: {}}"), "rot13");
    }
}
