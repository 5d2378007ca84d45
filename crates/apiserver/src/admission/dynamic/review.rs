//! The AdmissionReview that a webhook is sent, and what its answer means (`admission.k8s.io/v1` and `v1beta1`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::Form;
use super::matching::Matched;
use crate::admission::Scene;
use crate::read::Read;
use crate::{Gvk, Gvr, Status};

fn kind(kind: &Gvk) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

fn resource(resource: &Gvr) -> Value {
    json!({"group": resource.group, "version": resource.version, "resource": resource.resource})
}

/// The request of a review without uid and objects, as expressions see it too.
pub(super) fn base(scene: &Scene<'_>, matched: &Matched, object: &Value) -> Value {
    let (own, attributes) = (scene.own(), scene.request.attributes);
    let mut request = json!({
        "kind": kind(&matched.kind),
        "resource": resource(&matched.resource),
        "requestKind": kind(&own.kind),
        "requestResource": resource(&own.resource),
        "operation": scene.operation().name(),
        "userInfo": crate::authz::user_value(&attributes.user),
        "dryRun": scene.request.dry_run,
        "options": scene.request.options,
    });
    let mut put = |key: &str, text: &str| {
        if !text.is_empty() {
            request[key] = text.into();
        }
    };
    put("subResource", &attributes.subresource);
    put("requestSubResource", &attributes.subresource);
    put("name", scene.object_name(object));
    put("namespace", scene.namespace_name(object));
    request
}

/// The review; `version` is `v1` or `v1beta1`.
pub(super) fn request(
    version: &str,
    uid: &str,
    scene: &Scene<'_>,
    matched: &Matched,
    form: &Form<'_>,
) -> Value {
    let mut request = base(scene, matched, &form.object);
    request["uid"] = uid.into();
    request["object"] = form.object.clone().into_owned();
    request["oldObject"] = form.old.as_deref().cloned().unwrap_or_default();
    json!({
        "kind": "AdmissionReview",
        "apiVersion": format!("admission.k8s.io/{version}"),
        "request": request,
    })
}

/// What a webhook answered.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub allowed: bool,
    pub result: Value,
    /// A JSON patch.
    pub patch: Option<Value>,
    pub annotations: Map<String, Value>,
    pub warnings: Vec<String>,
}

/// Checks that an answer is one to this request, and that it holds what it may.
fn verify(version: &str, uid: &str, mutating: bool, review: &Value) -> Result<(), String> {
    let response = review.at("response");
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    // Of v1beta1 nothing more was ever demanded.
    if version != "v1" {
        return Ok(());
    }
    if response.text("uid") != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", response.text("uid")));
    }
    let api_version = review.text("apiVersion");
    if (api_version, review.text("kind")) != ("admission.k8s.io/v1", "AdmissionReview") {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        return Err(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {group}/{version}, Kind={}",
            review.text("kind")
        ));
    }
    let wrong = match (mutating, response.text("patch").is_empty(), response.at("patchType").as_str()) {
        (true, false, None) => "webhook returned response.patch but not response.patchType",
        (true, true, Some(_)) => "webhook returned response.patchType but not response.patch",
        (true, false, Some("")) => "webhook returned invalid response.patchType of \"\"",
        (false, false, _) => "validating webhook may not return response.patch",
        (false, _, Some(_)) => "validating webhook may not return response.patchType",
        _ => return Ok(()),
    };
    Err(wrong.to_owned())
}

/// Reads an answer; the error tells what is wrong with it.
pub(super) fn answer(version: &str, uid: &str, mutating: bool, review: &Value) -> Result<Answer, String> {
    verify(version, uid, mutating, review)
        .map_err(|why| format!("received invalid webhook response: {why}"))?;
    let response = review.at("response");
    let patch = match response.text("patch") {
        "" => None,
        _ if !mutating => None,
        _ if response.at("patchType").as_str().is_some_and(|t| t != "JSONPatch") => {
            return Err(format!("unsupported patch type {}", response.at("patchType")));
        }
        patch => {
            let undecodable = |why: String| format!("received undecodable patch in webhook response: {why}");
            let bytes = STANDARD.decode(patch).map_err(|e| undecodable(e.to_string()))?;
            let patch: Value = serde_json::from_slice(&bytes).map_err(|e| undecodable(e.to_string()))?;
            match patch.as_array() {
                Some(operations) => Some(patch.clone()).filter(|_| !operations.is_empty()),
                None => return Err(undecodable("the patch is no list of operations".to_owned())),
            }
        }
    };
    Ok(Answer {
        allowed: response.at("allowed").as_bool().unwrap_or(false),
        result: response.at("status").clone(),
        patch,
        annotations: response.at("auditAnnotations").as_object().cloned().unwrap_or_default(),
        warnings: response.texts("warnings").map(str::to_owned).collect(),
    })
}

/// The refusal of a webhook, with the Status that it gave.
pub(super) fn refusal(webhook: &str, result: &Value) -> Status {
    let denied = format!("admission webhook {webhook:?} denied the request");
    let message = match (result.text("message"), result.text("reason")) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code =
        result.at("code").as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| (400..=999).contains(c));
    Status::given(code.unwrap_or(400), message, result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_explain() {
        let check = |result: Value, want: Value| {
            let mut got = refusal("a.b.c", &result).to_value();
            for key in ["kind", "apiVersion", "metadata", "status"] {
                got.as_object_mut().map(|o| o.remove(key));
            }
            assert_eq!(got, want);
        };
        let head = "admission webhook \"a.b.c\" denied the request";
        check(Value::Null, json!({"code": 400, "message": format!("{head} without explanation")}));
        check(
            json!({"message": "no", "reason": "Mine", "code": 200}),
            json!({"code": 400, "reason": "Mine", "message": format!("{head}: no")}),
        );
        check(
            json!({"reason": "Mine", "code": 418, "details": {"causes": [{"message": "m", "field": "f"}]}}),
            json!({"code": 418, "reason": "Mine", "message": format!("{head}: Mine"),
                "details": {"causes": [{"message": "m", "field": "f"}]}}),
        );
    }

    #[test]
    fn answers_are_verified() {
        let review = |response: Value| json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        let check = |mutating, review: Value, want: &str| {
            let want = format!("received invalid webhook response: {want}");
            assert_eq!(answer("v1", "u", mutating, &review).expect_err(&want), want);
        };
        check(true, json!({}), "webhook response was absent");
        check(true, review(json!({"uid": "x"})), "expected response.uid=\"u\", got \"x\"");
        check(
            true,
            json!({"response": {"uid": "u"}}),
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /, Kind=",
        );
        check(
            true,
            review(json!({"uid": "u", "patch": "W10="})),
            "webhook returned response.patch but not response.patchType",
        );
        check(
            false,
            review(json!({"uid": "u", "patch": "W10="})),
            "validating webhook may not return response.patch",
        );
        let empty = review(json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch"}));
        let empty = answer("v1", "u", true, &empty).expect("an answer");
        assert!(empty.allowed && empty.patch.is_none());
        let beta = json!({"response": {"allowed": true, "patch": "W3sib3AiOiJ0ZXN0In1d"}});
        let beta = answer("v1beta1", "u", true, &beta).expect("an answer");
        assert_eq!(beta.patch, Some(json!([{"op": "test"}])));
    }
}
