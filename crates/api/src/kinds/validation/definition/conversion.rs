//! How a definition's versions are converted.

use serde_json::Value;

use super::super::super::json::Read;
use super::super::{admission, core};
use super::leniency::Leniency;
use crate::field::{Errors, Path};
use crate::names;

pub(super) fn conversion(conversion: &Value, lenient: &Leniency, errors: &mut Errors) {
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
                core::service_reference(errors, config.at("service"), &path.child("service"));
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

pub(super) fn recognized(version: &Value) -> bool {
    matches!(version.as_str(), Some("v1" | "v1beta1"))
}

/// Whether a CA bundle (base64 of PEM) holds certificates.
pub(super) fn certificates(bundle: &str) -> Result<(), String> {
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
