//! CRI's `RuntimeService`.

use std::sync::Arc;

use cri::v1::runtime_service_server::RuntimeService;
use cri::v1::*;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

use super::{Answers, chunks, metrics, selects, stats, status};
use crate::error::Error;
use crate::node::records::Phase;
use crate::node::{Container as NodeContainer, Node, Sandbox, blocking, now};
use crate::stream::{Session, Streaming};

/// Sandboxes and containers over CRI.
pub struct RuntimeServer {
    /// What is served.
    pub node: Arc<Node>,
    /// Where exec, attach and port-forward sessions are held.
    pub streaming: Streaming,
}

type Answer<T> = Result<Response<T>, Status>;

impl RuntimeServer {
    fn sandboxes(&self, filter: Option<PodSandboxFilter>) -> Vec<Arc<Sandbox>> {
        let filter = filter.unwrap_or_default();
        let fits = |sandbox: &Arc<Sandbox>| {
            let record = sandbox.record.lock();
            record.id.starts_with(&filter.id)
                && filter.state.as_ref().is_none_or(|s| s.state == status::sandbox_state(&record))
                && selects(&filter.label_selector, &record.config.labels)
        };
        self.node.sandboxes().into_iter().filter(fits).collect()
    }

    fn containers(&self, filter: Option<ContainerFilter>) -> Vec<Arc<NodeContainer>> {
        let filter = filter.unwrap_or_default();
        let fits = |container: &Arc<NodeContainer>| {
            let record = container.record.borrow();
            record.id.starts_with(&filter.id)
                && record.sandbox.starts_with(&filter.pod_sandbox_id)
                && filter.state.as_ref().is_none_or(|s| s.state == status::container_state(&record))
                && selects(&filter.label_selector, &record.config.labels)
        };
        self.node.containers().into_iter().filter(fits).collect()
    }

    async fn container_stats_list(
        &self,
        filter: Option<ContainerStatsFilter>,
    ) -> Result<Vec<ContainerStats>, Status> {
        let filter = filter.unwrap_or_default();
        let containers: Vec<_> = self
            .containers(Some(ContainerFilter {
                id: filter.id,
                pod_sandbox_id: filter.pod_sandbox_id,
                label_selector: filter.label_selector,
                state: None,
            }))
            .into_iter()
            .filter(|c| c.phase() == Phase::Running)
            .collect();
        let node = self.node.clone();
        Ok(blocking(move || Ok(containers.iter().map(|c| stats::container(&node, c)).collect())).await?)
    }

    async fn sandbox_stats_list(
        &self,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Result<Vec<PodSandboxStats>, Status> {
        let filter = filter.unwrap_or_default();
        let sandboxes: Vec<_> = self
            .sandboxes(Some(PodSandboxFilter {
                id: filter.id,
                label_selector: filter.label_selector,
                state: None,
            }))
            .into_iter()
            .filter(|s| s.record.lock().ready)
            .collect();
        let node = self.node.clone();
        Ok(blocking(move || Ok(sandboxes.iter().map(|s| pod_stats(&node, s)).collect())).await?)
    }
}

impl RuntimeServer {
    async fn metrics(&self) -> Result<Vec<PodSandboxMetrics>, Status> {
        let node = self.node.clone();
        let ready = self.node.sandboxes().into_iter().filter(|s| s.record.lock().ready);
        let sandboxes: Vec<_> = ready.collect();
        Ok(blocking(move || Ok(sandboxes.iter().map(|s| metrics::pod(&node, s)).collect())).await?)
    }
}

fn pod_stats(node: &Node, sandbox: &Sandbox) -> PodSandboxStats {
    let containers = node.containers_of(&sandbox.id);
    let running = containers.iter().filter(|c| c.phase() == Phase::Running);
    stats::sandbox(node, sandbox, running.map(|c| stats::container(node, c)).collect())
}

fn running(container: &NodeContainer) -> Result<(), Error> {
    match container.phase() {
        Phase::Running => Ok(()),
        _ => Err(Error::State(format!("container {} is not running", container.id))),
    }
}

#[tonic::async_trait]
impl RuntimeService for RuntimeServer {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "carrack".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| Status::invalid_argument("no sandbox config"))?;
        // A client that goes away does not leave a half-made sandbox.
        let (node, handler) = (self.node.clone(), request.runtime_handler);
        let made = tokio::spawn(async move { node.run_sandbox(config, handler).await });
        let pod_sandbox_id = made.await.map_err(|e| Status::internal(e.to_string()))??;
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let (node, id) = (self.node.clone(), request.into_inner().pod_sandbox_id);
        let done = tokio::spawn(async move { node.stop_sandbox(&id).await });
        done.await.map_err(|e| Status::internal(e.to_string()))??;
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let (node, id) = (self.node.clone(), request.into_inner().pod_sandbox_id);
        let done = tokio::spawn(async move { node.remove_sandbox(&id).await });
        done.await.map_err(|e| Status::internal(e.to_string()))??;
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let request = request.into_inner();
        let sandbox = self.node.sandbox(&request.pod_sandbox_id)?;
        let mut info = std::collections::HashMap::new();
        if request.verbose {
            let record = sandbox.record.lock();
            let text = serde_json::json!({"pid": record.shim, "cgroup": record.cgroup}).to_string();
            info.insert("info".to_owned(), text);
        }
        let containers = self.node.containers_of(&sandbox.id);
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(status::sandbox(&sandbox)),
            info,
            containers_statuses: containers.iter().map(|c| status::container(&self.node, c)).collect(),
            timestamp: now(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let items = self.sandboxes(request.into_inner().filter);
        Ok(Response::new(ListPodSandboxResponse {
            items: items.iter().map(|s| status::sandbox_item(s)).collect(),
        }))
    }

    type StreamPodSandboxesStream = Answers<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let items = self.sandboxes(request.into_inner().filter);
        let items = items.iter().map(|s| status::sandbox_item(s)).collect();
        Ok(Response::new(chunks(items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes })))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| Status::invalid_argument("no container config"))?;
        let id = self.node.create_container(&request.pod_sandbox_id, config, request.sandbox_config).await?;
        Ok(Response::new(CreateContainerResponse { container_id: id }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let (node, id) = (self.node.clone(), request.into_inner().container_id);
        let done = tokio::spawn(async move { node.start_container(&id).await });
        done.await.map_err(|e| Status::internal(e.to_string()))??;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let request = request.into_inner();
        self.node.stop_container(&request.container_id, request.timeout).await?;
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let (node, id) = (self.node.clone(), request.into_inner().container_id);
        let done = tokio::spawn(async move { node.remove_container(&id).await });
        done.await.map_err(|e| Status::internal(e.to_string()))??;
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let items = self.containers(request.into_inner().filter);
        let containers = items.iter().map(|c| status::container_item(&self.node, c)).collect();
        Ok(Response::new(ListContainersResponse { containers }))
    }

    type StreamContainersStream = Answers<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let items = self.containers(request.into_inner().filter);
        let items = items.iter().map(|c| status::container_item(&self.node, c)).collect();
        Ok(Response::new(chunks(items, |containers| StreamContainersResponse { containers })))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.node.container(&request.container_id)?;
        let mut info = std::collections::HashMap::new();
        if request.verbose {
            let record = container.record.borrow();
            let text = serde_json::json!({
                "pid": record.pid, "sandboxID": record.sandbox, "cgroup": record.cgroup,
            });
            info.insert("info".to_owned(), text.to_string());
        }
        Ok(Response::new(ContainerStatusResponse {
            status: Some(status::container(&self.node, &container)),
            info,
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let resources = request.linux.ok_or_else(|| Status::invalid_argument("no linux resources"))?;
        self.node.update_container(&request.container_id, resources).await?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let container = self.node.container(&request.into_inner().container_id)?;
        running(&container)?;
        let sandbox = self.node.sandbox(&container.sandbox)?;
        let reopen = crate::shim::protocol::Request::ReopenLog { id: container.id.clone() };
        sandbox.shim.ask(&reopen).await.map_err(Error::from)?;
        Ok(Response::new(ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let request = request.into_inner();
        let container = self.node.container(&request.container_id)?;
        running(&container)?;
        Ok(Response::new(crate::stream::exec_sync(&self.node, &container, request).await?))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let request = request.into_inner();
        let container = self.node.container(&request.container_id)?;
        running(&container)?;
        if request.tty && request.stderr {
            return Err(Status::invalid_argument("tty and stderr cannot both be true"));
        }
        if !request.stdin && !request.stdout && !request.stderr {
            return Err(Status::invalid_argument("one of stdin, stdout, or stderr must be set"));
        }
        Ok(Response::new(ExecResponse { url: self.streaming.url(Session::Exec(request)) }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let request = request.into_inner();
        let container = self.node.container(&request.container_id)?;
        running(&container)?;
        if request.tty && request.stderr {
            return Err(Status::invalid_argument("tty and stderr cannot both be true"));
        }
        if !request.stdin && !request.stdout && !request.stderr {
            return Err(Status::invalid_argument("one of stdin, stdout, and stderr must be set"));
        }
        Ok(Response::new(AttachResponse { url: self.streaming.url(Session::Attach(request)) }))
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let request = request.into_inner();
        let sandbox = self.node.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.record.lock().ready {
            return Err(Error::State(format!("sandbox {} is not running", sandbox.id)).into());
        }
        Ok(Response::new(PortForwardResponse { url: self.streaming.url(Session::PortForward(request)) }))
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        let container = self.node.container(&request.into_inner().container_id)?;
        let node = self.node.clone();
        let stats = blocking(move || Ok(stats::container(&node, &container))).await?;
        Ok(Response::new(ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let stats = self.container_stats_list(request.into_inner().filter).await?;
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Answers<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let stats = self.container_stats_list(request.into_inner().filter).await?;
        Ok(Response::new(chunks(stats, |container_stats| StreamContainerStatsResponse { container_stats })))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        let sandbox = self.node.sandbox(&request.into_inner().pod_sandbox_id)?;
        let node = self.node.clone();
        let stats = blocking(move || Ok(pod_stats(&node, &sandbox))).await?;
        Ok(Response::new(PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let stats = self.sandbox_stats_list(request.into_inner().filter).await?;
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Answers<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let stats = self.sandbox_stats_list(request.into_inner().filter).await?;
        Ok(Response::new(chunks(stats, |pod_sandbox_stats| StreamPodSandboxStatsResponse {
            pod_sandbox_stats,
        })))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let config = request.into_inner().runtime_config.and_then(|c| c.network_config);
        if let Some(network) = config {
            let node = self.node.clone();
            blocking(move || node.network.update(&network.pod_cidr)).await?;
        }
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let condition = |kind: &str, problem: Option<&str>| RuntimeCondition {
            r#type: kind.into(),
            status: problem.is_none(),
            reason: if problem.is_some() { kind.replace("Ready", "NotReady") } else { String::new() },
            message: problem.unwrap_or_default().into(),
        };
        let node = self.node.clone();
        let network = blocking(move || Ok(node.network.not_ready())).await?;
        let mut info = std::collections::HashMap::new();
        if request.into_inner().verbose {
            let text = serde_json::json!({
                "root": self.node.config.root, "state": self.node.config.state_dir,
                "cgroupV2": self.node.cgroups.unified(), "cgroupDriver": "cgroupfs",
                "cgroupParent": self.node.config.cgroup_parent,
                "network": self.node.network.describe(),
            });
            info.insert("config".to_owned(), text.to_string());
        }
        let features = RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces: crate::shim::userns::supported(),
        };
        let names = std::iter::once("").chain(self.node.config.handlers.iter().map(String::as_str));
        let runtime_handlers =
            names.map(|name| RuntimeHandler { name: name.into(), features: Some(features) }).collect();
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", None),
                    condition("NetworkReady", network.as_deref()),
                ],
            }),
            info,
            runtime_handlers,
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
            }),
        }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(Error::Unimplemented("checkpoints of containers are not supported by this runtime").into())
    }

    type GetContainerEventsStream = Answers<ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let receiver = self.node.events();
        let stream = futures::stream::unfold(Some(receiver), |receiver| async {
            let mut receiver = receiver?;
            match receiver.recv().await {
                Ok(event) => Some((Ok(event), Some(receiver))),
                Err(RecvError::Lagged(n)) => {
                    let status = Status::data_loss(format!("{n} events were lost; list and subscribe again"));
                    Some((Err(status), None))
                }
                Err(RecvError::Closed) => None,
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Ok(Response::new(ListMetricDescriptorsResponse { descriptors: metrics::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics: self.metrics().await? }))
    }

    type StreamPodSandboxMetricsStream = Answers<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let all = self.metrics().await?;
        Ok(Response::new(chunks(all, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        })))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        let linux = LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs as i32 };
        Ok(Response::new(RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let sandbox = self.node.sandbox(&request.pod_sandbox_id)?;
        self.node.update_sandbox(&sandbox, request.overhead, request.resources).await?;
        Ok(Response::new(UpdatePodSandboxResourcesResponse {}))
    }
}
