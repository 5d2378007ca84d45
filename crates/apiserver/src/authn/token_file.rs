//! Static tokens: a CSV file of token, user name, uid and, optionally, groups in quotes (upstream: `tokenfile`).

use std::collections::HashMap;
use std::path::Path;

use crate::UserInfo;

/// Why a token file is not usable.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error("token file {path:?} cannot be read")]
    Io {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "token file {path:?}, line {line}: at least 3 columns (token, user name, user uid) are needed, found {found}"
    )]
    Columns { path: String, line: usize, found: usize },
    #[error("token file {path:?}, line {line}: a quoted field does not end")]
    Quote { path: String, line: usize },
}

/// Users by the digest of their token.
#[derive(Debug, Default)]
pub struct TokenFile(HashMap<[u8; 32], UserInfo>);

impl TokenFile {
    /// Reads the file; it is not looked at again.
    pub fn read(path: &Path) -> Result<Self, TokenFileError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| TokenFileError::Io { path: name.clone(), source })?;
        Self::parse(&text, &name)
    }

    fn parse(text: &str, path: &str) -> Result<Self, TokenFileError> {
        let mut users = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let (path, line_number) = (path.to_owned(), number + 1);
            let Some(record) = fields(line) else {
                return Err(TokenFileError::Quote { path, line: line_number });
            };
            let [token, name, uid, ..] = record.as_slice() else {
                return Err(TokenFileError::Columns { path, line: line_number, found: record.len() });
            };
            if token.is_empty() {
                tracing::warn!(path, line = line_number, "empty token in the token file");
                continue;
            }
            let groups = record.get(3).filter(|g| !g.is_empty());
            let groups = groups.map(|g| g.split(',').map(str::to_owned).collect()).unwrap_or_default();
            let user = UserInfo { name: name.clone(), uid: uid.clone(), groups, ..UserInfo::default() };
            if users.insert(digest(token), user).is_some() {
                tracing::warn!(path, line = line_number, "duplicate token in the token file");
            }
        }
        Ok(Self(users))
    }

    /// The user of a token. Tokens are looked up by digest, so that the time it takes tells nothing about them.
    pub fn user(&self, token: &str) -> Option<&UserInfo> {
        self.0.get(&digest(token))
    }
}

fn digest(token: &str) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The fields of a line of CSV (RFC 4180); `None` if a quote stays open.
fn fields(line: &str) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let mut field = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted;
            loop {
                let at = rest.find('"')?;
                field.push_str(&rest[..at]);
                rest = &rest[at + 1..];
                match rest.strip_prefix('"') {
                    Some(more) => {
                        field.push('"');
                        rest = more;
                    }
                    None => break,
                }
            }
        }
        let end = rest.find(',').unwrap_or(rest.len());
        field.push_str(&rest[..end]);
        fields.push(field);
        match rest.get(end + 1..) {
            Some(more) => rest = more,
            None => return Some(fields),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_with_their_groups() {
        let text = "abc,jane,1,\"dev,ops\"\n\n,nobody,2\nxyz,\"jo \"\"x\"\" e\",3\n";
        let file = TokenFile::parse(text, "f").expect("readable");
        let jane = file.user("abc").expect("known");
        assert_eq!((jane.name.as_str(), jane.uid.as_str(), jane.groups.len()), ("jane", "1", 2));
        assert_eq!(file.user("xyz").map(|u| u.name.as_str()), Some("jo \"x\" e"));
        assert!(file.user("").is_none() && file.user("abcd").is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, expect: &str| {
            let error = TokenFile::parse(text, "f").expect_err("refused").to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(
            "a,b,1\nabc,jane\n",
            "line 2: at least 3 columns (token, user name, user uid) are needed, found 2",
        );
        check("abc,\"jane,1\n", "line 1: a quoted field does not end");
    }
}
