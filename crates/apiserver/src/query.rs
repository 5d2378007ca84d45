//! The query string: decoding, and the options that requests carry in it.

use std::borrow::Cow;

use api::{FieldError, FieldErrorKind};
use serde_json::{Value, json};

use crate::Status;

/// Decoded parameters in their order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(raw: &str) -> Self {
        let pairs = raw.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, true).into_owned(), decode(value, true).into_owned())
        });
        Self(pairs.collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }

    /// Every value but `false` and `0` means true, as in the reference.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).map(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    pub fn integer(&self, key: &str) -> Result<Option<i64>, Status> {
        let Some(text) = self.get(key).filter(|t| !t.is_empty()) else { return Ok(None) };
        let parsed = text.parse().map(Some);
        parsed.map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
    }
}

/// Percent-decoding; what is not valid stays as it is.
pub fn decode(text: &str, plus: bool) -> Cow<'_, str> {
    if !text.bytes().any(|b| b == b'%' || (plus && b == b'+')) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |b: u8| char::from(b).to_digit(16);
        match bytes[i] {
            b'%' => match (bytes.get(i + 1).and_then(|b| hex(*b)), bytes.get(i + 2).and_then(|b| hex(*b))) {
                (Some(high), Some(low)) => {
                    out.push((high * 16 + low) as u8);
                    i += 2;
                }
                _ => out.push(b'%'),
            },
            b'+' if plus => out.push(b' '),
            other => out.push(other),
        }
        i += 1;
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// The options of a create, update or patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: schema::FieldValidation,
    /// `fieldValidation` as it was given.
    pub given_validation: String,
    /// Only for apply.
    pub force: Option<bool>,
}

impl WriteOptions {
    /// Reads and checks them; `kind` is `CreateOptions`, `UpdateOptions` or `PatchOptions`.
    pub fn read(query: &Query, kind: &str) -> Result<Self, Status> {
        let mut errors = Vec::new();
        let dry_run = dry_run(query.all("dryRun"), &mut errors);
        let field_manager = query.text("fieldManager").to_owned();
        if field_manager.len() > 128 {
            errors.push(FieldError::new(
                FieldErrorKind::TooLong,
                "fieldManager",
                field_manager.as_str(),
                "may not be more than 128 bytes",
            ));
        }
        if let Some(at) = field_manager.char_indices().find(|(_, c)| c.is_control()).map(|(i, _)| i) {
            let detail = format!("should only contain printable characters (invalid at byte {at})");
            errors.push(FieldError::new(
                FieldErrorKind::Invalid,
                "fieldManager",
                field_manager.as_str(),
                detail,
            ));
        }
        let field_validation = match query.text("fieldValidation") {
            "" | "Warn" => schema::FieldValidation::Warn,
            "Ignore" => schema::FieldValidation::Ignore,
            "Strict" => schema::FieldValidation::Strict,
            other => {
                errors.push(FieldError::new(
                    FieldErrorKind::NotSupported,
                    "fieldValidation",
                    other,
                    "supported values: \"Ignore\", \"Strict\", \"Warn\"",
                ));
                schema::FieldValidation::Warn
            }
        };
        if errors.is_empty() {
            let given_validation = query.text("fieldValidation").to_owned();
            let force = query.flag("force");
            Ok(Self { dry_run, field_manager, field_validation, given_validation, force })
        } else {
            Err(Status::invalid("meta.k8s.io", kind, "", &errors))
        }
    }
}

impl WriteOptions {
    /// As admission sees them: of the kind `CreateOptions` or `UpdateOptions`.
    pub fn shown(&self, kind: &str) -> Value {
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        for (key, value) in
            [("fieldManager", &self.field_manager), ("fieldValidation", &self.given_validation)]
        {
            if !value.is_empty() {
                options[key] = value.as_str().into();
            }
        }
        options
    }
}

/// `All` is the only value that dryRun may have.
pub fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut Vec<FieldError>) -> bool {
    let values: Vec<&str> = values.collect();
    for value in values.iter().filter(|v| **v != "All") {
        errors.push(FieldError::new(
            FieldErrorKind::NotSupported,
            "dryRun",
            *value,
            "supported values: \"All\"",
        ));
    }
    values.contains(&"All")
}

/// The options of a list, watch or deletecollection.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    pub watch: bool,
    pub bookmarks: bool,
    pub resource_version: String,
    pub version_match: String,
    pub timeout: Option<u64>,
    pub limit: usize,
    pub token: String,
    pub initial_events: Option<bool>,
}

impl ListOptions {
    pub fn read(query: &Query, watch: bool) -> Result<Self, Status> {
        let mut options = Self {
            label_selector: query.text("labelSelector").to_owned(),
            field_selector: query.text("fieldSelector").to_owned(),
            watch,
            bookmarks: query.flag("allowWatchBookmarks").unwrap_or(false),
            resource_version: query.text("resourceVersion").to_owned(),
            version_match: query.text("resourceVersionMatch").to_owned(),
            timeout: query.integer("timeoutSeconds")?.and_then(|t| u64::try_from(t).ok()),
            limit: query.integer("limit")?.and_then(|l| usize::try_from(l).ok()).unwrap_or(0),
            token: query.text("continue").to_owned(),
            initial_events: query.flag("sendInitialEvents"),
        };
        let legacy = matches!(options.resource_version.as_str(), "" | "0");
        if watch && legacy && options.initial_events.is_none() && options.version_match.is_empty() {
            options.initial_events = Some(true);
            options.version_match = "NotOlderThan".to_owned();
        }
        let errors = options.errors();
        if errors.is_empty() {
            Ok(options)
        } else {
            Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors))
        }
    }

    fn errors(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let version_match = self.version_match.as_str();
        let mut forbid = |field: &str, detail: &str| {
            errors.push(FieldError::new(FieldErrorKind::Forbidden, field, "", detail));
        };
        let field = "resourceVersionMatch";
        if self.watch && self.initial_events.is_some() && version_match != "NotOlderThan" {
            forbid(field, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        }
        if !self.watch && self.initial_events.is_some() {
            forbid("sendInitialEvents", "sendInitialEvents is forbidden for list");
        }
        if version_match.is_empty() {
            return errors;
        }
        if self.watch && self.initial_events.is_none() {
            forbid(field, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
        }
        if !self.watch && self.resource_version.is_empty() {
            forbid(field, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if !self.token.is_empty() {
            forbid(field, "resourceVersionMatch is forbidden when continue is provided");
        }
        if !self.watch && version_match == "Exact" && self.resource_version == "0" {
            forbid(field, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
        if version_match != "NotOlderThan" && (self.watch || version_match != "Exact") {
            let detail = if self.watch {
                "supported values: \"NotOlderThan\""
            } else {
                "supported values: \"Exact\", \"NotOlderThan\", \"\""
            };
            errors.push(FieldError::new(FieldErrorKind::NotSupported, field, version_match, detail));
        }
        errors
    }
}
