//! A small CSI driver for the tests, with what usually runs beside one: registration on the node, and the controllers that
//! provision, attach and grow. It runs in a pod, from the test's own binary (`serve` below), and keeps volumes as folders
//! and loop devices. Every call is written down in `calls`, one a line.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use plugins::csi::identity_server::{Identity, IdentityServer};
use plugins::csi::node_server::{Node, NodeServer};
use plugins::csi::node_service_capability::{Rpc, Type, rpc};
use plugins::csi::volume_capability::AccessType;
use plugins::csi::*;
use plugins::registration::registration_server::{Registration, RegistrationServer};
use plugins::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::controller;

pub const NAME: &str = "csi.test.carrack.dev";
/// Where the driver keeps its things, in its pod and on the node.
pub const DATA: &str = "/var/lib/csi-test";
const KUBELET: &str = "/var/lib/kubelet";

/// The driver's process, when its pod runs the test binary; nothing anywhere else.
#[test]
#[ignore = "this is the CSI driver's own process, started in a pod by the tests of CSI"]
fn serve() {
    let Ok(node) = std::env::var("CSI_NODE") else { return };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run(node));
}

async fn run(node: String) {
    let own = Path::new(KUBELET).join("plugins").join(NAME);
    std::fs::create_dir_all(&own).expect("a folder");
    std::fs::create_dir_all(DATA).expect("a folder");
    let driver = Arc::new(Driver { node });
    let services = tonic::transport::Server::builder()
        .add_service(IdentityServer::from_arc(driver.clone()))
        .add_service(NodeServer::from_arc(driver.clone()))
        .serve_with_incoming(listen(&own.join("csi.sock")));
    let registration = tonic::transport::Server::builder()
        .add_service(RegistrationServer::from_arc(driver))
        .serve_with_incoming(listen(
            &Path::new(KUBELET).join("plugins_registry").join(format!("{NAME}-reg.sock")),
        ));
    let mut end =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a handler");
    tokio::select! {
        _ = services => {}
        _ = registration => {}
        () = controller::run() => {}
        _ = end.recv() => {}
    }
    let _ =
        std::fs::remove_file(Path::new(KUBELET).join("plugins_registry").join(format!("{NAME}-reg.sock")));
    std::process::exit(0);
}

fn listen(path: &Path) -> UnixListenerStream {
    let _ = std::fs::remove_file(path);
    UnixListenerStream::new(tokio::net::UnixListener::bind(path).expect("a socket"))
}

struct Driver {
    node: String,
}

fn note(call: &str, what: serde_json::Value) {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(Path::new(DATA).join("calls"));
    writeln!(file.expect("the list of calls"), "{call} {what}").expect("written");
}

fn fault(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn is_mounted(path: &str) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

fn bind(from: &Path, to: &str, read_only: bool) -> Result<(), Status> {
    if is_mounted(to) {
        return Ok(());
    }
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(fault)?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, to, None::<&str>, flags, None::<&str>).map_err(fault)?;
    }
    Ok(())
}

fn unbind(at: &str) -> Result<(), Status> {
    if is_mounted(at) {
        umount2(at, MntFlags::empty()).map_err(fault)?;
    }
    Ok(())
}

fn volume(id: &str) -> PathBuf {
    Path::new(DATA).join("volumes").join(id)
}

fn is_block(capability: &Option<VolumeCapability>) -> bool {
    let kind = capability.as_ref().and_then(|capability| capability.access_type.as_ref());
    matches!(kind, Some(AccessType::Block(_)))
}

fn mode(capability: &Option<VolumeCapability>) -> i32 {
    capability.as_ref().and_then(|one| one.access_mode.as_ref()).map_or(0, |mode| mode.mode)
}

const LOOP_SET_FD: u64 = 0x4C00;
const LOOP_CLR_FD: u64 = 0x4C01;
const LOOP_SET_CAPACITY: u64 = 0x4C07;
const LOOP_CTL_GET_FREE: u64 = 0x4C82;

fn control(device: &std::fs::File, request: u64, argument: i32) -> std::io::Result<i32> {
    // SAFETY: these requests of loop devices take a number, and touch no memory of ours.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), request as _, argument) };
    if answer < 0 { Err(std::io::Error::last_os_error()) } else { Ok(answer) }
}

/// The loop device of a block volume, as it was noted when it was staged.
fn device(id: &str) -> Option<PathBuf> {
    std::fs::read_to_string(Path::new(DATA).join(format!("{id}.device"))).ok().map(PathBuf::from)
}

fn attach(id: &str, size: u64) -> std::io::Result<()> {
    if device(id).is_some() {
        return Ok(());
    }
    let open = |path: &Path| std::fs::OpenOptions::new().read(true).write(true).open(path);
    std::fs::create_dir_all(Path::new(DATA).join("volumes"))?;
    let file =
        std::fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(volume(id))?;
    file.set_len(file.metadata()?.len().max(size))?;
    loop {
        let number = control(&open(Path::new("/dev/loop-control"))?, LOOP_CTL_GET_FREE, 0)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        match control(&open(&path)?, LOOP_SET_FD, file.as_raw_fd()) {
            // Somebody else was quicker.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
            Ok(_) => {
                return std::fs::write(
                    Path::new(DATA).join(format!("{id}.device")),
                    path.to_string_lossy().as_bytes(),
                );
            }
        }
    }
}

fn detach(id: &str) -> std::io::Result<()> {
    if let Some(device) = device(id) {
        control(&std::fs::File::open(device)?, LOOP_CLR_FD, 0)?;
        std::fs::remove_file(Path::new(DATA).join(format!("{id}.device")))?;
    }
    Ok(())
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: NAME.into(),
            endpoint: format!("{KUBELET}/plugins/{NAME}/csi.sock"),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        note("Registered", serde_json::json!(status.into_inner().plugin_registered));
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: NAME.into(),
            vendor_version: "1".into(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities: Vec::new() }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let can = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::ExpandVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::SingleNodeMultiWriter,
        ];
        let one =
            |can: rpc::Type| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: can as i32 })) };
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: can.map(one).into() }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let segments = HashMap::from([(format!("topology.{NAME}/node"), self.node.clone())]);
        Ok(Response::new(NodeGetInfoResponse {
            node_id: format!("id-of-{}", self.node),
            max_volumes_per_node: 5,
            accessible_topology: Some(Topology { segments }),
        }))
    }

    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        note(
            "NodeStage",
            serde_json::json!({
                "id": request.volume_id, "path": request.staging_target_path, "publishContext": request.publish_context,
                "secrets": request.secrets,
            }),
        );
        if is_block(&request.volume_capability) {
            let size =
                request.volume_context.get("size").and_then(|size| size.parse().ok()).unwrap_or(1 << 20);
            attach(&request.volume_id, size).map_err(fault)?;
        } else {
            let own = volume(&request.volume_id);
            std::fs::create_dir_all(&own).map_err(fault)?;
            bind(&own, &request.staging_target_path, false)?;
        }
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        note(
            "NodeUnstage",
            serde_json::json!({"id": request.volume_id, "path": request.staging_target_path}),
        );
        unbind(&request.staging_target_path)?;
        detach(&request.volume_id).map_err(fault)?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        note(
            "NodePublish",
            serde_json::json!({
                "id": request.volume_id, "path": request.target_path, "context": request.volume_context,
                "readOnly": request.readonly, "mode": mode(&request.volume_capability),
            }),
        );
        let target = request.target_path.as_str();
        if is_block(&request.volume_capability) {
            let device =
                device(&request.volume_id).ok_or_else(|| Status::failed_precondition("it is not staged"))?;
            if !is_mounted(target) {
                std::fs::write(target, "").map_err(fault)?;
            }
            bind(&device, target, false)?;
        } else {
            let own = volume(&request.volume_id);
            std::fs::create_dir_all(&own).map_err(fault)?;
            std::fs::create_dir_all(target).map_err(fault)?;
            bind(&own, target, request.readonly)?;
        }
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        note("NodeUnpublish", serde_json::json!({"id": request.volume_id, "path": request.target_path}));
        unbind(&request.target_path)?;
        let path = Path::new(&request.target_path);
        let removed = if path.is_dir() { std::fs::remove_dir(path) } else { std::fs::remove_file(path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(fault(error)),
            _ => Ok(Response::new(NodeUnpublishVolumeResponse {})),
        }
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let unit = volume_usage::Unit::Bytes as i32;
        Ok(Response::new(NodeGetVolumeStatsResponse {
            usage: vec![VolumeUsage { total: 1_000_000, available: 600_000, used: 400_000, unit }],
            volume_condition: None,
        }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let size = request.capacity_range.map_or(0, |range| range.required_bytes);
        note(
            "NodeExpand",
            serde_json::json!({"id": request.volume_id, "path": request.volume_path, "size": size}),
        );
        if let Some(device) = device(&request.volume_id) {
            let file =
                std::fs::OpenOptions::new().write(true).open(volume(&request.volume_id)).map_err(fault)?;
            file.set_len(u64::try_from(size).unwrap_or(0)).map_err(fault)?;
            control(&std::fs::File::open(device).map_err(fault)?, LOOP_SET_CAPACITY, 0).map_err(fault)?;
        }
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: size }))
    }
}
