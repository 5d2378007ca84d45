//! Making, deleting and releasing the pods of a job.

use std::sync::Arc;
use std::time::Duration;

use informer::Key;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::rules::{
    INDEX, INDEX_FAILURES, INDEX_IGNORED, TRACKING, Verdict, index_failures, is_finished, judge,
};
use super::{Controller, has_finalizer};
use crate::kit::error::found;
use crate::kit::{Result, all, pods, slow_start};

/// A new pod of the job, for an index if it has any.
pub(super) fn new_pod(job: &Job, index: Option<i32>, replaced: Option<&Pod>) -> Pod {
    let spec = job.spec.clone().unwrap_or_default();
    let mut pod = pods::from_template(&spec.template, job);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|one| one == TRACKING) {
        finalizers.push(TRACKING.into());
    }
    if let Some(index) = index {
        let name = job.metadata.name.clone().unwrap_or_default();
        pod.metadata.generate_name = Some(format!("{name}-{index}-"));
        pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(INDEX.into(), index.to_string());
        if spec.backoff_limit_per_index.is_some() {
            let (counted, ignored) = next_failures(replaced, &spec);
            annotations.insert(INDEX_FAILURES.into(), counted.to_string());
            if ignored > 0 {
                annotations.insert(INDEX_IGNORED.into(), ignored.to_string());
            }
        }
        let pod_spec = pod.spec.get_or_insert_default();
        pod_spec.hostname = Some(format!("{name}-{index}"));
        let containers = pod_spec.init_containers.iter_mut().flatten().chain(&mut pod_spec.containers);
        for container in containers {
            let env = container.env.get_or_insert_default();
            if !env.iter().any(|one| one.name == "JOB_COMPLETION_INDEX") {
                env.push(index_variable());
            }
        }
    }
    pod
}

fn index_variable() -> EnvVar {
    EnvVar {
        name: "JOB_COMPLETION_INDEX".into(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.labels['{INDEX}']"),
            }),
            ..EnvVarSource::default()
        }),
    }
}

fn next_failures(replaced: Option<&Pod>, spec: &JobSpec) -> (i32, i32) {
    let Some(pod) = replaced else { return (0, 0) };
    let (counted, ignored) = index_failures(pod);
    if judge(pod, spec) == Verdict::Ignore { (counted, ignored + 1) } else { (counted + 1, ignored) }
}

impl Controller {
    /// Creates pods; how many were.
    pub(super) async fn create(&self, key: &Key, job: &Arc<Job>, wanted: Vec<Pod>) -> (usize, Result<()>) {
        self.expectations.expect(key, wanted.len(), []);
        let (created, result) = slow_start(wanted.len(), |at| {
            let create =
                pods::create(self.client.clone(), self.recorder.clone(), job.clone(), wanted[at].clone());
            async {
                match create.await {
                    Err(error) if !error.is_namespace_terminating() => Err(error),
                    _ => Ok(()),
                }
            }
        })
        .await;
        for _ in created..wanted.len() {
            self.expectations.created(key);
        }
        (created, result)
    }

    /// Deletes pods; those that should not be counted lose their finalizer first.
    pub(super) async fn delete(
        &self,
        key: &Key,
        job: &Arc<Job>,
        doomed: &[Arc<Pod>],
        uncounted: bool,
    ) -> Result<()> {
        self.expectations.expect(key, 0, doomed.iter().map(|pod| Key::of(pod.as_ref())));
        let calls = doomed.iter().map(|pod| {
            let (client, recorder) = (self.client.clone(), self.recorder.clone());
            let (job, pod) = (job.clone(), pod.clone());
            async move {
                if uncounted && has_finalizer(&pod) {
                    remove_finalizer(&client, &pod).await?;
                }
                pods::delete(client, recorder, job, pod).await.map(drop)
            }
        });
        let result = all(calls.collect::<Vec<_>>()).await;
        if result.is_err() {
            self.expectations.forget(key);
        }
        result
    }

    /// Takes the finalizer off pods that are counted. Returns those that have lost it.
    pub(super) async fn release(&self, key: &Key, counted: &[Arc<Pod>]) -> (Vec<String>, Result<()>) {
        let uid = |pod: &Arc<Pod>| pod.metadata.uid.clone().unwrap_or_default();
        self.released.lock().entry(key.clone()).or_default().extend(counted.iter().map(uid));
        let mut done = Vec::new();
        let mut result = Ok(());
        let calls = counted.iter().map(|pod| async { (uid(pod), remove_finalizer(&self.client, pod).await) });
        for (uid, ended) in futures::future::join_all(calls).await {
            match ended {
                Ok(()) => done.push(uid),
                Err(error) => {
                    if let Some(released) = self.released.lock().get_mut(key) {
                        released.remove(&uid);
                    }
                    result = Err(error);
                }
            }
        }
        (done, result)
    }

    /// A pod whose job is gone or has finished needs its finalizer no more.
    pub(super) async fn release_orphan(&self, key: Key) -> Result<Option<Duration>> {
        let Some(pod) = self.pods.get(&key).filter(|pod| has_finalizer(pod)) else { return Ok(None) };
        match self.owner_of(&pod) {
            Some(job) if !is_finished(&job) => Ok(None),
            _ => remove_finalizer(&self.client, &pod).await.map(|()| None),
        }
    }
}

async fn remove_finalizer(client: &kube::Client, pod: &Pod) -> Result<()> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let patch =
        json!({"metadata": {"uid": pod.metadata.uid, "$deleteFromPrimitiveList/finalizers": [TRACKING]}});
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    match found(api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await) {
        // The name belongs to another pod now.
        Err(error) if error.is_conflict() => Ok(()),
        other => other.map(drop),
    }
}
