//! TokenRequest: a token for a ServiceAccount, bound to an object and an audience, for a while
//! (upstream: `pkg/registry/core/serviceaccount/storage/token.go`, `pkg/serviceaccount/claims.go`).

use std::sync::Arc;

use api::{FieldError, FieldErrorKind};
use futures::future::{BoxFuture, FutureExt};
use serde_json::{Value, json};

use super::Tokens;
use crate::read::Read;
use crate::{Answer, Attributes, ClusterRef, Status};

const GROUP: &str = "authentication.k8s.io";
const KIND: &str = "TokenRequest";
const DEFAULT_LIFETIME: i64 = 3600;
/// What the ServiceAccount admission asks for; such tokens outlive their time, so that clients which never read the
/// file again go on for a year, with a note in the token of when they should have.
const PROJECTED_LIFETIME: i64 = 3607;
const EXTENDED_LIFETIME: i64 = 365 * 24 * 3600;

/// Answers creates of `serviceaccounts/token`.
pub struct TokenRequests {
    cluster: ClusterRef,
    tokens: Arc<Tokens>,
}

impl TokenRequests {
    /// Tokens of this signer for the ServiceAccounts of the cluster.
    pub fn new(cluster: ClusterRef, tokens: Arc<Tokens>) -> Self {
        Self { cluster, tokens }
    }

    async fn find(&self, resource: &str, namespace: &str, name: &str) -> Result<Arc<Value>, Status> {
        if let Some(found) = self.cluster.get("", resource, namespace, name) {
            return Ok(found);
        }
        self.cluster.fresh("", resource).await;
        self.cluster.get("", resource, namespace, name).ok_or_else(|| Status::not_found("", resource, name))
    }

    async fn issue(&self, request: &Attributes, mut object: Value) -> Result<Value, Status> {
        let (namespace, name) = (request.namespace.as_str(), request.name.as_str());
        for (key, own) in [("name", name), ("namespace", namespace)] {
            let given = object.at("metadata").text(key);
            if !given.is_empty() && given != own {
                let error = invalid(
                    &format!("metadata.{key}"),
                    given.into(),
                    &format!("must match the service account {key} if specified"),
                );
                return Err(Status::invalid(GROUP, KIND, name, &[error]));
            }
        }
        let account = self.find("serviceaccounts", namespace, name).await?;
        let uid = object.uid();
        if !uid.is_empty() && uid != account.uid() {
            return Err(Status::conflict(
                GROUP,
                KIND,
                name,
                format!(
                    "the UID in the token request ({uid}) does not match the UID of the service account ({})",
                    account.uid()
                ),
            ));
        }
        let mut audiences: Vec<String> = object.texts("spec.audiences").map(str::to_owned).collect();
        if audiences.is_empty() {
            audiences.extend(self.tokens.audiences.first().cloned());
        }
        let lifetime = object.at("spec.expirationSeconds").as_i64().unwrap_or(DEFAULT_LIFETIME);
        check_lifetime(lifetime)?;
        let bound = self.bound(namespace, name, object.at("spec.boundObjectRef")).await?;

        let now = jiff::Timestamp::now();
        let claims = self.claims(&account, &audiences, &bound, lifetime, now.as_second());
        let token = self.tokens.signer.sign(&claims).map_err(Status::internal)?;
        let metadata = crate::read::object_mut(&mut object, "metadata");
        metadata.insert("name".into(), name.into());
        metadata.insert("namespace".into(), namespace.into());
        metadata.insert("uid".into(), account.uid().into());
        metadata.insert("creationTimestamp".into(), rfc3339(now.as_second()).into());
        let spec = crate::read::object_mut(&mut object, "spec");
        spec.insert("audiences".into(), json!(audiences));
        spec.insert("expirationSeconds".into(), lifetime.into());
        spec.entry("boundObjectRef").or_insert(Value::Null);
        object["status"] =
            json!({"token": token, "expirationTimestamp": rfc3339(now.as_second() + lifetime)});
        Ok(object)
    }

    /// The claims about the object that the token is to be bound to.
    async fn bound(&self, namespace: &str, account: &str, reference: &Value) -> Result<Value, Status> {
        if reference.is_null() {
            return Ok(json!({}));
        }
        let (version, kind, name) =
            (reference.text("apiVersion"), reference.text("kind"), reference.text("name"));
        let claim = |object: &Value| json!({"name": object.name(), "uid": object.uid()});
        let (object, claims) = match (version, kind) {
            ("v1", "Pod") => {
                let pod = self.find("pods", namespace, name).await?;
                if pod.text("spec.serviceAccountName") != account {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                    )));
                }
                let mut claims = json!({"pod": claim(&pod)});
                let node = pod.text("spec.nodeName");
                if !node.is_empty() {
                    claims["node"] = match self.cluster.get("", "nodes", "", node) {
                        Some(node) => claim(&node),
                        None => json!({"name": node}),
                    };
                }
                (pod, claims)
            }
            ("v1", "Node") => {
                let node = self.find("nodes", "", name).await?;
                let claims = json!({"node": claim(&node)});
                (node, claims)
            }
            ("v1", "Secret") => {
                let secret = self.find("secrets", namespace, name).await?;
                let claims = json!({"secret": claim(&secret)});
                (secret, claims)
            }
            _ => {
                let (group, version) = version.split_once('/').unwrap_or(("", version));
                return Err(Status::bad_request(format!(
                    "cannot bind token to object of type {group}/{version}, Kind={kind}"
                )));
            }
        };
        let uid = reference.text("uid");
        if !uid.is_empty() && uid != object.uid() {
            return Err(Status::conflict(
                "",
                kind,
                name,
                format!(
                    "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
                ),
            ));
        }
        Ok(claims)
    }

    fn claims(&self, account: &Value, audiences: &[String], bound: &Value, lifetime: i64, now: i64) -> Value {
        let (namespace, name) = (account.namespace(), account.name());
        let mut facts = bound.clone();
        facts["namespace"] = namespace.into();
        facts["serviceaccount"] = json!({"name": name, "uid": account.uid()});
        let own = audiences.iter().all(|a| self.tokens.audiences.contains(a));
        let mut end = now + lifetime;
        if lifetime == PROJECTED_LIFETIME && own && bound.has("pod") {
            facts["warnafter"] = end.into();
            end = now + EXTENDED_LIFETIME;
        }
        json!({
            "iss": self.tokens.issuer,
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
            "aud": audiences,
            "iat": now,
            "nbf": now,
            "exp": end,
            "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": facts,
        })
    }
}

impl Answer for TokenRequests {
    fn create<'a>(
        &'a self,
        attributes: &'a Attributes,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        self.issue(attributes, object).boxed()
    }
}

fn check_lifetime(seconds: i64) -> Result<(), Status> {
    let detail = match seconds {
        ..600 => "may not specify a duration less than 10 minutes",
        s if s > 1 << 32 => "may not specify a duration larger than 2^32 seconds",
        _ => return Ok(()),
    };
    Err(Status::invalid(GROUP, KIND, "", &[invalid("spec.expirationSeconds", seconds.into(), detail)]))
}

fn invalid(field: &str, value: Value, detail: &str) -> FieldError {
    FieldError::new(FieldErrorKind::Invalid, field, value, detail)
}

fn rfc3339(seconds: i64) -> String {
    let time = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX);
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
