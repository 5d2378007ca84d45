//! The fuzz targets: each takes bytes that a stranger could send and gives them to one parser and what follows it. None may
//! panic, and none may take more than time and memory in proportion to the input. `fuzz/` runs them under libFuzzer; the
//! tests here run each over its kept corpus and a bounded number of deterministic mutations, on any toolchain.

mod definitions;
mod expressions;
mod objects;
mod streams;
mod urls;

/// A parser under test.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inputs that reach deep; mutations start from them and from the kept corpus.
    pub seeds: &'static [&'static [u8]],
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "json", run: objects::json, seeds: objects::JSON },
    Target { name: "yaml", run: objects::yaml, seeds: objects::YAML },
    Target { name: "protobuf", run: objects::protobuf, seeds: objects::PROTOBUF },
    Target { name: "cbor", run: objects::cbor, seeds: objects::CBOR },
    Target { name: "patch", run: objects::patch, seeds: objects::PATCH },
    Target { name: "apply", run: objects::apply, seeds: objects::APPLY },
    Target { name: "cel", run: expressions::cel, seeds: expressions::CEL },
    Target { name: "definition", run: definitions::schema, seeds: definitions::SCHEMAS },
    Target { name: "selector", run: urls::selector, seeds: urls::SELECTORS },
    Target { name: "route", run: urls::route, seeds: urls::ROUTES },
    Target { name: "spdy", run: streams::spdy, seeds: streams::SPDY },
    Target { name: "websocket", run: streams::websocket, seeds: streams::WEBSOCKET },
];

/// The target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
