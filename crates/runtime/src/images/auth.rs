//! Authentication to registries: basic, and bearer tokens from the realm that a registry names (the distribution
//! specification's token authentication).

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, Uri, header};

use super::Error;
use super::pull::Credentials;
use super::registry::{RegistryConfig, reason};

/// A parsed `WWW-Authenticate` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from `realm`.
    Bearer {
        /// Where to ask.
        realm: String,
        /// `service`, `scope` and the like.
        parameters: BTreeMap<String, String>,
    },
}

impl Challenge {
    /// Picks the challenge that can be met, bearer before basic.
    pub fn parse(headers: &HeaderMap) -> Option<Self> {
        let all: Vec<Self> = headers
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| Self::parse_one(value.to_str().ok()?))
            .collect();
        all.iter().find(|c| matches!(c, Self::Bearer { .. })).or(all.first()).cloned()
    }

    fn parse_one(value: &str) -> Option<Self> {
        let (scheme, mut rest) = value.split_once(' ').unwrap_or((value, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = BTreeMap::new();
        while let Some((key, after)) = rest.split_once('=') {
            let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
            let (value, next) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            parameters.insert(key, value.to_owned());
            rest = next;
        }
        Some(Self::Bearer { realm: parameters.remove("realm")?, parameters })
    }
}

/// The `Authorization` header that meets `challenge`.
pub async fn meet(
    config: &RegistryConfig,
    challenge: &Challenge,
    credentials: &Credentials,
    repository: &str,
    name: &str,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Result<HeaderValue, Error> {
    let denied = |reason: String| Error::Denied { name: name.to_owned(), reason };
    let basic = || {
        let pair = format!("{}:{}", credentials.username, credentials.password);
        format!("Basic {}", STANDARD.encode(pair))
    };
    let value = match challenge {
        Challenge::Basic if credentials.username.is_empty() => {
            return Err(denied(
                "401 Unauthorized: the registry asks for a user and password; add an imagePullSecret".into(),
            ));
        }
        Challenge::Basic => basic(),
        Challenge::Bearer { .. } if !credentials.registry_token.is_empty() => {
            format!("Bearer {}", credentials.registry_token)
        }
        Challenge::Bearer { realm, parameters } => {
            let mut uri = realm.clone();
            let mut separator = if realm.contains('?') { '&' } else { '?' };
            let scope = format!("repository:{repository}:pull");
            let mut parameters = parameters.clone();
            parameters.retain(|k, _| k == "service" || k == "scope");
            parameters.entry("scope".into()).or_insert(scope);
            for (key, value) in &parameters {
                uri.push(separator);
                uri.push_str(&format!("{key}={}", escape(value)));
                separator = '&';
            }
            let uri: Uri = uri.parse().map_err(|_| denied(format!("invalid token realm {realm:?}")))?;
            let host = uri.authority().map(|a| a.to_string()).unwrap_or_default();
            if uri.scheme_str() != Some("https") && config.scheme(&host) != "http" {
                return Err(denied(format!("the token realm {realm:?} is not HTTPS")));
            }
            let mut headers = HeaderMap::new();
            if !credentials.username.is_empty() {
                let value = HeaderValue::from_str(&basic()).map_err(|e| denied(e.to_string()))?;
                headers.insert(header::AUTHORIZATION, value);
            } else if !credentials.identity_token.is_empty() {
                let value = HeaderValue::from_str(&format!("Bearer {}", credentials.identity_token));
                headers.insert(header::AUTHORIZATION, value.map_err(|e| denied(e.to_string()))?);
            }
            let response = config.send(Method::GET, &uri, &headers, tls).await?;
            let status = response.status();
            let body = config.collect(response, 1 << 20).await?;
            if !status.is_success() {
                return Err(denied(format!("token from {host}: {}", reason(status, &body))));
            }
            let answer: serde_json::Value = serde_json::from_slice(&body).map_err(Error::json("token"))?;
            let token = answer["token"].as_str().or(answer["access_token"].as_str());
            format!("Bearer {}", token.ok_or_else(|| denied("the answer holds no token".into()))?)
        }
    };
    let mut value = HeaderValue::from_str(&value).map_err(|e| denied(e.to_string()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn escape(value: &str) -> String {
    value
        .bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_parse() {
        let mut headers = HeaderMap::new();
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"r\""));
        assert_eq!(Challenge::parse(&headers), Some(Challenge::Basic));
        headers.append(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static(
                "Bearer realm=\"https://auth.test/token\",service=\"reg, a\",scope=\"repository:a/b:pull\"",
            ),
        );
        let Some(Challenge::Bearer { realm, parameters }) = Challenge::parse(&headers) else { panic!() };
        assert_eq!(realm, "https://auth.test/token");
        assert_eq!(parameters["service"], "reg, a");
        assert_eq!(parameters["scope"], "repository:a/b:pull");
    }

    #[test]
    fn broken_challenges_do_not_parse() {
        for text in ["", "Bearer", "Bearer realm=\"x", "Negotiate x"] {
            let mut headers = HeaderMap::new();
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_str(text).unwrap());
            assert_eq!(Challenge::parse(&headers), None, "{text}");
        }
    }
}
