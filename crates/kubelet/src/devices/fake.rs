//! A device plug-in for tests: offers what it is told to, and notes what it is asked.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use plugins::device::device_plugin_server::{DevicePlugin, DevicePluginServer};
use plugins::device::registration_client::RegistrationClient;
use plugins::device::{
    AllocateRequest, AllocateResponse, CdiDevice, ContainerAllocateResponse,
    ContainerPreferredAllocationResponse, Device, DevicePluginOptions, DeviceSpec, Empty,
    ListAndWatchResponse, Mount, NumaNode, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest, TopologyInfo,
};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status};

/// A device: its id, whether it is healthy, its NUMA node.
pub type Offer = (&'static str, bool, Option<i64>);

#[derive(Clone)]
pub struct Fake {
    pub offers: watch::Sender<Vec<Offer>>,
    /// What was asked, such as `allocate a,b`.
    pub asked: Arc<Mutex<Vec<String>>>,
    stop: watch::Sender<bool>,
}

impl Fake {
    /// Serves the plug-in in the kubelet's folder and registers it under the resource's name.
    pub async fn start(folder: &Path, name: &str, offers: Vec<Offer>) -> Result<Fake, String> {
        let fake =
            Fake { offers: watch::channel(offers).0, asked: Arc::default(), stop: watch::channel(false).0 };
        let endpoint = format!("{}.sock", name.replace('/', "_"));
        let socket = folder.join(&endpoint);
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(|error| error.to_string())?;
        let mut stop = fake.stop.subscribe();
        let server = tonic::transport::Server::builder()
            .add_service(DevicePluginServer::new(fake.clone()))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
                let _ = stop.wait_for(|stop| *stop).await;
            });
        tokio::spawn(async move {
            let _ = server.await;
            let _ = std::fs::remove_file(socket);
        });
        let registry: PathBuf = folder.join("kubelet.sock");
        let channel = plugins::connect(&registry).await.map_err(|error| error.to_string())?;
        let request = RegisterRequest {
            version: "v1beta1".to_owned(),
            endpoint,
            resource_name: name.to_owned(),
            options: Some(DevicePluginOptions {
                pre_start_required: true,
                get_preferred_allocation_available: true,
            }),
        };
        let done = RegistrationClient::new(channel).register(request).await;
        done.map_err(|status| status.message().to_owned())?;
        Ok(fake)
    }

    /// Ends the plug-in.
    pub fn end(&self) {
        self.stop.send_replace(true);
    }

    fn note(&self, text: String) {
        self.asked.lock().expect("no panic while it is held").push(text);
    }
}

type Stream =
    std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl DevicePlugin for Fake {
    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    type ListAndWatchStream = Stream;

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Stream>, Status> {
        let device = |(id, healthy, node): &Offer| Device {
            id: (*id).to_owned(),
            health: if *healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
            topology: node.map(|id| TopologyInfo { nodes: vec![NumaNode { id }] }),
        };
        let mut stop = self.stop.subscribe();
        let lists = WatchStream::new(self.offers.subscribe())
            .map(move |offers| Ok(ListAndWatchResponse { devices: offers.iter().map(device).collect() }));
        let ended = async move {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        Ok(Response::new(Box::pin(futures::StreamExt::take_until(lists, Box::pin(ended)))))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        // It would rather give the last ones.
        let one = |request: plugins::device::ContainerPreferredAllocationRequest| {
            let mut ids = request.available_device_i_ds;
            ids.sort();
            let count = usize::try_from(request.allocation_size).unwrap_or(0);
            ContainerPreferredAllocationResponse { device_i_ds: ids.into_iter().rev().take(count).collect() }
        };
        let answers = request.into_inner().container_requests.into_iter().map(one).collect();
        Ok(Response::new(PreferredAllocationResponse { container_responses: answers }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let answers = request.into_inner().container_requests.into_iter().map(|request| {
            let ids = request.devices_ids.join(",");
            self.note(format!("allocate {ids}"));
            ContainerAllocateResponse {
                envs: [("FAKE_DEVICES".to_owned(), ids)].into(),
                mounts: vec![Mount {
                    container_path: "/fake/version".to_owned(),
                    host_path: "/proc/version".to_owned(),
                    read_only: true,
                }],
                devices: vec![DeviceSpec {
                    container_path: "/dev/fake0".to_owned(),
                    host_path: "/dev/null".to_owned(),
                    permissions: "rw".to_owned(),
                }],
                annotations: [("fake.dev/given".to_owned(), "yes".to_owned())].into(),
                cdi_devices: Vec::<CdiDevice>::new(),
            }
        });
        Ok(Response::new(AllocateResponse { container_responses: answers.collect() }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        self.note(format!("start {}", request.into_inner().devices_ids.join(",")));
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
