//! A pod's limit of CPU time. It is lifted while a container of the pod is made, which a small quota would stretch to seconds:
//! the container's own quota is in force before its program begins, and the pod's as soon as the container has started.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;

use super::limits::PodLimits;
use super::{CPU_PERIOD, Cgroups, put};

/// The pods whose quota is lifted, by the path of their cgroup.
pub(super) type Lifts = Arc<Mutex<HashMap<String, Lift>>>;

#[derive(Debug)]
pub(super) struct Lift {
    /// How many makings need it.
    makings: usize,
    /// What is to be in force afterwards.
    quota: Option<i64>,
}

/// Keeps a pod's quota lifted until it is dropped.
pub(crate) struct Lifted {
    cgroups: Cgroups,
    path: String,
}

impl Drop for Lifted {
    fn drop(&mut self) {
        let mut lifts = self.cgroups.lifts.lock();
        let Some(lift) = lifts.get_mut(&self.path) else { return };
        lift.makings -= 1;
        if lift.makings > 0 {
            return;
        }
        let quota = lift.quota;
        lifts.remove(&self.path);
        self.cgroups.write_quota(&self.path, quota);
    }
}

impl Cgroups {
    /// Lifts the pod's quota, if it has one.
    pub(crate) fn lift(&self, pod: &Pod) -> Option<Lifted> {
        let quota = Some(PodLimits::of(pod, self.rules).quota?);
        let path = self.of_pod(pod);
        let mut lifts = self.lifts.lock();
        let lift = lifts.entry(path.clone()).or_insert(Lift { makings: 0, quota });
        lift.makings += 1;
        if lift.makings == 1 {
            self.write_quota(&path, None);
        }
        Some(Lifted { cgroups: self.clone(), path })
    }

    /// Puts the pod's quota in force: an earlier process may have ended while it was lifted.
    pub(crate) fn bound(&self, pod: &Pod) {
        if let Some(quota) = PodLimits::of(pod, self.rules).quota {
            self.set_quota(&self.of_pod(pod), Some(quota));
        }
    }

    /// Sets a quota, now or once it is no longer lifted; `None` leaves what is there.
    pub(super) fn set_quota(&self, path: &str, quota: Option<i64>) {
        let Some(quota) = quota else { return };
        let mut lifts = self.lifts.lock();
        match lifts.get_mut(path) {
            Some(lift) => lift.quota = Some(quota),
            None => self.write_quota(path, Some(quota)),
        }
    }

    /// Raises a quota, or lifts it for good, and lowers none.
    pub(super) fn raise_quota(&self, path: &str, wanted: Option<i64>) {
        let mut lifts = self.lifts.lock();
        let raises = |now: i64| wanted.is_none_or(|wanted| wanted > now);
        match lifts.get_mut(path) {
            Some(lift) if lift.quota.is_some_and(raises) => lift.quota = wanted,
            Some(_) => {}
            None if self.read_quota(path).is_some_and(raises) => self.write_quota(path, wanted),
            None => {}
        }
    }

    fn write_quota(&self, path: &str, quota: Option<i64>) {
        for (mount, _) in self.legacy.iter().filter(|(_, all)| all.iter().any(|name| name == "cpu")) {
            let dir = mount.join(path);
            if quota.is_some() {
                put(&dir.join("cpu.cfs_period_us"), &CPU_PERIOD.to_string());
            }
            put(&dir.join("cpu.cfs_quota_us"), &quota.unwrap_or(-1).to_string());
        }
        if let Some(mount) = &self.unified {
            let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
            put(&mount.join(path).join("cpu.max"), &format!("{quota} {CPU_PERIOD}"));
        }
    }

    /// The quota in force; `None` where there is none.
    fn read_quota(&self, path: &str) -> Option<i64> {
        let number = |file: &Path| {
            let text = std::fs::read_to_string(file).ok()?;
            text.split_whitespace().next()?.parse::<i64>().ok().filter(|quota| *quota >= 0)
        };
        let legacy = self.legacy.iter().map(|(mount, _)| mount.join(path).join("cpu.cfs_quota_us"));
        let unified = self.unified.iter().map(|mount| mount.join(path).join("cpu.max"));
        legacy.chain(unified).find_map(|file| number(&file))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::fake;
    use super::*;

    fn pod(cpu: &str) -> Pod {
        let resources = serde_json::json!({"limits": {"cpu": cpu}, "requests": {"cpu": "10m"}});
        let spec = serde_json::json!({"containers": [{"name": "a", "resources": resources}]});
        serde_json::from_value(serde_json::json!({"metadata": {"uid": "u"}, "spec": spec})).expect("a pod")
    }

    /// The quota of a hierarchy of version 1 and of one of version 2.
    fn quotas(folder: &Path) -> (String, String) {
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        (read("old/kubepods/burstable/podu/cpu.cfs_quota_us"), read("new/kubepods/burstable/podu/cpu.max"))
    }

    #[test]
    fn a_quota_is_lifted_while_containers_are_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        let cgroups = fake(&[&old], Some(&new));
        let check = |quota: &str, max: &str| {
            assert_eq!(quotas(folder.path()), (quota.to_owned(), format!("{max} 100000")));
        };
        cgroups.ensure(&pod("100m")).expect("a cgroup");
        check("10000", "10000");
        let first = cgroups.lift(&pod("100m"));
        check("-1", "max");
        let second = cgroups.lift(&pod("100m"));
        // A resize meanwhile waits for the end.
        cgroups.ensure(&pod("200m")).expect("a cgroup");
        drop(first);
        check("-1", "max");
        drop(second);
        check("20000", "20000");
        cgroups.widen(&pod("100m")).expect("a cgroup");
        check("20000", "20000");
        cgroups.widen(&pod("300m")).expect("a cgroup");
        check("30000", "30000");
        let _ = cgroups.lift(&pod("300m")).map(std::mem::forget);
        check("-1", "max");
        // The next process finds it lifted.
        fake(&[&old], Some(&new)).bound(&pod("300m"));
        check("30000", "30000");
    }

    #[test]
    fn without_a_quota_nothing_is_lifted() {
        let folder = tempfile::tempdir().expect("a folder");
        let cgroups = fake(&[], Some(folder.path()));
        let pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [{"name": "a"}]}}));
        assert!(cgroups.lift(&pod.expect("a pod")).is_none());
    }
}
