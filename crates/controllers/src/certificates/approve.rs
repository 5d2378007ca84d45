//! Approves client certificates of kubelets, if the one who asks may have one: its own (`selfnodeclient`) or any
//! (`nodeclient`).

use std::sync::Arc;
use std::time::Duration;

use informer::{Informer, Key, Queue};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::Client;
use kube::api::{Api, PostParams};

use super::{KUBELET_CLIENT, check_kubelet_client, condition, has, is_issued, request, status_mut, usages};
use crate::kit::error::found;
use crate::kit::{Context, Result};

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let requests = context.informer::<CertificateSigningRequest>();
    let queue = Queue::new();
    let to = queue.clone();
    requests.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    let client = context.client.clone();
    let sync = move |key: Key| sync(client.clone(), requests.clone(), key);
    context.work("csrapproving", 2, queue, sync).await;
}

async fn sync(
    client: Client,
    requests: Arc<Informer<CertificateSigningRequest>>,
    key: Key,
) -> Result<Option<Duration>> {
    let Some(csr) = requests.get(&key) else { return Ok(None) };
    if is_issued(&csr) || has(&csr, "Approved") || has(&csr, "Denied") {
        return Ok(None);
    }
    if csr.spec.signer_name != KUBELET_CLIENT {
        return Ok(None);
    }
    let Ok(asked) = request(&csr) else { return Ok(None) };
    if check_kubelet_client(&asked, &usages(&csr)).is_err() {
        return Ok(None);
    }
    let own = csr.spec.username.as_deref() == Some(asked.common_name.as_str());
    let ways = [
        ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.", own),
        ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.", true),
    ];
    for (subresource, message, _) in ways.into_iter().filter(|(_, _, fits)| *fits) {
        if may(&client, &csr, subresource).await? {
            let mut approved = (*csr).clone();
            let list = status_mut(&mut approved).conditions.get_or_insert_default();
            list.push(condition("Approved", "AutoApproved", message.to_owned()));
            let api = Api::<CertificateSigningRequest>::all(client);
            found(api.replace_subresource("approval", &key.name, &PostParams::default(), &approved).await)?;
            return Ok(None);
        }
    }
    tracing::debug!(
        name = key.name,
        "a kubelet's certificate was asked for by somebody who may not have one"
    );
    Ok(None)
}

async fn may(client: &Client, csr: &CertificateSigningRequest, subresource: &str) -> Result<bool> {
    let own = |text: &str| Some(text.to_owned());
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: csr.spec.username.clone(),
            uid: csr.spec.uid.clone(),
            groups: csr.spec.groups.clone(),
            extra: csr.spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: own("certificates.k8s.io"),
                resource: own("certificatesigningrequests"),
                verb: own("create"),
                subresource: own(subresource),
                version: own("*"),
                ..Default::default()
            }),
            ..Default::default()
        },
        ..Default::default()
    };
    let api = Api::<SubjectAccessReview>::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
