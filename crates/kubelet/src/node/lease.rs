//! The node's Lease: a small heartbeat by which the control plane knows that the node lives.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;

use crate::context::Shared;

const NAMESPACE: &str = "kube-node-lease";
const RETRY: Duration = Duration::from_millis(500);

/// Renews the Lease for ever.
pub(super) async fn run(context: Shared, node: watch::Receiver<Option<Arc<Node>>>) {
    let leases: Api<Lease> = Api::namespaced(context.config.client.clone(), NAMESPACE);
    let name = &context.config.node_name;
    let seconds = context.config.settings.node_lease_duration_seconds;
    // A quarter, as upstream has it.
    let renewal_every = Duration::from_secs(u64::try_from(seconds).unwrap_or(40)) / 4;
    loop {
        let now = MicroTime(Timestamp::now());
        let renewal =
            json!({"spec": {"renewTime": now, "holderIdentity": name, "leaseDurationSeconds": seconds}});
        let result = match leases.patch(name, &PatchParams::default(), &Patch::Merge(&renewal)).await {
            Err(kube::Error::Api(answer)) if answer.code == 404 => {
                let uid = node.borrow().as_ref().and_then(|node| node.metadata.uid.clone());
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        namespace: Some(NAMESPACE.to_owned()),
                        owner_references: uid.map(|uid| {
                            vec![OwnerReference {
                                api_version: "v1".to_owned(),
                                kind: "Node".to_owned(),
                                name: name.clone(),
                                uid,
                                ..OwnerReference::default()
                            }]
                        }),
                        ..ObjectMeta::default()
                    },
                    spec: Some(LeaseSpec {
                        holder_identity: Some(name.clone()),
                        lease_duration_seconds: Some(seconds),
                        renew_time: Some(now),
                        ..LeaseSpec::default()
                    }),
                };
                leases.create(&PostParams::default(), &lease).await.map(|_| ())
            }
            other => other.map(|_| ()),
        };
        let pause = match result {
            Ok(()) => renewal_every,
            Err(error) => {
                tracing::debug!(%error, "cannot renew the node's lease");
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}
