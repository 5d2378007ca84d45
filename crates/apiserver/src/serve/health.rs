//! `/healthz`, `/livez` and `/readyz`, whole and check by check.

use http::{Response, StatusCode};

use crate::http::body::Body;
use crate::pipeline::text;
use crate::query::Query;
use crate::server::Server;

/// The checks of an endpoint and whether each passes.
fn checks(server: &Server, endpoint: &str) -> Vec<(&'static str, bool)> {
    let registry = &server.registry;
    let lag = registry.store.revision().saturating_sub(registry.applied());
    let mut checks =
        vec![("ping", true), ("log", true), ("etcd", true), ("poststarthook/bootstrap-controller", true)];
    if endpoint != "livez" {
        checks.push(("informer-sync", lag < 100_000));
    }
    if endpoint == "readyz" {
        checks.push(("shutdown", !server.shutdown.is_cancelled()));
    }
    checks
}

pub fn answer(server: &Server, query: &Query, endpoint: &str, rest: &[&str]) -> Response<Body> {
    let checks = checks(server, endpoint);
    let single = rest.join("/");
    if !single.is_empty() {
        return match checks.iter().find(|(name, _)| *name == single) {
            Some((_, true)) => text(StatusCode::OK, "ok"),
            Some((_, false)) => {
                text(StatusCode::INTERNAL_SERVER_ERROR, "internal server error: check failed\n")
            }
            None => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        };
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut report = String::new();
    let mut failed = false;
    for (name, passes) in &checks {
        if excluded.contains(name) {
            report.push_str(&format!("[+]{name} excluded: ok\n"));
        } else if *passes {
            report.push_str(&format!("[+]{name} ok\n"));
        } else {
            failed = true;
            report.push_str(&format!("[-]{name} failed: reason withheld\n"));
        }
    }
    if failed {
        report.push_str(&format!("{endpoint} check failed\n"));
        return text(StatusCode::INTERNAL_SERVER_ERROR, report);
    }
    if query.get("verbose").is_some() {
        report.push_str(&format!("{endpoint} check passed\n"));
        return text(StatusCode::OK, report);
    }
    text(StatusCode::OK, "ok")
}
