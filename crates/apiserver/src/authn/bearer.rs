//! All that a bearer token can be, in upstream's order: a static one, a ServiceAccount's, a bootstrap token, one of another
//! issuer, one that a webhook knows.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::oidc::Issuers;
use super::token::{Holder, TokenError, Tokens, common};
use super::token_file::TokenFile;
use super::webhook::{Answered, TokenWebhook};
use crate::UserInfo;

/// The token authenticators.
pub struct Bearer {
    tokens: Arc<Tokens>,
    file: Option<TokenFile>,
    /// Exchanged when the configuration file changes.
    issuers: ArcSwapOption<Issuers>,
    webhook: Option<TokenWebhook>,
    bootstrap: bool,
}

impl Bearer {
    /// ServiceAccount and bootstrap tokens alone.
    pub fn new(tokens: Arc<Tokens>) -> Self {
        Self { tokens, file: None, issuers: ArcSwapOption::empty(), webhook: None, bootstrap: true }
    }

    #[must_use]
    pub fn with_file(mut self, file: Option<TokenFile>) -> Self {
        self.file = file;
        self
    }

    #[must_use]
    pub fn with_webhook(mut self, webhook: Option<TokenWebhook>) -> Self {
        self.webhook = webhook;
        self
    }

    /// Whether bootstrap tokens are let in.
    #[must_use]
    pub fn with_bootstrap(mut self, on: bool) -> Self {
        self.bootstrap = on;
        self
    }

    /// Exchanges the issuers.
    pub fn set_issuers(&self, issuers: Issuers) {
        self.issuers.store(Some(Arc::new(issuers)));
    }

    /// The holder of a token given to this server.
    pub async fn authenticate(&self, token: &str) -> Result<UserInfo, TokenError> {
        self.check(token, self.tokens.audiences()).await.map(|holder| holder.user)
    }

    /// What a TokenReview says; with no audiences wanted, the server's own count.
    pub async fn review(&self, token: &str, wanted: &[String]) -> Result<Holder, TokenError> {
        let wanted = if wanted.is_empty() { self.tokens.audiences() } else { wanted };
        self.check(token, wanted).await
    }

    async fn check(&self, token: &str, wanted: &[String]) -> Result<Holder, TokenError> {
        // What knows nothing of audiences holds for the server's own.
        let held = |mut user: UserInfo| {
            let known = ["system:authenticated", "system:unauthenticated"];
            if !known.iter().any(|group| user.in_group(group)) {
                user.groups.push("system:authenticated".to_owned());
            }
            common(self.tokens.audiences(), wanted).map(|audiences| Holder { user, audiences })
        };
        if let Some(user) = self.file.as_ref().and_then(|file| file.user(token)) {
            return held(user.clone());
        }
        let mut errors = Vec::new();
        match self.tokens.review(token, wanted) {
            Ok(Some(holder)) if self.bootstrap || !holder.user.name.starts_with("system:bootstrap:") => {
                return Ok(holder);
            }
            Ok(_) | Err(TokenError::Unknown) => {}
            Err(error) => errors.push(error),
        }
        let issuers = self.issuers.load_full();
        if let Some(issuers) = issuers
            && let Some(found) = issuers.user(token, jiff::Timestamp::now().as_second()).await
        {
            match found {
                Ok(user) => return held(user),
                Err(why) => errors.push(TokenError::Other(why)),
            }
        }
        if let Some(webhook) = &self.webhook {
            match webhook.check(token, wanted).await {
                Ok(Answered::Holder(user, audiences)) => {
                    let own = if audiences.is_empty() { self.tokens.audiences() } else { &audiences[..] };
                    let audiences = common(own, wanted)?;
                    return held(user).map(|holder| Holder { audiences, ..holder });
                }
                Ok(Answered::Unknown(why)) if why.is_empty() => {}
                Ok(Answered::Unknown(why)) | Err(why) => errors.push(TokenError::Other(why)),
            }
        }
        match errors.len() {
            0 => Err(TokenError::Unknown),
            1 => Err(errors.remove(0)),
            _ => {
                let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
                Err(TokenError::Other(format!("[{}]", all.join(", "))))
            }
        }
    }
}
