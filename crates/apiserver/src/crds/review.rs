//! Conversion by webhook: the ConversionReview that is sent, and what its answer must look like.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::Status;
use crate::read::Read;
use crate::webhook::{Client, Target, Timeout};

const TIMEOUT: Duration = Duration::from_secs(30);
const GROUP: &str = "apiextensions.k8s.io";

/// A conversion webhook as its definition configures it.
pub struct Hook<'a> {
    pub client: &'a Client,
    pub client_config: &'a Value,
    pub review_versions: &'a [String],
}

fn kind_of(object: &Value) -> String {
    format!("{}, Kind={}", object.text("apiVersion"), object.text("kind"))
}

impl Hook<'_> {
    /// Asks for objects, none of which is in the wanted version; as many come back.
    pub async fn convert(&self, objects: &[Value], wanted: &str) -> Result<Vec<Value>, Status> {
        let Some(first) = objects.first() else { return Ok(Vec::new()) };
        let failed =
            |why: String| Status::internal(format!("conversion webhook for {} {why}", kind_of(first)));
        let known = self.review_versions.iter().find(|v| matches!(v.as_str(), "v1" | "v1beta1"));
        let version =
            known.ok_or_else(|| failed("failed: no supported conversion review versions".to_owned()))?;
        let uid = uuid::Uuid::new_v4().to_string();
        let review = json!({
            "kind": "ConversionReview",
            "apiVersion": format!("{GROUP}/{version}"),
            "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": objects},
        });
        let target = Target::from_client_config(self.client_config);
        let endpoint = target.and_then(|target| self.client.endpoint(&target));
        let endpoint = endpoint.map_err(|e| failed(format!("failed: {e}")))?;
        let answer = endpoint.post(&review, Timeout::of(TIMEOUT)).await;
        let answer = answer.map_err(|e| failed(format!("failed: {e}")))?;
        let converted = answered(answer, version, &uid).map_err(|why| failed(format!("failed: {why}")))?;
        if converted.len() != objects.len() {
            let (got, want) = (converted.len(), objects.len());
            return Err(failed(format!("returned {got} objects, expected {want}")));
        }
        let each = objects.iter().zip(converted).enumerate().map(|(index, (original, converted))| {
            restored(original, converted, wanted)
                .map_err(|why| failed(format!("returned invalid converted object at index {index}: {why}")))
        });
        each.collect()
    }
}

/// The objects of an answer that is one to the question asked.
fn answered(mut answer: Value, version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let wanted = format!("{GROUP}/{version}, Kind=ConversionReview");
    let got = kind_of(&answer);
    if got != wanted {
        return Err(format!("expected webhook response of {wanted}, got {got}"));
    }
    if !answer.at("response").is_object() {
        return Err("no response provided".to_owned());
    }
    let own = answer.text("response.uid");
    // The older version is trusted to answer the question that was asked.
    if version == "v1" && own != uid {
        return Err(format!("expected response.uid={uid:?}, got {own:?}"));
    }
    let result = answer.at("response.result");
    match (result.text("status"), result.text("message")) {
        ("Success", _) => {}
        (status, "") => return Err(format!("response.result.status was '{status}', not 'Success'")),
        (_, message) => return Err(message.to_owned()),
    }
    match answer.pointer_mut("/response/convertedObjects").map(Value::take) {
        Some(Value::Array(objects)) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

/// A converted object with the metadata of the original: a webhook may change labels and annotations alone.
fn restored(original: &Value, mut converted: Value, wanted: &str) -> Result<Value, String> {
    let got = converted.text("apiVersion");
    if got != wanted {
        return Err(format!("invalid groupVersion (expected {wanted}, received {got})"));
    }
    let (kind, was) = (converted.text("kind"), original.text("kind"));
    if kind != was {
        return Err(format!("invalid kind (expected {was}, received {kind})"));
    }
    let Some(metadata) = converted.get("metadata").and_then(Value::as_object) else {
        return Err("missing metadata in converted object".to_owned());
    };
    for key in ["name", "namespace", "uid"] {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let (was, is) = (text(original.at("metadata").get(key)), text(metadata.get(key)));
        if was != is {
            return Err(format!("must have the same {key}: {was:?} != {is:?}"));
        }
    }
    let mut kept: Map<String, Value> = original.at("metadata").as_object().cloned().unwrap_or_default();
    for key in ["labels", "annotations"] {
        let Some(map) = metadata.get(key).filter(|v| !v.is_null()) else {
            kept.remove(key);
            continue;
        };
        let texts = map.as_object().is_some_and(|map| map.values().all(Value::is_string));
        if !texts {
            return Err(format!("invalid metadata of type {key}: its values must be strings"));
        }
        if map.as_object().is_some_and(Map::is_empty) {
            kept.remove(key);
        } else {
            kept.insert(key.to_owned(), map.clone());
        }
    }
    converted["metadata"] = Value::Object(kept);
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(version: &str, name: &str, extra: Value) -> Value {
        let mut object =
            json!({"apiVersion": version, "kind": "Foo", "metadata": {"name": name, "uid": "u"}});
        object["metadata"]["labels"] = extra;
        object
    }

    #[test]
    fn only_labels_and_annotations_change() {
        let original = object("g/v1", "a", json!({"x": "1"}));
        let check = |converted: Value, expect: Result<Value, &str>| {
            assert_eq!(restored(&original, converted, "g/v2"), expect.map_err(str::to_owned));
        };
        let mut converted = object("g/v2", "a", json!({"y": "2"}));
        converted["metadata"]["finalizers"] = json!(["f"]);
        check(converted, Ok(object("g/v2", "a", json!({"y": "2"}))));
        check(object("g/v1", "a", json!({})), Err("invalid groupVersion (expected g/v2, received g/v1)"));
        check(object("g/v2", "b", json!({})), Err("must have the same name: \"a\" != \"b\""));
    }

    #[test]
    fn answers_are_checked() {
        let check = |answer: Value, expect: Result<usize, &str>| {
            let got = answered(answer, "v1", "q").map(|objects| objects.len());
            assert_eq!(got, expect.map_err(str::to_owned));
        };
        let answer = |response: Value| json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response});
        let success = json!({"status": "Success"});
        check(answer(json!({"uid": "q", "result": success, "convertedObjects": [{}]})), Ok(1));
        check(answer(json!({"uid": "p", "result": success})), Err("expected response.uid=\"q\", got \"p\""));
        check(answer(json!({"uid": "q", "result": {"status": "Failure", "message": "no"}})), Err("no"));
        check(answer(Value::Null), Err("no response provided"));
    }
}
