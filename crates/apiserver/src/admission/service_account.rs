//! ServiceAccount: every pod runs as one that exists, and finds its token, the cluster's CA and its namespace mounted.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use rand::Rng;
use serde_json::{Value, json};

use super::Scene;
use crate::authz::references;
use crate::read::{Read, object_mut};
use crate::{Operation, Status};

const MIRROR: &str = "kubernetes.io/config.mirror";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// The alphabet of generated names: no vowels, and nothing that looks like something else.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// The account `default` is made by a controller, a moment after its namespace.
const PATIENCE: u32 = 10;
const PAUSE: Duration = Duration::from_millis(150);

pub(super) fn admit<'a>(
    scene: Scene<'a>,
    pod: &'a mut Value,
    _: Option<&'a Value>,
) -> BoxFuture<'a, Result<(), Status>> {
    async move {
        // Mirror pods must stay as the kubelet wrote them.
        if !scene.is("", "pods") || scene.operation() != Operation::Create || pod.annotation(MIRROR).is_some()
        {
            return Ok(());
        }
        let name = match pod.text("spec.serviceAccountName") {
            "" => "default".to_owned(),
            name => name.to_owned(),
        };
        let account = find(scene, &name).await.ok_or_else(|| missing(&scene, pod, &name))?;
        let spec = object_mut(pod, "spec");
        spec.insert("serviceAccountName".into(), name.as_str().into());
        spec.insert("serviceAccount".into(), name.into());
        let automount = [&*pod, &*account]
            .iter()
            .zip(["spec.automountServiceAccountToken", "automountServiceAccountToken"])
            .find_map(|(object, path)| object.at(path).as_bool());
        if automount.unwrap_or(true) {
            mount(pod);
        }
        let secrets = account.items("imagePullSecrets");
        if pod.items("spec.imagePullSecrets").is_empty() && !secrets.is_empty() {
            let names: Vec<Value> = secrets.iter().map(|s| json!({"name": s.text("name")})).collect();
            object_mut(pod, "spec").insert("imagePullSecrets".into(), names.into());
        }
        Ok(())
    }
    .boxed()
}

pub(super) fn validate(scene: &Scene<'_>, pod: &Value, _: Option<&Value>) -> Result<(), Status> {
    let ephemeral = scene.is("", "pods/ephemeralcontainers") && scene.operation() == Operation::Update;
    if !(ephemeral || scene.is("", "pods") && scene.operation() == Operation::Create) {
        return Ok(());
    }
    let refuse = |why: String| scene.forbid(pod, why);
    let name = pod.text("spec.serviceAccountName");
    if !ephemeral && pod.annotation(MIRROR).is_some() {
        if !name.is_empty() {
            return Err(refuse("a mirror pod may not reference service accounts".to_owned()));
        }
        if references::secrets(pod).next().is_some() {
            return Err(refuse("a mirror pod may not reference secrets".to_owned()));
        }
        let volumes = pod.items("spec.volumes");
        if volumes.iter().flat_map(|v| v.items("projected.sources")).any(|s| s.has("serviceAccountToken")) {
            return Err(refuse("a mirror pod may not use ServiceAccountToken volume projections".to_owned()));
        }
        return Ok(());
    }
    if name.is_empty() {
        return Err(refuse(format!(
            "no service account specified for pod {}/{}",
            scene.namespace(),
            pod.name()
        )));
    }
    let account = scene
        .cluster
        .get("", "serviceaccounts", scene.namespace(), name)
        .ok_or_else(|| missing(scene, pod, name))?;
    let enforce = account.annotation("kubernetes.io/enforce-mountable-secrets");
    if matches!(enforce, Some("true" | "True" | "TRUE" | "t" | "T" | "1")) {
        limit_secrets(pod, &account, ephemeral).map_err(refuse)?;
    }
    Ok(())
}

async fn find(scene: Scene<'_>, name: &str) -> Option<Arc<Value>> {
    let tries = if name == "default" { PATIENCE } else { 1 };
    for attempt in 0..tries {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        if let Some(found) = scene.find("serviceaccounts", scene.namespace(), name).await {
            return Some(found);
        }
    }
    None
}

fn missing(scene: &Scene<'_>, pod: &Value, name: &str) -> Status {
    let namespace = scene.namespace();
    scene.forbid(
        pod,
        format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"),
    )
}

fn mount(pod: &mut Value) {
    let existing = pod.items("spec.volumes").iter().map(|v| v.text("name"));
    let existing = existing.filter(|name| name.starts_with(VOLUME_PREFIX)).map(str::to_owned).next();
    let volume = existing.clone().unwrap_or_else(|| {
        let mut rng = rand::rng();
        let suffix = (0..5).map(|_| char::from(SUFFIX[rng.random_range(0..SUFFIX.len())]));
        VOLUME_PREFIX.chars().chain(suffix).collect()
    });
    let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if container.items("volumeMounts").iter().any(|m| m.text("mountPath") == MOUNT_PATH) {
                continue;
            }
            let mut mounts = container.items("volumeMounts").to_vec();
            mounts.push(mount.clone());
            object_mut(container, "").insert("volumeMounts".into(), mounts.into());
            needed = true;
        }
    }
    if needed && existing.is_none() {
        let mut volumes = pod.items("spec.volumes").to_vec();
        volumes.push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{
                "path": "namespace",
                "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
            }]}},
        ]}}));
        object_mut(pod, "spec").insert("volumes".into(), volumes.into());
    }
}

/// For accounts that say so, a pod may use only the Secrets that its account lists.
fn limit_secrets(pod: &Value, account: &Value, ephemeral: bool) -> Result<(), String> {
    let who = account.name();
    let listed = |name: &str| account.items("secrets").iter().any(|s| s.text("name") == name);
    let rest = format!("is not allowed because service account {who} does not reference that secret");
    if !ephemeral {
        for volume in pod.items("spec.volumes").iter().filter(|v| v.has("secret")) {
            let name = volume.text("secret.secretName");
            if !listed(name) {
                return Err(format!("volume with secret.secretName=\"{name}\" {rest}"));
            }
        }
    }
    let lists: &[(&str, &str)] = if ephemeral {
        &[("ephemeralContainers", "ephemeral container")]
    } else {
        &[("initContainers", "init container"), ("containers", "container")]
    };
    for (list, kind) in lists {
        for container in pod.at("spec").items(list) {
            let own = container.text("name");
            for env in container.items("env").iter().filter(|e| e.has("valueFrom.secretKeyRef")) {
                let name = env.text("valueFrom.secretKeyRef.name");
                if !listed(name) {
                    return Err(format!(
                        "{kind} {own} with envVar {} referencing secret.secretName=\"{name}\" {rest}",
                        env.text("name")
                    ));
                }
            }
            for from in container.items("envFrom").iter().filter(|e| e.has("secretRef")) {
                let name = from.text("secretRef.name");
                if !listed(name) {
                    return Err(format!(
                        "{kind} {own} with envFrom referencing secret.secretName=\"{name}\" {rest}"
                    ));
                }
            }
        }
    }
    if !ephemeral {
        let pull = |name: &str| account.items("imagePullSecrets").iter().any(|s| s.text("name") == name);
        for (i, secret) in pod.items("spec.imagePullSecrets").iter().enumerate() {
            let name = secret.text("name");
            if !pull(name) {
                return Err(format!(
                    "imagePullSecrets[{i}].name=\"{name}\" is not allowed because service account {who} does not reference that imagePullSecret"
                ));
            }
        }
    }
    Ok(())
}
