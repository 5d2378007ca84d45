//! ServiceAccount tokens bound to pods, requested once and renewed at four fifths of their life.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;

use crate::podutil::{self, spec};

/// A token and the time from which it should be replaced.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub text: String,
    pub renew_at: Timestamp,
    pub expires_at: Timestamp,
}

type Key = (String, Option<String>, i64);

/// The tokens of this node's pods.
#[derive(Clone)]
pub(crate) struct Tokens {
    client: Client,
    cache: Arc<Mutex<HashMap<Key, Token>>>,
}

impl Tokens {
    pub(crate) fn new(client: Client) -> Self {
        Tokens { client, cache: Arc::default() }
    }

    /// A valid token for the pod's ServiceAccount.
    pub(crate) async fn get(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        seconds: i64,
    ) -> Result<Token, kube::Error> {
        let uid = podutil::uid(pod).to_owned();
        let key = (uid.clone(), audience.map(str::to_owned), seconds);
        let now = Timestamp::now();
        if let Some(token) = self.cache.lock().get(&key)
            && now < token.renew_at
        {
            return Ok(token.clone());
        }
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audience.map(str::to_owned).into_iter().collect()),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: Some(uid),
                }),
                expiration_seconds: Some(seconds),
            }),
            ..TokenRequest::default()
        };
        let account = spec(pod).service_account_name.as_deref().unwrap_or("default");
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), podutil::namespace(pod));
        // The node's right to ask follows the pod's binding by a moment.
        let mut patience = 5;
        let answer: TokenRequest = loop {
            match accounts.create_subresource("token", account, &PostParams::default(), &request).await {
                Ok(answer) => break answer,
                Err(error) if patience == 0 => return Err(error),
                Err(_) => {
                    patience -= 1;
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            }
        };
        let status = answer.status.unwrap_or_default();
        let life = status
            .expiration_timestamp
            .map_or(SignedDuration::from_secs(seconds), |expires| expires.0.duration_since(now));
        let token = Token {
            text: status.token.unwrap_or_default(),
            renew_at: now + SignedDuration::from_secs(life.as_secs() * 4 / 5),
            expires_at: now + SignedDuration::from_secs(life.as_secs()),
        };
        self.cache.lock().insert(key, token.clone());
        Ok(token)
    }

    /// Forgets the tokens of a pod that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.cache.lock().retain(|(owner, _, _), _| owner != uid);
    }
}
