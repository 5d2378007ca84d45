//! Which endpoints of a service are used on a node.

use std::net::IpAddr;

/// An endpoint of one port of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
    /// It is on this node.
    pub is_local: bool,
    /// Nodes that it is hinted for.
    pub node_hints: Vec<String>,
    /// Zones that it is hinted for.
    pub zone_hints: Vec<String>,
}

/// The endpoints to be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice<'a> {
    /// Under policy Cluster.
    pub cluster: Vec<&'a Endpoint>,
    /// Under policy Local.
    pub local: Vec<&'a Endpoint>,
    /// Whether any node has a usable one.
    pub any: bool,
}

enum Topology {
    Everywhere,
    SameNode,
    SameZone,
}

/// Chooses endpoints: ready ones, near ones if hints say so, and those that are ending but still serve where there is no other.
pub fn choose<'a>(
    endpoints: &[&'a Endpoint],
    node: &str,
    zone: Option<&str>,
    uses_cluster: bool,
    uses_local: bool,
) -> Choice<'a> {
    let pick = |keep: &dyn Fn(&Endpoint) -> bool| -> Vec<&'a Endpoint> {
        endpoints.iter().copied().filter(|endpoint| keep(endpoint)).collect()
    };
    let ending = |endpoint: &Endpoint| endpoint.serving && endpoint.terminating;
    let mut choice = Choice::default();
    if uses_cluster {
        let topology = topology(endpoints, node, zone);
        choice.cluster = pick(&|endpoint| {
            endpoint.ready
                && match topology {
                    Topology::Everywhere => true,
                    Topology::SameNode => endpoint.node_hints.iter().any(|hint| hint == node),
                    Topology::SameZone => endpoint.zone_hints.iter().any(|hint| Some(hint.as_str()) == zone),
                }
        });
        if choice.cluster.is_empty() {
            choice.cluster = pick(&ending);
        }
        choice.any = !choice.cluster.is_empty();
    }
    if uses_local {
        choice.any |= endpoints.iter().any(|endpoint| endpoint.ready || ending(endpoint));
        choice.local = pick(&|endpoint| endpoint.is_local && endpoint.ready);
        if choice.local.is_empty() {
            choice.local = pick(&|endpoint| endpoint.is_local && ending(endpoint));
        }
    }
    choice
}

/// Hints count only if every ready endpoint has one and one of them is for us.
fn topology(endpoints: &[&Endpoint], node: &str, zone: Option<&str>) -> Topology {
    let ready = || endpoints.iter().filter(|endpoint| endpoint.ready);
    if ready().next().is_none() {
        return Topology::Everywhere;
    }
    let all_node = ready().all(|endpoint| !endpoint.node_hints.is_empty());
    if all_node && ready().any(|endpoint| endpoint.node_hints.iter().any(|hint| hint == node)) {
        return Topology::SameNode;
    }
    let all_zone = ready().all(|endpoint| !endpoint.zone_hints.is_empty());
    let for_us =
        |endpoint: &&&Endpoint| zone.is_some_and(|zone| endpoint.zone_hints.iter().any(|hint| hint == zone));
    if all_zone && ready().any(|endpoint| for_us(&endpoint)) {
        return Topology::SameZone;
    }
    Topology::Everywhere
}
