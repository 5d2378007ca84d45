//! Graceful node shutdown (KEP-2000): once the kubelet is told that the machine goes down, it takes no more pods, ends the
//! others before the critical ones within the configured times, and says that it is done.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use crate::configuration::Configuration;
use crate::context::Shared;
use crate::manager::Pods;
use crate::podutil::{self, spec};
use crate::status::Verdict;

/// Priority from which on a pod is critical (`system-cluster-critical`).
const CRITICAL: i32 = 2_000_000_000;
/// How long the last statuses may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Why a pod is refused meanwhile.
pub(crate) const REASON: &str = "NodeShutdown";
pub(crate) const MESSAGE: &str = "Pod was rejected as the node is shutting down.";

/// How long pods of at least a priority have, from the lowest priority on.
fn stages(settings: &Configuration) -> Vec<(i32, Duration)> {
    let mut stages: Vec<(i32, Duration)> = settings
        .shutdown_grace_period_by_pod_priority
        .iter()
        .map(|one| (one.priority, Duration::from_secs(one.shutdown_grace_period_seconds)))
        .collect();
    let (all, critical) = (settings.shutdown_grace_period.0, settings.shutdown_grace_period_critical_pods.0);
    if stages.is_empty() && !all.is_zero() {
        stages = vec![(0, all.saturating_sub(critical)), (CRITICAL, critical)];
    }
    stages.sort_unstable();
    stages
}

/// The stage in which a pod of that priority ends: the highest that it reaches, or the lowest.
fn stage_of(stages: &[(i32, Duration)], priority: i32) -> usize {
    stages.iter().rposition(|(from, _)| *from <= priority).unwrap_or(0)
}

/// Waits until the machine goes down, ends all pods, and then cancels `done`.
pub(crate) async fn run(context: Shared, pods: Pods, stop: CancellationToken, done: CancellationToken) {
    tokio::select! {
        () = context.config.going_down.cancelled() => {}
        () = stop.cancelled() => return,
    }
    tracing::warn!("the machine goes down: pods are ended");
    context.going_down.send_replace(true);
    let stages = stages(&context.config.settings);
    for (index, (_, time)) in stages.iter().enumerate() {
        let members: Vec<Arc<Pod>> = pods
            .list()
            .into_iter()
            .filter(|pod| stage_of(&stages, spec(pod).priority.unwrap_or(0)) == index)
            .collect();
        if members.is_empty() {
            continue;
        }
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let mut ends: FuturesUnordered<_> = members.iter().map(|pod| end(&pods, pod, seconds)).collect();
        let all = async { while ends.next().await.is_some() {} };
        // Those that do not end in their time are left to the machine's own end.
        drop(tokio::time::timeout(*time, all).await);
    }
    // What became of the last pods is still on its way to the API.
    tokio::time::sleep(LAST_WORDS).await;
    done.cancel();
}

async fn end(pods: &Pods, pod: &Pod, seconds: i64) {
    let message = "Pod was terminated in response to imminent node shutdown.".to_owned();
    let own = spec(pod).termination_grace_period_seconds.unwrap_or(30);
    let mut ends = pods.events();
    let verdict = Verdict { reason: "Terminated".to_owned(), message };
    if !pods.evict(podutil::uid(pod), verdict, own.min(seconds)) {
        return;
    }
    while pods.holds(podutil::uid(pod)) {
        if ends.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn critical_pods_end_last() {
        let read = |fields: &str| {
            let text =
                format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{fields}");
            stages(&crate::configuration::parse(&text).expect("good").configuration)
        };
        let seconds = |list: &[(i32, u64)]| -> Vec<(i32, Duration)> {
            list.iter().map(|(priority, time)| (*priority, Duration::from_secs(*time))).collect()
        };
        assert!(read("").is_empty(), "nothing is waited for");
        let plain = read("shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s\n");
        assert_eq!(plain, seconds(&[(0, 20), (CRITICAL, 10)]));
        let of = |priority| stage_of(&plain, priority);
        assert_eq!([of(-5), of(0), of(1000), of(CRITICAL + 1000)], [0, 0, 0, 1]);
        let own = read(
            "shutdownGracePeriodByPodPriority: [{priority: 1000, shutdownGracePeriodSeconds: 5}, {priority: 0, shutdownGracePeriodSeconds: 9}]\n",
        );
        assert_eq!(own, seconds(&[(0, 9), (1000, 5)]));
    }
}
