//! CustomResourceDefinition. Paths are those of upstream's internal form, in which what all versions have in common stands
//! once, above them.

use std::collections::BTreeSet;

use schema::structural::{self, Meta, Schema, Strictness};
use serde_json::Value;

use super::super::json::Read;
use super::admission;
use crate::custom::{object_meta, rules};
use crate::field::{Errors, Path};
use crate::{FieldError, names};

const SELECTABLE_LIMIT: usize = 8;

/// What an update need not be better in than what stands already.
struct Leniency {
    recognized_review: bool,
    structural: bool,
    schema_everywhere: bool,
    pruned_defaults: bool,
    strictness: Strictness,
    invalid_bundle: bool,
    before: rules::Before,
    /// Versions (`""`: all) that may keep too many selectable fields.
    many_selectable: BTreeSet<String>,
}

/// A schema with its place, or why it cannot be read.
struct Shown {
    schema: Option<Schema>,
    status: bool,
    path: String,
    unchanged: bool,
}

/// What all versions have in common, as upstream moves it above them.
struct Common {
    schema: bool,
    subresources: bool,
    columns: bool,
    selectable: bool,
}

impl Common {
    fn of(versions: &[Value]) -> Self {
        let same = |key: &str| versions.windows(2).all(|pair| pair[0].at(key) == pair[1].at(key));
        let [schema, subresources, columns, selectable] =
            ["schema", "subresources", "additionalPrinterColumns", "selectableFields"].map(same);
        Self { schema, subresources, columns, selectable }
    }
}

fn raw(version: &Value) -> &Value {
    version.at("schema").at("openAPIV3Schema")
}

fn schemas(object: &Value) -> Vec<Schema> {
    let versions = object.at("spec").items("versions");
    versions.iter().filter_map(|v| Schema::read(raw(v)).ok()).collect()
}

fn meta() -> Option<Meta<'static>> {
    let types = crate::types();
    let id = types.by_name("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")?;
    Some(Meta { types, id, check: &object_meta })
}

fn is_true(object: &Value, kind: &str) -> bool {
    let conditions = object.at("status").items("conditions");
    conditions.iter().any(|c| c.text("type") == kind && c.text("status") == "True")
}

impl Leniency {
    fn create() -> Self {
        Self {
            recognized_review: true,
            structural: true,
            schema_everywhere: true,
            pruned_defaults: true,
            strictness: Strictness { valid_types: true, atomic_sets: true, map_keys: true },
            invalid_bundle: true,
            before: rules::Before::default(),
            many_selectable: BTreeSet::new(),
        }
    }

    fn update(new: &Value, old: &Value) -> Self {
        let spec = old.at("spec");
        let versions = spec.items("versions");
        let all = schemas(old);
        let has = |test: &dyn Fn(&Schema) -> bool| all.iter().any(|schema| schema.any(test));
        let review = spec.at("conversion").at("webhook").items("conversionReviewVersions");
        let bundle = spec.at("conversion").at("webhook").at("clientConfig").text("caBundle");
        let mut before = rules::Before::default();
        all.iter().for_each(|schema| before.add(schema));
        let fits = |schema: &Schema| {
            schema.unsupported().is_ok() && structural::validate_structural("", schema).is_empty()
        };
        let mut many = BTreeSet::new();
        for version in versions {
            let fields = version.at("selectableFields");
            let name = version.text("name");
            let same = new.at("spec").items("versions").iter().find(|v| v.text("name") == name);
            if version.items("selectableFields").len() > SELECTABLE_LIMIT
                && same.is_some_and(|v| v.at("selectableFields") == fields)
            {
                many.extend([name.to_owned(), String::new()]);
            }
        }
        let unpruned = |schema: &Schema| {
            let mut pruned = schema.clone();
            if let Some(meta) = meta() {
                structural::prune_defaults(&mut pruned, meta);
            }
            fits(schema) && pruned != *schema
        };
        let established = is_true(old, "Established");
        Self {
            recognized_review: review.is_empty() || review.iter().any(recognized),
            structural: all.iter().all(fits),
            schema_everywhere: versions.iter().all(|v| raw(v).is_object()),
            pruned_defaults: !all.iter().any(unpruned),
            strictness: Strictness {
                valid_types: !has(&|s| !s.kind.is_empty() && !TYPES.contains(&s.kind.as_str())),
                atomic_sets: !has(&non_atomic_set),
                map_keys: !has(&structural::has_loose_keys),
            },
            invalid_bundle: !established || (!bundle.is_empty() && certificates(bundle).is_err()),
            before,
            many_selectable: many,
        }
    }
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

fn non_atomic_set(schema: &Schema) -> bool {
    let Some(items) = schema.items.as_deref().filter(|_| schema.list_type.as_deref() == Some("set")) else {
        return false;
    };
    match items.kind.as_str() {
        "array" => items.list_type.as_deref().is_some_and(|t| t != "atomic"),
        "object" => items.map_type.as_deref() != Some("atomic"),
        _ => false,
    }
}

fn recognized(version: &Value) -> bool {
    matches!(version.as_str(), Some("v1" | "v1beta1"))
}

/// Whether a CA bundle (base64 of PEM) holds certificates.
fn certificates(bundle: &str) -> Result<(), String> {
    use base64::Engine as _;
    let pem = base64::engine::general_purpose::STANDARD.decode(bundle).unwrap_or_default();
    let text = String::from_utf8_lossy(&pem);
    let found = text.split("-----BEGIN CERTIFICATE-----").skip(1).filter(|part| {
        let body = part.split("-----END CERTIFICATE-----").next().unwrap_or_default();
        let body: String = body.split_whitespace().collect();
        let der = base64::engine::general_purpose::STANDARD.decode(body).unwrap_or_default();
        der.first() == Some(&0x30)
    });
    if found.count() > 0 {
        return Ok(());
    }
    Err("unable to load root certificates: unable to parse bytes as PEM block".to_owned())
}

/// A new definition.
pub(crate) fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    whole_name(object, &mut errors);
    spec(object, None, &Leniency::create(), &mut errors);
    status(object, &mut errors);
    stored_versions(object, &mut errors);
    approval(object, None, &mut errors);
    if object.at("spec").flag("preserveUnknownFields") {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.invalid(&"spec.preserveUnknownFields", true, detail);
    }
    errors.0
}

/// An update of a definition.
pub(crate) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    spec(new, Some(old), &Leniency::update(new, old), &mut errors);
    let (spec, before) = (new.at("spec"), old.at("spec"));
    let mut immutable = |path: &str, new: &Value, old: &Value| {
        if new != old {
            errors.invalid(&path, new.clone(), "field is immutable");
        }
    };
    if is_true(old, "Established") {
        immutable("spec.scope", spec.at("scope"), before.at("scope"));
        immutable("spec.names.kind", spec.at("names").at("kind"), before.at("names").at("kind"));
    }
    immutable("spec.group", spec.at("group"), before.at("group"));
    immutable("spec.names.plural", spec.at("names").at("plural"), before.at("names").at("plural"));
    status(new, &mut errors);
    stored_versions(new, &mut errors);
    approval(new, Some(old), &mut errors);
    if spec.flag("preserveUnknownFields") && !before.flag("preserveUnknownFields") {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.invalid(&"spec.preserveUnknownFields", true, detail);
    }
    errors.0
}

/// An update of the status of a definition.
pub(crate) fn status_update(new: &Value, _old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    status(new, &mut errors);
    errors.0
}

fn whole_name(object: &Value, errors: &mut Errors) {
    let spec = object.at("spec");
    let (name, wanted) = (
        object.at("metadata").text("name"),
        format!("{}.{}", spec.at("names").text("plural"), spec.text("group")),
    );
    if name != wanted {
        errors.invalid(&"metadata.name", name, "must be spec.names.plural+\".\"+spec.group");
    }
}

fn status(object: &Value, errors: &mut Errors) {
    kind_names(object.at("status").at("acceptedNames"), "status.acceptedNames", errors);
}

fn stored_versions(object: &Value, errors: &mut Errors) {
    let stored = object.at("status").items("storedVersions");
    let path = "status.storedVersions";
    let all = || Value::from(stored.to_vec());
    if stored.is_empty() {
        errors.invalid(&path, all(), "must have at least one stored version");
        return;
    }
    let versions = object.at("spec").items("versions");
    for version in versions.iter().filter(|v| v.flag("storage") && !stored.contains(v.at("name"))) {
        let detail = format!("must have the storage version {}", version.text("name"));
        errors.invalid(&path, all(), detail);
    }
    for (index, name) in stored.iter().enumerate() {
        if !versions.iter().any(|v| v.at("name") == name) {
            let text = name.as_str().unwrap_or_default();
            let detail = format!(
                "missing from spec.versions; {text} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {text} and removes {text} from status.storedVersions"
            );
            errors.invalid(&format!("{path}[{index}]"), text, detail);
        }
    }
}

const APPROVAL: &str = "api-approved.kubernetes.io";

/// What the approval annotation of a definition in a protected group says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    Missing,
    Bypassed,
    Approved,
    Invalid,
}

/// The groups whose definitions the community has to approve.
pub fn is_protected(group: &str) -> bool {
    let under = |domain: &str| group == domain || group.ends_with(&format!(".{domain}"));
    under("k8s.io") || under("kubernetes.io")
}

/// The state of a definition's approval, and why.
pub fn approval_state(object: &Value) -> (Approval, String) {
    let text = object.at("metadata").at("annotations").text(APPROVAL);
    let url = text.split_once("://").is_some_and(|(scheme, rest)| {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric()) && !host.is_empty()
    });
    let reason = |detail: &str| {
        format!(
            "protected groups must have approval annotation {APPROVAL:?}{detail}, see https://github.com/kubernetes/enhancements/pull/1111"
        )
    };
    match text {
        "" => (Approval::Missing, reason("")),
        text if text.starts_with("unapproved") => (Approval::Bypassed, format!("not approved: {text:?}")),
        text if url && !text.contains(char::is_whitespace) => {
            (Approval::Approved, format!("approved in {text}"))
        }
        _ => (Approval::Invalid, reason(" with either a URL or a reason starting with \"unapproved\"")),
    }
}

fn approval(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    if !is_protected(object.at("spec").text("group")) {
        return;
    }
    let (state, reason) = approval_state(object);
    if old.is_some_and(|old| approval_state(old).0 == state) {
        return;
    }
    let path = format!("metadata.annotations[{APPROVAL}]");
    match state {
        Approval::Missing => errors.required(&path, reason),
        Approval::Invalid => {
            errors.invalid(&path, object.at("metadata").at("annotations").text(APPROVAL), reason);
        }
        Approval::Approved | Approval::Bypassed => {}
    }
}

fn joined(errors: &mut Errors, path: &str, value: &str, prefix: &str, found: Vec<String>) {
    if !value.is_empty() && !found.is_empty() {
        errors.invalid(&path, value, format!("{prefix}{}", found.join(",")));
    }
}

fn kind_names(value: &Value, path: &str, errors: &mut Errors) {
    for key in ["plural", "singular"] {
        let name = value.text(key);
        joined(errors, &format!("{path}.{key}"), name, "", names::dns1035_label(name));
    }
    for key in ["kind", "listKind"] {
        let name = value.text(key);
        let found = names::dns1035_label(&name.to_lowercase());
        let prefix = "may have mixed case, but should otherwise match: ";
        joined(errors, &format!("{path}.{key}"), name, prefix, found);
    }
    let (kind, list) = (value.text("kind"), value.text("listKind"));
    for (index, name) in value.items("shortNames").iter().filter_map(Value::as_str).enumerate() {
        joined(errors, &format!("{path}.shortNames[{index}]"), name, "", names::dns1035_label(name));
    }
    if !kind.is_empty() && kind == list {
        errors.invalid(&format!("{path}.listKind"), list, "kind and listKind may not be the same");
    }
    for (index, name) in value.items("categories").iter().filter_map(Value::as_str).enumerate() {
        joined(errors, &format!("{path}.categories[{index}]"), name, "", names::dns1035_label(name));
    }
}

fn spec(object: &Value, old: Option<&Value>, lenient: &Leniency, errors: &mut Errors) {
    let spec = object.at("spec");
    let group = spec.text("group");
    match names::dns1123_subdomain(group) {
        _ if group.is_empty() => errors.required(&"spec.group", ""),
        found if !found.is_empty() => errors.invalid(&"spec.group", group, found.join(",")),
        _ if !group.contains('.') => {
            errors.invalid(&"spec.group", group, "should be a domain with at least one dot");
        }
        _ => {}
    }
    match spec.text("scope") {
        "" => errors.required(&"spec.scope", ""),
        "Cluster" | "Namespaced" => {}
        other => errors.not_supported(&"spec.scope", other, &["Cluster", "Namespaced"]),
    }
    let preserve = spec.flag("preserveUnknownFields");
    let versions = spec.items("versions");
    for (index, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{index}].schema.openAPIV3Schema");
        if raw(version).is_object() {
            continue;
        }
        if lenient.schema_everywhere {
            errors.required(&path, "");
        } else if !preserve && version.flag("served") {
            errors.required(&path, "because otherwise all fields are pruned");
        }
    }
    let all = schemas(object);
    let extended = |s: &Schema| {
        s.embedded
            || s.preserve.is_some()
            || s.int_or_string
            || !s.list_keys.is_empty()
            || s.list_type.is_some()
            || !s.rules.is_empty()
    };
    let has = |test: &dyn Fn(&Schema) -> bool| all.iter().any(|schema| schema.any(test));
    let defaults = has(&|s| s.default.is_some());
    if defaults && preserve {
        let detail = "must be false in order to use defaults in the schema";
        errors.invalid(&"spec.preserveUnknownFields", true, detail);
    }
    let must_be_structural = lenient.structural || !preserve || defaults || has(&extended);
    self::versions(object, old, lenient, must_be_structural, errors);
    let names = spec.at("names");
    for key in ["plural", "singular", "kind", "listKind"] {
        if names.text(key).is_empty() {
            errors.required(&format!("spec.names.{key}"), "");
        }
    }
    kind_names(names, "spec.names", errors);
    let conversion_of = spec.at("conversion");
    if preserve && conversion_of.has("strategy") && conversion_of.text("strategy") != "None" {
        let detail = "must be None if spec.preserveUnknownFields is true";
        errors.invalid(&"spec.conversion.strategy", conversion_of.text("strategy"), detail);
    }
    conversion(conversion_of, lenient, errors);
}

fn versions(
    object: &Value,
    old: Option<&Value>,
    lenient: &Leniency,
    must_be_structural: bool,
    errors: &mut Errors,
) {
    let spec = object.at("spec");
    let versions = spec.items("versions");
    let shared = Common::of(versions);
    let unchanged = |version: &Value| {
        let before = old.map_or(&[][..], |old| old.at("spec").items("versions"));
        before.iter().any(|v| v.at("name") == version.at("name") && raw(v) == raw(version))
    };
    let mut seen: Vec<&str> = Vec::new();
    let mut unique = true;
    for (index, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{index}]");
        let name = version.text("name");
        unique &= !seen.contains(&name);
        seen.push(name);
        let found = names::dns1035_label(name);
        if !found.is_empty() {
            errors.invalid(&format!("{path}.name"), name, found.join(","));
        }
        deprecation(version, &path, errors);
        if !shared.schema {
            let shown = Shown {
                schema: Schema::read(raw(version)).ok(),
                status: version.at("subresources").has("status"),
                path: format!("{path}.schema"),
                unchanged: unchanged(version),
            };
            one_schema(shown, lenient, must_be_structural, errors);
        }
        if !shared.subresources {
            scale(version, &format!("{path}.subresources"), errors);
        }
        if !shared.columns {
            columns(version, &format!("{path}.additionalPrinterColumns"), errors);
        }
        if !shared.selectable {
            let many = lenient.many_selectable.contains(name);
            selectable(version, &format!("{path}.selectableFields"), many, errors);
        }
    }
    let Some(first) = versions.first() else {
        errors.invalid(
            &"spec.versions",
            Value::Null,
            "must have exactly one version marked as storage version",
        );
        return;
    };
    let all = || Value::from(versions.to_vec());
    if !unique {
        errors.invalid(&"spec.versions", all(), "must contain unique version names");
    }
    if versions.iter().filter(|v| v.flag("storage")).count() != 1 {
        errors.invalid(&"spec.versions", all(), "must have exactly one version marked as storage version");
    }
    let name = first.text("name");
    joined(errors, "spec.version", name, "", names::dns1035_label(name));
    if shared.schema {
        let shown = Shown {
            schema: Schema::read(raw(first)).ok(),
            status: versions.iter().any(|v| v.at("subresources").has("status")),
            path: "spec.validation".to_owned(),
            unchanged: unchanged(first),
        };
        one_schema(shown, lenient, must_be_structural, errors);
    }
    if shared.subresources {
        scale(first, "spec.subresources", errors);
    }
    if shared.columns {
        columns(first, "spec.additionalPrinterColumns", errors);
    }
    if shared.selectable {
        let many = lenient.many_selectable.contains("");
        selectable(first, "spec.selectableFields", many, errors);
    }
}

fn deprecation(version: &Value, path: &str, errors: &mut Errors) {
    let path = format!("{path}.deprecationWarning");
    let Some(warning) = version.at("deprecationWarning").as_str() else { return };
    let mut wrong = |detail: String| errors.invalid(&path, warning, detail);
    if !version.flag("deprecated") {
        wrong("can only be set for deprecated versions".to_owned());
        return;
    }
    if warning.len() > 256 {
        wrong("must be <= 256 characters long".to_owned());
    }
    if warning.is_empty() {
        wrong("must not be an empty string".to_owned());
    }
    // What Go's unicode.IsPrint refuses: control characters and all spaces but the plain one.
    let odd = |c: char| c.is_control() || (c.is_whitespace() && c != ' ');
    if let Some((index, _)) = warning.char_indices().find(|(_, c)| odd(*c)) {
        wrong(format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {index}"
        ));
    }
}

fn one_schema(shown: Shown, lenient: &Leniency, must_be_structural: bool, errors: &mut Errors) {
    let Some(schema) = shown.schema else { return };
    let path = format!("{}.openAPIV3Schema", shown.path);
    let start = errors.0.len();
    if shown.status {
        root_fields(&schema, &path, errors);
    }
    if schema.nullable {
        errors.forbidden(&format!("{path}.nullable"), "nullable cannot be true at the root");
    }
    let mut unreadable = None;
    let mut ruled = false;
    if must_be_structural {
        match schema.unsupported() {
            Err(error) => unreadable = Some(error),
            Ok(()) => {
                let found = structural::validate_structural(&path, &schema);
                let found = match (found.is_empty(), meta()) {
                    (true, Some(meta)) => structural::validate_defaults(
                        &path,
                        &schema,
                        lenient.pruned_defaults,
                        meta,
                        &rules::check_default,
                    ),
                    _ => found,
                };
                ruled = found.is_empty();
                errors.0.extend(found);
            }
        }
    }
    let parts = structural::validate_properties(&path, &schema, lenient.strictness);
    if ruled && parts.is_empty() {
        let before = rules::Before { unchanged: shown.unchanged, ..lenient.before.clone() };
        errors.0.extend(rules::check_definition(&path, &schema, &before));
    }
    errors.0.extend(parts);
    if let Some(error) = unreadable.filter(|_| errors.0.len() == start) {
        errors.invalid(&path, "", error.to_string());
    }
}

/// With a status subresource the root may say little, since the status is validated by itself.
fn root_fields(schema: &Schema, path: &str, errors: &mut Errors) {
    if !schema.kind.is_empty() && schema.kind != "object" {
        let detail = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.invalid(&format!("{path}.type"), schema.kind.as_str(), detail);
        return;
    }
    let u = &schema.unsupported;
    let other = u.id
        || u.schema
        || u.reference
        || u.additional_items
        || u.pattern_properties
        || u.dependencies
        || !u.definitions.is_empty()
        || schema.nullable
        || schema.int_or_string
        || schema.embedded
        || schema.default.is_some()
        || schema.list_type.is_some()
        || !schema.list_keys.is_empty()
        || schema.map_type.is_some()
        || schema.max_properties.is_some()
        || schema.min_properties.is_some()
        || !schema.enumeration.is_empty()
        || !schema.all_of.is_empty()
        || !schema.any_of.is_empty()
        || !schema.one_of.is_empty()
        || schema.not.is_some()
        || schema.additional.is_some();
    if other {
        let detail = "only [Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations] fields are allowed at the root of the schema if the status subresource is enabled";
        errors.invalid(&path, Value::Null, detail);
    }
}

/// A path in dot notation, below one of the given roots.
fn simple_path(path: &str, field: &str, roots: &[&str], place: &str, errors: &mut Errors) {
    if !path.starts_with('.') {
        errors.invalid(&field, path, "must be a simple json path starting with .");
    } else if !roots.is_empty() && !roots.iter().any(|root| path.starts_with(root)) {
        errors.invalid(&field, path, format!("should be a json path under {place}"));
    }
}

fn scale(version: &Value, path: &str, errors: &mut Errors) {
    let scale = version.at("subresources").at("scale");
    if !scale.is_object() {
        return;
    }
    for (key, root, place) in
        [("specReplicasPath", ".spec.", ".spec"), ("statusReplicasPath", ".status.", ".status")]
    {
        let field = format!("{path}.scale.{key}");
        match scale.text(key) {
            "" => errors.required(&field, ""),
            text => simple_path(text, &field, &[root], place, errors),
        }
    }
    let selector = scale.text("labelSelectorPath");
    if !selector.is_empty() {
        let field = format!("{path}.scale.labelSelectorPath");
        simple_path(selector, &field, &[".spec.", ".status."], "either .spec or .status", errors);
    }
}

const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] =
    ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];

fn columns(version: &Value, path: &str, errors: &mut Errors) {
    for (index, column) in version.items("additionalPrinterColumns").iter().enumerate() {
        let at = |key: &str| format!("{path}[{index}].{key}");
        if column.text("name").is_empty() {
            errors.required(&at("name"), "");
        }
        let types = format!("must be one of {}", COLUMN_TYPES.join(","));
        match column.text("type") {
            "" => errors.required(&at("type"), types),
            kind if !COLUMN_TYPES.contains(&kind) => errors.invalid(&at("type"), kind, types),
            _ => {}
        }
        let format = column.text("format");
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            errors.invalid(&at("format"), format, format!("must be one of {}", COLUMN_FORMATS.join(",")));
        }
        match column.text("jsonPath") {
            "" => errors.required(&at("JSONPath"), ""),
            text => simple_path(text, &at("JSONPath"), &[], "", errors),
        }
    }
}

fn selectable(version: &Value, path: &str, many: bool, errors: &mut Errors) {
    let fields = version.items("selectableFields");
    if fields.is_empty() {
        return;
    }
    let Ok(schema) = Schema::read(raw(version)) else {
        errors.invalid(&path, "", "may only be set when `version.schema.openAPIV3Schema` is not included");
        return;
    };
    let mut seen = BTreeSet::new();
    for (index, field) in fields.iter().enumerate() {
        let at = format!("{path}[{index}].jsonPath");
        let text = field.text("jsonPath");
        if text.is_empty() {
            errors.required(&at, "");
            continue;
        }
        let (way, found) = match structural::path::find(&schema, text, false) {
            Ok(found) => found,
            Err(why) => {
                errors.invalid(&at, text, format!("is an invalid path: {why}"));
                continue;
            }
        };
        if way.first().is_some_and(|first| first == "metadata") {
            errors.invalid(&at, text, "must not point to fields in metadata");
        }
        if !matches!(found.kind.as_str(), "string" | "boolean" | "integer") {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.invalid(&at, text, detail);
        }
        if !seen.insert(way) {
            errors.duplicate(&at, text);
        }
    }
    if seen.len() > SELECTABLE_LIMIT && !many {
        errors.too_many(&path, seen.len(), SELECTABLE_LIMIT);
    }
}

fn conversion(conversion: &Value, lenient: &Leniency, errors: &mut Errors) {
    if !conversion.is_object() {
        return;
    }
    let (client, review) =
        ("spec.conversion.webhookClientConfig", "spec.conversion.conversionReviewVersions");
    let strategy = conversion.text("strategy");
    match strategy {
        "" => errors.required(&"spec.conversion.strategy", ""),
        "None" | "Webhook" => {}
        other => errors.not_supported(&"spec.conversion.strategy", other, &["None", "Webhook"]),
    }
    let webhook = conversion.at("webhook");
    let config = webhook.at("clientConfig");
    let versions = webhook.items("conversionReviewVersions");
    if strategy != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if config.is_object() {
            errors.forbidden(&client, detail);
        }
        if !versions.is_empty() {
            errors.forbidden(&review, detail);
        }
        return;
    }
    if !config.is_object() {
        errors.required(&client, "required when strategy is set to Webhook");
    } else {
        let path = Path::new(client);
        match (config.has("url"), config.has("service")) {
            (true, true) | (false, false) => {
                errors.required(&client, "exactly one of url or service is required");
            }
            (true, false) => admission::url(errors, config.text("url"), &path.child("url")),
            (false, true) => {
                super::core::service_reference(errors, config.at("service"), &path.child("service"));
            }
        }
        let bundle = config.text("caBundle");
        if !bundle.is_empty()
            && !lenient.invalid_bundle
            && let Err(why) = certificates(bundle)
        {
            errors.invalid(&format!("{client}.caBundle"), bundle, why);
        }
    }
    review_versions(versions, review, lenient, errors);
}

fn review_versions(versions: &[Value], path: &str, lenient: &Leniency, errors: &mut Errors) {
    if versions.is_empty() {
        errors.required(&path, "");
        return;
    }
    for (index, version) in versions.iter().enumerate() {
        let at = format!("{path}[{index}]");
        let text = version.as_str().unwrap_or_default();
        if versions[..index].contains(version) {
            errors.invalid(&at, text, "duplicate version");
            continue;
        }
        errors.all_invalid(&at, text, names::dns1035_label(text));
    }
    if lenient.recognized_review && !versions.iter().any(recognized) {
        errors.invalid(&path, versions.to_vec(), "must include at least one of v1, v1beta1");
    }
}

/// Warnings for formats that mean nothing here.
pub(crate) fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    fn formats(schema: &Schema, found: &mut Vec<String>) {
        let kind = if schema.int_or_string { "" } else { schema.kind.as_str() };
        if structural::unrecognized_format(kind, &schema.format) {
            found.push(schema.format.clone());
        }
        schema.children().for_each(|child| formats(child, found));
    }
    let of = |object: &Value| {
        let mut found = Vec::new();
        let all = schemas(object);
        let shared = Common::of(object.at("spec").items("versions")).schema;
        all.iter().take(if shared { 1 } else { all.len() }).for_each(|schema| formats(schema, &mut found));
        found
    };
    let before = old.map(of).unwrap_or_default();
    let new = of(new).into_iter().filter(|format| !before.contains(format));
    new.map(|format| format!("unrecognized format {format:?}")).collect()
}
