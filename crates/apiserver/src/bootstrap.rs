//! The objects that every cluster has: made when they are missing, and brought up to date at each start unless their
//! owner has switched that off (upstream: `pkg/registry/rbac/rest`, `flowcontrol/rest`, `scheduling/rest`).

use futures::future::join_all;
use serde_json::{Value, json};

use crate::authz::Rule;
use crate::features::Features;
use crate::read::{Read, object_mut};
use crate::{ClusterRef, Status};

const RBAC_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const FLOW_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// How an object that exists is brought up to date: the new object, if it must change.
type Reconcile = fn(&Value, &Value) -> Option<Value>;

struct Kind {
    /// The key in the data.
    list: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    kind: &'static str,
    reconcile: Reconcile,
}

const KINDS: [Kind; 8] = [
    kind("namespaces", "", "v1", "namespaces", "Namespace", keep),
    kind("priorityclasses", "scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", keep),
    kind("clusterroles", RBAC, "v1", "clusterroles", "ClusterRole", role),
    kind("clusterrolebindings", RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", binding),
    kind("roles", RBAC, "v1", "roles", "Role", role),
    kind("rolebindings", RBAC, "v1", "rolebindings", "RoleBinding", binding),
    kind("prioritylevels", FLOW, "v1", "prioritylevelconfigurations", "PriorityLevelConfiguration", flow),
    kind("flowschemas", FLOW, "v1", "flowschemas", "FlowSchema", flow),
];
const RBAC: &str = "rbac.authorization.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";

const fn kind(
    list: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    kind: &'static str,
    reconcile: Reconcile,
) -> Kind {
    Kind { list, group, version, resource, kind, reconcile }
}

/// The built-in objects, parsed.
fn objects() -> Value {
    serde_json::from_str(api::bootstrap()).expect("the built-in data is JSON, a test parses it")
}

/// What every node may do: the rules of the role `system:node`.
pub fn node_rules() -> Vec<Rule> {
    let objects = objects();
    let roles = objects.items("clusterroles");
    roles.iter().find(|role| role.name() == "system:node").map(Rule::list).unwrap_or_default()
}

/// Keeps the objects of priority and fairness: those that are missing come back, those whose owner lets them be updated are.
pub async fn ensure_flow_control(cluster: &ClusterRef) -> Result<(), Status> {
    ensure_flow(cluster, |_| true).await
}

/// Keeps the objects without which priority and fairness cannot work.
pub async fn ensure_mandatory_flow_control(cluster: &ClusterRef) -> Result<(), Status> {
    ensure_flow(cluster, mandatory).await
}

async fn ensure_flow(cluster: &ClusterRef, which: fn(&str) -> bool) -> Result<(), Status> {
    let objects = objects();
    let kinds = KINDS.iter().filter(|kind| kind.group == FLOW);
    let wanted = kinds.flat_map(|kind| objects.items(kind.list).iter().map(move |object| (kind, object)));
    let wanted = wanted.filter(|(_, object)| which(object.name()));
    join_all(wanted.map(|(kind, object)| apply(cluster, kind, whole(kind, object))))
        .await
        .into_iter()
        .collect()
}

/// Whether nobody may change the spec of this schema or level.
fn mandatory(name: &str) -> bool {
    matches!(name, "exempt" | "catch-all")
}

/// Makes and updates the built-in objects, and the ConfigMaps that tell others whom to trust. Writes go out at once and
/// share the store's commits.
pub async fn ensure(
    cluster: &ClusterRef,
    pki: &pki::ClusterPki,
    server: &str,
    features: Features,
) -> Result<(), Status> {
    let objects = objects();
    let mut writes = Vec::new();
    for objects in std::iter::once(&objects).chain(features.gated().map(|gated| &gated.bootstrap)) {
        for kind in &KINDS {
            let list = objects.items(kind.list).iter();
            writes.extend(list.map(|object| apply(cluster, kind, whole(kind, object))));
        }
    }
    for map in config_maps(pki, server) {
        const MAPS: Kind = kind("", "", "v1", "configmaps", "ConfigMap", data);
        writes.push(apply(cluster, &MAPS, map));
    }
    const NOTES: Kind = kind("", "", "v1", "configmaps", "ConfigMap", keep);
    writes.push(apply(cluster, &NOTES, tracking()));
    join_all(writes).await.into_iter().collect()
}

/// An object of the data with its kind.
fn whole(kind: &Kind, object: &Value) -> Value {
    let api_version = match kind.group {
        "" => kind.version.to_owned(),
        group => format!("{group}/{}", kind.version),
    };
    let mut wanted = json!({"apiVersion": api_version, "kind": kind.kind});
    for (key, value) in object.as_object().into_iter().flatten() {
        wanted[key] = value.clone();
    }
    wanted
}

async fn apply(cluster: &ClusterRef, kind: &Kind, wanted: Value) -> Result<(), Status> {
    let namespace = wanted.namespace().to_owned();
    let (group, version, resource) = (kind.group, kind.version, kind.resource);
    let done = match cluster.get(group, resource, &namespace, wanted.name()) {
        None => cluster.create(group, version, resource, &namespace, wanted).await,
        Some(existing) => match (kind.reconcile)(&existing, &wanted) {
            None => return Ok(()),
            // What a binding refers to cannot be changed in place.
            Some(new) if new.get("roleRef") != existing.get("roleRef") => {
                cluster.delete(group, version, resource, &namespace, wanted.name()).await?;
                cluster.create(group, version, resource, &namespace, wanted).await
            }
            Some(new) => cluster.update(group, version, resource, &namespace, new).await,
        },
    };
    match done {
        Ok(_) => Ok(()),
        // Another server was quicker.
        Err(status) if matches!(status.reason(), "AlreadyExists" | "Conflict") => Ok(()),
        Err(status) => Err(status),
    }
}

fn keep(_: &Value, _: &Value) -> Option<Value> {
    None
}

/// Adds the labels and annotations that are missing, and says whether there were such.
fn merge_metadata(new: &mut Value, wanted: &Value) {
    for part in ["labels", "annotations"] {
        for (key, value) in wanted.at("metadata").at(part).as_object().into_iter().flatten() {
            let own = object_mut(new, &format!("metadata.{part}"));
            own.entry(key).or_insert_with(|| value.clone());
        }
    }
}

/// Adds rules that the role does not cover; rules that others added stay.
fn role(existing: &Value, wanted: &Value) -> Option<Value> {
    if existing.annotation(RBAC_UPDATE) != Some("true") {
        return None;
    }
    let mut new = existing.clone();
    merge_metadata(&mut new, wanted);
    // The rules of an aggregated role belong to the controller that collects them.
    if !wanted.has("aggregationRule") {
        let own = Rule::list(existing);
        let missing = wanted.items("rules").iter().filter(|rule| !Rule::from_value(rule).covered_by(&own));
        let mut rules = existing.items("rules").to_vec();
        rules.extend(missing.cloned());
        if rules.len() > existing.items("rules").len() {
            new["rules"] = rules.into();
        }
    }
    for selector in wanted.items("aggregationRule.clusterRoleSelectors") {
        if !existing.items("aggregationRule.clusterRoleSelectors").contains(selector) {
            let mut selectors = new.items("aggregationRule.clusterRoleSelectors").to_vec();
            selectors.push(selector.clone());
            object_mut(&mut new, "aggregationRule").insert("clusterRoleSelectors".into(), selectors.into());
        }
    }
    (new != *existing).then_some(new)
}

/// Adds missing subjects; another role makes it another binding.
fn binding(existing: &Value, wanted: &Value) -> Option<Value> {
    if existing.annotation(RBAC_UPDATE) != Some("true") {
        return None;
    }
    let mut new = existing.clone();
    merge_metadata(&mut new, wanted);
    new["roleRef"] = wanted["roleRef"].clone();
    let mut subjects = existing.items("subjects").to_vec();
    for subject in wanted.items("subjects") {
        if !subjects.contains(subject) {
            subjects.push(subject.clone());
        }
    }
    if subjects.len() > existing.items("subjects").len() {
        new["subjects"] = subjects.into();
    }
    (new != *existing).then_some(new)
}

/// Restores the spec while the object says that it may be; that of a mandatory object always, and that it says so.
fn flow(existing: &Value, wanted: &Value) -> Option<Value> {
    let (own, mandatory) = (existing.annotation(FLOW_UPDATE) == Some("true"), mandatory(wanted.name()));
    let mut wanted = wanted.clone();
    // How many seats exempt requests lend is for the owner to say.
    if existing.at("spec").at("exempt").is_object() && wanted.at("spec").at("exempt").is_object() {
        wanted["spec"]["exempt"] = existing["spec"]["exempt"].clone();
    }
    let same = covers(existing.at("spec"), wanted.at("spec"));
    let change = if mandatory { !(same && own) } else { own && !same };
    if !change {
        return None;
    }
    let mut new = existing.clone();
    if !same {
        new["spec"] = wanted["spec"].clone();
    }
    if mandatory {
        object_mut(&mut new, "metadata.annotations").insert(FLOW_UPDATE.to_owned(), "true".into());
    }
    Some(new)
}

/// Whether `have` says everything that `want` says (defaults that were filled in do not count).
fn covers(have: &Value, want: &Value) -> bool {
    match (have, want) {
        (Value::Object(have), Value::Object(want)) => {
            want.iter().all(|(key, value)| have.get(key).is_some_and(|h| covers(h, value)))
        }
        (Value::Array(have), Value::Array(want)) => {
            have.len() == want.len() && have.iter().zip(want).all(|(h, w)| covers(h, w))
        }
        _ => have == want,
    }
}

fn data(existing: &Value, wanted: &Value) -> Option<Value> {
    let mut new = existing.clone();
    for (key, value) in wanted.at("data").as_object().into_iter().flatten() {
        object_mut(&mut new, "data").insert(key.clone(), value.clone());
    }
    (new != *existing).then_some(new)
}

/// Since when the use of tokens out of Secrets is told on them: whoever cleans them up must know.
fn tracking() -> Value {
    let today = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kube-apiserver-legacy-service-account-token-tracking", "namespace": "kube-system"},
        "data": {"since": today},
    })
}

fn config_maps(pki: &pki::ClusterPki, server: &str) -> Vec<Value> {
    let map = |namespace: &str, name: &str, data: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": namespace},
            "data": data,
        })
    };
    vec![map(
        "kube-public",
        "cluster-info",
        json!({"kubeconfig": pki::cluster_info(server, &pki.ca.cert_pem())}),
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(list: &str, name: &str) -> Value {
        let objects = objects();
        objects.items(list).iter().find(|o| o.name() == name).expect("built in").clone()
    }

    #[test]
    fn the_data_holds_every_list() {
        let objects = objects();
        for kind in &KINDS {
            assert!(!objects.items(kind.list).is_empty(), "{}", kind.list);
        }
        assert!(node_rules().len() > 20);
    }

    #[test]
    fn a_role_gets_back_what_it_lost_and_keeps_what_it_gained() {
        let wanted = expected("clusterroles", "system:basic-user");
        assert_eq!(role(&wanted, &wanted), None);
        let mut existing = wanted.clone();
        let extra = json!({"apiGroups": ["x"], "resources": ["y"], "verbs": ["get"]});
        existing["rules"] = json!([extra]);
        let new = role(&existing, &wanted).expect("changed");
        assert_eq!(new["rules"][0], extra);
        assert_eq!(new.items("rules").len(), 1 + wanted.items("rules").len());
        existing["metadata"]["annotations"][RBAC_UPDATE] = "false".into();
        assert_eq!(role(&existing, &wanted), None);
    }

    #[test]
    fn a_binding_gets_back_its_subjects_and_role() {
        let wanted = expected("clusterrolebindings", "cluster-admin");
        let mut existing = wanted.clone();
        existing["subjects"] = json!([{"kind": "User", "name": "u"}]);
        let new = binding(&existing, &wanted).expect("changed");
        assert_eq!(new.items("subjects").len(), 2);
        existing["roleRef"]["name"] = "view".into();
        assert_eq!(binding(&existing, &wanted).expect("changed")["roleRef"], wanted["roleRef"]);
    }

    #[test]
    fn a_flow_schema_is_restored_while_it_says_so() {
        let wanted = expected("flowschemas", "exempt");
        let mut existing = wanted.clone();
        existing["spec"]["defaulted"] = true.into();
        assert_eq!(flow(&existing, &wanted), None, "defaults are no difference");
        existing["spec"]["matchingPrecedence"] = 77.into();
        assert_eq!(flow(&existing, &wanted).expect("changed")["spec"], wanted["spec"]);
        existing["metadata"]["annotations"][FLOW_UPDATE] = "false".into();
        let back = flow(&existing, &wanted).expect("it is mandatory");
        assert_eq!(back["spec"], wanted["spec"]);
        assert_eq!(back.annotation(FLOW_UPDATE), Some("true"));
        let wanted = expected("flowschemas", "probes");
        let mut existing = wanted.clone();
        existing["spec"]["matchingPrecedence"] = 77.into();
        existing["metadata"]["annotations"][FLOW_UPDATE] = "false".into();
        assert_eq!(flow(&existing, &wanted), None, "its owner has taken it over");
    }
}
