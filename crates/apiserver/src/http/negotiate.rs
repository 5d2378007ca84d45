//! Which representation an answer takes, after `Accept`, and which one a body is in, after `Content-Type`.

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};

use crate::Status;
use crate::features::Features;
use crate::query::Query;

/// The encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
    Protobuf,
    /// Behind a feature gate.
    Cbor,
}

impl Format {
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
            Self::Cbor => "application/cbor",
        }
    }

    /// The formats that are spoken.
    fn all(features: Features) -> &'static [Self] {
        const ALL: [Format; 4] = [Format::Json, Format::Yaml, Format::Protobuf, Format::Cbor];
        if features.cbor { &ALL } else { &ALL[..3] }
    }

    fn of(media_type: &str, features: Features) -> Option<Self> {
        Self::all(features).iter().find(|format| format.media_type() == media_type).copied()
    }

    fn names(features: Features) -> String {
        Self::all(features).iter().map(|f| f.media_type()).collect::<Vec<_>>().join(", ")
    }
}

/// What becomes of the object before it is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convert {
    None,
    Table,
    /// PartialObjectMetadata, or its list when the answer is a list.
    Metadata,
    MetadataList,
}

/// The representation of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    pub format: Format,
    pub pretty: bool,
    pub convert: Convert,
    /// `;stream=watch`.
    pub stream: bool,
    /// The converted form is asked for in meta.k8s.io/v1beta1.
    pub beta: bool,
}

impl Output {
    pub const JSON: Self =
        Self { format: Format::Json, pretty: false, convert: Convert::None, stream: false, beta: false };

    /// Whether the cached bytes can be sent as they are.
    pub fn plain(&self) -> bool {
        self.format == Format::Json && !self.pretty && self.convert == Convert::None
    }
}

/// One clause of an Accept header.
pub struct Clause<'a> {
    pub main: &'a str,
    pub sub: &'a str,
    pub q: f64,
    pub params: Vec<(&'a str, &'a str)>,
}

/// The clauses of an Accept header, best first.
pub fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = header
        .split(',')
        .filter_map(|text| {
            let mut parts = text.split(';').map(str::trim);
            let media = parts.next().filter(|m| !m.is_empty())?;
            let (main, sub) = match media.split_once('/') {
                Some((main, sub)) => (main.trim(), sub.trim()),
                None if media == "*" => ("*", "*"),
                None => return None,
            };
            let mut q = 1.0;
            let mut params = Vec::new();
            for (key, value) in parts.filter_map(|p| p.split_once('=')) {
                match key.trim() {
                    "q" => q = value.trim().parse().unwrap_or(1.0),
                    key => params.push((key, value.trim().trim_matches('"'))),
                }
            }
            Some(Clause { main, sub, q, params })
        })
        .collect();
    let rank = |c: &Clause<'_>| (c.q, c.main != "*", c.sub != "*");
    clauses.sort_by(|a, b| {
        let (a, b) = (rank(a), rank(b));
        b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2))
    });
    clauses
}

fn conversion(params: &[(&str, &str)]) -> Option<Convert> {
    let get = |key: &str| params.iter().find(|(k, _)| *k == key).map(|(_, v)| *v).unwrap_or_default();
    let (kind, group, version) = (get("as"), get("g"), get("v"));
    if kind.is_empty() && group.is_empty() && version.is_empty() {
        return Some(Convert::None);
    }
    if group != "meta.k8s.io" || !matches!(version, "v1" | "v1beta1") {
        return None;
    }
    match kind {
        "Table" => Some(Convert::Table),
        "PartialObjectMetadata" => Some(Convert::Metadata),
        "PartialObjectMetadataList" => Some(Convert::MetadataList),
        _ => None,
    }
}

/// What an answer can be made into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forms {
    /// It stays as it is.
    Plain,
    /// Table and the like make sense.
    Convertible,
    /// The same of a custom resource: only what it is converted to has a protobuf form.
    Custom,
}

/// Chooses the representation.
pub fn output(
    headers: &HeaderMap,
    query: &Query,
    forms: Forms,
    features: Features,
) -> Result<Output, Status> {
    let header = headers.get(ACCEPT).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let pretty = pretty(headers, query);
    if header.is_empty() {
        return Ok(Output { pretty, ..Output::JSON });
    }
    for clause in clauses(header) {
        for format in Format::all(features).iter().copied() {
            let (main, sub) = format.media_type().split_once('/').unwrap_or_default();
            // A watch of CBOR is a sequence, and may be asked for as one.
            let sequence = format == Format::Cbor && (clause.main, clause.sub) == (main, "cbor-seq");
            // `application/*` chooses nothing, as in the reference.
            let any = clause.main == "*" && clause.sub == "*";
            if !any && !sequence && (clause.main != main || clause.sub != sub) {
                continue;
            }
            let param = |key: &str| {
                clause.params.iter().find(|(k, _)| *k == key).map(|(_, v)| *v).unwrap_or_default()
            };
            if !matches!(param("stream"), "" | "watch") || !param("sv").is_empty() {
                continue;
            }
            let Some(convert) = conversion(&clause.params) else { continue };
            let fits = match (convert, format) {
                (Convert::None, Format::Protobuf) => forms != Forms::Custom,
                (Convert::None, _) => true,
                (Convert::Table, Format::Protobuf) => false,
                _ => forms != Forms::Plain,
            };
            if !fits {
                continue;
            }
            let beta = param("v") == "v1beta1";
            let pretty = pretty || param("pretty") == "1";
            let stream = !param("stream").is_empty();
            return Ok(Output { format, pretty: pretty && format == Format::Json, convert, stream, beta });
        }
    }
    let names = Format::names(features);
    Err(Status::not_acceptable(format!("only the following media types are accepted: {names}")))
}

fn pretty(headers: &HeaderMap, query: &Query) -> bool {
    if let Some(value) = query.get("pretty").filter(|v| !v.is_empty()) {
        return matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    let agent = headers.get(USER_AGENT).and_then(|h| h.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|a| agent.starts_with(a))
}

/// Whether an answer and a body can be in what the headers say, with every format spoken.
pub fn negotiable(headers: &HeaderMap, query: &Query) -> bool {
    let features = Features { cbor: true, ..Features::default() };
    output(headers, query, Forms::Convertible, features).is_ok() && input(headers, features).is_ok()
}

/// The encoding of a request body.
pub fn input(headers: &HeaderMap, features: Features) -> Result<Format, Status> {
    let header = headers.get(CONTENT_TYPE).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let media_type = header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media_type.is_empty() {
        return Ok(Format::Json);
    }
    Format::of(&media_type, features).ok_or_else(|| {
        let names = Format::names(features);
        Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: {names}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, want: Option<(Format, Convert)>) {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().expect("a header"));
        let got = output(&headers, &Query::default(), Forms::Convertible, Features::default())
            .ok()
            .map(|o| (o.format, o.convert));
        assert_eq!(got, want, "{accept}");
    }

    #[test]
    fn accept() {
        check("*/*", Some((Format::Json, Convert::None)));
        check("application/yaml", Some((Format::Yaml, Convert::None)));
        check("text/html", None);
        check("application/json;q=0.5,application/yaml", Some((Format::Yaml, Convert::None)));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            Some((Format::Json, Convert::Table)),
        );
        check("application/json;as=Other;v=v1;g=meta.k8s.io", None);
        check("application/cbor", None);
    }

    #[test]
    fn custom_resources_have_no_protobuf_form_but_their_metadata_has() {
        let check = |accept: &str, want: Option<(Format, Convert)>| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().expect("a header"));
            let got = output(&headers, &Query::default(), Forms::Custom, Features::default());
            assert_eq!(got.ok().map(|o| (o.format, o.convert)), want, "{accept}");
        };
        let protobuf = "application/vnd.kubernetes.protobuf";
        check(protobuf, None);
        check(&format!("{protobuf},application/json"), Some((Format::Json, Convert::None)));
        let metadata = format!("{protobuf};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json");
        check(&metadata, Some((Format::Protobuf, Convert::MetadataList)));
    }

    #[test]
    fn gated() {
        let features = Features { cbor: true, ..Features::default() };
        for accept in ["application/cbor", "application/cbor-seq", "application/json;q=0.9,application/cbor"]
        {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().expect("a header"));
            let got = output(&headers, &Query::default(), Forms::Convertible, features).map(|o| o.format);
            assert_eq!(got, Ok(Format::Cbor), "{accept}");
        }
    }
}
