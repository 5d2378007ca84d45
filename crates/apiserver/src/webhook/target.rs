//! Whom to call and how to trust them: the `clientConfig` of webhooks, or a kubeconfig file.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::Error;
use crate::read::Read;

/// Where a call goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// `https://host[:port]/path`.
    Url(String),
    /// A Service of the cluster.
    Service { namespace: String, name: String, path: String, port: u16 },
}

/// Whom to call, whom to trust, and who to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub place: Place,
    /// PEM certificates that the other side's is verified with; none: those that the system trusts.
    pub authorities: Option<Vec<u8>>,
    /// The name to verify instead of the host's.
    pub server_name: Option<String>,
    /// PEM certificate chain and key to show.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    pub bearer: Option<String>,
    /// The other side's certificate is not verified; only a kubeconfig can ask for that.
    pub insecure: bool,
}

impl Target {
    /// The target of a URL, trusting what the system trusts.
    pub fn url(url: impl Into<String>) -> Self {
        Self {
            place: Place::Url(url.into()),
            authorities: None,
            server_name: None,
            identity: None,
            bearer: None,
            insecure: false,
        }
    }

    /// From a `WebhookClientConfig` (`url` or `service`, `caBundle`) as admission configurations and CRDs have it.
    pub fn from_client_config(config: &Value) -> Result<Self, Error> {
        let wrong = |text: String| Error::Target(text);
        let mut target = if config.has("service") {
            let port = config.at("service.port").as_u64().unwrap_or(443);
            let port = u16::try_from(port).map_err(|_| wrong(format!("service port {port} is no port")))?;
            let text = |key: &str| config.at("service").text(key).to_owned();
            let path = text("path");
            let path = if path.is_empty() { "/".to_owned() } else { path };
            let place = Place::Service { namespace: text("namespace"), name: text("name"), path, port };
            Self { place, ..Self::url("") }
        } else if config.text("url").is_empty() {
            return Err(wrong("webhook configuration must have either service or URL".to_owned()));
        } else {
            Self::url(config.text("url"))
        };
        let bundle = config.text("caBundle");
        if !bundle.is_empty() {
            let pem = STANDARD.decode(bundle).map_err(|e| wrong(format!("caBundle is no base64: {e}")))?;
            target.authorities = Some(pem);
        }
        Ok(target)
    }

    /// From a kubeconfig: its current context's cluster and user. Files are named relative to `folder`.
    pub fn from_kubeconfig(text: &str, folder: &Path) -> Result<Self, Error> {
        let wrong = |text: String| Error::Target(text);
        let config = schema::decode_any_yaml(text.as_bytes(), schema::FieldValidation::Ignore)
            .map_err(|e| wrong(format!("the kubeconfig is no YAML: {e}")))?
            .value;
        let named = |list: &str, key: &str, name: &str| -> Result<Value, Error> {
            let found = config.items(list).iter().find(|entry| entry.text("name") == name);
            let found = found.ok_or_else(|| wrong(format!("the kubeconfig has no {key} {name:?}")))?;
            Ok(found.at(key).clone())
        };
        let context = named("contexts", "context", config.text("current-context"))?;
        let cluster = named("clusters", "cluster", context.text("cluster"))?;
        let user = match context.text("user") {
            "" => Value::Null,
            name => named("users", "user", name)?,
        };
        let bytes = |holder: &Value, key: &str| -> Result<Option<Vec<u8>>, Error> {
            let data = holder.at(&format!("{key}-data")).as_str().unwrap_or_default();
            if !data.is_empty() {
                let data = STANDARD.decode(data);
                return data.map(Some).map_err(|e| wrong(format!("{key}-data is no base64: {e}")));
            }
            match holder.text(key) {
                "" => Ok(None),
                path => std::fs::read(folder.join(path))
                    .map(Some)
                    .map_err(|e| wrong(format!("{key} {path:?} cannot be read: {e}"))),
            }
        };
        if cluster.text("server").is_empty() {
            return Err(wrong("the kubeconfig's cluster has no server".to_owned()));
        }
        let identity = match (bytes(&user, "client-certificate")?, bytes(&user, "client-key")?) {
            (Some(chain), Some(key)) => Some((chain, key)),
            (None, None) => None,
            _ => {
                let text = "the kubeconfig's user needs both client-certificate and client-key";
                return Err(wrong(text.to_owned()));
            }
        };
        let bearer = match user.text("token") {
            "" => bytes(&user, "tokenFile")?.map(|t| String::from_utf8_lossy(&t).trim().to_owned()),
            token => Some(token.to_owned()),
        };
        let server_name = cluster.text("tls-server-name");
        Ok(Self {
            place: Place::Url(cluster.text("server").to_owned()),
            authorities: bytes(&cluster, "certificate-authority")?,
            server_name: (!server_name.is_empty()).then(|| server_name.to_owned()),
            identity,
            bearer,
            insecure: cluster.at("insecure-skip-tls-verify").as_bool().unwrap_or(false),
        })
    }
}
