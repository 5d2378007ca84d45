//! The container runtime, seen through CRI: clients for its two services and the view of one pod they give.

use std::collections::HashMap;

use cri::v1::image_service_client::ImageServiceClient;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use cri::v1::{
    Container, ContainerFilter, ContainerState, ContainerStatus, ContainerStatusRequest,
    ListContainersRequest, ListPodSandboxRequest, PodSandbox, PodSandboxState, PodSandboxStatus,
    PodSandboxStatusRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::metrics::{Metrics, Timed};

pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";

const MAX_MESSAGE: usize = 16 << 20;

/// Connections to the runtime; cheap to clone.
#[derive(Clone)]
pub(crate) struct Cri {
    runtime: RuntimeServiceClient<Timed>,
    images: ImageServiceClient<Timed>,
}

/// What the runtime knows of a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct PodView {
    /// The newest sandbox.
    pub sandbox: Option<PodSandboxStatus>,
    /// Older sandboxes, to be removed.
    pub stale: Vec<String>,
    /// All containers of the pod, the newest first.
    pub containers: Vec<ContainerStatus>,
}

impl PodView {
    /// The newest container of that name.
    pub(crate) fn container(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|container| container_name(container) == name)
    }

    pub(crate) fn sandbox_ready(&self) -> bool {
        self.sandbox.as_ref().is_some_and(|sandbox| sandbox.state() == PodSandboxState::SandboxReady)
    }

    /// Whether any container may still have a process.
    pub(crate) fn any_running(&self) -> bool {
        self.containers.iter().any(|container| {
            matches!(container.state(), ContainerState::ContainerRunning | ContainerState::ContainerUnknown)
        })
    }

    /// Addresses of the sandbox, the runtime's preferred one first.
    pub(crate) fn ips(&self) -> Vec<String> {
        let network = self.sandbox.as_ref().and_then(|sandbox| sandbox.network.as_ref());
        network.map_or_else(Vec::new, |network| {
            std::iter::once(network.ip.clone())
                .chain(network.additional_ips.iter().map(|ip| ip.ip.clone()))
                .filter(|ip| !ip.is_empty())
                .collect()
        })
    }
}

pub(crate) fn container_name(container: &ContainerStatus) -> &str {
    container.metadata.as_ref().map_or("", |metadata| metadata.name.as_str())
}

pub(crate) fn attempt(container: &ContainerStatus) -> u32 {
    container.metadata.as_ref().map_or(0, |metadata| metadata.attempt)
}

impl Cri {
    pub(crate) fn new(channel: Channel, metrics: Metrics) -> Self {
        let channel = Timed::new(channel, metrics);
        Cri {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        }
    }

    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Timed> {
        self.runtime.clone()
    }

    pub(crate) fn images(&self) -> ImageServiceClient<Timed> {
        self.images.clone()
    }

    /// Every sandbox, by pod uid.
    pub(crate) async fn sandboxes(&self) -> Result<HashMap<String, Vec<PodSandbox>>, Status> {
        let items =
            self.runtime().list_pod_sandbox(ListPodSandboxRequest { filter: None }).await?.into_inner().items;
        let mut by_pod: HashMap<String, Vec<PodSandbox>> = HashMap::new();
        for sandbox in items {
            if let Some(metadata) = &sandbox.metadata {
                by_pod.entry(metadata.uid.clone()).or_default().push(sandbox);
            }
        }
        Ok(by_pod)
    }

    /// Every container, or those of one sandbox.
    pub(crate) async fn containers(&self, sandbox: Option<&str>) -> Result<Vec<Container>, Status> {
        let filter =
            sandbox.map(|id| ContainerFilter { pod_sandbox_id: id.to_owned(), ..Default::default() });
        Ok(self.runtime().list_containers(ListContainersRequest { filter }).await?.into_inner().containers)
    }

    /// What the runtime knows of the pod whose sandboxes have these ids.
    pub(crate) async fn view(&self, sandboxes: &[String]) -> Result<PodView, Status> {
        let mut found = Vec::new();
        let mut containers = Vec::new();
        for id in sandboxes {
            let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
            let response = match self.runtime().pod_sandbox_status(request).await {
                Ok(response) => response.into_inner(),
                Err(status) if status.code() == Code::NotFound => continue,
                Err(status) => return Err(status),
            };
            let Some(status) = response.status else { continue };
            found.push(status);
            if response.containers_statuses.is_empty() {
                containers.extend(self.container_statuses(id).await?);
            } else {
                containers.extend(response.containers_statuses);
            }
        }
        found.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
        containers.sort_by_key(|container: &ContainerStatus| {
            std::cmp::Reverse((container.created_at, attempt(container)))
        });
        let mut found = found.into_iter();
        Ok(PodView { sandbox: found.next(), stale: found.map(|sandbox| sandbox.id).collect(), containers })
    }

    async fn container_statuses(&self, sandbox: &str) -> Result<Vec<ContainerStatus>, Status> {
        let mut statuses = Vec::new();
        for container in self.containers(Some(sandbox)).await? {
            let request = ContainerStatusRequest { container_id: container.id, verbose: false };
            match self.runtime().container_status(request).await {
                Ok(response) => statuses.extend(response.into_inner().status),
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(status),
            }
        }
        Ok(statuses)
    }
}
