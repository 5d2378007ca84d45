//! What can go wrong with images, told so that the reader knows what to do.

use std::path::{Path, PathBuf};

use super::reference::InvalidReference;

/// Why an image could not be pulled, read, unpacked or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is none.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// A file operation failed.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Content differs from what names it.
    #[error("content has digest {actual} instead of {expected}")]
    WrongDigest {
        /// The name.
        expected: String,
        /// The content.
        actual: String,
    },
    /// A blob that something refers to is not there.
    #[error("blob {0} is missing")]
    MissingBlob(String),
    /// Larger than anything sensible.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// A document does not parse.
    #[error("invalid {what}: {source}")]
    Json {
        /// Which one.
        what: &'static str,
        /// Where it fails.
        #[source]
        source: serde_json::Error,
    },
    /// Something this runtime does not know.
    #[error("unsupported {0}")]
    Unsupported(String),
    /// An archive or a layer that does not hold what it must, or that reaches out of its place.
    #[error("invalid {what}: {reason}")]
    Invalid {
        /// Archive or layer.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// No image for this machine in an index.
    #[error("no image for platform linux/{0} in the index")]
    NoPlatform(&'static str),
    /// There is no image of that name.
    #[error("image {0:?} is not present")]
    NotFound(String),
    /// A container uses the image.
    #[error("image {0} is in use by a container")]
    InUse(String),
    /// The registry does not answer, or not in time.
    #[error("registry {host}: {reason}")]
    Registry {
        /// Its name.
        host: String,
        /// What happened.
        reason: String,
    },
    /// The registry does not know the image, or hides it.
    #[error("{name}: not found")]
    NotInRegistry {
        /// The image.
        name: String,
    },
    /// The node's own policy refuses. It begins with the word that CRI has for this.
    #[error("{}: pulling {name} is refused: {reason}", super::policy::REFUSED)]
    Refused {
        /// The image.
        name: String,
        /// Why.
        reason: String,
    },
    /// The registry refuses.
    #[error(
        "pull access denied for {name}, repository does not exist or may require authorization: {reason}"
    )]
    Denied {
        /// The image.
        name: String,
        /// What the registry says.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }

    pub(crate) fn json(what: &'static str) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Json { what, source }
    }

    pub(crate) fn invalid(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { what, reason: reason.into() }
    }
}
