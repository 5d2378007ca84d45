//! Configuration files in the API's form: YAML or JSON with `apiVersion` and `kind`, every field known.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why a configuration file is not usable; every text names the file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}: {reason}", path.display())]
    Invalid { path: PathBuf, reason: String },
}

impl FileError {
    /// A fault of the content.
    pub fn invalid(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Invalid { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Reads a file of this kind in one of these versions.
pub fn read<T: DeserializeOwned>(path: &Path, versions: &[&str], kind: &str) -> Result<T, FileError> {
    let bytes = std::fs::read(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    parse(&bytes, versions, kind).map_err(|reason| FileError::invalid(path, reason))
}

/// Reads the content of such a file.
pub fn parse<T: DeserializeOwned>(bytes: &[u8], versions: &[&str], kind: &str) -> Result<T, String> {
    let decoded = schema::decode_any_yaml(bytes, schema::FieldValidation::Strict);
    let mut value = decoded.map_err(|error| error.to_string())?.value;
    let Some(map) = value.as_object_mut() else { return Err(format!("it holds no {kind}")) };
    let mut take = |key: &str| match map.remove(key) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let (version, own) = (take("apiVersion"), take("kind"));
    if own != kind {
        return Err(format!("kind: {own:?} is not {kind:?}"));
    }
    if !versions.contains(&version.as_str()) {
        return Err(format!("apiVersion: {version:?} is not supported; use {:?}", versions[0]));
    }
    map.remove("metadata");
    serde_json::from_value(value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Thing {
        some_field: u32,
    }

    #[test]
    fn errors_name_the_field() {
        let check = |text: &str, expect: Result<u32, &str>| {
            let got = parse::<Thing>(text.as_bytes(), &["x.io/v1"], "Thing").map(|t| t.some_field);
            match (got, expect) {
                (Ok(got), Ok(expect)) => assert_eq!(got, expect),
                (Err(got), Err(expect)) => assert!(got.contains(expect), "{got}"),
                (got, expect) => panic!("{text}: {got:?}, not {expect:?}"),
            }
        };
        check("apiVersion: x.io/v1\nkind: Thing\nmetadata: {name: a}\nsomeField: 3\n", Ok(3));
        check("apiVersion: x.io/v1\nkind: Thing\nsomeFeld: 3\n", Err("someFeld"));
        check("apiVersion: x.io/v2\nkind: Thing\nsomeField: 3\n", Err("apiVersion: \"x.io/v2\""));
        check("apiVersion: x.io/v1\nkind: Other\nsomeField: 3\n", Err("kind: \"Other\""));
        check("apiVersion: x.io/v1\nkind: Thing\nsomeField: 3\nsomeField: 4\n", Err("someField"));
        check("[]", Err("no Thing"));
    }
}
