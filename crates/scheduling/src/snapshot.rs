//! The state that a decision is made from: nodes with the pods on them, and what is known of namespaces.
//! Nodes are shared, so that a copy to try something out is cheap.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::resources::{Resources, assumed_request, request};
use crate::selector::{Labels, labels_of, matches, matches_some};

/// A port on the host that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub(crate) address: String,
    pub(crate) protocol: String,
    pub(crate) port: i32,
}

impl HostPort {
    /// Whether both cannot be taken on one node.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || self.address == "0.0.0.0" || other.address == "0.0.0.0")
    }
}

/// One inter-pod term, with all that decides whether it matches a pod.
#[derive(Clone, Debug)]
pub struct Term {
    pub(crate) topology_key: String,
    pub(crate) weight: i64,
    namespaces: Vec<String>,
    namespace_selector: Option<LabelSelector>,
    selector: Option<LabelSelector>,
}

impl Term {
    fn new(term: &PodAffinityTerm, weight: i32, owner: &Pod) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(owner.metadata.namespace.clone().unwrap_or_default());
        }
        let mut selector = term.label_selector.clone();
        // KEP-3633: keys whose value is taken from the pod that carries the term.
        if let Some(selector) = &mut selector {
            let labels = labels_of(&owner.metadata.labels);
            let mut add = |keys: &Option<Vec<String>>, operator: &str| {
                for key in keys.iter().flatten() {
                    if let Some(value) = labels.get(key) {
                        selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                            key: key.clone(),
                            operator: operator.into(),
                            values: Some(vec![value.clone()]),
                        });
                    }
                }
            };
            add(&term.match_label_keys, "In");
            add(&term.mismatch_label_keys, "NotIn");
        }
        Self {
            topology_key: term.topology_key.clone(),
            weight: i64::from(weight),
            namespaces,
            namespace_selector: term.namespace_selector.clone(),
            selector,
        }
    }

    /// Whether the term means this pod.
    pub(crate) fn matches(&self, pod: &Pod, namespaces: &HashMap<String, Labels>) -> bool {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let inside = self.namespaces.iter().any(|one| one == namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                namespaces.get(namespace).is_some_and(|labels| matches(selector, labels))
            });
        inside && matches_some(self.selector.as_ref(), labels_of(&pod.metadata.labels))
    }
}

/// A pod with what is read off it once.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// The pod.
    pub pod: Arc<Pod>,
    /// What it asks for.
    pub request: Resources,
    pub(crate) assumed: (i64, i64),
    pub(crate) ports: Vec<HostPort>,
    pub(crate) affinity: Vec<Term>,
    pub(crate) anti_affinity: Vec<Term>,
    pub(crate) preferred_affinity: Vec<Term>,
    pub(crate) preferred_anti_affinity: Vec<Term>,
}

impl PodInfo {
    /// Reads a pod.
    pub fn new(pod: Arc<Pod>) -> Arc<Self> {
        let mut info = Self {
            request: request(&pod),
            assumed: assumed_request(&pod),
            ports: host_ports(&pod),
            affinity: Vec::new(),
            anti_affinity: Vec::new(),
            preferred_affinity: Vec::new(),
            preferred_anti_affinity: Vec::new(),
            pod,
        };
        let pod = &info.pod;
        let required = |terms: &Option<Vec<PodAffinityTerm>>| -> Vec<Term> {
            terms.iter().flatten().map(|term| Term::new(term, 0, pod)).collect()
        };
        if let Some(affinity) = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()) {
            if let Some(affinity) = &affinity.pod_affinity {
                info.affinity = required(&affinity.required_during_scheduling_ignored_during_execution);
                let preferred =
                    affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
                info.preferred_affinity =
                    preferred.map(|one| Term::new(&one.pod_affinity_term, one.weight, pod)).collect();
            }
            if let Some(affinity) = &affinity.pod_anti_affinity {
                info.anti_affinity = required(&affinity.required_during_scheduling_ignored_during_execution);
                let preferred =
                    affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
                info.preferred_anti_affinity =
                    preferred.map(|one| Term::new(&one.pod_affinity_term, one.weight, pod)).collect();
            }
        }
        Arc::new(info)
    }

    /// The pod's UID.
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The pod's namespace.
    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The pod's priority.
    pub fn priority(&self) -> i32 {
        self.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or_default()
    }

    pub(crate) fn labels(&self) -> &Labels {
        labels_of(&self.pod.metadata.labels)
    }

    fn has_affinity(&self) -> bool {
        !(self.affinity.is_empty()
            && self.anti_affinity.is_empty()
            && self.preferred_affinity.is_empty()
            && self.preferred_anti_affinity.is_empty())
    }
}

/// The ports that a pod takes on its host.
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|one| one.ports.iter().flatten());
    let text = |value: &Option<String>, default: &str| match value.as_deref() {
        None | Some("") => default.to_owned(),
        Some(value) => value.to_owned(),
    };
    ports
        .filter_map(|port| {
            Some(HostPort {
                address: text(&port.host_ip, "0.0.0.0"),
                protocol: text(&port.protocol, "TCP"),
                port: port.host_port.filter(|port| *port > 0)?,
            })
        })
        .collect()
}

/// A node with the pods on it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// The node; `None` while only pods that name it are known.
    pub node: Option<Arc<Node>>,
    /// What pods may take in all.
    pub allocatable: Resources,
    /// What its pods take.
    pub requested: Resources,
    pub(crate) assumed: (i64, i64),
    /// Its pods.
    pub pods: Vec<Arc<PodInfo>>,
    /// How many of them have a required anti-affinity term, and how many any inter-pod term.
    pub(crate) with_anti_affinity: usize,
    pub(crate) with_affinity: usize,
    pub(crate) images: BTreeMap<String, i64>,
}

impl NodeInfo {
    /// Whether the pod is on it.
    pub fn has(&self, uid: &str) -> bool {
        self.pods.iter().any(|pod| pod.uid() == uid)
    }

    pub(crate) fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.request);
        self.assumed.0 += pod.assumed.0;
        self.assumed.1 += pod.assumed.1;
        self.with_anti_affinity += usize::from(!pod.anti_affinity.is_empty());
        self.with_affinity += usize::from(pod.has_affinity());
        self.pods.push(pod);
    }

    pub(crate) fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|pod| pod.uid() == uid)?;
        let pod = self.pods.swap_remove(at);
        self.requested.subtract(&pod.request);
        self.assumed.0 -= pod.assumed.0;
        self.assumed.1 -= pod.assumed.1;
        self.with_anti_affinity -= usize::from(!pod.anti_affinity.is_empty());
        self.with_affinity -= usize::from(pod.has_affinity());
        Some(pod)
    }

    fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        self.allocatable = status
            .and_then(|status| status.allocatable.as_ref())
            .map(Resources::from_list)
            .unwrap_or_default();
        self.images = BTreeMap::new();
        for image in status.into_iter().flat_map(|status| status.images.iter().flatten()) {
            for name in image.names.iter().flatten() {
                self.images.insert(name.clone(), image.size_bytes.unwrap_or_default());
            }
        }
        self.node = Some(node);
    }

    pub(crate) fn labels(&self) -> &Labels {
        labels_of(match &self.node {
            Some(node) => &node.metadata.labels,
            None => &None,
        })
    }

    pub(crate) fn name(&self) -> &str {
        self.node.as_ref().and_then(|node| node.metadata.name.as_deref()).unwrap_or_default()
    }
}

/// All that a decision looks at.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(crate) nodes: BTreeMap<String, Arc<NodeInfo>>,
    pub(crate) namespaces: HashMap<String, Labels>,
    /// Pods that wait for room made for them, by node.
    pub(crate) nominated: HashMap<String, Vec<Arc<PodInfo>>>,
}

impl Snapshot {
    /// The nodes there are, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeInfo>> {
        self.nodes.values().filter(|info| info.node.is_some())
    }

    /// One node.
    pub fn node(&self, name: &str) -> Option<&Arc<NodeInfo>> {
        self.nodes.get(name).filter(|info| info.node.is_some())
    }

    /// Adds or updates a node.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let Some(name) = node.metadata.name.clone() else { return };
        Arc::make_mut(self.nodes.entry(name).or_default()).set_node(node);
    }

    /// Removes a node; pods that still name it are kept in mind.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(info) = self.nodes.get_mut(name) {
            if info.pods.is_empty() {
                self.nodes.remove(name);
            } else {
                let info = Arc::make_mut(info);
                info.node = None;
                info.allocatable = Resources::default();
            }
        }
    }

    /// Puts a pod on a node, in place of what was there under its UID.
    pub fn set_pod(&mut self, node: &str, pod: Arc<PodInfo>) {
        let info = Arc::make_mut(self.nodes.entry(node.to_owned()).or_default());
        info.remove(pod.uid());
        info.add(pod);
    }

    /// Takes a pod off a node.
    pub fn remove_pod(&mut self, node: &str, uid: &str) {
        let Some(info) = self.nodes.get_mut(node) else { return };
        if !info.has(uid) {
            return;
        }
        Arc::make_mut(info).remove(uid);
        if info.node.is_none() && info.pods.is_empty() {
            self.nodes.remove(node);
        }
    }

    /// Sets or forgets the labels of a namespace.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
    }

    /// Keeps room on a node for a pod that others were removed for.
    pub fn nominate(&mut self, node: &str, pod: Arc<PodInfo>) {
        self.withdraw(pod.uid());
        self.nominated.entry(node.to_owned()).or_default().push(pod);
    }

    /// Ends a nomination.
    pub fn withdraw(&mut self, uid: &str) {
        self.nominated.retain(|_, pods| {
            pods.retain(|pod| pod.uid() != uid);
            !pods.is_empty()
        });
    }

    pub(crate) fn replace(&mut self, name: &str, info: Arc<NodeInfo>) {
        self.nodes.insert(name.to_owned(), info);
    }
}
