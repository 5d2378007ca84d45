//! Puts authentication, authorization, admission and encryption at rest together for the pipeline.

mod options;
mod reload;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::admission::Admission;
use crate::authn::{
    Authenticator, Authority, Bearer, CertificateError, ConfigError, Issuers, TokenFileError, TokenRequests,
    TokenWebhook, Tokens,
};
use crate::authz::config::Chosen;
use crate::authz::{Authorizer, Mode, Reviews, WebhookAuthorizer};
use crate::transform::{AtRest, KeyError};
use crate::{ClusterRef, Hooks, Transform, bootstrap, webhook};

pub use options::{AccessOptions, OidcOptions, WebhookOptions};

/// The audience of tokens that name none: the API server itself.
const AUDIENCE: &str = "https://kubernetes.default.svc";

/// Why the hooks cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("the cluster's certificate authorities are not usable: {0}")]
    Certificate(#[from] CertificateError),
    #[error("secrets cannot be encrypted at rest: {0}")]
    Key(#[from] KeyError),
    #[error("{path} cannot be read")]
    File {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Option(String),
    #[error(transparent)]
    TokenFile(#[from] TokenFileError),
    #[error("{path}: {source}")]
    Authentication {
        path: String,
        #[source]
        source: ConfigError,
    },
    #[error(transparent)]
    Authorization(#[from] crate::authz::config::ConfigError),
    #[error("webhook: {0}")]
    Webhook(String),
}

/// What is needed before the cluster can be seen.
pub struct Access {
    pki: pki::ClusterPki,
    issuer: String,
    transform: Arc<dyn Transform>,
    options: AccessOptions,
    anonymous: bool,
    /// Whose certificates make clients and front proxies, in PEM.
    client_authorities: String,
    proxy_authorities: String,
}

/// The hooks, and what of them is used beside the pipeline.
pub struct Assembled {
    pub hooks: Hooks,
    pub tokens: Arc<Tokens>,
    pub authorizer: Arc<Authorizer>,
    /// Calls out: for webhooks of every kind.
    pub webhooks: Arc<webhook::Client>,
}

impl Access {
    /// Reads or makes the key of encryption at rest in `key_file`.
    pub fn new(pki: pki::ClusterPki, cluster_domain: &str, key_file: &Path) -> Result<Self, AccessError> {
        Ok(Self {
            client_authorities: pki.ca.cert_pem(),
            proxy_authorities: pki.front_proxy_ca.cert_pem(),
            transform: Arc::new(AtRest::load_or_create(key_file)?),
            issuer: format!("https://kubernetes.default.svc.{cluster_domain}"),
            options: AccessOptions::default(),
            anonymous: true,
            pki,
        })
    }

    /// Seals and opens in another way than with the key file.
    #[must_use]
    pub fn with_transform(mut self, transform: Arc<dyn Transform>) -> Self {
        self.transform = transform;
        self
    }

    /// Takes the settings over; `anonymous` is the flag's word on callers without credentials.
    pub fn configure(mut self, options: &AccessOptions, anonymous: bool) -> Result<Self, AccessError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|source| AccessError::File { path: path.display().to_string(), source })
        };
        for path in &options.client_ca_files {
            self.client_authorities.push_str(&read(path)?);
        }
        if let Some(path) = &options.requestheader_client_ca_file {
            self.proxy_authorities = read(path)?;
        }
        if let Some(issuer) = &options.service_account_issuer {
            self.issuer.clone_from(issuer);
        }
        self.options = options.clone();
        self.anonymous = anonymous;
        Ok(self)
    }

    /// What extension servers are told to trust.
    pub(crate) fn trust(&self) -> crate::aggregation::TrustMap {
        let own = || crate::authn::FRONT_PROXY_NAMES.map(str::to_owned).into();
        let names: Vec<String> = self.options.requestheader_allowed_names.clone().unwrap_or_else(own);
        crate::aggregation::TrustMap::new(&self.client_authorities, &self.proxy_authorities, &names)
    }

    /// The hooks over a view of the cluster, which they read when they are called and not before.
    pub fn assemble(self, cluster: ClusterRef) -> Result<Assembled, AccessError> {
        let loaded = self.options.load(&self.issuer, self.anonymous)?;
        let audiences = match self.options.api_audiences.as_slice() {
            [] => vec![AUDIENCE.to_owned(), self.issuer.clone()],
            own => own.to_vec(),
        };
        let key = self.pki.service_account.clone();
        let tokens = Tokens::new(Arc::clone(&cluster), key, self.issuer.clone(), audiences);
        let authorizer = Authorizer::new(Arc::clone(&cluster), bootstrap::node_rules());
        let webhooks = webhook::Client::new(Arc::clone(&cluster));
        authorizer.set_modes(modes(&webhooks, loaded.authorizers).map_err(AccessError::Webhook)?);
        let token_webhook = self.options.authentication_webhook.as_ref();
        let token_webhook = token_webhook.map(|w| token_webhook_of(&webhooks, w)).transpose()?;
        let bearer = Bearer::new(Arc::clone(&tokens))
            .with_file(loaded.token_file)
            .with_webhook(token_webhook)
            .with_bootstrap(!self.options.disable_bootstrap_tokens);
        if let Some(config) = &loaded.authentication {
            bearer.set_issuers(Issuers::new(config).map_err(|source| AccessError::Authentication {
                path: "the authentication configuration".to_owned(),
                source,
            })?);
        }
        let bearer = Arc::new(bearer);
        let mut authenticator = Authenticator::new(
            authority(&self.client_authorities)?,
            authority(&self.proxy_authorities)?,
            Arc::clone(&bearer),
        );
        if let Some(names) = &self.options.requestheader_allowed_names {
            authenticator = authenticator.with_proxy_names(names.clone());
        }
        authenticator.set_anonymous(options::anonymous(loaded.authentication.as_ref(), self.anonymous));
        let authenticator = Arc::new(authenticator);
        let options = &self.options;
        if options.authentication_config.is_some() || options.authorization_config.is_some() {
            tokio::spawn(reload::run(reload::Reloaded {
                options: options.clone(),
                issuer: self.issuer.clone(),
                anonymous: self.anonymous,
                authenticator: Arc::downgrade(&authenticator),
                bearer: Arc::downgrade(&bearer),
                authorizer: Arc::downgrade(&authorizer),
                webhooks: Arc::clone(&webhooks),
            }));
        }
        let hooks = Hooks {
            authenticate: authenticator,
            authorize: Arc::clone(&authorizer) as _,
            admit: Arc::new(Admission::new(
                Arc::clone(&cluster),
                Arc::clone(&authorizer),
                Arc::clone(&webhooks),
            )),
            reviews: Arc::new(Reviews::new(Arc::clone(&authorizer), bearer)),
            tokens: Arc::new(TokenRequests::new(cluster, Arc::clone(&tokens))),
            transform: Some(self.transform),
        };
        Ok(Assembled { hooks, tokens, authorizer, webhooks })
    }
}

/// The authorities of a PEM text.
fn authority(pem: &str) -> Result<Authority, AccessError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let certificates = certificates.map_err(|_| CertificateError::Malformed)?;
    Ok(Authority::of(&certificates)?)
}

/// The chain that was chosen. The error is text for people.
fn modes(client: &webhook::Client, chosen: Vec<Chosen>) -> Result<Vec<Mode>, String> {
    chosen
        .into_iter()
        .map(|one| {
            Ok(match one {
                Chosen::AlwaysAllow => Mode::AlwaysAllow,
                Chosen::AlwaysDeny => Mode::AlwaysDeny,
                Chosen::Node => Mode::Node,
                Chosen::Rbac => Mode::Rbac,
                Chosen::Abac(policies) => Mode::Abac(policies),
                Chosen::Webhook(settings) => {
                    Mode::Webhook(Box::new(WebhookAuthorizer::new(client, *settings)?))
                }
            })
        })
        .collect()
}

fn token_webhook_of(client: &webhook::Client, options: &WebhookOptions) -> Result<TokenWebhook, AccessError> {
    let path = &options.kubeconfig;
    let text = std::fs::read_to_string(path)
        .map_err(|source| AccessError::File { path: path.display().to_string(), source })?;
    let wrong = |e: webhook::Error| AccessError::Webhook(format!("{}: {e}", path.display()));
    let target = webhook::Target::from_kubeconfig(&text, path.parent().unwrap_or(path)).map_err(wrong)?;
    TokenWebhook::new(client, &target, &options.version, options.lifetime).map_err(wrong)
}
