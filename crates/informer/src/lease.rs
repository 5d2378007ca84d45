//! Leader election over a Lease, as client-go does it: whoever holds the lease and renews it works.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const LASTS: Duration = Duration::from_secs(15);
const RENEW_WITHIN: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
/// How long one attempt may take, and how long the work may take to end: both shorter than the lease lasts beyond the
/// time in which it must be renewed.
const ATTEMPT: Duration = Duration::from_secs(4);

/// Which lease, and who we are.
#[derive(Clone, Debug)]
pub struct LeaderElection {
    /// The namespace of the lease.
    pub namespace: String,
    /// The name of the lease.
    pub name: String,
    /// A name of our own that no other candidate has.
    pub identity: String,
}

/// Waits for the lease, runs `work` while it is held, and gives it up at the end. `work` must end when the
/// token that it is given is cancelled: at shutdown, or when the lease could not be renewed in time. What has not ended
/// soon after that is dropped, as somebody else may hold the lease by then.
pub async fn while_leading<F>(
    client: Client,
    election: LeaderElection,
    shutdown: CancellationToken,
    work: impl FnOnce(CancellationToken) -> F,
) where
    F: Future<Output = ()>,
{
    let mut holder = Holder { api: Api::namespaced(client, &election.namespace), election, seen: None };
    loop {
        let acquired = tokio::select! {
            acquired = holder.acquire_in_time() => acquired,
            () = shutdown.cancelled() => return,
        };
        if acquired {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = shutdown.cancelled() => return,
        }
    }
    let leading = shutdown.child_token();
    let renewing = async {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = leading.cancelled() => return,
            }
            if holder.acquire_in_time().await {
                renewed = Instant::now();
            } else if renewed.elapsed() > RENEW_WITHIN {
                leading.cancel();
                return;
            }
        }
    };
    tokio::join!(renewing, async {
        let over = async {
            leading.cancelled().await;
            tokio::time::sleep(ATTEMPT).await;
        };
        tokio::select! {
            () = work(leading.clone()) => {}
            () = over => tracing::warn!("the work did not end in time"),
        }
        leading.cancel();
    });
    // Without an answer the lease runs out by itself.
    let _ = tokio::time::timeout(ATTEMPT, holder.release()).await;
}

struct Holder {
    api: Api<Lease>,
    election: LeaderElection,
    /// The last foreign renewal seen, and when by our own clock.
    seen: Option<(Option<MicroTime>, Instant)>,
}

impl Holder {
    async fn acquire_in_time(&mut self) -> bool {
        tokio::time::timeout(ATTEMPT, self.acquire()).await.unwrap_or(false)
    }

    /// Takes or renews the lease; whether it is ours now.
    async fn acquire(&mut self) -> bool {
        let now = MicroTime(Timestamp::now());
        let lease = match self.api.get_opt(&self.election.name).await {
            Ok(lease) => lease,
            Err(_) => return false,
        };
        let Some(mut lease) = lease else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.election.name.clone()),
                    namespace: Some(self.election.namespace.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(&LeaseSpec::default(), now)),
            };
            return self.api.create(&PostParams::default(), &lease).await.is_ok();
        };
        let old = lease.spec.clone().unwrap_or_default();
        let holder = old.holder_identity.as_deref().unwrap_or_default();
        if !holder.is_empty() && holder != self.election.identity {
            let lasts = old.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(15);
            let fresh = match &self.seen {
                Some((renewed, at)) if *renewed == old.renew_time => {
                    at.elapsed() < Duration::from_secs(lasts)
                }
                _ => {
                    self.seen = Some((old.renew_time.clone(), Instant::now()));
                    true
                }
            };
            if fresh {
                return false;
            }
        }
        lease.spec = Some(self.spec(&old, now));
        self.api.replace(&self.election.name, &PostParams::default(), &lease).await.is_ok()
    }

    fn spec(&self, old: &LeaseSpec, now: MicroTime) -> LeaseSpec {
        let ours = old.holder_identity.as_deref() == Some(&self.election.identity);
        LeaseSpec {
            holder_identity: Some(self.election.identity.clone()),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            acquire_time: if ours { old.acquire_time.clone() } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(old.lease_transitions.unwrap_or_default() + i32::from(!ours)),
            ..old.clone()
        }
    }

    async fn release(&mut self) {
        let Ok(Some(mut lease)) = self.api.get_opt(&self.election.name).await else { return };
        if let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(&self.election.identity)
        {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            // A failure only means that the others wait until it runs out.
            let _ = self.api.replace(&self.election.name, &PostParams::default(), &lease).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    /// A server that holds one lease.
    fn server(lease: Arc<Mutex<Option<Value>>>) -> Client {
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let lease = lease.clone();
            async move {
                let method = request.method().clone();
                let body = request.into_body().collect_bytes().await?;
                let mut held = lease.lock();
                if !body.is_empty() {
                    *held = serde_json::from_slice(&body).ok();
                }
                let missing = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "not found", "reason": "NotFound", "code": 404});
                let (code, answer) = match held.as_ref() {
                    Some(lease) => (if method == http::Method::POST { 201 } else { 200 }, lease.clone()),
                    None => (404, missing),
                };
                let answer = Body::from(answer.to_string().into_bytes());
                let response = http::Response::builder().status(code).body(answer);
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(response?)
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn work_that_does_not_end_is_dropped_and_the_lease_given_up() {
        let lease = Arc::new(Mutex::new(None));
        let election =
            LeaderElection { namespace: "kube-system".into(), name: "part".into(), identity: "one".into() };
        let shutdown = CancellationToken::new();
        let end = shutdown.clone();
        while_leading(server(lease.clone()), election, shutdown, |_| async move {
            end.cancel();
            std::future::pending::<()>().await;
        })
        .await;
        let lease = lease.lock().take().expect("a lease");
        assert_eq!(lease["spec"]["holderIdentity"], "", "{lease}");
        assert_eq!(lease["spec"]["leaseTransitions"], 1);
    }
}
