//! The labels of a request, cleaned so that their number is bounded, and what is counted when it ends.

use std::time::Duration;

use http::{HeaderMap, Method};

use super::metrics;
use crate::query::Query;
use crate::request::RequestInfo;

/// How a request is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    pub verb: &'static str,
    pub scope: &'static str,
    pub dry_run: &'static str,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub client: &'static str,
    pub field_validation: &'static str,
    mutating: bool,
}

const COMPONENT: &str = "apiserver";
const CONNECTS: [&str; 7] = ["attach", "exec", "log", "logs", "portforward", "proxy", "proxyupgrade"];
const CLIENTS: [&str; 4] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "cluster-policy-controller"];

/// Paths that are no resources and are counted by themselves; others share the empty label.
const PATHS: [&str; 12] = [
    "/healthz",
    "/livez",
    "/readyz",
    "/version",
    "/metrics",
    "/metrics/slis",
    "/openapi/v2",
    "/openapi/v3",
    "/api",
    "/apis",
    "/flagz",
    "/statusz",
];

impl Labels {
    /// Of a request. `served` tells whether the resource exists: the names of others are the client's invention.
    pub fn new(
        method: &Method,
        headers: &HeaderMap,
        query: &Query,
        info: &RequestInfo,
        served: impl FnOnce(&RequestInfo) -> bool,
    ) -> Self {
        let known = info.is_resource && served(info);
        let text = |text: &str| if known { text.to_owned() } else { String::new() };
        let scope = scope(info);
        let plain = PATHS.iter().find(|path| **path == info.path.trim_end_matches('/')).copied();
        let agent = headers.get(http::header::USER_AGENT).and_then(|h| h.to_str().ok()).unwrap_or_default();
        let client = agent.split_once('/').map(|(name, _)| name);
        Self {
            verb: verb(method, headers, query, info, scope),
            scope,
            dry_run: match query.get("dryRun") {
                None => "",
                Some("All") => "All",
                Some(_) => "invalid",
            },
            group: text(&info.group),
            version: text(&info.version),
            resource: text(&info.resource),
            subresource: match plain {
                Some(path) if !info.is_resource => path.to_owned(),
                _ => text(&info.subresource),
            },
            client: CLIENTS.into_iter().find(|c| Some(*c) == client).unwrap_or_default(),
            field_validation: match query.get("fieldValidation") {
                None => "",
                Some("Strict") => "Strict",
                Some("Warn") => "Warn",
                Some("Ignore") => "Ignore",
                Some(_) => "invalid",
            },
            mutating: !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS),
        }
    }

    /// `mutating` or `readOnly`.
    pub fn kind(&self) -> &'static str {
        if self.mutating { "mutating" } else { "readOnly" }
    }

    fn values(&self) -> [&str; 7] {
        let Self { group, resource, scope, subresource, verb, version, .. } = self;
        [self.component(), group, resource, scope, subresource, verb, version]
    }

    /// Paths that are no resources belong to no component.
    fn component(&self) -> &'static str {
        if self.scope.is_empty() { "" } else { COMPONENT }
    }

    /// Counts an answered request. `waited` is the time that is not the server's own: queues and webhooks.
    pub fn answered(&self, code: u16, took: Duration, waited: Duration, size: Option<u64>) {
        let Self { group, resource, scope, subresource, verb, version, dry_run, client, .. } = self;
        let mut digits = [0; 5];
        let code = decimal(code, &mut digits);
        let metrics = metrics();
        let component = self.component();
        let total = [code, component, dry_run, group, resource, scope, subresource, client, verb, version];
        metrics.request_total.with(&total).increment();
        let seconds = took.as_secs_f64();
        let dry = [component, dry_run, group, resource, scope, subresource, verb, version];
        metrics.request_duration.with(&dry).observe(seconds);
        if dry_run.is_empty() {
            let own = took.saturating_sub(waited).as_secs_f64();
            metrics.request_sli_duration.with(&self.values()).observe(own);
        }
        if let (Some(size), "GET" | "LIST") = (size, *verb) {
            metrics.response_sizes.with(&self.values()).observe(size as f64);
        }
        if self.mutating && !resource.is_empty() {
            metrics.field_validation_duration.with(&[self.field_validation]).observe(seconds);
        }
    }

    /// Counts a request that the server ended to protect itself.
    pub fn terminated(&self, code: u16) {
        let mut digits = [0; 5];
        let [component, group, resource, scope, subresource, verb, version] = self.values();
        let labels =
            [decimal(code, &mut digits), component, group, resource, scope, subresource, verb, version];
        metrics().request_terminations.with(&labels).increment();
    }

    /// Counts a request that was broken off.
    pub fn aborted(&self) {
        let [_, group, resource, scope, subresource, verb, version] = self.values();
        metrics().request_aborts.with(&[group, resource, scope, subresource, verb, version]).increment();
    }

    /// Counts the bytes of a body.
    pub fn body(&self, size: usize) {
        if !self.resource.is_empty() {
            let verb = self.verb.to_ascii_lowercase();
            metrics().request_body_size.with(&[&self.group, &self.resource, &verb]).observe(size as f64);
        }
    }

    /// Counts a long-running request for as long as the guard lives.
    pub fn open(&self) -> Open {
        let gauge = metrics().longrunning.with(&self.values());
        gauge.add(1.0);
        Open(gauge)
    }
}

/// A long-running request that is open.
pub struct Open(std::sync::Arc<super::Gauge>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.add(-1.0);
    }
}

fn scope(info: &RequestInfo) -> &'static str {
    if !info.name.is_empty() || info.verb == "create" {
        "resource"
    } else if !info.namespace.is_empty() {
        "namespace"
    } else if info.is_resource {
        "cluster"
    } else {
        ""
    }
}

fn verb(
    method: &Method,
    headers: &HeaderMap,
    query: &Query,
    info: &RequestInfo,
    scope: &'static str,
) -> &'static str {
    if info.is_resource && CONNECTS.contains(&info.subresource.as_str()) {
        return "CONNECT";
    }
    if info.verb == "watch" || (*method == Method::GET && query.flag("watch").unwrap_or(false)) {
        return "WATCH";
    }
    match *method {
        Method::GET | Method::HEAD if !matches!(scope, "resource" | "") => "LIST",
        Method::GET | Method::HEAD => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE if info.verb == "deletecollection" => "DELETE",
        Method::DELETE => "DELETE",
        Method::PATCH => {
            let content = headers.get(http::header::CONTENT_TYPE).and_then(|h| h.to_str().ok());
            if content.is_some_and(|c| c.starts_with("application/apply-patch+")) { "APPLY" } else { "PATCH" }
        }
        Method::CONNECT => "CONNECT",
        _ => "other",
    }
}

fn decimal(mut value: u16, digits: &mut [u8; 5]) -> &str {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    std::str::from_utf8(&digits[at..]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, uri: &str, known: bool, expect: [&str; 5]) {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let query = Query::parse(query);
        let info = RequestInfo::parse(&method, path, &query);
        let labels = Labels::new(&method, &HeaderMap::new(), &query, &info, |_| known);
        let got = [labels.verb, labels.scope, &labels.group, &labels.resource, &labels.subresource];
        assert_eq!(got, expect, "{method} {uri}");
    }

    #[test]
    fn requests_are_labelled_as_the_reference_does() {
        check(Method::GET, "/api/v1/pods", true, ["LIST", "cluster", "", "pods", ""]);
        check(Method::GET, "/api/v1/namespaces/a/pods", true, ["LIST", "namespace", "", "pods", ""]);
        check(Method::GET, "/api/v1/namespaces/a/pods/x", true, ["GET", "resource", "", "pods", ""]);
        check(Method::GET, "/api/v1/pods?watch=1", true, ["WATCH", "cluster", "", "pods", ""]);
        check(
            Method::POST,
            "/apis/apps/v1/namespaces/a/deployments",
            true,
            ["POST", "resource", "apps", "deployments", ""],
        );
        check(
            Method::GET,
            "/api/v1/namespaces/a/pods/x/log",
            true,
            ["CONNECT", "resource", "", "pods", "log"],
        );
        check(Method::GET, "/apis/made.up/v1/things", false, ["LIST", "cluster", "", "", ""]);
        check(Method::GET, "/readyz", false, ["GET", "", "", "", "/readyz"]);
        check(Method::GET, "/whatever/1", false, ["GET", "", "", "", ""]);
        check(Method::from_bytes(b"BREW").expect("a method"), "/api", false, ["other", "", "", "", "/api"]);
    }
}
