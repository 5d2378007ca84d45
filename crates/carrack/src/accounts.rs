//! Clients that act as service accounts of `kube-system`, each with a token of its own that is asked for when it is needed
//! and renewed before it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::client::Body;
use kube::config::AuthInfo;
use kube::{Client, Config};
use tokio::sync::Mutex;

const NAMESPACE: &str = "kube-system";
const LIFETIME: Duration = Duration::from_secs(3600);

/// One account's token.
struct Account {
    name: String,
    /// May make accounts and ask for their tokens.
    root: Client,
    token: Mutex<Option<(HeaderValue, Instant)>>,
}

impl Account {
    async fn bearer(&self) -> anyhow::Result<HeaderValue> {
        let mut token = self.token.lock().await;
        if let Some((value, end)) = token.as_ref()
            && Instant::now() < *end
        {
            return Ok(value.clone());
        }
        let api = Api::<ServiceAccount>::namespaced(self.root.clone(), NAMESPACE);
        if api.get_opt(&self.name).await?.is_none() {
            let meta = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let account = ServiceAccount { metadata: meta, ..ServiceAccount::default() };
            match api.create(&PostParams::default(), &account).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                made => drop(made.with_context(|| format!("making the service account {}", self.name))?),
            }
        }
        let seconds = i64::try_from(LIFETIME.as_secs()).unwrap_or(i64::MAX);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec { expiration_seconds: Some(seconds), ..TokenRequestSpec::default() }),
            ..TokenRequest::default()
        };
        let made = api.create_token_request(&self.name, &PostParams::default(), &request).await;
        let made = made.with_context(|| format!("asking for a token of {}", self.name))?;
        let text = made.status.and_then(|status| status.token).unwrap_or_default();
        let mut value = HeaderValue::from_str(&format!("Bearer {text}"))?;
        value.set_sensitive(true);
        // The server may have shortened it; a request that fails is tried again with a new one.
        *token = Some((value.clone(), Instant::now() + LIFETIME * 4 / 5));
        Ok(value)
    }

    async fn forget(&self, used: &HeaderValue) {
        let mut token = self.token.lock().await;
        if token.as_ref().is_some_and(|(value, _)| value == used) {
            *token = None;
        }
    }
}

/// The client of one account. `config` tells where the server is; what it says of the user is not used.
pub fn client(config: &Config, root: &Client, name: &str) -> anyhow::Result<Client> {
    let mut config = config.clone();
    config.auth_info = AuthInfo::default();
    let namespace = config.default_namespace.clone();
    let base = crate::parts::counted(config)?;
    let account = Arc::new(Account { name: name.to_owned(), root: root.clone(), token: Mutex::default() });
    let service = tower::service_fn(move |mut request: http::Request<Body>| {
        let (base, account) = (base.clone(), account.clone());
        async move {
            let bearer = account.bearer().await?;
            request.headers_mut().insert(AUTHORIZATION, bearer.clone());
            let answer = base.send(request).await?;
            if answer.status() == http::StatusCode::UNAUTHORIZED {
                account.forget(&bearer).await;
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer)
        }
    });
    Ok(Client::new(service, namespace))
}
