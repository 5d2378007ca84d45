//! Image names: `[domain/]path[:tag][@digest]`, filled up as `docker pull` does.

use std::fmt;

/// A complete image name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Registry, with its port if it has one.
    pub domain: String,
    /// Repository within the registry.
    pub path: String,
    /// Tag; absent in a name that has only a digest.
    pub tag: Option<String>,
    /// `sha256:<hex>`.
    pub digest: Option<String>,
}

/// Why a name is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name {name:?}: {reason}")]
pub struct InvalidReference {
    /// As given.
    pub name: String,
    /// What is wrong.
    pub reason: &'static str,
}

impl Reference {
    /// Parses a name; `latest` is the tag of one that has neither tag nor digest.
    pub fn parse(name: &str) -> Result<Self, InvalidReference> {
        let fail = |reason| InvalidReference { name: name.to_owned(), reason };
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (name, None),
        };
        if let Some(digest) = digest
            && !is_digest(digest)
        {
            return Err(fail("invalid digest"));
        }
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if tag.len() > 128
                || !tag.bytes().next().is_some_and(word)
                || !tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
            {
                return Err(fail("invalid tag"));
            }
        }
        let (domain, path) = match rest.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => {
                (first, path.to_owned())
            }
            Some(_) => ("docker.io", rest.to_owned()),
            None => ("docker.io", format!("library/{rest}")),
        };
        let domain = if domain == "index.docker.io" { "docker.io" } else { domain };
        if rest.is_empty() || path.is_empty() {
            return Err(fail("invalid reference format"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(fail("repository name must be lowercase"));
        }
        let component = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
                && part.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
                && part.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric())
        };
        if path.len() > 255 || !path.split('/').all(component) {
            return Err(fail("invalid reference format"));
        }
        let host = match domain.rsplit_once(':') {
            Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => domain,
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
        let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let valid = match literal {
            Some(address) => address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':'),
            None => host.bytes().all(plain) && host.starts_with(|c: char| c.is_ascii_alphanumeric()),
        };
        if !valid {
            return Err(fail("invalid registry name"));
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".into()),
        };
        Ok(Self { domain: domain.into(), path, tag, digest: digest.map(str::to_owned) })
    }

    /// Registry and repository.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// What the registry is asked for: the digest if there is one, else the tag.
    pub fn target(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        match (&self.digest, &self.tag) {
            // With both, the digest decides which image is meant.
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

/// Whether `text` is `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_up() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (given, expect) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("a/b:1", "docker.io/a/b:1".into()),
            ("localhost/a", "localhost/a:latest".into()),
            ("127.0.0.1:5000/a/b:v1.0", "127.0.0.1:5000/a/b:v1.0".into()),
            ("index.docker.io/library/x", "docker.io/library/x:latest".into()),
            (&format!("r.io/x@{digest}"), format!("r.io/x@{digest}")),
            (&format!("r.io/x:t@{digest}"), format!("r.io/x@{digest}")),
        ] {
            assert_eq!(Reference::parse(given).unwrap().to_string(), expect, "{given}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for given in ["", "A/b", "a:", "a b", "a@sha256:12", "../x", "r.io/", "x:/y", "a//b", "-a"] {
            assert!(Reference::parse(given).is_err(), "{given}");
        }
    }
}
