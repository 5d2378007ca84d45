//! The API's `Status`: every error that a client sees is made here, with the reference's reasons, codes and messages.

use std::borrow::Cow;
use std::fmt;

use api::{FieldError, FieldErrorKind};
use serde_json::{Map, Value, json};

/// A failed request, as the client is told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Status(Box<Body>);

#[derive(Clone, Debug, PartialEq)]
struct Body {
    code: u16,
    reason: Cow<'static, str>,
    message: String,
    name: String,
    group: String,
    kind: String,
    uid: String,
    causes: Vec<Cause>,
    retry_after: u32,
    details: bool,
    /// A token for going on with a list.
    token: String,
    /// For the caller, beside the failure.
    warnings: Vec<String>,
}

/// One entry of `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Status {}

/// `deployments.apps` or `pods`.
fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

impl Status {
    /// A status without details.
    pub fn new(code: u16, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self(Box::new(Body {
            code,
            reason: reason.into(),
            message: message.into(),
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after: 0,
            details: false,
            token: String::new(),
            warnings: Vec::new(),
        }))
    }

    /// A status that somebody else made, in a `Status` object; code and message are the server's choice.
    pub fn given(code: u16, message: impl Into<String>, status: &Value) -> Self {
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let mut made = Self::new(code, text(status, "reason"), message);
        let details = &status["details"];
        if details.is_object() {
            let body = &mut *made.0;
            (body.name, body.group) = (text(details, "name"), text(details, "group"));
            (body.kind, body.uid) = (text(details, "kind"), text(details, "uid"));
            let causes = details["causes"].as_array().into_iter().flatten();
            let cause = |c: &Value| Cause {
                reason: text(c, "reason"),
                message: text(c, "message"),
                field: text(c, "field"),
            };
            body.causes = causes.map(cause).collect();
            let retry = details["retryAfterSeconds"].as_u64();
            body.retry_after = retry.and_then(|r| u32::try_from(r).ok()).unwrap_or(0);
            body.details = true;
        }
        made
    }

    /// The same with details about an object; `kind` is the resource for most reasons, as in the reference.
    #[must_use]
    pub fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.0.group = group.to_owned();
        self.0.kind = kind.to_owned();
        self.0.name = name.to_owned();
        self.0.details = true;
        self
    }

    #[must_use]
    pub fn with_causes(mut self, causes: Vec<Cause>) -> Self {
        self.0.causes = causes;
        self.0.details = true;
        self
    }

    #[must_use]
    pub fn with_uid(mut self, uid: &str) -> Self {
        self.0.uid = uid.to_owned();
        self
    }

    #[must_use]
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.0.retry_after = seconds;
        self.0.details = true;
        self
    }

    /// Warnings that the caller is given with the failure.
    #[must_use]
    pub fn with_warnings(mut self, warnings: Vec<String>) -> Self {
        self.0.warnings = warnings;
        self
    }

    pub fn warnings(&self) -> &[String] {
        &self.0.warnings
    }

    /// A list that cannot go on as it began can go on with this token.
    #[must_use]
    pub fn with_continue(mut self, token: String) -> Self {
        self.0.token = token;
        self
    }

    pub fn code(&self) -> u16 {
        self.0.code
    }

    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn causes(&self) -> &[Cause] {
        &self.0.causes
    }

    pub fn retry_after(&self) -> Option<u32> {
        (self.0.retry_after > 0).then_some(self.0.retry_after)
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// `pods "x" is forbidden: why`.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        let message = if name.is_empty() && resource.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{} is forbidden: {why}", qualified(group, resource))
        } else {
            format!("{} {name:?} is forbidden: {why}", qualified(group, resource))
        };
        Self::new(403, "Forbidden", message).about(group, resource, name)
    }

    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(group, resource));
        Self::new(404, "NotFound", message).about(group, resource, name)
    }

    /// A path or resource that is not served.
    pub fn no_such_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").with_causes(Vec::new())
    }

    pub fn method_not_allowed(group: &str, resource: &str, verb: &str) -> Self {
        let message =
            format!("{verb} is not supported on resources of kind {:?}", qualified(group, resource));
        Self::new(405, "MethodNotAllowed", message).about(group, resource, "")
    }

    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::new(406, "NotAcceptable", message)
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(group, resource));
        Self::new(409, "AlreadyExists", message).about(group, resource, name)
    }

    /// A generated name that is taken: the client may try again.
    pub fn generate_name_conflict(group: &str, resource: &str, name: &str) -> Self {
        let message = format!(
            "{} {name:?} already exists, the server was not able to generate a unique name for the object",
            qualified(group, resource)
        );
        Self::new(409, "AlreadyExists", message).about(group, resource, name).with_retry_after(1)
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(group, resource));
        Self::new(409, "Conflict", message).about(group, resource, name)
    }

    /// The optimistic lock failed.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        Self::conflict(
            group,
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Server-side apply met fields of other managers.
    pub fn apply_conflict(message: impl Into<String>, causes: Vec<Cause>) -> Self {
        Self::new(409, "Conflict", message).with_causes(causes)
    }

    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(410, "Gone", message)
    }

    /// A resource version or continue token that is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// What validation found; `kind` is the kind, not the resource.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let causes: Vec<Cause> = errors
            .iter()
            .map(|e| Cause { reason: e.kind.reason().to_owned(), message: e.body(), field: e.field.clone() })
            .collect();
        let qualified = qualified(group, kind);
        let mut message = format!("{qualified} {name:?} is invalid");
        match errors {
            [] => {}
            [one] => message.push_str(&format!(": {}", one.message())),
            many => {
                let mut seen = Vec::new();
                for error in many {
                    let text = error.message();
                    if !seen.contains(&text) {
                        seen.push(text);
                    }
                }
                match seen.as_slice() {
                    [one] => message.push_str(&format!(": {one}")),
                    all => message.push_str(&format!(": [{}]", all.join(", "))),
                }
            }
        }
        Self::new(422, "Invalid", message).about(group, kind, name).with_causes(causes)
    }

    /// One finding, shorthand of [`Status::invalid`].
    pub fn invalid_field(
        (group, kind, name): (&str, &str, &str),
        what: FieldErrorKind,
        field: &str,
        value: impl Into<Value>,
        detail: &str,
    ) -> Self {
        Self::invalid(group, kind, name, &[FieldError::new(what, field, value, detail)])
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Self {
        Self::new(429, "TooManyRequests", message).with_retry_after(retry_after)
    }

    pub fn internal(why: impl fmt::Display) -> Self {
        let message = format!("Internal error occurred: {why}");
        let cause = Cause { reason: String::new(), message: why.to_string(), field: String::new() };
        Self::new(500, "InternalError", message).with_causes(vec![cause])
    }

    /// A failure that the reference gives no reason for.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    pub fn bad_gateway(message: impl Into<String>) -> Self {
        Self::new(502, "InternalError", message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// The request took too long; the client may try again.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", format!("Timeout: {}", message.into())).with_causes(Vec::new())
    }

    /// A resource version from the future.
    pub fn too_large_resource_version(asked: u64, current: u64) -> Self {
        let cause = Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        };
        Self::timeout(format!("Too large resource version: {asked}, current: {current}"))
            .with_causes(vec![cause])
            .with_retry_after(1)
    }

    /// The object on the wire.
    pub fn to_value(&self) -> Value {
        let body = &*self.0;
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": body.message,
            "code": body.code,
        });
        if !body.token.is_empty() {
            status["metadata"]["continue"] = body.token.as_str().into();
        }
        if !body.reason.is_empty() {
            status["reason"] = body.reason.as_ref().into();
        }
        if body.details {
            let mut details = Map::new();
            let mut put = |key: &str, value: &str| {
                if !value.is_empty() {
                    details.insert(key.to_owned(), value.into());
                }
            };
            put("name", &body.name);
            put("group", &body.group);
            put("kind", &body.kind);
            put("uid", &body.uid);
            if !body.causes.is_empty() {
                details.insert("causes".to_owned(), body.causes.iter().map(Cause::to_value).collect());
            }
            if body.retry_after > 0 {
                details.insert("retryAfterSeconds".to_owned(), body.retry_after.into());
            }
            status["details"] = Value::Object(details);
        }
        status
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut cause = Map::new();
        let mut put = |key: &str, value: &str| {
            if !value.is_empty() {
                cause.insert(key.to_owned(), value.into());
            }
        };
        put("reason", &self.reason);
        put("message", &self.message);
        put("field", &self.field);
        Value::Object(cause)
    }
}
