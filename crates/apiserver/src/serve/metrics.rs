//! Brings those metrics up to date that are read off the server's state when somebody asks.

use crate::metrics::metrics;
use crate::server::Server;

pub fn show(server: &Server) {
    let m = metrics();
    for row in server.registry.rows().iter().filter(|r| r.primary && r.resource.has_verb("watch")) {
        let (group, plural) = (row.group(), row.plural());
        let count = row.cache.count() as f64;
        let qualified = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        m.storage_objects.with(&[&qualified]).set(count);
        m.resource_objects.with(&[group, plural]).set(count);
    }
    server.in_flight.show();
    // The embedded engine's file; another engine tells its own size.
    if let Ok(file) = std::fs::metadata(server.config.data_dir.join("store.redb")) {
        m.storage_size.with(&["embedded-0"]).set(file.len() as f64);
    }
    let version = super::version();
    let field = |name: &str| version[name].as_str().unwrap_or_default();
    let build = [
        "buildDate",
        "compiler",
        "gitCommit",
        "gitTreeState",
        "gitVersion",
        "goVersion",
        "major",
        "minor",
        "platform",
    ];
    m.build_info.with(&build.map(field)).set(1.0);
}
