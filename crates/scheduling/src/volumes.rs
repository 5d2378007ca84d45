//! What a pod's volumes demand of a node: where bound ones can be reached, where those that wait for the pod can come from,
//! how many a node can have of a driver, and claims that only one pod may use.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{Node, NodeSelector, Pod, TopologySelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::Refusal;
use crate::selector::{labels_of, matches, node_selector};
use crate::snapshot::{NodeInfo, Snapshot};

/// Labels of zones and regions, each with the other name it goes by.
const ZONES: [(&str, &str); 4] = [
    ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
];

/// A volume of a driver: the driver's name and the volume's handle, or the claim while it has none.
pub type Handle = (String, String);

/// What the state of a pod's volumes allows, worked out by the caller from claims and volumes.
#[derive(Clone, Debug, Default)]
pub struct VolumeNeeds {
    /// No node can do, for this reason.
    pub impossible: Option<String>,
    /// A node must satisfy one of the selectors of each bound volume.
    pub bound: Vec<NodeSelector>,
    /// Zones and regions of bound volumes: a label's key with the values that do.
    pub zones: Vec<(String, BTreeSet<String>)>,
    /// Claims that are bound once the pod has a node, the smallest first.
    pub delayed: Vec<Delayed>,
    /// Names of claims, in the pod's namespace, that no other pod may use.
    pub exclusive: BTreeSet<String>,
    /// How many volumes of drivers fit on nodes; empty if the pod has none that count.
    pub counted: Counted,
    /// Devices that it claims; they are looked for where all else is right.
    pub devices: Option<std::sync::Arc<crate::devices::DeviceNeeds>>,
}

/// A claim that waits for its pod.
#[derive(Clone, Debug, Default)]
pub struct Delayed {
    /// Its name.
    pub claim: String,
    /// Volumes that suit it, the best first, each with where it can be reached.
    pub candidates: Vec<(String, Option<NodeSelector>)>,
    /// Where a volume can be made for it; nowhere if `None`.
    pub provisioned: Option<Provisioned>,
}

/// Where a driver can make a volume.
#[derive(Clone, Debug, Default)]
pub struct Provisioned {
    /// A node must satisfy one of these, if there are any.
    pub topologies: Vec<TopologySelectorTerm>,
    /// Parts of the cluster with room enough; `None` if the driver does not tell.
    pub room: Option<Vec<LabelSelector>>,
}

/// Volumes that count against what a node can have of a driver.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// The pod's own.
    pub wanted: BTreeSet<Handle>,
    /// Those of pods that have a node, by the pod's UID.
    pub held: HashMap<String, Vec<Handle>>,
    /// Those attached to a node, by the node's name, whether a pod uses them or not.
    pub attached: HashMap<String, Vec<Handle>>,
    /// The most a node can have, by the node's name and the driver's.
    pub limits: HashMap<String, BTreeMap<String, usize>>,
}

/// The claims that a pod names itself.
pub fn claims(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| volume.persistent_volume_claim.as_ref())
        .map(|claim| claim.claim_name.as_str())
}

impl VolumeNeeds {
    /// How many pods use the pod's exclusive claims, by node.
    pub(crate) fn users(&self, snapshot: &Snapshot, namespace: &str, uid: &str) -> HashMap<String, usize> {
        if self.exclusive.is_empty() {
            return HashMap::new();
        }
        let of = |(name, info): (&String, &std::sync::Arc<NodeInfo>)| {
            let count = self.users_on(info, namespace, uid);
            (count > 0).then(|| (name.clone(), count))
        };
        snapshot.nodes.iter().filter_map(of).collect()
    }

    fn users_on(&self, info: &NodeInfo, namespace: &str, uid: &str) -> usize {
        let uses = |pod: &Pod| claims(pod).any(|claim| self.exclusive.contains(claim));
        let pods = info.pods.iter().filter(|pod| pod.namespace() == namespace && pod.uid() != uid);
        pods.filter(|pod| uses(&pod.pod)).count()
    }

    /// Whether nobody else uses the pod's exclusive claims; `users` is what [`Self::users`] found.
    pub(crate) fn check_exclusive(
        &self,
        info: &NodeInfo,
        users: &HashMap<String, usize>,
        namespace: &str,
        uid: &str,
    ) -> Result<(), Refusal> {
        if self.exclusive.is_empty() {
            return Ok(());
        }
        let elsewhere: usize =
            users.iter().filter(|(node, _)| *node != info.name()).map(|(_, count)| count).sum();
        if elsewhere + self.users_on(info, namespace, uid) == 0 {
            return Ok(());
        }
        Err(Refusal::resolvable(
            "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
        ))
    }

    /// Whether the node can have as many volumes as it would.
    pub(crate) fn check_count(&self, info: &NodeInfo) -> Result<(), Refusal> {
        let Some(limits) = self.counted.limits.get(info.name()) else { return Ok(()) };
        for (driver, limit) in limits {
            let of = |handle: &&Handle| handle.0 == *driver;
            let held = info.pods.iter().filter_map(|pod| self.counted.held.get(pod.uid())).flatten();
            let attached = self.counted.attached.get(info.name()).into_iter().flatten();
            let taken: BTreeSet<&Handle> = held.chain(attached).filter(of).collect();
            let more = self.counted.wanted.iter().filter(of).filter(|one| !taken.contains(one)).count();
            if more > 0 && taken.len() + more > *limit {
                return Err(Refusal::resolvable("node(s) exceed max volume count"));
            }
        }
        Ok(())
    }

    /// Whether the bound volumes can be reached from the node, and the others come about.
    pub(crate) fn check_reach(&self, node: &Node) -> Result<(), Refusal> {
        if !self.bound.iter().all(|selector| node_selector(selector, node)) {
            return Err(Refusal::lasting("node(s) didn't match PersistentVolume's node affinity"));
        }
        self.choose(node)?;
        self.check_zones(node)
    }

    fn check_zones(&self, node: &Node) -> Result<(), Refusal> {
        let labels = labels_of(&node.metadata.labels);
        // A node that is in no zone at all is in a cluster without zones.
        if self.zones.is_empty() || !ZONES.iter().any(|(key, _)| labels.contains_key(*key)) {
            return Ok(());
        }
        let fits = |(key, values): &(String, BTreeSet<String>)| {
            let other = ZONES.iter().find(|(one, _)| one == key).map(|(_, other)| *other);
            let value = labels.get(key).or_else(|| labels.get(other?));
            value.is_some_and(|value| values.contains(value))
        };
        if self.zones.iter().all(fits) {
            return Ok(());
        }
        Err(Refusal::lasting("node(s) had no available volume zone"))
    }

    /// The volume that each waiting claim gets if the pod is on this node; `None` where one has to be made.
    pub fn choose(&self, node: &Node) -> Result<Vec<(&str, Option<&str>)>, Refusal> {
        let mut taken = BTreeSet::new();
        let mut chosen = Vec::new();
        for one in &self.delayed {
            let reaches = |selector: &Option<NodeSelector>| {
                selector.as_ref().is_none_or(|selector| node_selector(selector, node))
            };
            let mut free =
                one.candidates.iter().filter(|(name, selector)| !taken.contains(name) && reaches(selector));
            if let Some((name, _)) = free.next() {
                taken.insert(name);
                chosen.push((one.claim.as_str(), Some(name.as_str())));
                continue;
            }
            match &one.provisioned {
                Some(made) => made.check(node)?,
                None => {
                    return Err(Refusal::lasting("node(s) didn't find available persistent volumes to bind"));
                }
            }
            chosen.push((one.claim.as_str(), None));
        }
        Ok(chosen)
    }
}

impl Provisioned {
    fn check(&self, node: &Node) -> Result<(), Refusal> {
        let labels = labels_of(&node.metadata.labels);
        let term = |term: &TopologySelectorTerm| {
            let mut all = term.match_label_expressions.iter().flatten();
            all.all(|one| labels.get(&one.key).is_some_and(|value| one.values.contains(value)))
        };
        if !self.topologies.is_empty() && !self.topologies.iter().any(term) {
            return Err(Refusal::lasting("node(s) didn't find available persistent volumes to bind"));
        }
        match &self.room {
            Some(room) if !room.iter().any(|selector| matches(selector, labels)) => {
                Err(Refusal::lasting("node(s) did not have enough free storage"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::snapshot::PodInfo;

    fn node(labels: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n", "labels": labels}})).expect("a node")
    }

    fn on(key: &str, value: &str) -> NodeSelector {
        serde_json::from_value(json!({"nodeSelectorTerms": [{"matchExpressions":
            [{"key": key, "operator": "In", "values": [value]}]}]}))
        .expect("a selector")
    }

    fn pod(uid: &str, claim: &str) -> Arc<PodInfo> {
        let volume = json!({"name": "v", "persistentVolumeClaim": {"claimName": claim}});
        let pod = json!({"metadata": {"name": uid, "uid": uid, "namespace": "d"},
            "spec": {"containers": [], "volumes": [volume]}});
        PodInfo::new(Arc::new(serde_json::from_value(pod).expect("a pod")))
    }

    fn reason(result: Result<(), Refusal>) -> Option<String> {
        result.err().map(|refusal| refusal.reasons.join(","))
    }

    #[test]
    fn waiting_claims_get_different_volumes_or_new_ones() {
        let claim = |name: &str, provisioned: Option<Provisioned>| Delayed {
            claim: name.into(),
            candidates: vec![("pv1".into(), Some(on("zone", "a"))), ("pv2".into(), Some(on("zone", "a")))],
            provisioned,
        };
        let needs = |made: Option<Provisioned>| VolumeNeeds {
            delayed: vec![claim("c1", None), claim("c2", None), claim("c3", made)],
            ..VolumeNeeds::default()
        };
        let (a, b) = (node(json!({"zone": "a"})), node(json!({"zone": "b"})));
        let some = Some(Provisioned::default());
        let expected = vec![("c1", Some("pv1")), ("c2", Some("pv2")), ("c3", None)];
        assert_eq!(needs(some.clone()).choose(&a), Ok(expected));
        let none = "node(s) didn't find available persistent volumes to bind";
        assert_eq!(reason(needs(None).check_reach(&a)).as_deref(), Some(none));
        assert_eq!(reason(needs(some).check_reach(&b)).as_deref(), Some(none));
    }

    #[test]
    fn new_volumes_need_room_where_the_node_is() {
        let check = |made: Value, room: Option<Value>, expected: bool| {
            let topologies = serde_json::from_value(made.clone()).expect("terms");
            let room = room.map(|room| serde_json::from_value(room).expect("selectors"));
            let made = Provisioned { topologies, room };
            assert_eq!(made.check(&node(json!({"zone": "a"}))).is_ok(), expected, "{made:?}");
        };
        let terms = |value: &str| json!([{"matchLabelExpressions": [{"key": "zone", "values": [value]}]}]);
        check(json!([]), None, true);
        check(terms("a"), None, true);
        check(terms("b"), None, false);
        check(json!([]), Some(json!([])), false);
        check(json!([]), Some(json!([{"matchLabels": {"zone": "b"}}])), false);
        check(json!([]), Some(json!([{"matchLabels": {"zone": "a"}}])), true);
    }

    #[test]
    fn zones_of_volumes_are_those_of_nodes() {
        let check = |zones: &[(&str, &[&str])], labels: Value, expected: bool| {
            let set = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
            let zones = zones.iter().map(|(key, values)| ((*key).to_owned(), set(values))).collect();
            let needs = VolumeNeeds { zones, ..VolumeNeeds::default() };
            assert_eq!(needs.check_zones(&node(labels.clone())).is_ok(), expected, "{labels}");
        };
        let zone: (&str, &[&str]) = ("topology.kubernetes.io/zone", &["a", "b"]);
        check(&[zone], json!({"topology.kubernetes.io/zone": "a"}), true);
        check(&[zone], json!({"failure-domain.beta.kubernetes.io/zone": "b"}), true);
        check(&[zone], json!({"topology.kubernetes.io/zone": "c"}), false);
        check(&[zone], json!({"topology.kubernetes.io/region": "r"}), false);
        check(&[zone], json!({}), true);
    }

    #[test]
    fn a_node_takes_as_many_volumes_as_its_driver_says() {
        let handle = |handle: &str| ("x.io".to_owned(), handle.to_owned());
        let check = |limit: usize, wanted: &[&str], expected: bool| {
            let counted = Counted {
                wanted: wanted.iter().map(|one| handle(one)).collect(),
                held: HashMap::from([("u".to_owned(), vec![handle("1"), handle("2")])]),
                attached: HashMap::from([("n".to_owned(), vec![handle("2"), handle("3")])]),
                limits: HashMap::from([("n".to_owned(), BTreeMap::from([("x.io".to_owned(), limit)]))]),
            };
            let needs = VolumeNeeds { counted, ..VolumeNeeds::default() };
            let mut snapshot = Snapshot::default();
            snapshot.set_node(Arc::new(node(json!({}))));
            snapshot.set_pod("n", pod("u", "c"));
            let info = snapshot.node("n").expect("the node");
            assert_eq!(needs.check_count(info).is_ok(), expected, "{limit} {wanted:?}");
        };
        check(4, &["4"], true);
        check(3, &["4"], false);
        check(3, &["1", "3"], true);
        check(0, &[], true);
    }

    #[test]
    fn an_exclusive_claim_has_one_user() {
        let needs = VolumeNeeds { exclusive: BTreeSet::from(["c".to_owned()]), ..VolumeNeeds::default() };
        let mut snapshot = Snapshot::default();
        snapshot.set_node(Arc::new(node(json!({}))));
        let check = |snapshot: &Snapshot| {
            let users = needs.users(snapshot, "d", "new");
            needs.check_exclusive(snapshot.node("n").expect("the node"), &users, "d", "new").is_ok()
        };
        snapshot.set_pod("n", pod("u", "other"));
        assert!(check(&snapshot));
        snapshot.set_pod("n", pod("u", "c"));
        assert!(!check(&snapshot));
        snapshot.remove_pod("n", "u");
        snapshot.set_pod("m", pod("u", "c"));
        assert!(!check(&snapshot), "used on another node");
    }
}
