//! Clears away requests that nobody needs any more: answered ones after an hour, open ones after a day, those whose
//! certificate has ended.

use std::time::Duration;

use informer::{Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, DeleteParams, Preconditions};

use super::{conditions, is_issued};
use crate::kit::error::found;
use crate::kit::{Context, Result, now, plus_seconds, until};

const ANSWERED: i64 = 3600;
const OPEN: i64 = 24 * 3600;

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let requests = context.informer::<CertificateSigningRequest>();
    let queue = Queue::new();
    let to = queue.clone();
    requests.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    let client = context.client.clone();
    let sync = move |key: Key| {
        let (client, requests) = (client.clone(), requests.clone());
        async move {
            let Some(csr) = requests.get(&key) else { return Ok(None) };
            let Some(end) = end(&csr) else { return Ok(None) };
            if let Some(left) = until(end, now()) {
                return Ok::<Option<Duration>, crate::kit::Error>(Some(left));
            }
            let precondition = Preconditions { uid: csr.metadata.uid.clone(), resource_version: None };
            let params = DeleteParams::default().preconditions(precondition);
            delete(Api::all(client), &key.name, &params).await?;
            Ok(None)
        }
    };
    context.work("csrcleaner", 1, queue, sync).await;
}

async fn delete(api: Api<CertificateSigningRequest>, name: &str, params: &DeleteParams) -> Result<()> {
    found(api.delete(name, params).await).map(drop)
}

/// When a request may go.
fn end(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let issued = is_issued(csr);
    let mut ends: Vec<Timestamp> = Vec::new();
    if conditions(csr).is_empty() {
        ends.extend(csr.metadata.creation_timestamp.as_ref().map(|at| plus_seconds(at.0, OPEN)));
    }
    for condition in conditions(csr) {
        let Some(at) = condition.last_update_time.as_ref() else { continue };
        let keep = match (condition.type_.as_str(), issued) {
            ("Denied" | "Failed", _) | ("Approved", true) => ANSWERED,
            ("Approved", false) => OPEN,
            _ => continue,
        };
        ends.push(plus_seconds(at.0, keep));
    }
    if issued && conditions(csr).iter().any(|c| c.type_ == "Approved") {
        let text = csr.status.as_ref().and_then(|s| s.certificate.as_ref()).map(|c| c.0.as_slice());
        let text = String::from_utf8_lossy(text.unwrap_or_default());
        let not_after = pki::not_after(&text).ok();
        ends.extend(not_after.and_then(|seconds| Timestamp::from_second(seconds).ok()));
    }
    ends.into_iter().min()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::super::{condition, status_mut};
    use super::*;

    #[test]
    fn answered_requests_go_after_an_hour_and_open_ones_after_a_day() {
        let at = |seconds: i64| Timestamp::from_second(seconds).expect("a time");
        let mut csr = CertificateSigningRequest::default();
        csr.metadata.creation_timestamp = Some(Time(at(0)));
        assert_eq!(end(&csr), Some(at(OPEN)));
        let mut with = |kind: &str, certificate: &[u8]| {
            let mut one = condition(kind, "", String::new());
            one.last_update_time = Some(Time(at(100)));
            status_mut(&mut csr).conditions = Some(vec![one]);
            status_mut(&mut csr).certificate = Some(k8s_openapi::ByteString(certificate.to_vec()));
            end(&csr)
        };
        assert_eq!(with("Denied", b""), Some(at(100 + ANSWERED)));
        assert_eq!(with("Failed", b""), Some(at(100 + ANSWERED)));
        assert_eq!(with("Approved", b""), Some(at(100 + OPEN)));
        assert_eq!(with("Approved", b"no certificate"), Some(at(100 + ANSWERED)));
    }
}
