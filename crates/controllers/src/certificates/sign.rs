//! The signers of `kubernetes.io`: what was approved is signed with the cluster's authority, if it is what the signer is
//! for; otherwise the request fails for good.

use std::sync::Arc;
use std::time::Duration;

use informer::{Informer, Key, Queue};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::Client;
use kube::api::{Api, PostParams};

use super::{
    CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY, check_client, check_kubelet_client,
    check_kubelet_serving, condition, has, is_issued, request, status_mut, usages,
};
use crate::kit::error::found;
use crate::kit::{Context, Result};

/// Certificates live no longer than this unless another duration is configured.
const LONGEST: i64 = 365 * 24 * 3600;
/// What a request asks for is raised to this; the configured duration may be shorter.
const SHORTEST: i64 = 600;

/// The life of a certificate in seconds: what the request asks for, within bounds.
fn seconds(asked: Option<i32>, longest: i64) -> i64 {
    asked.map_or(longest, |asked| i64::from(asked).max(SHORTEST).min(longest))
}

/// Runs the controller; without an authority it does nothing.
pub(crate) async fn run(context: Context) {
    let Some(authority) = context.config.signing.clone() else { return };
    let longest = context.config.signing_duration.map(|duration| duration.as_secs());
    let longest = longest.and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(LONGEST);
    let requests = context.informer::<CertificateSigningRequest>();
    let queue = Queue::new();
    let to = queue.clone();
    requests.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    let client = context.client.clone();
    let sync = move |key: Key| sync(client.clone(), requests.clone(), authority.clone(), longest, key);
    context.work("csrsigning", 4, queue, sync).await;
}

/// Whether the request is for its signer; `None` for the signers of others.
fn check(csr: &CertificateSigningRequest, asked: &pki::Request) -> Option<std::result::Result<(), String>> {
    let usages = usages(csr);
    Some(match csr.spec.signer_name.as_str() {
        CLIENT => check_client(&usages),
        KUBELET_CLIENT => check_kubelet_client(asked, &usages),
        KUBELET_SERVING => check_kubelet_serving(asked, &usages),
        LEGACY => Ok(()),
        _ => return None,
    })
}

async fn sync(
    client: Client,
    requests: Arc<Informer<CertificateSigningRequest>>,
    authority: Arc<pki::Authority>,
    longest: i64,
    key: Key,
) -> Result<Option<Duration>> {
    let Some(csr) = requests.get(&key) else { return Ok(None) };
    if !has(&csr, "Approved") || has(&csr, "Denied") || has(&csr, "Failed") || is_issued(&csr) {
        return Ok(None);
    }
    let Ok(asked) = request(&csr) else { return Ok(None) };
    let mut signed = (*csr).clone();
    match check(&csr, &asked) {
        None => return Ok(None),
        Some(Err(why)) => {
            let list = status_mut(&mut signed).conditions.get_or_insert_default();
            list.push(condition("Failed", "SignerValidationFailure", why));
        }
        Some(Ok(())) => {
            let seconds = seconds(csr.spec.expiration_seconds, longest);
            let wanted: Vec<&str> = csr.spec.usages.iter().flatten().map(String::as_str).collect();
            match authority.sign(&asked, &wanted, seconds) {
                Ok(pem) => status_mut(&mut signed).certificate = Some(ByteString(pem.into_bytes())),
                Err(error) => {
                    tracing::warn!(name = key.name, %error, "a certificate could not be signed");
                    return Ok(None);
                }
            }
        }
    }
    let api = Api::<CertificateSigningRequest>::all(client);
    found(api.replace_status(&key.name, &PostParams::default(), &signed).await)?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csr(signer: &str, usages: &[&str]) -> CertificateSigningRequest {
        let mut csr = CertificateSigningRequest::default();
        csr.spec.signer_name = signer.to_owned();
        csr.spec.usages = Some(usages.iter().map(|u| (*u).to_owned()).collect());
        csr
    }

    #[test]
    fn certificates_live_within_bounds() {
        let check =
            |asked, longest, expect| assert_eq!(seconds(asked, longest), expect, "{asked:?} {longest}");
        check(None, LONGEST, LONGEST);
        check(Some(3600), LONGEST, 3600);
        check(Some(i32::MAX), LONGEST, LONGEST);
        check(Some(1), LONGEST, SHORTEST);
        check(Some(3600), 60, 60);
        check(None, 60, 60);
    }

    #[test]
    fn each_signer_signs_what_it_is_for() {
        let asked = pki::Request {
            common_name: "jane".to_owned(),
            organizations: Vec::new(),
            names: pki::AltNames::default(),
            public_info: Vec::new(),
        };
        assert_eq!(check(&csr(CLIENT, &["client auth"]), &asked), Some(Ok(())));
        assert_eq!(check(&csr(LEGACY, &["server auth"]), &asked), Some(Ok(())));
        assert!(matches!(check(&csr(KUBELET_CLIENT, &["client auth"]), &asked), Some(Err(_))));
        assert!(matches!(check(&csr(KUBELET_SERVING, &["server auth"]), &asked), Some(Err(_))));
        assert_eq!(check(&csr("example.com/own", &["client auth"]), &asked), None);
    }
}
