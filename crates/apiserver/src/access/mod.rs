//! Puts authentication, authorization, admission and encryption at rest together for the pipeline.

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use crate::admission::Admission;
use crate::authn::{Authenticator, CertificateError, TokenRequests, Tokens};
use crate::authz::{Authorizer, Reviews};
use crate::transform::{AtRest, KeyError};
use crate::{ClusterRef, Hooks, Transform, bootstrap, webhook};

/// The audience of tokens that name none: the API server itself.
const AUDIENCE: &str = "https://kubernetes.default.svc";

/// Why the hooks cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("the cluster's certificate authorities are not usable: {0}")]
    Certificate(#[from] CertificateError),
    #[error("secrets cannot be encrypted at rest: {0}")]
    Key(#[from] KeyError),
}

/// What is needed before the cluster can be seen.
pub struct Access {
    pki: pki::ClusterPki,
    issuer: String,
    transform: Arc<dyn Transform>,
    authorities: [crate::authn::Authority; 2],
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
        let authority = |cert: &pki::Authority| crate::authn::Authority::new(cert.cert_der());
        Ok(Self {
            authorities: [authority(&pki.ca)?, authority(&pki.front_proxy_ca)?],
            transform: Arc::new(AtRest::load_or_create(key_file)?),
            issuer: format!("https://kubernetes.default.svc.{cluster_domain}"),
            pki,
        })
    }

    /// Seals and opens in another way than with the key file.
    #[must_use]
    pub fn with_transform(mut self, transform: Arc<dyn Transform>) -> Self {
        self.transform = transform;
        self
    }

    /// The hooks over a view of the cluster, which they read when they are called and not before.
    pub fn assemble(self, cluster: ClusterRef) -> Assembled {
        let audiences = vec![AUDIENCE.to_owned(), self.issuer.clone()];
        let key = self.pki.service_account.clone();
        let tokens = Tokens::new(Arc::clone(&cluster), key, self.issuer, audiences);
        let authorizer = Authorizer::new(Arc::clone(&cluster), bootstrap::node_rules());
        let webhooks = webhook::Client::new(Arc::clone(&cluster));
        let [clients, front_proxies] = self.authorities;
        let hooks = Hooks {
            authenticate: Arc::new(Authenticator::new(clients, front_proxies, Arc::clone(&tokens))),
            authorize: Arc::clone(&authorizer) as _,
            admit: Arc::new(Admission::new(
                Arc::clone(&cluster),
                Arc::clone(&authorizer),
                Arc::clone(&webhooks),
            )),
            reviews: Arc::new(Reviews::new(Arc::clone(&authorizer), Arc::clone(&tokens))),
            tokens: Arc::new(TokenRequests::new(cluster, Arc::clone(&tokens))),
            transform: Some(self.transform),
        };
        Assembled { hooks, tokens, authorizer, webhooks }
    }
}
