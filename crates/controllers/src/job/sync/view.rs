//! What a look at a job finds out: which pods count, which indexes are done or lack a pod, and which pods are too many.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::{BURST, View, uid};
use crate::job::rules::{
    Indexes, Verdict, backoff, finished_at, index_failures, index_of, is_failed, is_indexed, judge,
    parse_indexes, replaces_only_failed,
};
use crate::kit::pods::{deletion_order, is_terminating, phase};
use crate::kit::{plus_seconds, until};

impl View {
    /// Moves to the totals what is noted and has no finalizer any more.
    pub(super) fn settle(&mut self) {
        let status = &mut self.status;
        let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
        for (list, total) in
            [(&mut uncounted.succeeded, &mut status.succeeded), (&mut uncounted.failed, &mut status.failed)]
        {
            let list = list.get_or_insert_default();
            let before = list.len();
            list.retain(|uid| self.tracked.contains(uid));
            let moved = i32::try_from(before - list.len()).unwrap_or(i32::MAX);
            *total.get_or_insert_default() += moved;
        }
    }

    pub(super) fn nothing_uncounted(&self) -> bool {
        let uncounted = self.status.uncounted_terminated_pods.clone().unwrap_or_default();
        uncounted.succeeded.is_none_or(|list| list.is_empty())
            && uncounted.failed.is_none_or(|list| list.is_empty())
    }

    pub(super) fn count_indexes(&mut self) {
        let spec = &self.spec;
        let completions = spec.completions.unwrap_or_default();
        let text = self.status.completed_indexes.as_deref().unwrap_or_default();
        self.indexes = parse_indexes(text, completions);
        let done =
            self.pods.iter().filter(|pod| phase(pod) == "Succeeded" && self.tracked.contains(uid(pod)));
        self.indexes.extend(done.filter_map(|pod| index_of(pod, spec)));
        self.succeeded = i32::try_from(self.indexes.len()).unwrap_or(i32::MAX);
        let Some(limit) = spec.backoff_limit_per_index else { return };
        let text = self.status.failed_indexes.as_deref().unwrap_or_default();
        let mut failed = parse_indexes(text, completions);
        let lost = |pod: &&Arc<Pod>| is_failed(pod, spec) && self.tracked.contains(uid(pod));
        for pod in self.pods.iter().filter(lost) {
            let Some(index) = index_of(pod, spec) else { continue };
            let over = match judge(pod, spec) {
                Verdict::FailIndex => true,
                Verdict::Ignore => false,
                _ => index_failures(pod).0 >= limit,
            };
            if over && !self.indexes.contains(&index) {
                failed.insert(index);
            }
        }
        let active: Indexes = self.active.iter().filter_map(|pod| index_of(pod, spec)).collect();
        for pod in self.pods.iter().filter(lost) {
            let Some(index) = index_of(pod, spec) else { continue };
            if failed.contains(&index) || self.indexes.contains(&index) || active.contains(&index) {
                continue;
            }
            let count = |pod: &Pod| index_failures(pod).0 + index_failures(pod).1;
            let newer = self.waiting.get(&index).is_none_or(|other| count(pod) > count(other));
            if newer {
                self.waiting.insert(index, pod.clone());
            }
        }
        self.failed_indexes = Some(failed);
    }

    /// The indexes that have no pod and are not done, lowest first.
    pub(super) fn pending(&self) -> Vec<i32> {
        let busy: Indexes = self.active.iter().filter_map(|pod| index_of(pod, &self.spec)).collect();
        let leaving: Indexes = if replaces_only_failed(&self.spec) {
            let leaving = self.pods.iter().filter(|pod| is_terminating(pod));
            leaving.filter_map(|pod| index_of(pod, &self.spec)).collect()
        } else {
            Indexes::new()
        };
        let failed = self.failed_indexes.clone().unwrap_or_default();
        let free = |index: &i32| {
            !busy.contains(index)
                && !leaving.contains(index)
                && !self.indexes.contains(index)
                && !failed.contains(index)
        };
        (0..self.spec.completions.unwrap_or_default()).filter(free).collect()
    }

    /// How long the replacement of an index's failed pod must wait.
    pub(super) fn index_wait(&self, pod: &Pod) -> Option<Duration> {
        let (counted, ignored) = index_failures(pod);
        let failures = u32::try_from(counted + ignored + 1).unwrap_or(1);
        let seconds = i64::try_from(backoff(failures).as_secs()).unwrap_or(i64::MAX);
        until(plus_seconds(finished_at(pod)?, seconds), self.now)
    }

    /// The pods to delete: second ones of an index, those past the completions, and then as many as are too many.
    pub(super) fn surplus(&self, count: usize) -> Vec<Arc<Pod>> {
        let (mut doomed, mut left) = (Vec::new(), Vec::new());
        let mut seen = Indexes::new();
        let now = self.now;
        let mut active = self.active.clone();
        active.sort_by(|a, b| deletion_order((b, 0), (a, 0), now));
        for pod in active {
            if is_indexed(&self.spec) && !index_of(&pod, &self.spec).is_some_and(|index| seen.insert(index)) {
                doomed.push(pod);
            } else {
                left.push(pod);
            }
        }
        left.reverse();
        let more = count.saturating_sub(doomed.len());
        doomed.extend(left.into_iter().take(more));
        doomed.truncate(BURST);
        doomed
    }
}
