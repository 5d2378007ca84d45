//! TaintNodesByCondition: a new Node is not ready until said so. DefaultTolerationSeconds: a pod stays for five minutes on
//! a node that is not ready or not reachable.

use serde_json::{Value, json};

use super::Scene;
use crate::Status;
use crate::read::{Read, object_mut};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

pub(super) fn taint_node(scene: &Scene<'_>, node: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    if !scene.is("", "nodes") {
        return Ok(());
    }
    let mut taints = node.items("spec.taints").to_vec();
    if !taints.iter().any(|t| t.text("key") == NOT_READY && t.text("effect") == "NoSchedule") {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        object_mut(node, "spec").insert("taints".into(), taints.into());
    }
    Ok(())
}

pub(super) fn default_seconds(scene: &Scene<'_>, pod: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    if !scene.is("", "pods") {
        return Ok(());
    }
    let mut tolerations = pod.items("spec.tolerations").to_vec();
    let given = tolerations.len();
    for key in [NOT_READY, UNREACHABLE] {
        let tolerated = tolerations[..given].iter().any(|t| {
            (t.text("key") == key || t.text("key").is_empty()) && matches!(t.text("effect"), "NoExecute" | "")
        });
        if !tolerated {
            tolerations.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300,
            }));
        }
    }
    if tolerations.len() > given {
        object_mut(pod, "spec").insert("tolerations".into(), tolerations.into());
    }
    Ok(())
}
