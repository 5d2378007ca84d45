//! The review APIs: may somebody do this (SubjectAccessReview and its kin), what may I do (SelfSubjectRulesReview), who am
//! I (SelfSubjectReview), whose token is this (TokenReview). Nothing is stored.

use std::sync::Arc;

use api::{FieldError, FieldErrorKind};
use futures::future::{BoxFuture, FutureExt};
use serde_json::{Map, Value, json};

use super::Authorizer;
use crate::authn::Bearer;
use crate::read::Read;
use crate::{Answer, Attributes, Status, UserInfo};

const GROUP: &str = "authorization.k8s.io";

/// Answers creates of review objects.
pub struct Reviews {
    authorizer: Arc<Authorizer>,
    bearer: Arc<Bearer>,
}

impl Reviews {
    /// Reviews by this authorizer and these token authenticators.
    pub fn new(authorizer: Arc<Authorizer>, bearer: Arc<Bearer>) -> Self {
        Self { authorizer, bearer }
    }

    async fn answer(&self, request: &Attributes, object: Value) -> Result<Value, Status> {
        match request.resource.as_str() {
            "subjectaccessreviews" => self.subject(object).await,
            "localsubjectaccessreviews" => self.local(request, object).await,
            "selfsubjectaccessreviews" => self.own_access(&request.user, object).await,
            "selfsubjectrulesreviews" => self.own_rules(&request.user, &object),
            "selfsubjectreviews" => Ok(who_am_i(request)),
            "tokenreviews" => self.token(object).await,
            _ => Err(Status::no_such_resource()),
        }
    }

    async fn subject(&self, mut object: Value) -> Result<Value, Status> {
        // A namespace means nothing to a cluster-wide kind.
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("namespace");
        }
        let mut errors = check_spec(object.at("spec"), true);
        errors.extend(check_metadata(&object, &[], "must be empty"));
        refuse(errors)?;
        let user = subject_of(object.at("spec"));
        Ok(self.decide(object, user).await)
    }

    async fn local(&self, request: &Attributes, mut object: Value) -> Result<Value, Status> {
        let namespace = request.namespace.as_str();
        if object.namespace().is_empty() {
            crate::read::object_mut(&mut object, "metadata").insert("namespace".into(), namespace.into());
        }
        let mut errors = check_spec(object.at("spec"), true);
        errors.extend(check_metadata(&object, &["namespace"], "must be empty except for namespace"));
        let own = object.text("spec.resourceAttributes.namespace");
        if object.has("spec.resourceAttributes") && own != object.namespace() {
            let field = "spec.resourceAttributes.namespace";
            errors.push(invalid(field, own.into(), "must match metadata.namespace"));
        }
        if object.has("spec.nonResourceAttributes") {
            let value = object.at("spec.nonResourceAttributes").clone();
            let detail = "disallowed on this kind of request";
            errors.push(invalid("spec.nonResourceAttributes", value, detail));
        }
        refuse(errors)?;
        if object.namespace() != namespace {
            return Err(Status::bad_request(format!(
                "spec.resourceAttributes.namespace must match namespace: {namespace}"
            )));
        }
        let user = subject_of(object.at("spec"));
        Ok(self.decide(object, user).await)
    }

    async fn own_access(&self, user: &Arc<UserInfo>, object: Value) -> Result<Value, Status> {
        let mut errors = check_spec(object.at("spec"), false);
        errors.extend(check_metadata(&object, &[], "must be empty"));
        refuse(errors)?;
        Ok(self.decide(object, Arc::clone(user)).await)
    }

    async fn decide(&self, mut object: Value, user: Arc<UserInfo>) -> Value {
        let decision = self.authorizer.all(&asked(object.at("spec"), user)).await;
        let mut status = json!({"allowed": decision.allowed()});
        if decision.verdict == crate::Verdict::Deny {
            status["denied"] = true.into();
        }
        if !decision.reason.is_empty() {
            status["reason"] = decision.reason.into();
        }
        object["status"] = status;
        object
    }

    fn own_rules(&self, user: &UserInfo, object: &Value) -> Result<Value, Status> {
        let namespace = object.text("spec.namespace");
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let found = self.authorizer.rules_for(user, namespace);
        let resources: Vec<Value> = found.rules.iter().filter_map(super::Rule::resource_rule).collect();
        let urls: Vec<Value> = found.rules.iter().filter_map(super::Rule::url_rule).collect();
        let mut status =
            json!({"resourceRules": resources, "nonResourceRules": urls, "incomplete": found.incomplete});
        if !found.errors.is_empty() {
            status["evaluationError"] = super::aggregate(&found.errors).into();
        }
        Ok(json!({
            "kind": "SelfSubjectRulesReview",
            "apiVersion": "authorization.k8s.io/v1",
            "metadata": {},
            "spec": {},
            "status": status,
        }))
    }

    async fn token(&self, mut object: Value) -> Result<Value, Status> {
        let token = object.text("spec.token");
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let audiences: Vec<String> = object.texts("spec.audiences").map(str::to_owned).collect();
        let status = match self.bearer.review(token, &audiences).await {
            Ok(found) => {
                json!({"authenticated": true, "user": user_value(&found.user), "audiences": found.audiences})
            }
            Err(why) => json!({"user": {}, "error": why.to_string()}),
        };
        object["status"] = status;
        Ok(object)
    }
}

impl Answer for Reviews {
    fn create<'a>(
        &'a self,
        attributes: &'a Attributes,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        self.answer(attributes, object).boxed()
    }
}

fn who_am_i(request: &Attributes) -> Value {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({
        "kind": "SelfSubjectReview",
        "apiVersion": format!("authentication.k8s.io/{}", request.version),
        "metadata": {"creationTimestamp": now},
        "status": {"userInfo": user_value(&request.user)},
    })
}

/// The caller as `UserInfo` of the authentication API.
pub(crate) fn user_value(user: &UserInfo) -> Value {
    let mut value = Map::new();
    if !user.name.is_empty() {
        value.insert("username".into(), user.name.as_str().into());
    }
    if !user.uid.is_empty() {
        value.insert("uid".into(), user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        value.insert("groups".into(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        value.insert("extra".into(), json!(user.extra));
    }
    Value::Object(value)
}

fn subject_of(spec: &Value) -> Arc<UserInfo> {
    let strings = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let extra = spec.at("extra").as_object().into_iter().flatten();
    Arc::new(UserInfo {
        name: spec.text("user").to_owned(),
        uid: spec.text("uid").to_owned(),
        groups: strings(spec.at("groups")),
        extra: extra.map(|(key, values)| (key.clone(), strings(values))).collect(),
    })
}

fn asked(spec: &Value, user: Arc<UserInfo>) -> Attributes {
    if !spec.has("resourceAttributes") {
        return Attributes {
            user,
            verb: spec.text("nonResourceAttributes.verb").to_owned(),
            path: spec.text("nonResourceAttributes.path").to_owned(),
            ..Attributes::default()
        };
    }
    let what = spec.at("resourceAttributes");
    let own = |key: &str| what.text(key).to_owned();
    let version = own("version");
    Attributes {
        user,
        verb: own("verb"),
        group: own("group"),
        version: if version.is_empty() { "*".to_owned() } else { version },
        resource: own("resource"),
        subresource: own("subresource"),
        namespace: own("namespace"),
        name: own("name"),
        path: String::new(),
        resource_request: true,
        label_selector: selector(what.at("labelSelector"), |r| match r.text("operator") {
            "Exists" => Some(r.text("key").to_owned()),
            "DoesNotExist" => Some(format!("!{}", r.text("key"))),
            "In" => Some(format!("{} in ({})", r.text("key"), joined(r))),
            "NotIn" => Some(format!("{} notin ({})", r.text("key"), joined(r))),
            _ => None,
        }),
        field_selector: selector(what.at("fieldSelector"), |r| {
            match (r.text("operator"), r.items("values")) {
                ("In", [_]) => Some(format!("{}={}", r.text("key"), joined(r))),
                ("NotIn", [_]) => Some(format!("{}!={}", r.text("key"), joined(r))),
                _ => None,
            }
        }),
    }
}

/// The terms of a field selector as requirements; those of an unknown form are left out.
pub(super) fn field_requirements(selector: &str) -> Vec<Value> {
    let term = |term: &str| {
        let (key, operator, value) = match (term.split_once("!="), term.split_once('=')) {
            (Some((key, value)), _) => (key, "NotIn", value),
            (None, Some((key, value))) => (key, "In", value.trim_start_matches('=')),
            (None, None) => return None,
        };
        Some(json!({"key": key, "operator": operator, "values": [value]}))
    };
    selector.split(',').filter_map(term).collect()
}

/// The terms of a label selector as requirements; none if it is no selector.
pub(super) fn label_requirements(selector: &str) -> Vec<Value> {
    // Commas inside parentheses separate values, not terms.
    let (mut terms, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in selector.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                terms.push(&selector[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&selector[start..]);
    let read = |term: &str| -> Option<Value> {
        let term = term.trim();
        let values = |list: &str| -> Vec<String> {
            list.trim().trim_matches(['(', ')']).split(',').map(|v| v.trim().to_owned()).collect()
        };
        let words: Vec<&str> = term.splitn(3, char::is_whitespace).collect();
        Some(match words.as_slice() {
            [key, "in", list] => json!({"key": key, "operator": "In", "values": values(list)}),
            [key, "notin", list] => json!({"key": key, "operator": "NotIn", "values": values(list)}),
            _ if term.is_empty() => return None,
            _ => match (term.split_once("!="), term.split_once('='), term.strip_prefix('!')) {
                (Some((key, value)), ..) => {
                    json!({"key": key.trim(), "operator": "NotIn", "values": [value.trim()]})
                }
                (_, Some((key, value)), _) => {
                    let value = value.trim_start_matches('=').trim();
                    json!({"key": key.trim(), "operator": "In", "values": [value]})
                }
                (_, _, Some(key)) => json!({"key": key.trim(), "operator": "DoesNotExist"}),
                _ if words.len() == 1 => json!({"key": term, "operator": "Exists"}),
                _ => return None,
            },
        })
    };
    terms.into_iter().filter_map(read).collect()
}

fn joined(requirement: &Value) -> String {
    requirement.texts("values").collect::<Vec<_>>().join(",")
}

/// The selector as text. Requirements of an unknown form are left out: the check is the broader for it.
fn selector(value: &Value, term: impl Fn(&Value) -> Option<String>) -> Option<String> {
    let raw = value.text("rawSelector");
    if !raw.is_empty() {
        return Some(raw.to_owned());
    }
    let terms: Vec<String> = value.items("requirements").iter().filter_map(term).collect();
    (!terms.is_empty()).then(|| terms.join(","))
}

fn invalid(field: &str, value: Value, detail: &str) -> FieldError {
    FieldError::new(FieldErrorKind::Invalid, field, value, detail)
}

fn refuse(errors: Vec<FieldError>) -> Result<(), Status> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(GROUP, "", "", &errors)) }
}

fn check_spec(spec: &Value, subject: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match (spec.has("resourceAttributes"), spec.has("nonResourceAttributes")) {
        (true, true) => errors.push(invalid(
            "spec.nonResourceAttributes",
            spec.at("nonResourceAttributes").clone(),
            "cannot be specified in combination with resourceAttributes",
        )),
        (false, false) => errors.push(invalid(
            "spec.resourceAttributes",
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    if subject && spec.text("user").is_empty() && spec.items("groups").is_empty() {
        errors.push(invalid("spec.user", "".into(), "at least one of user or group must be specified"));
    }
    for key in ["fieldSelector", "labelSelector"] {
        let selector = spec.at("resourceAttributes").at(key);
        if selector.is_null() {
            continue;
        }
        let path = format!("spec.resourceAttributes.{key}");
        let raw = selector.text("rawSelector");
        match (raw.is_empty(), selector.items("requirements").is_empty()) {
            (false, false) => errors.push(invalid(
                &format!("{path}.rawSelector"),
                raw.into(),
                "may not specified at the same time as requirements",
            )),
            (true, true) => errors.push(FieldError::new(
                FieldErrorKind::Required,
                format!("{path}.requirements"),
                Value::Null,
                format!("when {path} is specified, requirements or rawSelector is required"),
            )),
            _ => {}
        }
    }
    errors
}

/// `metadata` must hold nothing but what the server itself fills in and what is allowed.
fn check_metadata(object: &Value, allowed: &[&str], detail: &str) -> Option<FieldError> {
    let metadata = object.get("metadata")?.as_object()?;
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    };
    let foreign = metadata
        .iter()
        .any(|(key, value)| key != "managedFields" && !allowed.contains(&key.as_str()) && !empty(value));
    foreign.then(|| invalid("metadata", object.at("metadata").clone(), detail))
}
