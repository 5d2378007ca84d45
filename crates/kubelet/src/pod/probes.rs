//! Keeps a worker's probes in step with its running containers, and notes what they decide.

use std::collections::HashSet;

use cri::v1::ContainerState;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

use super::{Stage, Worker};
use crate::plan::Probed;
use crate::podutil::{self, Kind, spec};
use crate::probe::{self, Report};
use crate::runtime::container_name;

impl Worker {
    pub(super) fn note_report(&mut self, report: Report) {
        let probed = self.probed.entry(report.container_id).or_default();
        match report.kind {
            probe::Kind::Startup => probed.startup = Some(report.good),
            probe::Kind::Liveness => probed.liveness = Some(report.good),
            probe::Kind::Readiness => probed.readiness = Some(report.good),
        }
    }

    /// Starts and stops probes so that they match the running containers.
    pub(super) fn sync_probes(&mut self) {
        let stopping = self.stage != Stage::Running;
        let mut wanted: HashSet<(String, probe::Kind)> = HashSet::new();
        let everyone = spec(&self.pod).containers.iter().map(|container| (container, Kind::Regular));
        let sidecars = podutil::init_containers(&self.pod)
            .iter()
            .filter(|container| podutil::is_sidecar(container))
            .map(|container| (container, Kind::Sidecar));
        let ip = if podutil::host_network(&self.pod) {
            self.context.config.node_ips.first().map(ToString::to_string)
        } else {
            self.view.ips().into_iter().next()
        };
        let mut fresh = Vec::new();
        for (container, role) in everyone.chain(sidecars) {
            let Some(found) = self.view.container(&container.name) else { continue };
            if found.state() != ContainerState::ContainerRunning {
                continue;
            }
            let probed =
                *self.probed.entry(found.id.clone()).or_insert_with(|| adopted(&self.current, found));
            let started = container.startup_probe.is_none() || probed.startup == Some(true);
            for kind in [probe::Kind::Startup, probe::Kind::Liveness, probe::Kind::Readiness] {
                let due = match kind {
                    probe::Kind::Startup => !started && probed.startup.is_none() && !stopping,
                    probe::Kind::Liveness => started && probed.liveness != Some(false) && !stopping,
                    probe::Kind::Readiness => started,
                };
                if !due || probe::of(container, kind).is_none() {
                    continue;
                }
                let key = (container.name.clone(), kind);
                wanted.insert(key.clone());
                if self.probes.get(&key).is_some_and(|running| running.container_id == found.id) {
                    continue;
                }
                let target = probe::Target {
                    context: self.context.clone(),
                    pod: self.pod.clone(),
                    container: container.clone(),
                    role,
                    container_id: found.id.clone(),
                    ip: ip.clone().unwrap_or_default(),
                    started_at: Timestamp::from_nanosecond(i128::from(found.started_at))
                        .unwrap_or(Timestamp::UNIX_EPOCH),
                };
                let initial = if kind == probe::Kind::Readiness { probed.readiness } else { None };
                fresh.push((key, target, initial));
            }
        }
        for (key, target, initial) in fresh {
            if let Some(running) = probe::start(target, key.1, initial, self.reports.clone()) {
                self.probes.insert(key, running);
            }
        }
        self.probes.retain(|key, _| wanted.contains(key));
        let view = &self.view;
        self.probed.retain(|id, _| view.containers.iter().any(|container| container.id == *id));
    }
}

/// What probes had decided about a container that was running before this process: its status tells.
fn adopted(status: &PodStatus, container: &cri::v1::ContainerStatus) -> Probed {
    let name = container_name(container);
    let suffix = format!("://{}", container.id);
    let all =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let known = all
        .filter(|status| status.name == name)
        .find(|status| status.container_id.as_deref().is_some_and(|id| id.ends_with(&suffix)));
    known.map_or_else(Probed::default, |status| Probed {
        startup: status.started.filter(|started| *started),
        liveness: None,
        readiness: status.ready.then_some(true),
    })
}
