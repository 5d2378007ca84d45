//! Pods: a delete leaves them time to end.

use serde_json::Value;

use super::Special;

pub static ROW: Special = Special { returns_deleted: true, grace: Some(grace), ..Special::GENERIC };

/// The seconds that a pod is given; none are needed where no kubelet has it, or where it has ended.
fn grace(pod: &Value, asked: Option<i64>) -> Option<i64> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let own = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    let mut period = asked.or(own).unwrap_or(0);
    if text("/spec/nodeName").is_empty() || matches!(text("/status/phase"), "Failed" | "Succeeded") {
        period = 0;
    }
    Some(if period < 0 { 1 } else { period })
}
