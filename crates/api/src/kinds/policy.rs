//! PodDisruptionBudget and HorizontalPodAutoscaler.

use serde_json::{Value, json};

use super::json::{Read, Write};
use super::prepare;
use crate::Strategy;

pub(super) static POD_DISRUPTION_BUDGET: Strategy = Strategy {
    prepare_create: |budget| {
        prepare::create_with(
            budget,
            json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}),
        );
    },
    prepare_update: prepare::update_counted,
    prepare_status: prepare::status,
    unconditional_update: false,
    ..Strategy::GENERIC
};

pub(super) static HORIZONTAL_POD_AUTOSCALER: Strategy = Strategy {
    default: default_autoscaler,
    prepare_create: |autoscaler| {
        let status = match is_v1(autoscaler) {
            true => json!({"currentReplicas": 0, "desiredReplicas": 0}),
            false => json!({"desiredReplicas": 0, "currentMetrics": null}),
        };
        autoscaler.put("status", status);
    },
    prepare_update: prepare::update,
    prepare_status: prepare::status,
    ..Strategy::GENERIC
};

/// Where autoscaling/v1 keeps what it has no fields for; in the other version they mean nothing and are dropped.
pub const AUTOSCALER_ANNOTATIONS: [&str; 6] = [
    "autoscaling.alpha.kubernetes.io/behavior",
    "autoscaling.alpha.kubernetes.io/conditions",
    "autoscaling.alpha.kubernetes.io/current-metrics",
    "autoscaling.alpha.kubernetes.io/metrics",
    "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
    "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
];

fn drop_annotations(autoscaler: &mut Value) {
    let Some(meta) = autoscaler.existing("metadata") else { return };
    let Some(annotations) = meta.existing("annotations") else { return };
    for key in AUTOSCALER_ANNOTATIONS {
        annotations.take_key(key);
    }
    if meta.at("annotations").as_object().is_some_and(serde_json::Map::is_empty) {
        meta.take_key("annotations");
    }
}

fn is_v1(autoscaler: &Value) -> bool {
    autoscaler.text("apiVersion") == "autoscaling/v1"
}

fn default_autoscaler(autoscaler: &mut Value) {
    let v1 = is_v1(autoscaler);
    let spec = autoscaler.child("spec");
    spec.fill("minReplicas", 1);
    if v1 {
        // The first version's only metric is CPU; other metrics live in annotations.
        let annotated =
            autoscaler.dig(&["metadata", "annotations"]).has("autoscaling.alpha.kubernetes.io/metrics");
        if !annotated {
            autoscaler.child("spec").fill("targetCPUUtilizationPercentage", 80);
        }
        return;
    }
    drop_annotations(autoscaler);
    let spec = autoscaler.child("spec");
    if spec.items("metrics").is_empty() {
        spec.put(
            "metrics",
            json!([{"type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
        );
    }
    let Some(behavior) = spec.existing("behavior") else { return };
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    let up = behavior.child("scaleUp");
    up.fill("stabilizationWindowSeconds", 0);
    up.fill("selectPolicy", "Max");
    up.fill("policies", vec![pods, percent.clone()]);
    let down = behavior.child("scaleDown");
    down.fill("selectPolicy", "Max");
    down.fill("policies", vec![percent]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behavior_is_filled_where_there_is_one() {
        let mut object = json!({"apiVersion": "autoscaling/v2", "spec": {"behavior": {"scaleDown": {"selectPolicy": "Min"}}}});
        (HORIZONTAL_POD_AUTOSCALER.default)(&mut object);
        let behavior = &object["spec"]["behavior"];
        assert_eq!(behavior["scaleDown"]["selectPolicy"], "Min");
        assert_eq!(behavior["scaleUp"]["policies"].as_array().map(Vec::len), Some(2));
        assert_eq!(object["spec"]["minReplicas"], 1);
    }
}
