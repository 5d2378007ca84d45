//! A container's environment: `envFrom`, `env` with its sources and `$(VAR)` expansion, then Service variables.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, FileKeySelector, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::downward::{self, Addresses, DownwardError};
use crate::env_file::{self, EnvFileError};
use crate::objects::{Kind, ObjectError, Objects};
use crate::podutil::{namespace, spec};
use crate::services::Services;
use crate::volumes::{Mounted, mounts};

/// The largest file of variables that is read, which a container wrote and the kubelet holds in memory.
const ENV_FILE_BYTES: u64 = 1 << 20;

/// Why the environment cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvError {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key { key: String, kind: &'static str, namespace: String, name: String },
    #[error("cannot find the volume {0:?} referenced by FileKeyRef")]
    NoVolume(String),
    #[error("cannot read the environment file {path:?} of the volume {volume:?}: {source}")]
    File { volume: String, path: String, source: std::io::Error },
    #[error("the environment file {path:?} of the volume {volume:?}: {source}")]
    FileFormat { volume: String, path: String, source: EnvFileError },
    #[error("environment variable key {key:?} not found in file {path:?} of the volume {volume:?}")]
    FileKey { volume: String, path: String, key: String },
    #[error(transparent)]
    Downward(#[from] DownwardError),
}

/// What variables may be taken from.
pub(crate) struct Sources<'a> {
    pub objects: &'a Objects,
    pub services: &'a Services,
    pub addresses: Addresses<'a>,
    pub allocatable: &'a BTreeMap<String, Quantity>,
    pub mounted: &'a Mounted,
}

/// The variables, by name.
pub(crate) async fn variables(
    pod: &Pod,
    container: &Container,
    sources: &Sources<'_>,
) -> Result<BTreeMap<String, String>, EnvError> {
    let space = namespace(pod);
    let links = spec(pod).enable_service_links != Some(false);
    let services = sources.services.variables(space, links).await;
    let mut own: BTreeMap<String, String> = BTreeMap::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let reference = match (&from.config_map_ref, &from.secret_ref) {
            (Some(map), _) => (Kind::ConfigMap, &map.name, map.optional),
            (_, Some(secret)) => (Kind::Secret, &secret.name, secret.optional),
            _ => continue,
        };
        let (kind, name, optional) = reference;
        match sources.objects.get(kind, space, name).await {
            Ok(object) => {
                own.extend(object.data.iter().map(|(key, value)| {
                    (format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned())
                }))
            }
            Err(ObjectError::Missing { .. }) if optional == Some(true) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(text), _) if !text.is_empty() => {
                expand(text, |name| own.get(name).or_else(|| services.get(name)).cloned())
            }
            (_, Some(from)) => {
                if let Some(selector) = &from.field_ref {
                    downward::field(pod, &sources.addresses, selector)?
                } else if let Some(selector) = &from.file_key_ref {
                    match of_file(sources.mounted, selector)? {
                        Some(value) => value,
                        None => continue,
                    }
                } else if let Some(selector) = &from.resource_field_ref {
                    downward::resource(pod, container, selector, sources.allocatable)?
                } else {
                    let reference = match (&from.config_map_key_ref, &from.secret_key_ref) {
                        (Some(map), _) => (Kind::ConfigMap, "ConfigMap", &map.name, &map.key, map.optional),
                        (_, Some(secret)) => {
                            (Kind::Secret, "Secret", &secret.name, &secret.key, secret.optional)
                        }
                        _ => continue,
                    };
                    match key_of(sources.objects, space, reference).await? {
                        Some(value) => value,
                        None => continue,
                    }
                }
            }
            _ => String::new(),
        };
        own.insert(variable.name.clone(), value);
    }
    for (name, value) in services {
        own.entry(name).or_insert(value);
    }
    Ok(own)
}

/// A variable that a container wrote into a file of the pod's volume.
fn of_file(mounted: &Mounted, selector: &FileKeySelector) -> Result<Option<String>, EnvError> {
    let FileKeySelector { key, path, volume_name, optional } = selector;
    let (volume, path, key) = (volume_name.clone(), path.clone(), key.clone());
    let Some(root) = mounted.paths.get(&volume) else { return Err(EnvError::NoVolume(volume)) };
    let text = match mounts::read_beneath(root, path.as_ref(), ENV_FILE_BYTES) {
        Ok(text) => text,
        Err(source) => return Err(EnvError::File { volume, path, source }),
    };
    match env_file::value(&text, &key) {
        Ok(None) if *optional != Some(true) => Err(EnvError::FileKey { volume, path, key }),
        Ok(value) => Ok(value),
        Err(source) => Err(EnvError::FileFormat { volume, path, source }),
    }
}

async fn key_of(
    objects: &Objects,
    namespace: &str,
    (kind, word, name, key, optional): (Kind, &'static str, &String, &String, Option<bool>),
) -> Result<Option<String>, EnvError> {
    let optional = optional == Some(true);
    let object = match objects.get(kind, namespace, name).await {
        Ok(object) => object,
        Err(ObjectError::Missing { .. }) if optional => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match object.data.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional => Ok(None),
        None => Err(EnvError::Key {
            key: key.clone(),
            kind: word,
            namespace: namespace.to_owned(),
            name: name.clone(),
        }),
    }
}

/// Replaces `$(NAME)`; `$$` is a literal `$`, and references to unknown names stay as they are.
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded() {
        for (text, expected) in [
            ("plain", "plain"),
            ("$(A)-$(B)", "1-$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(A", "$(A"),
            ("cost $5", "cost $5"),
            ("end$", "end$"),
        ] {
            assert_eq!(expand(text, |name| (name == "A").then(|| "1".to_owned())), expected, "{text}");
        }
    }
}
