//! The objects that a cluster of ours starts with beyond those of every API server: what cluster DNS and the
//! node's own storage need.

use anyhow::Context;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Makes what is not there; what is there stays as its owner left it.
pub async fn ensure(client: Client, addresses: &[&str]) -> anyhow::Result<()> {
    let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true"});
    let service = json!({
        "metadata": {"name": "kube-dns", "labels": labels},
        "spec": {
            "clusterIP": addresses.first(),
            "clusterIPs": addresses,
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ],
        },
    });
    let account = json!({"metadata": {"name": "kube-dns"}});
    let role = json!({
        "metadata": {"name": "system:coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    });
    let binding = json!({
        "metadata": {"name": "system:coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
        "subjects": [{"kind": "ServiceAccount", "name": "kube-dns", "namespace": "kube-system"}],
    });
    let local = json!({
        "metadata": {
            "name": "local",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": provisioner::PROVISIONER,
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
        "allowVolumeExpansion": true,
    });
    let keeper = "system:local-provisioner";
    let keeper_account = json!({"metadata": {"name": "local-provisioner"}});
    let keeper_role = json!({
        "metadata": {"name": keeper},
        "rules": [
            {"apiGroups": [""], "resources": ["persistentvolumes"],
                "verbs": ["get", "list", "watch", "create", "patch", "delete"]},
            {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["persistentvolumeclaims/status"], "verbs": ["patch"]},
            {"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]},
        ],
    });
    let keeper_binding = json!({
        "metadata": {"name": keeper},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": keeper},
        "subjects": [{"kind": "ServiceAccount", "name": "local-provisioner", "namespace": "kube-system"}],
    });
    tokio::try_join!(
        create::<StorageClass>(Api::all(client.clone()), local),
        create::<ClusterRole>(Api::all(client.clone()), keeper_role),
        create::<ClusterRoleBinding>(Api::all(client.clone()), keeper_binding),
        create::<ServiceAccount>(Api::namespaced(client.clone(), "kube-system"), keeper_account),
        create::<ClusterRole>(Api::all(client.clone()), role),
        create::<ClusterRoleBinding>(Api::all(client.clone()), binding),
        create::<ServiceAccount>(Api::namespaced(client.clone(), "kube-system"), account),
        create::<Service>(Api::namespaced(client, "kube-system"), service),
    )?;
    Ok(())
}

async fn create<K>(api: Api<K>, object: Value) -> anyhow::Result<()>
where
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    // Asked first: creating a Service anew fails for its address before it fails for its name.
    if api.get_metadata_opt(&name).await.with_context(|| format!("looking for {name}"))?.is_some() {
        return Ok(());
    }
    let object: K = serde_json::from_value(object).context("an object that the cluster starts with")?;
    api.create(&Default::default(), &object).await.with_context(|| format!("making {name}"))?;
    Ok(())
}
