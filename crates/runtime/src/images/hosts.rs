//! Mirrors, authorities and client certificates of registries, from a folder in containerd's form: `<dir>/<host[:port]>/hosts.toml`,
//! or `<dir>/_default/hosts.toml` for registries without a folder of their own. Read at each pull.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::Error;

/// Where one registry's content is asked for, in order.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Up to and with `/v2`, without a slash behind.
    pub base: String,
    /// The registry itself and no mirror: it alone is shown credentials.
    pub origin: bool,
    /// Whether it may say which digest a tag stands for.
    pub resolve: bool,
    /// Whether it serves content.
    pub pull: bool,
    /// Headers for each request.
    pub headers: HeaderMap,
    /// How its certificate is checked.
    pub trust: Trust,
}

/// How a server is trusted, and how this client shows itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Trust {
    /// Further authorities, as PEM files.
    pub ca_files: Vec<PathBuf>,
    /// Take any certificate.
    pub skip_verify: bool,
    /// Certificate and key, as PEM files (the key may be in the certificate's).
    pub client: Option<(PathBuf, PathBuf)>,
}

/// One or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Few<T> {
    One(T),
    Many(Vec<T>),
}

impl<T: Clone> Few<T> {
    fn list(&self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one.clone()],
            Self::Many(many) => many.clone(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Host {
    capabilities: Option<Vec<String>>,
    ca: Option<Few<PathBuf>>,
    client: Option<Few<Few<PathBuf>>>,
    skip_verify: bool,
    override_path: bool,
    header: BTreeMap<String, Few<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Hosts {
    server: String,
    #[serde(flatten)]
    own: Host,
    host: toml::Table,
}

fn bad(file: &Path, reason: impl std::fmt::Display) -> Error {
    Error::invalid("registry configuration", format!("{}: {reason}", file.display()))
}

impl Host {
    fn trust(&self, dir: &Path) -> Trust {
        let client = self.client.as_ref().and_then(|client| client.list().into_iter().next()).map(|pair| {
            let files: Vec<PathBuf> = pair.list().iter().map(|file| dir.join(file)).collect();
            let first = files.first().cloned().unwrap_or_default();
            (first.clone(), files.get(1).cloned().unwrap_or(first))
        });
        let ca_files = self.ca.as_ref().map(Few::list).unwrap_or_default();
        let ca_files = ca_files.iter().map(|file| dir.join(file)).collect();
        Trust { ca_files, skip_verify: self.skip_verify, client }
    }

    fn endpoint(&self, address: &str, origin: bool, file: &Path) -> Result<Endpoint, Error> {
        let address = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
        let uri: http::Uri = address.parse().map_err(|e| bad(file, format!("{address:?}: {e}")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(bad(file, format!("{address:?} is no address of a server")));
        }
        let base = address.trim_end_matches('/').to_owned();
        let base = if self.override_path || base.ends_with("/v2") { base } else { format!("{base}/v2") };
        let can = |what: &str| self.capabilities.as_ref().is_none_or(|all| all.iter().any(|one| one == what));
        let mut headers = HeaderMap::new();
        for (name, values) in &self.header {
            let name: HeaderName = name.parse().map_err(|_| bad(file, format!("header name {name:?}")))?;
            for value in values.list() {
                let value = HeaderValue::from_str(&value).map_err(|_| bad(file, format!("header {name}")))?;
                headers.append(name.clone(), value);
            }
        }
        let trust = self.trust(file.parent().unwrap_or(Path::new("/")));
        Ok(Endpoint { base, origin, resolve: can("resolve"), pull: can("pull"), headers, trust })
    }
}

/// The endpoints of `domain`, mirrors first and itself, which is at `own`, last.
pub fn endpoints(dir: &Path, domain: &str, own: &str) -> Result<Vec<Endpoint>, Error> {
    let plain = |base: &str| Endpoint {
        base: format!("{base}/v2"),
        origin: true,
        resolve: true,
        pull: true,
        headers: HeaderMap::new(),
        trust: Trust::default(),
    };
    let under = domain.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let folders = [Some(domain.to_owned()), under, Some("_default".to_owned())];
    let file =
        folders.into_iter().flatten().map(|folder| dir.join(folder).join("hosts.toml")).find(|f| f.is_file());
    let Some(file) = file else { return Ok(vec![plain(own)]) };
    let text = std::fs::read_to_string(&file).map_err(|e| Error::io("read", &file, e))?;
    let hosts: Hosts = toml::from_str(&text).map_err(|e| bad(&file, e.message()))?;
    let mut list = Vec::new();
    for (address, host) in ordered(&text, &hosts.host) {
        let host: Host = host.clone().try_into().map_err(|e: toml::de::Error| bad(&file, e.message()))?;
        list.push(host.endpoint(&address, false, &file)?);
    }
    let server = if hosts.server.is_empty() { own } else { &hosts.server };
    let is_default = file.parent().is_some_and(|folder| folder.ends_with("_default"));
    // A server named for all registries is a mirror of each, and no registry's own.
    let named_for_all = is_default && !hosts.server.is_empty();
    list.push(hosts.own.endpoint(server, !named_for_all, &file)?);
    Ok(list)
}

/// Mirrors in the order of the file, which their table has lost.
fn ordered<'a>(text: &str, hosts: &'a toml::Table) -> Vec<(String, &'a toml::Value)> {
    let mut list: Vec<(String, &toml::Value)> =
        hosts.iter().map(|(name, host)| (name.clone(), host)).collect();
    list.sort_by_key(|(name, _)| {
        let quoted = [format!("[host.\"{name}\"]"), format!("[host.'{name}']")];
        quoted.iter().filter_map(|head| text.find(head.as_str())).min().unwrap_or(usize::MAX)
    });
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, registry: &str, text: &str) {
        std::fs::create_dir_all(dir.join(registry)).unwrap();
        std::fs::write(dir.join(registry).join("hosts.toml"), text).unwrap();
    }

    fn bases(dir: &Path, domain: &str) -> Vec<(String, bool)> {
        let own = format!("https://{domain}");
        endpoints(dir, domain, &own).unwrap().into_iter().map(|e| (e.base, e.origin)).collect()
    }

    #[test]
    fn mirrors_come_first_in_the_order_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(bases(dir.path(), "r.test"), [("https://r.test/v2".to_owned(), true)]);
        write(
            dir.path(),
            "r.test:5000",
            "server = \"https://r.test:5000\"\nca = \"own.crt\"\n\
             [host.\"http://z.test\"]\n  capabilities = [\"pull\"]\n  [host.\"http://z.test\".header]\n    x-a = [\"1\", \"2\"]\n\
             [host.\"https://a.test/cache/v2\"]\n  override_path = true\n  skip_verify = true\n  client = [[\"c.crt\", \"c.key\"]]\n",
        );
        let found = endpoints(dir.path(), "r.test:5000", "https://r.test:5000").unwrap();
        let bases: Vec<&str> = found.iter().map(|e| e.base.as_str()).collect();
        assert_eq!(bases, ["http://z.test/v2", "https://a.test/cache/v2", "https://r.test:5000/v2"]);
        assert!(found[0].pull && !found[0].resolve && found[0].headers.get_all("x-a").iter().count() == 2);
        let folder = dir.path().join("r.test:5000");
        assert_eq!(found[1].trust.client, Some((folder.join("c.crt"), folder.join("c.key"))));
        assert!(found[1].trust.skip_verify);
        assert_eq!(found[2].trust.ca_files, [folder.join("own.crt")]);
    }

    #[test]
    fn a_default_is_a_mirror_of_every_registry() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "_default", "server = \"https://cache.test\"\n");
        assert_eq!(bases(dir.path(), "r.test"), [("https://cache.test/v2".to_owned(), false)]);
        write(dir.path(), "_default", "[host.\"https://cache.test\"]\n");
        let both = [("https://cache.test/v2".to_owned(), false), ("https://r.test/v2".to_owned(), true)];
        assert_eq!(bases(dir.path(), "r.test"), both);
    }

    #[test]
    fn mistakes_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        for text in [
            "server = ",
            "server = \"ftp://x\"",
            "[host.\"https://x\"]\nca = 1\n",
            "[host.\"https://x\".header]\n\"a b\" = \"c\"\n",
        ] {
            write(dir.path(), "r.test", text);
            let error = endpoints(dir.path(), "r.test", "https://r.test").expect_err(text).to_string();
            assert!(error.contains("hosts.toml"), "{text}: {error}");
        }
    }
}
