//! The error of every controller's work. Each means: try this key again later.

use thiserror::Error;

/// The result of a controller's work.
pub(crate) type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Client(#[from] kube::Error),
    #[error("{0} was deleted and made anew meanwhile")]
    Replaced(String),
    #[error("{0} is being deleted")]
    Deleting(String),
    #[error("the cache is not yet as new as what was written")]
    Stale,
    #[error("the server has no kind {0}")]
    UnknownKind(String),
    #[error("the work was interrupted")]
    Interrupted,
    #[error("the revision name {0} is taken")]
    Collision(String),
    #[error("content remains: {0}")]
    Remains(String),
    #[error("the object cannot be expressed as JSON")]
    Json(#[from] serde_json::Error),
}

impl Error {
    pub(crate) fn is_not_found(&self) -> bool {
        self.has_code(404)
    }

    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Error::Client(kube::Error::Api(status)) if status.is_conflict())
    }

    pub(crate) fn is_already_exists(&self) -> bool {
        matches!(self, Error::Client(kube::Error::Api(status)) if status.is_already_exists())
    }

    pub(crate) fn has_code(&self, code: u16) -> bool {
        matches!(self, Error::Client(kube::Error::Api(status)) if status.code == code)
    }

    /// The message for an event or a condition: what the server said.
    pub(crate) fn message(&self) -> String {
        match self {
            Error::Client(kube::Error::Api(status)) => status.message.clone(),
            other => other.to_string(),
        }
    }

    /// Whether the namespace is going away, so that trying again is no use.
    pub(crate) fn is_namespace_terminating(&self) -> bool {
        let Error::Client(kube::Error::Api(status)) = self else { return false };
        status
            .details
            .iter()
            .flat_map(|details| &details.causes)
            .any(|cause| cause.reason == "NamespaceTerminating")
    }
}

/// Turns "there is no such object" into `None`.
pub(crate) fn found<T>(result: std::result::Result<T, kube::Error>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error.into()),
    }
}
