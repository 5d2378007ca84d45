//! Configuration files that are read again while the server runs. What cannot be read or is wrong changes nothing.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::options::{anonymous, authentication};
use super::{AccessOptions, modes};
use crate::authn::{Authenticator, Bearer, Issuers};
use crate::authz::Authorizer;
use crate::metrics::metrics;
use crate::webhook;

/// How often the files are looked at; they may lie on file systems that tell nobody of changes.
const PAUSE: Duration = Duration::from_secs(1);

/// What is exchanged.
pub(super) struct Reloaded {
    pub options: AccessOptions,
    pub issuer: String,
    pub anonymous: bool,
    pub authenticator: Weak<Authenticator>,
    pub bearer: Weak<Bearer>,
    pub authorizer: Weak<Authorizer>,
    pub webhooks: Arc<webhook::Client>,
}

/// A file and what it held when it was last looked at.
struct File {
    path: PathBuf,
    seen: Option<Vec<u8>>,
}

impl File {
    fn new(path: &PathBuf) -> Self {
        Self { path: path.clone(), seen: std::fs::read(path).ok() }
    }

    /// Whether it holds something else now.
    fn changed(&mut self) -> bool {
        let Ok(now) = std::fs::read(&self.path) else { return false };
        let changed = self.seen.as_ref() != Some(&now);
        self.seen = Some(now);
        changed
    }
}

/// Runs until the server is gone.
pub(super) async fn run(what: Reloaded) {
    let mut authentication_file = what.options.authentication_config.as_ref().map(File::new);
    let mut authorization_file = what.options.authorization_config.as_ref().map(File::new);
    let mut ticks = tokio::time::interval(PAUSE);
    while what.authorizer.strong_count() > 0 {
        ticks.tick().await;
        if authentication_file.as_mut().is_some_and(File::changed) {
            report("authentication", what.authentication());
        }
        if authorization_file.as_mut().is_some_and(File::changed) {
            report("authorization", what.authorization());
        }
    }
}

fn report(what: &str, result: Result<(), String>) {
    let metrics = metrics();
    let (reloads, at) = match what {
        "authentication" => (&metrics.authentication_reloads, &metrics.authentication_reload_time),
        _ => (&metrics.authorization_reloads, &metrics.authorization_reload_time),
    };
    // One server is one series; it has no identity of its own.
    let labels = ["", if result.is_ok() { "success" } else { "failure" }];
    reloads.with(&labels).increment();
    at.with(&labels).set(jiff::Timestamp::now().as_second() as f64);
    match result {
        Ok(()) => tracing::info!("the {what} configuration was read again"),
        Err(why) => tracing::error!(why, "the changed {what} configuration is not used"),
    }
}

impl Reloaded {
    fn authentication(&self) -> Result<(), String> {
        let Some(path) = &self.options.authentication_config else { return Ok(()) };
        let config = authentication(path, &self.issuer).map_err(|e| e.to_string())?;
        let issuers = Issuers::new(&config).map_err(|e| e.to_string())?;
        if let (Some(bearer), Some(authenticator)) = (self.bearer.upgrade(), self.authenticator.upgrade()) {
            bearer.set_issuers(issuers);
            authenticator.set_anonymous(anonymous(Some(&config), self.anonymous));
        }
        Ok(())
    }

    fn authorization(&self) -> Result<(), String> {
        let chosen = self.options.authorizers().map_err(|e| e.to_string())?;
        let modes = modes(&self.webhooks, chosen)?;
        if let Some(authorizer) = self.authorizer.upgrade() {
            authorizer.set_modes(modes);
        }
        Ok(())
    }
}
