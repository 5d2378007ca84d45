//! Kinds of the control plane: flow control, API services, certificate signing requests.

use base64::Engine as _;
use serde_json::Value;

use super::common::{self, one_of};
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::{Read, same};
use crate::names;

pub(crate) fn flow_schema(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    let (order, at) = (spec.num("matchingPrecedence"), path.child("matchingPrecedence"));
    if order <= 0 {
        errors.invalid(&at, order, "must be a positive value");
    }
    if order > 10_000 {
        errors.invalid(&at, order, "must not be greater than 10000");
    }
    if order == 1 && object.at("metadata").text("name") != "exempt" {
        errors.invalid(&at, order, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    let method = spec.at("distinguisherMethod");
    let known = ["ByNamespace", "ByUser"];
    if !method.is_null() && !known.contains(&method.text("type")) {
        let at = path.child("distinguisherMethod");
        errors.not_supported(&at.child("type"), method.clone(), &known);
    }
    let at = path.child("priorityLevelConfiguration");
    match spec.at("priorityLevelConfiguration").text("name") {
        "" => errors.required(&at.child("name"), "must reference a priority level"),
        name => common::subdomain(&mut errors, name, &at.child("name")),
    }
    let list = path.child("rules");
    for (index, rule) in spec.items("rules").iter().enumerate() {
        flow_rule(&mut errors, rule, &list.index(index));
    }
    errors.0
}

fn flow_rule(errors: &mut Errors, rule: &Value, path: &Path<'_>) {
    let list = path.child("subjects");
    if rule.items("subjects").is_empty() {
        errors.required(&list, "subjects must contain at least one value");
    }
    for (index, subject) in rule.items("subjects").iter().enumerate() {
        let at = list.index(index);
        let (key, part) = match subject.text("kind") {
            "User" => ("user", subject.at("user")),
            "Group" => ("group", subject.at("group")),
            "ServiceAccount" => ("serviceAccount", subject.at("serviceAccount")),
            other => {
                errors.not_supported(&at.child("kind"), other, &["Group", "ServiceAccount", "User"]);
                continue;
            }
        };
        let at = at.child(key);
        if part.is_null() {
            errors
                .required(&at, format!("{key} is required when subject kind is '{}'", subject.text("kind")));
            continue;
        }
        common::required(errors, part, &at, "name");
        if key == "serviceAccount" {
            common::required(errors, part, &at, "namespace");
        }
    }
    let (resources, urls) = (rule.items("resourceRules"), rule.items("nonResourceRules"));
    if resources.is_empty() && urls.is_empty() {
        errors.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    let list = path.child("resourceRules");
    for (index, rule) in resources.iter().enumerate() {
        let at = list.index(index);
        for key in ["verbs", "apiGroups", "resources"] {
            if rule.items(key).is_empty() {
                errors.required(&at.child(key), "");
            }
        }
        if rule.items("namespaces").is_empty() && !rule.flag("clusterScope") {
            let detail = "resource rules that are not cluster scoped must supply at least one namespace";
            errors.required(&at.child("namespaces"), detail);
        }
    }
    let list = path.child("nonResourceRules");
    for (index, rule) in urls.iter().enumerate() {
        let at = list.index(index);
        for key in ["verbs", "nonResourceURLs"] {
            if rule.items(key).is_empty() {
                errors.required(&at.child(key), "");
            }
        }
    }
}

pub(crate) fn priority_level(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    let kind = spec.text("type");
    if (object.at("metadata").text("name") == "exempt") != (kind == "Exempt") {
        let detail = "must be 'Exempt' if and only if `name` is 'exempt'";
        errors.invalid(&path.child("type"), kind, detail);
    }
    let (limited, exempt) = (spec.at("limited"), spec.at("exempt"));
    match kind {
        "Exempt" => {
            if !limited.is_null() {
                errors.forbidden(&path.child("limited"), "must be nil if the type is not Limited");
            }
            shares(&mut errors, exempt, &path.child("exempt"));
        }
        "Limited" => {
            if !exempt.is_null() {
                errors.forbidden(&path.child("exempt"), "must be nil if the type is Limited");
            }
            let at = path.child("limited");
            if limited.is_null() {
                errors.required(&at, "must not be empty when type is Limited");
                return errors.0;
            }
            shares(&mut errors, limited, &at);
            let percent = limited.int("borrowingLimitPercent");
            if let Some(percent) = percent.filter(|percent| *percent < 0) {
                let detail = "if specified, must be a non-negative integer";
                errors.invalid(&at.child("borrowingLimitPercent"), percent, detail);
            }
            limit_response(&mut errors, limited.at("limitResponse"), &at.child("limitResponse"));
        }
        other => errors.not_supported(&path.child("type"), other, &["Exempt", "Limited"]),
    }
    errors.0
}

fn shares(errors: &mut Errors, holder: &Value, path: &Path<'_>) {
    let shares = holder.int("nominalConcurrencyShares");
    if let Some(shares) = shares.filter(|shares| *shares < 0) {
        errors.invalid(&path.child("nominalConcurrencyShares"), shares, "must be a non-negative integer");
    }
    let lendable = holder.int("lendablePercent");
    if let Some(percent) = lendable.filter(|percent| !(0..=100).contains(percent)) {
        errors.invalid(&path.child("lendablePercent"), percent, names::range(0, 100));
    }
}

fn limit_response(errors: &mut Errors, response: &Value, path: &Path<'_>) {
    let queuing = response.at("queuing");
    let at = path.child("queuing");
    match response.text("type") {
        "Reject" if !queuing.is_null() => {
            errors.forbidden(&at, "must be nil if limited.limitResponse.type is not Limited");
        }
        "Reject" => {}
        "Queue" if queuing.is_null() => {
            errors.required(&at, "must not be empty if limited.limitResponse.type is Limited");
        }
        "Queue" => {
            for key in ["queueLengthLimit", "queues", "handSize"] {
                if queuing.num(key) <= 0 {
                    errors.invalid(&at.child(key), queuing.num(key), "must be positive");
                }
            }
            if queuing.num("queues") > 10_000_000 {
                let detail = "must not be greater than 10000000";
                errors.invalid(&at.child("queues"), queuing.num("queues"), detail);
            }
            if queuing.num("handSize") > queuing.num("queues") {
                let detail = format!("should not be greater than queues ({})", queuing.num("queues"));
                errors.invalid(&at.child("handSize"), queuing.num("handSize"), detail);
            }
        }
        other => errors.not_supported(&path.child("type"), other, &["Queue", "Reject"]),
    }
}

pub(crate) fn api_service(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    let (group, version) = (spec.text("group"), spec.text("version"));
    let name = object.at("metadata").text("name");
    let needed = format!("{version}.{group}");
    if name != needed {
        let meta = Path::new("metadata");
        let detail = format!("must be `spec.version+\".\"+spec.group`: {needed:?}");
        errors.invalid(&meta.child("name"), name, detail);
    }
    if group.is_empty() && version != "v1" {
        let detail = "only v1 may have an empty group and it better be legacy kube";
        errors.required(&path.child("group"), detail);
    }
    if !group.is_empty() {
        common::subdomain(&mut errors, group, &path.child("group"));
    }
    errors.all_invalid(&path.child("version"), version, names::dns1035_label(version));
    for (key, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let number = spec.num(key);
        if !(1..=most).contains(&number) {
            errors.invalid(&path.child(key), number, format!("must be positive and less than {most}"));
        }
    }
    let (bundle, insecure) = (spec.text("caBundle"), spec.flag("insecureSkipTLSVerify"));
    let service = spec.at("service");
    if service.is_null() {
        if !bundle.is_empty() {
            errors.invalid(&path.child("caBundle"), bundle, "local APIServices may not have a caBundle");
        }
        if insecure {
            let detail = "local APIServices may not have insecureSkipTLSVerify";
            errors.invalid(&path.child("insecureSkipTLSVerify"), true, detail);
        }
        return errors.0;
    }
    let at = path.child("service");
    common::required(&mut errors, service, &at, "namespace");
    common::required(&mut errors, service, &at, "name");
    let port = service.int("port").unwrap_or(443);
    for message in names::port_number(port) {
        errors.invalid(&at.child("port"), port, format!("port is not valid: {message}"));
    }
    if insecure && !bundle.is_empty() {
        let detail = "may not be true if caBundle is present";
        errors.invalid(&path.child("insecureSkipTLSVerify"), true, detail);
    }
    errors.0
}

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

pub(crate) fn signing_request(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    if let Err(error) = pem_request(spec.text("request")) {
        errors.invalid(&path.child("request"), spec.text("request"), error);
    }
    let list = path.child("usages");
    let usages: Vec<&str> = spec.items("usages").iter().filter_map(Value::as_str).collect();
    if usages.is_empty() {
        errors.required(&list, "");
    }
    for (index, usage) in usages.iter().enumerate() {
        if !USAGES.contains(usage) {
            errors.not_supported(&list.index(index), *usage, &USAGES);
        }
        if usages[..index].contains(usage) {
            errors.duplicate(&list.index(index), *usage);
        }
    }
    signer_name(&mut errors, spec.text("signerName"), &path.child("signerName"));
    if let Some(seconds) = spec.int("expirationSeconds").filter(|seconds| *seconds < 600) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.invalid(&path.child("expirationSeconds"), seconds, detail);
    }
    conditions(&mut errors, object);
    errors.0
}

/// Whether the request holds a PEM block of the right kind around DER that begins as a certification request does.
fn pem_request(request: &str) -> Result<(), &'static str> {
    const NOT_PEM: &str = "PEM block type must be CERTIFICATE REQUEST";
    let base64 = base64::engine::general_purpose::STANDARD;
    let text = base64.decode(request).map_err(|_| NOT_PEM)?;
    let text = String::from_utf8(text).map_err(|_| NOT_PEM)?;
    let body = text.split_once("-----BEGIN CERTIFICATE REQUEST-----").map(|(_, rest)| rest).ok_or(NOT_PEM)?;
    let body = body.split_once("-----END CERTIFICATE REQUEST-----").map(|(body, _)| body).ok_or(NOT_PEM)?;
    let packed: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let der = base64.decode(packed).map_err(|_| NOT_PEM)?;
    let mut reader = der.as_slice();
    let whole = sequence(&mut reader).filter(|_| reader.is_empty());
    let inner = whole.and_then(|mut whole| sequence(&mut whole));
    match inner {
        Some([0x02, 0x01, ..]) => Ok(()),
        _ => Err("asn1: structure error: malformed certification request"),
    }
}

/// The contents of the DER sequence at the front.
fn sequence<'a>(der: &mut &'a [u8]) -> Option<&'a [u8]> {
    let [0x30, first, rest @ ..] = *der else { return None };
    let (length, rest) = match usize::from(*first) {
        short @ 0..=0x7f => (short, rest),
        long => {
            let count = long & 0x7f;
            let (digits, rest) = rest.split_at_checked(count).filter(|_| (1..=4).contains(&count))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
    };
    let (contents, after) = rest.split_at_checked(length)?;
    *der = after;
    Some(contents)
}

fn signer_name(errors: &mut Errors, name: &str, path: &Path<'_>) {
    if name == "kubernetes.io/legacy-unknown" {
        errors.invalid(path, name, "the legacy signerName is not allowed via this API version");
        return;
    }
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, rest] = parts.as_slice() else {
        errors.invalid(
            path,
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        );
        return;
    };
    common::subdomain(errors, domain, path);
    if !domain.contains('.') {
        errors.invalid(path, *domain, "should be a domain with at least two segments separated by dots");
    }
    errors.all_invalid(path, rest, names::dns1123_subdomain(rest));
}

fn conditions(errors: &mut Errors, object: &Value) {
    let path = Path::new("status");
    let list = path.child("conditions");
    let conditions = object.at("status").items("conditions");
    for (index, condition) in conditions.iter().enumerate() {
        let at = list.index(index);
        let kind = condition.text("type");
        if kind.is_empty() {
            errors.required(&at.child("type"), "");
        }
        let known: &[&str] = match kind {
            "Approved" | "Denied" | "Failed" => &["True"],
            _ => &["False", "True", "Unknown"],
        };
        one_of(errors, condition.text("status"), &at.child("status"), known);
        let rival = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        let before = &conditions[..index];
        if !rival.is_empty() && before.iter().any(|other| other.text("type") == rival) {
            errors.invalid(&list, kind, "Approved and Denied conditions are mutually exclusive");
        }
        if before.iter().any(|other| other.text("type") == kind) {
            errors.duplicate(&at.child("type"), kind);
        }
    }
}

/// Conditions of the type that all newer kinds share (`metav1.Condition`).
pub(crate) fn meta_conditions(errors: &mut Errors, conditions: &[Value], path: &Path<'_>) {
    const REASON: usize = 1024;
    const MESSAGE: usize = 32 * 1024;
    for (index, condition) in conditions.iter().enumerate() {
        let at = path.index(index);
        let kind = condition.text("type");
        if conditions[..index].iter().any(|other| other.text("type") == kind) {
            errors.duplicate(&at.child("type"), kind);
        }
        common::label_name(errors, kind, &at.child("type"));
        let known = ["False", "True", "Unknown"];
        let status = condition.text("status");
        if !known.contains(&status) {
            errors.not_supported(&at.child("status"), status, &known);
        }
        if condition.num("observedGeneration") < 0 {
            let detail = "must be greater than or equal to zero";
            errors.invalid(&at.child("observedGeneration"), condition.num("observedGeneration"), detail);
        }
        if !condition.has("lastTransitionTime") {
            errors.required(&at.child("lastTransitionTime"), "");
        }
        let (reason, at_reason) = (condition.text("reason"), at.child("reason"));
        if reason.is_empty() {
            errors.required(&at_reason, "");
        } else {
            if !is_reason(reason) {
                errors.invalid(
                    &at_reason,
                    reason,
                    "a condition reason must start with alphabetic character, optionally followed by a string of \
                     alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. \
                     'my_name', or 'MY_NAME', or 'MyName', or 'ReasonA,ReasonB', or 'ReasonA:ReasonB', regex used for \
                     validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')",
                );
            }
            if reason.len() > REASON {
                errors.too_long(&at_reason, REASON);
            }
        }
        if condition.text("message").len() > MESSAGE {
            errors.too_long(&at.child("message"), MESSAGE);
        }
    }
}

fn is_reason(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.bytes().all(|b| word(b) || matches!(b, b',' | b':'))
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && text.bytes().last().is_some_and(word)
}

fn condition_changes(new: &Value, old: &Value, approving: bool) -> Errors {
    let mut errors = Errors::new();
    let status = Path::new("status");
    let path = status.child("conditions");
    let of = |object: &Value, kind: &str| -> Vec<Value> {
        object.at("status").items("conditions").iter().filter(|c| c.text("type") == kind).cloned().collect()
    };
    for kind in ["Approved", "Denied", "Failed"] {
        let (after, before) = (of(new, kind), of(old, kind));
        if after.len() < before.len() {
            errors.forbidden(&path, format!("updates may not remove a condition of type {kind:?}"));
        }
        if kind == "Failed" || approving {
            continue;
        }
        if after.len() > before.len() {
            errors.forbidden(&path, format!("updates may not add a condition of type {kind:?}"));
        } else if after.len() == before.len() && after != before {
            errors.forbidden(&path, format!("updates may not modify a condition of type {kind:?}"));
        }
    }
    errors
}

pub(crate) fn signing_request_update(new: &Value, old: &Value) -> Vec<FieldError> {
    condition_changes(new, old, false).0
}

pub(crate) fn signing_request_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = condition_changes(new, old, false);
    conditions(&mut errors, new);
    let certificate = |object: &Value| object.at("status").text("certificate").to_owned();
    let status = Path::new("status");
    let at = status.child("certificate");
    if certificate(new) != certificate(old) && !certificate(old).is_empty() {
        errors.forbidden(&at, "updates may not modify existing certificate content");
    }
    let pem = base64::engine::general_purpose::STANDARD.decode(certificate(new)).unwrap_or_default();
    if !certificate(new).is_empty()
        && let Err(told) = certificates(&pem)
    {
        errors.invalid(&at, "<certificate data>", told);
    }
    errors.0
}

/// What is wrong with a chain of certificates: only blocks of certificates, without headers, each of them DER.
fn certificates(text: &[u8]) -> Result<(), &'static str> {
    let blocks = super::pem::blocks(text);
    if blocks.is_empty() {
        return Err("must contain at least one CERTIFICATE PEM block");
    }
    for block in blocks {
        if block.label != "CERTIFICATE" {
            return Err("only CERTIFICATE PEM blocks are allowed");
        }
        if block.headers {
            return Err("no PEM block headers are permitted");
        }
        if !super::pem::is_certificate(&block.content) {
            return Err("x509: malformed certificate");
        }
    }
    Ok(())
}

/// An update through `approval`: conditions may be added, not removed.
pub fn validate_approval(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = condition_changes(new, old, true);
    conditions(&mut errors, new);
    if !same(new.at("status").at("certificate"), old.at("status").at("certificate")) {
        let status = Path::new("status");
        errors.forbidden(&status.child("certificate"), "updates may not set certificate content");
    }
    errors.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_complete_pem_blocks() {
        let check =
            |text: &str, expect: bool| assert_eq!(certificates(text.as_bytes()).is_ok(), expect, "{text}");
        let block = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        check(&block("MAowAwIBATAAAwEA"), true);
        check(&format!("words\n{}{}", block("MAowAwIBATAAAwEA"), block("MAowAwIBATAAAwEA")), true);
        check("-----BEGIN CERTIFICATE-----\nMIIB", false);
        check(&block("MIIB"), false);
        check(&block("!"), false);
        check(&block("MAowAwIBATAAAwEA").replace("CERTIFICATE", "PRIVATE KEY"), false);
        check("", false);
    }
}
