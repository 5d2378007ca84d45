//! What a URL and method ask for.

use http::Method;

use crate::Attributes;
use crate::query::{Query, decode};

/// The parts of a request's path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub is_resource: bool,
    pub verb: String,
    /// `api` or `apis`.
    pub prefix: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// What follows the subresource (of a proxy).
    pub rest: String,
    pub path: String,
}

impl RequestInfo {
    /// Reads a path as the reference does; `None` if it can be no resource's path although it begins like one.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let mut info = Self {
            verb: method.as_str().to_ascii_lowercase(),
            path: decode(path, false).into_owned(),
            ..Self::default()
        };
        let decoded = decode(path, false);
        let trimmed = decoded.trim_matches('/');
        let mut parts: Vec<String> = match trimmed {
            "" => Vec::new(),
            text => text.split('/').map(str::to_owned).collect(),
        };
        if parts.len() < 3 || !matches!(parts[0].as_str(), "api" | "apis") {
            return info;
        }
        info.prefix = parts.remove(0);
        if info.prefix == "apis" {
            if parts.len() < 3 {
                return info;
            }
            info.group = parts.remove(0);
        }
        info.is_resource = true;
        info.version = parts.remove(0);
        let special = matches!(parts[0].as_str(), "watch" | "proxy") && parts.len() >= 2;
        if special {
            info.verb = parts.remove(0);
        } else {
            info.verb = match *method {
                Method::POST => "create",
                Method::GET | Method::HEAD => "get",
                Method::PUT => "update",
                Method::PATCH => "patch",
                Method::DELETE => "delete",
                _ => "",
            }
            .to_owned();
        }
        if parts[0] == "namespaces" && parts.len() > 1 {
            info.namespace = parts[1].clone();
            if parts.len() > 2 && !matches!(parts[2].as_str(), "status" | "finalize") {
                parts.drain(..2);
            }
        }
        info.resource = parts[0].clone();
        info.name = parts.get(1).cloned().unwrap_or_default();
        if info.verb != "proxy" {
            info.subresource = parts.get(2).cloned().unwrap_or_default();
            info.rest = parts.get(3..).unwrap_or_default().join("/");
            if info.subresource == "proxy" && trimmed.len() < decoded.trim_start_matches('/').len() {
                info.rest.push('/');
            }
        }
        if info.name.is_empty() && info.verb == "get" {
            let watch = query.flag("watch").unwrap_or(false);
            info.verb = if watch { "watch" } else { "list" }.to_owned();
            if let Some(name) = exact_name(query.text("fieldSelector")) {
                info.name = name.to_owned();
            }
        }
        if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection".to_owned();
        }
        info
    }

    /// What authorization is asked.
    pub fn attributes(&self, query: &Query) -> Attributes {
        let selectors = matches!(self.verb.as_str(), "list" | "watch" | "deletecollection");
        let selector = |key: &str| query.get(key).filter(|s| selectors && !s.is_empty()).map(str::to_owned);
        Attributes {
            verb: self.verb.clone(),
            group: self.group.clone(),
            version: self.version.clone(),
            resource: self.resource.clone(),
            subresource: self.subresource.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            path: self.path.clone(),
            resource_request: self.is_resource,
            label_selector: selector("labelSelector"),
            field_selector: selector("fieldSelector"),
            ..Attributes::default()
        }
    }

    /// Whether the request stays open as long as the client wants.
    pub fn long_running(&self) -> bool {
        matches!(self.verb.as_str(), "watch" | "proxy")
            || matches!(self.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward")
    }
}

/// The name that a field selector asks for.
fn exact_name(selector: &str) -> Option<&str> {
    let terms = selector.split(',').filter(|t| !t.contains("!="));
    let name = terms.filter_map(|t| t.split_once('=')).find(|(k, _)| *k == "metadata.name");
    name.map(|(_, v)| v.trim_start_matches('=')).filter(|n| !n.is_empty() && !n.contains(['/', '%']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, url: &str, want: [&str; 7]) {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let i = RequestInfo::parse(&method, path, &Query::parse(query));
        let got = [&i.verb, &i.group, &i.version, &i.namespace, &i.resource, &i.name, &i.subresource];
        assert_eq!(got.map(String::as_str), want, "{method} {url}");
    }

    #[test]
    fn paths() {
        let get = Method::GET;
        check(get.clone(), "/api/v1/pods", ["list", "", "v1", "", "pods", "", ""]);
        check(get.clone(), "/api/v1/pods?watch=1", ["watch", "", "v1", "", "pods", "", ""]);
        check(get.clone(), "/api/v1/namespaces", ["list", "", "v1", "", "namespaces", "", ""]);
        check(get.clone(), "/api/v1/namespaces/a", ["get", "", "v1", "a", "namespaces", "a", ""]);
        check(
            Method::PUT,
            "/api/v1/namespaces/a/finalize",
            ["update", "", "v1", "a", "namespaces", "a", "finalize"],
        );
        check(
            get.clone(),
            "/apis/apps/v1/namespaces/n/deployments/d/scale",
            ["get", "apps", "v1", "n", "deployments", "d", "scale"],
        );
        check(
            Method::DELETE,
            "/apis/apps/v1/namespaces/n/deployments",
            ["deletecollection", "apps", "v1", "n", "deployments", "", ""],
        );
        check(get.clone(), "/api/v1/watch/pods", ["watch", "", "v1", "", "pods", "", ""]);
        check(
            get.clone(),
            "/api/v1/pods?fieldSelector=metadata.name%3Dx",
            ["list", "", "v1", "", "pods", "x", ""],
        );
        check(get, "/healthz", ["get", "", "", "", "", "", ""]);
    }
}
