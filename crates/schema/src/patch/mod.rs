//! The three patch formats over JSON values: RFC 6902, RFC 7386 and strategic merge.

mod json;
mod merge;
mod order;
mod strategic;

pub use json::json_patch;
pub use merge::merge_patch;
pub use strategic::strategic_merge_patch;

/// Why a patch was not applied. The texts are what upstream's clients see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed: 400 Bad Request.
    #[error("{0}")]
    Malformed(String),
    /// The patch has more operations than the limit: 413 Request Entity Too Large.
    #[error("The allowed maximum operations in a JSON patch is {limit}, got {got}")]
    TooManyOperations { limit: usize, got: usize },
    /// The patch does not fit the object: 422 Invalid.
    #[error("{0}")]
    Unprocessable(String),
    /// What upstream answers with 500 Internal Error, though the patch is to blame (an element without its merge key).
    #[error("{0}")]
    Internal(String),
}

#[cfg(test)]
mod tests;
