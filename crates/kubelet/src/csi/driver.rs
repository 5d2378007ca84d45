//! Talks to the registered drivers, and knows their CSIDriver objects.

use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::storage::v1::CSIDriver;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use plugins::csi::NodeGetCapabilitiesRequest;
use plugins::csi::node_client::NodeClient;
use plugins::csi::node_service_capability::Type;
use plugins::csi::node_service_capability::rpc::Type as Can;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::{Csi, CsiError};

/// How long a driver may take for one call.
const LONGEST: Duration = Duration::from_secs(120);
/// How long the API server may take to tell of the CSIDriver objects after the start.
const SYNC: Duration = Duration::from_secs(10);

/// A registered driver, with what it can do.
pub(super) struct Driver {
    pub(super) name: String,
    client: NodeClient<Channel>,
    can: HashSet<i32>,
}

impl Driver {
    pub(super) fn can(&self, what: Can) -> bool {
        self.can.contains(&(what as i32))
    }

    /// Calls the driver within the time that a call may take.
    pub(super) async fn call<T, R, F>(
        &self,
        call: &'static str,
        request: T,
        send: impl FnOnce(NodeClient<Channel>, Request<T>) -> F,
    ) -> Result<R, CsiError>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let mut request = Request::new(request);
        request.set_timeout(LONGEST);
        match tokio::time::timeout(LONGEST, send(self.client.clone(), request)).await {
            Err(_) => Err(CsiError::Late { driver: self.name.clone(), call }),
            Ok(Err(status)) => {
                Err(CsiError::Rpc { driver: self.name.clone(), call, status: Box::new(status) })
            }
            Ok(Ok(response)) => Ok(response.into_inner()),
        }
    }
}

/// Calls a method of a driver's node service: `call!(driver, node_stage_volume, request)`.
macro_rules! call {
    ($driver:expr, $method:ident, $request:expr) => {
        $driver
            .call(stringify!($method), $request, |mut client, request| async move {
                client.$method(request).await
            })
            .await
    };
}
pub(super) use call;

impl Csi {
    /// The driver of that name, asked what it can do.
    pub(super) async fn driver(&self, name: &str) -> Result<Driver, CsiError> {
        let endpoint = self.registered.lock().get(name).map(|one| one.endpoint.clone());
        let endpoint = endpoint.ok_or_else(|| CsiError::NotRegistered(name.to_owned()))?;
        let client = NodeClient::new(plugins::connect(&endpoint).await?);
        let mut driver = Driver { name: name.to_owned(), client, can: HashSet::new() };
        let answer = call!(driver, node_get_capabilities, NodeGetCapabilitiesRequest {})?;
        for capability in answer.capabilities {
            if let Some(Type::Rpc(rpc)) = capability.r#type {
                driver.can.insert(rpc.r#type);
            }
        }
        Ok(driver)
    }

    /// Waits until the CSIDriver objects are known.
    pub(super) async fn synced(&self) -> Result<(), CsiError> {
        match tokio::time::timeout(SYNC, self.objects.wait_until_ready()).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(CsiError::NotSynced),
        }
    }
}

/// Keeps the CSIDriver objects until `stop`.
pub(super) fn follow(client: Client, stop: CancellationToken) -> Store<CSIDriver> {
    let (store, writer) = reflector::store();
    let api: Api<CSIDriver> = Api::all(client);
    tokio::spawn(async move {
        let stream = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
        let mut stream = std::pin::pin!(stream);
        loop {
            tokio::select! {
                next = stream.next() => match next {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => tracing::debug!(%error, "watching CSIDriver objects failed"),
                    None => return,
                },
                () = stop.cancelled() => return,
            }
        }
    });
    store
}
