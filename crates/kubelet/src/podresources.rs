//! `PodResourcesLister` (podresources v1) at `pod-resources/kubelet.sock`: which container has which processors, memory, devices and
//! claims, for monitoring agents on the node.

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};
use plugins::podresources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use plugins::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, ContainerMemory,
    ContainerResources, GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest,
    ListPodResourcesResponse, NumaNode, PodResources, TopologyInfo,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use topology::hints::NodeSet;

use crate::context::{Context, Shared};
use crate::manager::Pods;
use crate::podutil::{self, init_containers, is_sidecar, spec};

/// Serves until shutdown.
pub(crate) async fn run(context: Shared, pods: Pods, shutdown: CancellationToken) {
    let socket = context.config.root_dir.join("pod-resources/kubelet.sock");
    let listener = match listen(&socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, socket = %socket.display(), "cannot tell of pods' resources");
            return;
        }
    };
    let served = Server::builder()
        .add_service(PodResourcesListerServer::new(Lister { context, pods }))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "cannot tell of pods' resources any more");
    }
}

fn listen(socket: &Path) -> std::io::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(socket)
}

struct Lister {
    context: Shared,
    pods: Pods,
}

fn place(nodes: NodeSet) -> Option<TopologyInfo> {
    let nodes: Vec<NumaNode> = nodes.iter().map(|node| NumaNode { id: i64::from(node) }).collect();
    (!nodes.is_empty()).then_some(TopologyInfo { nodes })
}

fn of_container(context: &Context, pod: &Pod, container: &Container) -> ContainerResources {
    let uid = podutil::uid(pod);
    let own = context.pinning.cpus(uid, &container.name).filter(|(_, own)| *own);
    let memory = context.pinning.memory(uid, &container.name).into_iter().map(|block| ContainerMemory {
        memory_type: block.resource,
        size: block.size,
        topology: place(NodeSet::new(block.numa_affinity)),
    });
    let devices = context.devices.of(uid, &container.name).into_iter();
    ContainerResources {
        name: container.name.clone(),
        devices: devices
            .map(|(resource_name, device_ids, nodes)| ContainerDevices {
                resource_name,
                device_ids,
                topology: place(nodes),
            })
            .collect(),
        cpu_ids: own
            .into_iter()
            .flat_map(|(cpus, _)| cpus.iter().collect::<Vec<_>>())
            .map(i64::from)
            .collect(),
        memory: memory.collect(),
        dynamic_resources: context.claims.of_container(pod, container),
    }
}

fn of_pod(context: &Context, pod: &Pod) -> PodResources {
    let sidecars = init_containers(pod).iter().filter(|container| is_sidecar(container));
    let containers = sidecars.chain(&spec(pod).containers);
    PodResources {
        name: podutil::name(pod).to_owned(),
        namespace: podutil::namespace(pod).to_owned(),
        containers: containers.map(|container| of_container(context, pod, container)).collect(),
    }
}

fn active(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Failed" | "Succeeded"))
}

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        let pods = self.pods.list();
        let pods = pods.iter().filter(|pod| active(pod)).map(|pod| of_pod(&self.context, pod));
        Ok(Response::new(ListPodResourcesResponse { pod_resources: pods.collect() }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        let pinning = &self.context.pinning;
        let memory = pinning.allocatable_memory().into_iter().flat_map(|(node, amounts)| {
            let of = move |(memory_type, size)| ContainerMemory {
                memory_type,
                size,
                topology: place(NodeSet::new([node])),
            };
            amounts.into_iter().map(of)
        });
        let devices = self.context.devices.all().into_iter().map(|(resource_name, id, nodes)| {
            ContainerDevices { resource_name, device_ids: vec![id], topology: place(nodes) }
        });
        Ok(Response::new(AllocatableResourcesResponse {
            devices: devices.collect(),
            cpu_ids: pinning.allocatable_cpus().iter().map(i64::from).collect(),
            memory: memory.collect(),
        }))
    }

    async fn get(
        &self,
        request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        let request = request.into_inner();
        let (name, namespace) = (&request.pod_name, &request.pod_namespace);
        let found = self.pods.find(namespace, name).filter(|pod| active(pod));
        let pod = found
            .ok_or_else(|| Status::not_found(format!("pod {name} in namespace {namespace} not found")))?;
        Ok(Response::new(GetPodResourcesResponse { pod_resources: Some(of_pod(&self.context, &pod)) }))
    }
}
