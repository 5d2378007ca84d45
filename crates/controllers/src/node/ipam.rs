//! Gives each node its ranges of pod addresses, the lowest that no node has.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use informer::{Change, EventType, Informer, Key, Queue, Recorder, reference};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::kit::error::found;
use crate::kit::{Context, Result};

/// A range of addresses from which each node gets a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    base: IpAddr,
    prefix: u8,
    node_prefix: u8,
}

/// Why a range cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a range of addresses that holds /{1} parts")]
pub struct RangeError(String, u8);

impl Range {
    /// A range as `address/prefix`, from which each node gets a part of `node_prefix` bits.
    pub fn new(range: &str, node_prefix: u8) -> std::result::Result<Self, RangeError> {
        let error = || RangeError(range.to_owned(), node_prefix);
        let (base, prefix) = parse(range).ok_or_else(error)?;
        let widest = if base.is_ipv4() { 32 } else { 128 };
        if prefix > node_prefix || node_prefix > widest || node_prefix - prefix > 16 {
            return Err(error());
        }
        Ok(Self { base, prefix, node_prefix })
    }

    fn count(&self) -> u32 {
        1 << (self.node_prefix - self.prefix)
    }

    fn part(&self, index: u32) -> String {
        let prefix = self.node_prefix;
        match self.base {
            IpAddr::V4(base) => {
                let offset = index.checked_shl(u32::from(32 - prefix)).unwrap_or_default();
                format!("{}/{prefix}", Ipv4Addr::from_bits(base.to_bits() | offset))
            }
            IpAddr::V6(base) => {
                let offset = u128::from(index).checked_shl(u32::from(128 - prefix)).unwrap_or_default();
                format!("{}/{prefix}", Ipv6Addr::from_bits(base.to_bits() | offset))
            }
        }
    }

    /// Which part a node's range is, if it is one of this range.
    fn index(&self, part: &str) -> Option<u32> {
        let (base, prefix) = parse(part)?;
        if prefix != self.node_prefix {
            return None;
        }
        let distance = match (self.base, base) {
            (IpAddr::V4(all), IpAddr::V4(one)) => {
                u128::from(one.to_bits().checked_sub(all.to_bits())?).checked_shr(u32::from(32 - prefix))
            }
            (IpAddr::V6(all), IpAddr::V6(one)) => {
                one.to_bits().checked_sub(all.to_bits())?.checked_shr(u32::from(128 - prefix))
            }
            _ => None,
        };
        u32::try_from(distance?).ok().filter(|index| *index < self.count())
    }
}

fn parse(range: &str) -> Option<(IpAddr, u8)> {
    let (base, prefix) = range.split_once('/')?;
    Some((IpAddr::from_str(base).ok()?, prefix.parse().ok()?))
}

struct Controller {
    client: Client,
    recorder: Recorder,
    nodes: Arc<Informer<Node>>,
    ranges: Vec<Range>,
    /// Given out and perhaps not yet in the cache, by node and range.
    given: parking_lot::Mutex<Vec<(String, Vec<u32>)>>,
}

/// Runs the controller, unless there are no ranges to give.
pub(crate) async fn run(context: Context) {
    if context.config.pod_ranges.is_empty() {
        return;
    }
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("cidrAllocator"),
        nodes: context.informer(),
        ranges: context.config.pod_ranges.clone(),
        given: parking_lot::Mutex::default(),
    });
    this.nodes.synced().await;
    let queue = Queue::new();
    let to = queue.clone();
    let there = this.clone();
    this.nodes.on_change(move |change| match change {
        Change::Applied { new, .. } if ranges_of(new).is_empty() => to.add(Key::of(new.as_ref())),
        Change::Applied { .. } => {}
        Change::Deleted(last) => {
            let name = last.metadata.name.as_deref().unwrap_or_default();
            there.given.lock().retain(|(node, _)| node != name);
        }
    });
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(key).await }
    };
    // One at a time: each must see what the one before it took.
    context.work("nodeipam", 1, queue, sync).await;
}

fn ranges_of(node: &Node) -> Vec<String> {
    let spec = node.spec.clone().unwrap_or_default();
    spec.pod_cidrs.filter(|all| !all.is_empty()).unwrap_or_else(|| spec.pod_cidr.into_iter().collect())
}

/// The lowest free part of each range.
fn choose(ranges: &[Range], taken: &[Vec<String>], given: &[Vec<u32>]) -> Option<Vec<u32>> {
    let lowest = |(at, range): (usize, &Range)| {
        let used: BTreeSet<u32> = taken
            .iter()
            .flatten()
            .filter_map(|part| range.index(part))
            .chain(given.iter().filter_map(|parts| parts.get(at).copied()))
            .collect();
        (0..range.count()).find(|index| !used.contains(index))
    };
    ranges.iter().enumerate().map(lowest).collect()
}

impl Controller {
    async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        let Some(node) = self.nodes.get(&key).filter(|node| ranges_of(node).is_empty()) else {
            return Ok(None);
        };
        let taken: Vec<_> = self.nodes.list().iter().map(|node| ranges_of(node)).collect();
        let parts = {
            let mut given = self.given.lock();
            match given.iter().find(|(node, _)| *node == key.name) {
                Some((_, parts)) => parts.clone(),
                None => {
                    let others: Vec<_> = given.iter().map(|(_, parts)| parts.clone()).collect();
                    let Some(parts) = choose(&self.ranges, &taken, &others) else {
                        let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
                        let kind = EventType::Normal;
                        self.recorder.event(reference(node.as_ref()), kind, "CIDRNotAvailable", message);
                        return Ok(Some(Duration::from_secs(60)));
                    };
                    given.push((key.name.clone(), parts.clone()));
                    parts
                }
            }
        };
        let parts: Vec<String> =
            self.ranges.iter().zip(parts).map(|(range, index)| range.part(index)).collect();
        let patch = json!({"spec": {"podCIDR": parts.first(), "podCIDRs": parts}});
        let api = Api::<Node>::all(self.client.clone());
        found(api.patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_parts_are_given() {
        let ranges = [
            Range::new("10.244.0.0/16", 24).expect("a range"),
            Range::new("fd00:10:244::/56", 64).expect("a range"),
        ];
        let part = |index: &[u32]| -> Vec<String> {
            ranges.iter().zip(index).map(|(range, index)| range.part(*index)).collect()
        };
        assert_eq!(part(&[0, 0]), ["10.244.0.0/24", "fd00:10:244::/64"]);
        assert_eq!(part(&[255, 255]), ["10.244.255.0/24", "fd00:10:244:ff::/64"]);
        assert_eq!(choose(&ranges, &[], &[]), Some(vec![0, 0]));
        assert_eq!(choose(&ranges, &[part(&[0, 0]), part(&[2, 1])], &[vec![1, 2]]), Some(vec![3, 3]));
        let all: Vec<_> = (0..256).map(|index| part(&[index, index])).collect();
        assert_eq!(choose(&ranges, &all, &[]), None);
        assert!(Range::new("10.244.0.0/16", 8).is_err());
        assert!(Range::new("nonsense", 24).is_err());
    }
}
