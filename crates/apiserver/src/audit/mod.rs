//! Audit: who did what, when, and how it was answered. A policy says how much of each request is written down; back ends
//! keep the events. What the handling of a request finds out is collected in its [`Record`].

mod event;
mod file;
mod policy;
mod record;
mod sink;
mod sources;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::ClusterRef;
use crate::config_file::FileError;
use crate::webhook;

pub use event::{Outcome, Trail};
pub use file::Rotation;
pub use policy::{Policy, Stage};
pub use record::{Level, Record};
pub use sink::{BatchConfig, LogConfig, Mode};

/// What is audited, and where the events go. Without a back end nothing is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuditConfig {
    /// A policy file; without one the standard policy holds.
    pub policy: Option<PathBuf>,
    pub log: Option<LogConfig>,
    /// A kubeconfig file that names the webhook, and how it is sent events.
    pub webhook: Option<(PathBuf, BatchConfig)>,
}

/// Why auditing cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("the audit policy is not usable")]
    Policy(#[from] FileError),
    #[error("cannot write the audit log {}", path.display())]
    Log {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read the audit webhook's configuration {}", path.display())]
    WebhookFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the audit webhook's configuration {} is not usable", path.display())]
    Webhook {
        path: PathBuf,
        #[source]
        source: webhook::Error,
    },
}

/// The policy in force and the back ends.
pub struct Auditor {
    pub policy: Policy,
    sinks: Vec<sink::Sink>,
}

impl Auditor {
    /// Reads the policy and opens the back ends; `None` if there are none.
    pub fn new(config: &AuditConfig, cluster: &ClusterRef) -> Result<Option<Arc<Self>>, AuditError> {
        if config.log.is_none() && config.webhook.is_none() {
            return Ok(None);
        }
        let policy = match &config.policy {
            Some(path) => Policy::load(path)?,
            None => Policy::standard(),
        };
        let mut sinks = Vec::new();
        if let Some(log) = &config.log {
            let opened = sink::Log::open(log);
            let opened = opened.map_err(|source| AuditError::Log { path: log.path.clone(), source })?;
            sinks.push(sink::Sink::Log(opened));
        }
        if let Some((path, batch)) = &config.webhook {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|source| AuditError::WebhookFile { path: path.clone(), source })?;
            let folder = path.parent().unwrap_or(std::path::Path::new("."));
            let endpoint = webhook::Target::from_kubeconfig(&text, folder)
                .and_then(|target| webhook::Client::new(cluster.clone()).endpoint(&target))
                .map_err(|source| AuditError::Webhook { path: path.clone(), source })?;
            sinks.push(sink::Sink::Webhook(sink::Webhook::start(endpoint, batch.clone())));
        }
        Ok(Some(Arc::new(Self { policy, sinks })))
    }

    /// Hands an event to all back ends; false if one must keep it and could not.
    fn take(&self, event: &Bytes, tickets: &mut Vec<sink::Ticket>) -> bool {
        // All of them get it, whatever the first one says.
        self.sinks.iter().map(|sink| sink.take(event, tickets)).fold(true, |all, one| all & one)
    }

    /// Writes and sends what waits.
    pub async fn close(&self) {
        for sink in &self.sinks {
            sink.close().await;
        }
    }
}
