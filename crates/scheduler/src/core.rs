//! The loop: take the next pod, plan, assume it placed, and bind without waiting for the answer.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use informer::{EventType, Factory, Informer, Key, Recorder, reference};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Client;
use parking_lot::Mutex;
use scheduling::{Budget, PodInfo, Preemption, Snapshot, Unschedulable, plan, preempt};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::claims::Claims;
use crate::queue::PodQueue;
use crate::volumes::Volumes;

const BINDING_AT_ONCE: usize = 64;

/// What the watches and the loop share.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) snapshot: Snapshot,
    pub(crate) queue: PodQueue,
    /// The node that each placed or assumed pod is on, by UID.
    pub(crate) placed: HashMap<String, String>,
    /// Pods that are not tried before their claims are made.
    pub(crate) awaiting: BTreeSet<Key>,
}

/// One scheduler.
pub(crate) struct Core {
    pub(crate) client: Client,
    pub(crate) name: String,
    pub(crate) recorder: Recorder,
    pub(crate) pods: Arc<Informer<Pod>>,
    pub(crate) volumes: Volumes,
    pub(crate) claims: Claims,
    budgets: Arc<Informer<PodDisruptionBudget>>,
    pub(crate) state: Mutex<State>,
    pub(crate) wake: Notify,
}

/// What came of one try.
enum Outcome {
    Placed(String),
    Refused {
        message: String,
        preemption: Option<Preemption>,
        /// A claim in the way, whose devices are to be given back.
        give_up: Option<Arc<ResourceClaim>>,
    },
}

impl Core {
    pub(crate) fn new(client: Client, name: String, recorder: Recorder, informers: &Factory) -> Self {
        Self {
            client,
            name,
            recorder,
            pods: informers.informer(),
            volumes: Volumes::new(informers),
            claims: Claims::new(informers),
            budgets: informers.informer(),
            state: Mutex::default(),
            wake: Notify::new(),
        }
    }

    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let slots = Arc::new(Semaphore::new(BINDING_AT_ONCE));
        let mut choice: u64 = 0;
        loop {
            let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            let key = tokio::select! {
                key = self.next() => key,
                () = shutdown.cancelled() => return,
            };
            let Some(pod) = self.pods.get(&key).filter(|pod| self.wants(pod)) else {
                self.state.lock().queue.remove(&key);
                continue;
            };
            // A step through the numbers that spreads equal choices without randomness.
            choice = choice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let info = PodInfo::new(pod.clone());
            let outcome = self.attempt(&key, &info, choice >> 33);
            let core = self.clone();
            tokio::spawn(async move {
                match outcome {
                    Outcome::Placed(node) => core.bind(&info, &node).await,
                    Outcome::Refused { message, preemption, give_up } => {
                        core.recorder.event(
                            reference(pod.as_ref()),
                            EventType::Warning,
                            "FailedScheduling",
                            message.clone(),
                        );
                        core.report_refusal(&pod, &message, preemption.as_ref()).await;
                        if let Some(claim) = give_up {
                            core.claims.give_up(&core.client, &claim).await;
                        }
                        if let Some(preemption) = preemption {
                            core.evict(&pod, &preemption).await;
                        }
                    }
                }
                drop(slot);
            });
        }
    }

    /// Whether the pod is one that this scheduler should place now.
    pub(crate) fn wants(&self, pod: &Pod) -> bool {
        let Some(spec) = &pod.spec else { return false };
        spec.node_name.as_deref().unwrap_or_default().is_empty()
            && spec.scheduler_name.as_deref().unwrap_or("default-scheduler") == self.name
            && spec.scheduling_gates.as_ref().is_none_or(|gates| gates.is_empty())
            && pod.metadata.deletion_timestamp.is_none()
            && !is_terminal(pod)
    }

    async fn next(&self) -> Key {
        loop {
            let due = match self.state.lock().queue.next(Instant::now()) {
                Ok(key) => return key,
                Err(due) => due,
            };
            match due {
                None => self.wake.notified().await,
                Some(at) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
            }
        }
    }

    fn attempt(&self, key: &Key, pod: &Arc<PodInfo>, choice: u64) -> Outcome {
        let mut volumes = self.volumes.needs(&pod.pod);
        let mut give_up = None;
        match self.claims.needs(pod) {
            Ok(needs) => volumes.devices = needs.map(Arc::new),
            Err(why) => {
                volumes.impossible.get_or_insert(why.reason);
                give_up = why.stale;
            }
        }
        let mut state = self.state.lock();
        match plan(&state.snapshot, pod, &volumes, choice) {
            Ok(node) => {
                if let Some(devices) = &volumes.devices {
                    self.claims.assume(&pod.pod, devices, &node);
                }
                state.snapshot.set_pod(&node, pod.clone());
                state.placed.insert(pod.uid().to_owned(), node.clone());
                state.snapshot.withdraw(pod.uid());
                state.queue.remove(key);
                Outcome::Placed(node)
            }
            Err(why) => {
                let mut message = why.to_string();
                let found = match why {
                    Unschedulable::NoNodes => Err(String::new()),
                    _ => preempt(&state.snapshot, pod, &volumes, &why, &self.budgets()),
                };
                let preemption = match found {
                    Ok(preemption) => {
                        state.snapshot.nominate(&preemption.node, pod.clone());
                        Some(preemption)
                    }
                    Err(explanation) => {
                        if !explanation.is_empty() {
                            message = format!("{message} preemption: {explanation}");
                        }
                        None
                    }
                };
                state.queue.refused(key, Instant::now());
                if let Some(devices) = &volumes.devices {
                    give_up = self.claims.to_give_up(&pod.pod, devices);
                }
                Outcome::Refused { message, preemption, give_up }
            }
        }
    }

    fn budgets(&self) -> Vec<Budget> {
        let one = |budget: Arc<PodDisruptionBudget>| Budget {
            namespace: budget.metadata.namespace.clone().unwrap_or_default(),
            selector: budget.spec.as_ref().and_then(|spec| spec.selector.clone()),
            allowed: budget.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or_default(),
            disrupted: budget
                .status
                .iter()
                .flat_map(|status| status.disrupted_pods.iter().flatten())
                .map(|(name, _)| name.clone())
                .collect(),
        };
        self.budgets.list().into_iter().map(one).collect()
    }

    /// Takes back an assumption that could not be made true.
    pub(crate) fn unassume(&self, pod: &PodInfo) {
        self.claims.forget(pod.uid());
        let mut state = self.state.lock();
        if let Some(node) = state.placed.remove(pod.uid()) {
            state.snapshot.remove_pod(&node, pod.uid());
        }
        state.queue.changed(Instant::now(), |_| true);
        let key = Key::of(pod.pod.as_ref());
        if self.pods.get(&key).is_some_and(|now| now.metadata.uid == pod.pod.metadata.uid && self.wants(&now))
        {
            state.queue.failed(key, pod.priority(), Instant::now());
        }
        drop(state);
        self.wake.notify_one();
    }
}

pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}
