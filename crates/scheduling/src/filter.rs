//! The filters, in the reference's order: the first that refuses gives a node's reason.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;

use crate::interpod::AffinityState;
use crate::resources::Resources;
use crate::selector::{node_affinity, tolerates, untolerated};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use crate::spread::SpreadState;
use crate::{Refusal, VolumeNeeds};

/// What is worked out once per pod, over all nodes.
pub(crate) struct Prepared<'a> {
    pod: &'a PodInfo,
    volumes: &'a VolumeNeeds,
    /// Pods that use claims which only this one may use, by node.
    claim_users: HashMap<String, usize>,
    spread: SpreadState,
    affinity: AffinityState,
}

impl<'a> Prepared<'a> {
    pub(crate) fn new(snapshot: &Snapshot, pod: &'a PodInfo, volumes: &'a VolumeNeeds) -> Self {
        Self {
            pod,
            volumes,
            claim_users: volumes.users(snapshot, pod.namespace(), pod.uid()),
            spread: SpreadState::new(snapshot, pod),
            affinity: AffinityState::new(snapshot, pod),
        }
    }

    /// Whether the node takes the pod, also with those added that were promised room on it.
    pub(crate) fn check(&self, snapshot: &Snapshot, node: &NodeInfo) -> Result<(), Refusal> {
        let promised: Vec<_> = snapshot
            .nominated
            .get(node.name())
            .into_iter()
            .flatten()
            .filter(|other| {
                other.priority() >= self.pod.priority()
                    && other.uid() != self.pod.uid()
                    && !node.has(other.uid())
            })
            .cloned()
            .collect();
        if !promised.is_empty() {
            let mut fuller = node.clone();
            for pod in promised {
                fuller.add(pod);
            }
            let mut with = snapshot.clone();
            with.replace(node.name(), Arc::new(fuller.clone()));
            Prepared::new(&with, self.pod, self.volumes).check_as_is(&fuller)?;
        }
        self.check_as_is(node)
    }

    /// Whether the node takes the pod, nominations aside.
    pub(crate) fn check_as_is(&self, info: &NodeInfo) -> Result<(), Refusal> {
        let (Some(node), Some(spec)) = (&info.node, &self.pod.pod.spec) else {
            return Err(Refusal::lasting("node(s) had unknown conditions"));
        };
        let node_spec = node.spec.as_ref();
        if node_spec.and_then(|spec| spec.unschedulable) == Some(true) {
            let taint = Taint {
                key: "node.kubernetes.io/unschedulable".into(),
                effect: "NoSchedule".into(),
                ..Taint::default()
            };
            if !spec.tolerations.iter().flatten().any(|toleration| tolerates(toleration, &taint)) {
                return Err(Refusal::lasting("node(s) were unschedulable"));
            }
        }
        if spec.node_name.as_deref().is_some_and(|name| !name.is_empty() && name != info.name()) {
            return Err(Refusal::lasting("node(s) didn't match the requested node name"));
        }
        let taints = node_spec.and_then(|spec| spec.taints.as_ref());
        if untolerated(taints, spec.tolerations.as_ref(), &["NoSchedule", "NoExecute"]).is_some() {
            return Err(Refusal::lasting("node(s) had untolerated taint(s)"));
        }
        if !node_affinity(&self.pod.pod, node) {
            return Err(Refusal::lasting("node(s) didn't match Pod's node affinity/selector"));
        }
        let taken = info.pods.iter().flat_map(|pod| &pod.ports);
        if !self.pod.ports.is_empty()
            && taken.into_iter().any(|port| self.pod.ports.iter().any(|wanted| wanted.conflicts(port)))
        {
            return Err(Refusal::resolvable("node(s) didn't have free ports for the requested pod ports"));
        }
        match &self.volumes.devices {
            Some(devices) if devices.has_resources() => {
                let mut request = self.pod.request.clone();
                request.scalar.retain(|name, _| !devices.is_delegated(name, info));
                fits(&request, info)?;
            }
            _ => fits(&self.pod.request, info)?,
        }
        self.volumes.check_exclusive(info, &self.claim_users, self.pod.namespace(), self.pod.uid())?;
        self.volumes.check_count(info)?;
        self.volumes.check_reach(node)?;
        self.spread.check(self.pod, info)?;
        self.affinity.check(self.pod, info)?;
        self.volumes.devices.as_ref().map_or(Ok(()), |devices| devices.check(info))
    }
}

fn fits(request: &Resources, node: &NodeInfo) -> Result<(), Refusal> {
    let (reasons, resolvable) = insufficient(request, node);
    if reasons.is_empty() { Ok(()) } else { Err(Refusal { reasons, resolvable }) }
}

/// What the node has too little of, in the reference's words, and whether it would do if it were empty.
pub fn insufficient(request: &Resources, node: &NodeInfo) -> (Vec<String>, bool) {
    let mut reasons = Vec::new();
    let mut resolvable = true;
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= node.allocatable.pods {
        reasons.push("Too many pods".to_owned());
    }
    let mut check = |name: &str, wanted: i64, used: i64, all: i64| {
        if wanted > 0 && wanted > all - used {
            reasons.push(format!("Insufficient {name}"));
            resolvable &= wanted <= all;
        }
    };
    let (used, all) = (&node.requested, &node.allocatable);
    check("cpu", request.cpu, used.cpu, all.cpu);
    check("memory", request.memory, used.memory, all.memory);
    check("ephemeral-storage", request.ephemeral_storage, used.ephemeral_storage, all.ephemeral_storage);
    for (name, wanted) in &request.scalar {
        let of = |amounts: &Resources| amounts.scalar.get(name).copied().unwrap_or_default();
        check(name, *wanted, of(used), of(all));
    }
    (reasons, resolvable)
}
