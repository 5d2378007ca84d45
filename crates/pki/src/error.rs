//! What can go wrong with keys, certificates and their files.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was attempted: `read`, `write`, `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A certificate is there, but its key is not: making a new pair would cut off everyone who trusts the old one.
    #[error("{} exists but {} does not: restore the key from a backup, or remove the certificate to make a new pair", cert.display(), key.display())]
    KeyMissing {
        /// The certificate that was found.
        cert: PathBuf,
        /// The key that was not.
        key: PathBuf,
    },
    /// A file does not hold what its name promises.
    #[error("{} is not a valid {what}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
        /// Why it is not.
        reason: String,
    },
    /// A PEM block, key or certificate in memory is not usable.
    #[error("not a valid {what}: {reason}")]
    Invalid {
        /// What was expected.
        what: &'static str,
        /// Why it is not.
        reason: String,
    },
    /// The system's source of randomness failed.
    #[error("the system gave no random bytes")]
    Random,
    /// The key refused to sign.
    #[error("signing failed")]
    Sign,
}

impl Error {
    pub(crate) fn invalid(what: &'static str, reason: impl ToString) -> Self {
        Error::Invalid { what, reason: reason.to_string() }
    }
}
