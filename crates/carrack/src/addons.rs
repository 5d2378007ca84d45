//! The objects that a cluster of ours starts with beyond those of every API server: what cluster DNS needs.

use anyhow::Context;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
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
    tokio::try_join!(
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
    let object: K = serde_json::from_value(object).context("an object of cluster DNS")?;
    api.create(&Default::default(), &object)
        .await
        .with_context(|| format!("making {name} for cluster DNS"))?;
    Ok(())
}
