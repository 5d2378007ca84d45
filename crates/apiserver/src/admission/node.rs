//! NodeRestriction: a kubelet writes only what is its own: its Node (but not its taints or the labels that others rely on),
//! its lease, the status of its pods, mirror pods, and tokens for the pods that run on it.

use futures::future::{BoxFuture, FutureExt, ready};
use serde_json::Value;

use super::Scene;
use crate::authz::{node_name, references};
use crate::read::Read;
use crate::{Attributes, Operation, Status};

const MIRROR: &str = "kubernetes.io/config.mirror";

/// The labels of Kubernetes that a node may set on itself, and the label domains that are its own.
const OWN_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
const RESTRICTED_DOMAIN: &str = "node-restriction.kubernetes.io";

pub(super) fn admit<'a>(
    scene: Scene<'a>,
    object: &'a mut Value,
    old: Option<&'a Value>,
) -> BoxFuture<'a, Result<(), Status>> {
    match node_name(&scene.request.attributes.user) {
        None => ready(Ok(())).boxed(),
        Some(node) => async move { judge(&scene, node, object, old).await }.boxed(),
    }
}

async fn judge(scene: &Scene<'_>, node: &str, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let attributes = scene.request.attributes;
    if node.is_empty() {
        let why = format!("could not determine node from user {:?}", attributes.user.name);
        return Err(scene.forbid(object, why));
    }
    let refusal = match (attributes.group.as_str(), attributes.resource.as_str()) {
        ("", "pods") => return pods(scene, node, object, old),
        ("", "nodes") => own_node(scene, node, object, old),
        ("", "persistentvolumeclaims") => claim_status(scene, node, object, old),
        ("", "serviceaccounts") => return token(scene, node, object).await,
        ("certificates.k8s.io", "podcertificaterequests") => {
            Some("PodCertificateRequest feature gate is disabled".to_owned())
        }
        ("certificates.k8s.io", "certificatesigningrequests") => signing_request(scene, node, object),
        ("coordination.k8s.io", "leases") if attributes.namespace != "kube-node-lease" => {
            Some("can only access leases in the \"kube-node-lease\" system namespace".to_owned())
        }
        ("coordination.k8s.io", "leases") => own_name(scene, node, object, "node lease"),
        ("storage.k8s.io", "csinodes") => own_name(scene, node, object, "CSINode"),
        ("resource.k8s.io", "resourceslices") => slice(scene, node, object, old),
        _ => None,
    };
    refusal.map_or(Ok(()), |why| Err(scene.forbid(object, why)))
}

fn own_name(scene: &Scene<'_>, node: &str, object: &Value, what: &str) -> Option<String> {
    let name = match scene.operation() {
        Operation::Create => object.name(),
        _ => scene.request.attributes.name.as_str(),
    };
    (name != node).then(|| format!("can only access {what} with the same name as the requesting node"))
}

fn slice(scene: &Scene<'_>, node: &str, object: &Value, old: Option<&Value>) -> Option<String> {
    let (subject, verb) = match scene.operation() {
        Operation::Create => (object, "create"),
        Operation::Delete => (old?, "delete"),
        _ => return None,
    };
    (subject.text("spec.nodeName") != node)
        .then(|| format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"))
}

fn signing_request(scene: &Scene<'_>, node: &str, object: &Value) -> Option<String> {
    let signers = ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"];
    if scene.operation() != Operation::Create || !signers.contains(&object.text("spec.signerName")) {
        return None;
    }
    match super::certificates::parse(object) {
        Err(why) => Some(format!("unable to parse csr: {why}")),
        Ok(request) if request.common_name != format!("system:node:{node}") => {
            Some(format!("can only create a node CSR with CN=system:node:{node}"))
        }
        Ok(_) => None,
    }
}

fn pods(scene: &Scene<'_>, node: &str, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let attributes = scene.request.attributes;
    let refuse = |why: String| Err(scene.forbid(object, why));
    let operation = scene.operation();
    match (attributes.subresource.as_str(), operation) {
        ("", Operation::Create) => mirror_pod(scene, node, object),
        ("", Operation::Delete) => {
            // The pod that is there, not a name that the request invents.
            let name = attributes.name.as_str();
            let pod = scene.cluster.get("", "pods", scene.namespace(), name);
            let pod = pod.ok_or_else(|| Status::not_found("", "pods", name))?;
            if pod.text("spec.nodeName") == node {
                return Ok(());
            }
            refuse(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        ("", _) => refuse(format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            operation.name()
        )),
        ("status", Operation::Update) => {
            let old = old.unwrap_or(&Value::Null);
            if old.text("spec.nodeName") != node {
                return refuse(format!(
                    "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                ));
            }
            if differs(old, object, "metadata.labels") {
                return refuse(format!("node {node:?} cannot update labels through pod status"));
            }
            if differs(old, object, "status.resourceClaimStatuses") {
                return refuse(format!("node {node:?} cannot update resource claim statues"));
            }
            if differs(old, object, "status.extendedResourceClaimStatus") {
                return refuse(format!("node {node:?} cannot update extended resource claim status"));
            }
            Ok(())
        }
        ("eviction", Operation::Create) => {
            let name = match attributes.name.as_str() {
                "" => object.name(),
                name => name,
            };
            if name.is_empty() {
                return refuse("could not determine pod from request data".to_owned());
            }
            let pod = scene.cluster.get("", "pods", scene.namespace(), name);
            let pod = pod.ok_or_else(|| Status::not_found("", "pods", name))?;
            if pod.text("spec.nodeName") == node {
                return Ok(());
            }
            refuse(format!("node {node} can only evict pods with spec.nodeName set to itself"))
        }
        ("status" | "eviction", _) => refuse(format!("unexpected operation {:?}", operation.name())),
        (other, _) => {
            refuse(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
        }
    }
}

/// Whether two objects differ at a path; null, absent and empty are the same.
fn differs(a: &Value, b: &Value, path: &str) -> bool {
    let empty = |v: &Value| {
        v.is_null() || v.as_array().is_some_and(Vec::is_empty) || v.as_object().is_some_and(|o| o.is_empty())
    };
    let (a, b) = (a.at(path), b.at(path));
    a != b && !(empty(a) && empty(b))
}

fn mirror_pod(scene: &Scene<'_>, node: &str, pod: &Value) -> Result<(), Status> {
    let refuse = |why: String| Err(scene.forbid(pod, why));
    if pod.annotation(MIRROR).is_none() {
        return refuse(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if pod.text("spec.nodeName") != node {
        return refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let [owner] = pod.items("metadata.ownerReferences") else {
        let how = if pod.items("metadata.ownerReferences").is_empty() { "an" } else { "a single" };
        return refuse(format!(
            "node {node:?} can only create pods with {how} owner reference set to itself"
        ));
    };
    if owner.text("apiVersion") != "v1" || owner.text("kind") != "Node" || owner.text("name") != node {
        return refuse(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if owner.at("controller").as_bool() != Some(true) {
        return refuse(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if owner.at("blockOwnerDeletion").as_bool() == Some(true) {
        return refuse(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let own = scene.cluster.get("", "nodes", "", node).ok_or_else(|| Status::not_found("", "nodes", node))?;
    if owner.text("uid") != own.uid() {
        return refuse(format!("node {node} UID mismatch: expected {} got {}", owner.text("uid"), own.uid()));
    }
    match api_reference(pod) {
        Some(what) => refuse(format!("node {node:?} can not create pods that reference {what}")),
        None => Ok(()),
    }
}

/// What object of the API a pod refers to, if any.
fn api_reference(pod: &Value) -> Option<&'static str> {
    if !pod.text("spec.serviceAccountName").is_empty() {
        return Some("serviceaccounts");
    }
    if references::secrets(pod).next().is_some() {
        return Some("secrets");
    }
    if references::config_maps(pod).next().is_some() {
        return Some("configmaps");
    }
    if !pod.items("spec.resourceClaims").is_empty() {
        return Some("resourceclaims");
    }
    const SOURCES: [(&str, &str); 11] = [
        ("configMap", "configmaps (via configmap volumes)"),
        ("secret", "secrets (via secret volumes)"),
        ("csi", "csidrivers (via CSI volumes)"),
        ("glusterfs", "endpoints (via glusterFS volumes)"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
        ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
        ("azureFile", "secrets (via azureFile volumes)"),
        ("projected.configMap", "configmaps (via projected volumes)"),
        ("projected.secret", "secrets (via projected volumes)"),
        ("projected.serviceAccountToken", "serviceaccounts (via projected volumes)"),
        ("projected.clusterTrustBundle", "clustertrustbundles"),
    ];
    for volume in pod.items("spec.volumes") {
        for (source, what) in SOURCES {
            let there = match source.split_once('.') {
                None => volume.has(source),
                Some((_, kind)) => volume.items("projected.sources").iter().any(|s| s.has(kind)),
            };
            if there {
                return Some(what);
            }
        }
        if volume.items("projected.sources").iter().any(|s| s.has("podCertificate")) {
            return Some("podcertificates");
        }
    }
    None
}

fn claim_status(scene: &Scene<'_>, node: &str, object: &Value, old: Option<&Value>) -> Option<String> {
    if scene.request.attributes.subresource != "status" {
        return Some("may only update PVC status".to_owned());
    }
    if scene.operation() != Operation::Update {
        return Some(format!("unexpected operation {:?}", scene.operation().name()));
    }
    let rest = |claim: &Value| {
        let mut copy = claim.clone();
        let mut drop = |part: &str, keys: &[&str]| {
            if let Some(map) = copy.get_mut(part).and_then(Value::as_object_mut) {
                keys.iter().for_each(|key| drop_key(map, key));
            }
        };
        drop("metadata", &["resourceVersion", "managedFields"]);
        drop("status", &["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"]);
        copy
    };
    (old.map(rest) != Some(rest(object))).then(|| {
        format!(
            "node {node:?} is not allowed to update fields other than status.quantity and status.conditions"
        )
    })
}

fn drop_key(map: &mut serde_json::Map<String, Value>, key: &str) {
    map.remove(key);
}

fn own_node(scene: &Scene<'_>, node: &str, object: &Value, old: Option<&Value>) -> Option<String> {
    let name = match scene.request.attributes.name.as_str() {
        "" => object.name(),
        name => name,
    };
    if name != node {
        return Some(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    match scene.operation() {
        Operation::Create => {
            if object.has("spec.configSource") {
                return Some(format!(
                    "node {node:?} is not allowed to create pods with a non-nil configSource"
                ));
            }
            let labels = forbidden_labels(object, &Value::Null);
            (!labels.is_empty()).then(|| {
                format!("node {node:?} is not allowed to set the following labels: {}", labels.join(", "))
            })
        }
        Operation::Update => {
            let old = old.unwrap_or(&Value::Null);
            if object.has("spec.configSource") && differs(old, object, "spec.configSource") {
                return Some(format!(
                    "node {node:?} is not allowed to update configSource to a new non-nil configSource"
                ));
            }
            if differs(old, object, "spec.taints") {
                return Some(format!("node {node:?} is not allowed to modify taints"));
            }
            if differs(old, object, "metadata.ownerReferences") {
                return Some(format!("node {node:?} is not allowed to modify ownerReferences"));
            }
            let labels = forbidden_labels(object, old);
            (!labels.is_empty()).then(|| format!("is not allowed to modify labels: {}", labels.join(", ")))
        }
        _ => None,
    }
}

/// The labels that changed and are not the node's to change, sorted.
fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    let keys = |object: &Value| -> Vec<String> {
        object.at("metadata.labels").as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect()
    };
    let mut all = [keys(new), keys(old)].concat();
    all.sort();
    all.dedup();
    all.retain(|key| new.label(key) != old.label(key) && !is_own_label(key));
    all
}

fn is_own_label(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let under = |parent: &str| {
        domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
    };
    if under(RESTRICTED_DOMAIN) {
        return false;
    }
    let of_kubernetes = under("kubernetes.io") || under("k8s.io");
    !of_kubernetes || OWN_LABELS.contains(&key) || OWN_DOMAINS.iter().any(|d| under(d))
}

async fn token(scene: &Scene<'_>, node: &str, object: &Value) -> Result<(), Status> {
    let attributes = scene.request.attributes;
    if scene.operation() != Operation::Create || attributes.subresource != "token" {
        return Ok(());
    }
    let refuse = |why: String| Err(scene.forbid(object, why));
    let reference = object.at("spec.boundObjectRef");
    let name = reference.text("name");
    if reference.text("apiVersion") != "v1" || reference.text("kind") != "Pod" || name.is_empty() {
        return refuse("node requested token not bound to a pod".to_owned());
    }
    let uid = reference.text("uid");
    if uid.is_empty() {
        return refuse("node requested token with a pod binding without a uid".to_owned());
    }
    let pod = scene.cluster.get("", "pods", scene.namespace(), name);
    let pod = pod.ok_or_else(|| Status::not_found("", "pods", name))?;
    if uid != pod.uid() {
        return refuse(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        ));
    }
    if pod.text("spec.nodeName") != node {
        return refuse("node requested token bound to a pod scheduled on a different node".to_owned());
    }
    let audience = match object.items("spec.audiences") {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return refuse("node may only request 0 or 1 audiences".to_owned()),
    };
    if uses_audience(scene, &pod, audience) {
        return Ok(());
    }
    let request = Attributes {
        user: attributes.user.clone(),
        verb: "request-serviceaccounts-token-audience".to_owned(),
        version: "v1".to_owned(),
        resource: audience.to_owned(),
        namespace: attributes.namespace.clone(),
        name: attributes.name.clone(),
        resource_request: true,
        ..Attributes::default()
    };
    if scene.authorizer.all(&request).await.allowed() {
        return Ok(());
    }
    refuse(format!(
        "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
        attributes.user.name
    ))
}

/// Whether a volume of the pod needs a token for the audience: projected, or by its CSI driver.
fn uses_audience(scene: &Scene<'_>, pod: &Value, audience: &str) -> bool {
    let cluster = scene.cluster;
    pod.items("spec.volumes").iter().any(|volume| {
        let projected = volume.items("projected.sources").iter();
        let mut tokens = projected.filter(|s| s.has("serviceAccountToken"));
        if tokens.any(|s| s.text("serviceAccountToken.audience") == audience) {
            return true;
        }
        let claim = match volume.text("persistentVolumeClaim.claimName") {
            "" if volume.has("ephemeral") => format!("{}-{}", pod.name(), volume.text("name")),
            name => name.to_owned(),
        };
        let driver = if claim.is_empty() {
            volume.text("csi.driver").to_owned()
        } else {
            let claim = cluster.get("", "persistentvolumeclaims", pod.namespace(), &claim);
            let volume = claim
                .and_then(|claim| cluster.get("", "persistentvolumes", "", claim.text("spec.volumeName")));
            volume.map(|v| v.text("spec.csi.driver").to_owned()).unwrap_or_default()
        };
        !driver.is_empty()
            && cluster.get("storage.k8s.io", "csidrivers", "", &driver).is_some_and(|driver| {
                driver.items("spec.tokenRequests").iter().any(|t| t.text("audience") == audience)
            })
    })
}
