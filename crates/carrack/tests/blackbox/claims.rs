//! Dynamic resources: a driver of the node, and pods whose claims the scheduler allocates and the driver prepares.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use plugins::dra::v1::dra_plugin_server::{DraPlugin, DraPluginServer};
use plugins::dra::v1::{
    Device, NodePrepareResourceResponse, NodePrepareResourcesRequest, NodePrepareResourcesResponse,
    NodeUnprepareResourceResponse, NodeUnprepareResourcesRequest, NodeUnprepareResourcesResponse,
};
use plugins::registration::registration_server::{Registration, RegistrationServer};
use plugins::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::machine::Machine;

const KUBECTL: &str = "/usr/bin/kubectl";
const NAME: &str = "cards.test.carrack.dev";

/// A driver that gives whatever is allocated to a claim, by names of CDI.
#[derive(Clone)]
struct Driver {
    machine: Arc<Machine>,
    endpoint: PathBuf,
    /// What was asked, such as `prepare a`.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Driver {
    /// Serves the driver and has the kubelet find it.
    fn start(machine: &Arc<Machine>) -> Self {
        let kubelet = machine.data_dir().join("kubelet");
        let own = kubelet.join("plugins").join(NAME);
        std::fs::create_dir_all(&own).expect("a folder");
        let driver = Self { machine: machine.clone(), endpoint: own.join("dra.sock"), asked: Arc::default() };
        let services = tonic::transport::Server::builder()
            .add_service(DraPluginServer::new(driver.clone()))
            .serve_with_incoming(listen(&driver.endpoint));
        tokio::spawn(services);
        let registration = tonic::transport::Server::builder()
            .add_service(RegistrationServer::new(driver.clone()))
            .serve_with_incoming(listen(&kubelet.join("plugins_registry").join(format!("{NAME}-reg.sock"))));
        tokio::spawn(registration);
        driver
    }

    fn note(&self, text: String) {
        self.asked.lock().expect("no panic while it is held").push(text);
    }
}

fn listen(path: &Path) -> UnixListenerStream {
    UnixListenerStream::new(tokio::net::UnixListener::bind(path).expect("a socket"))
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DRAPlugin".into(),
            name: NAME.into(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            supported_versions: vec!["v1.DRAPlugin".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        self.note(format!("registered {}", status.into_inner().plugin_registered));
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        let mut response = NodePrepareResourcesResponse::default();
        for claim in request.into_inner().claims {
            let (machine, name) = (self.machine.clone(), claim.name.clone());
            let path = "jsonpath={range .status.allocation.devices.results[*]}{.pool} {.device}{'\\n'}{end}";
            let told = tokio::task::spawn_blocking(move || {
                machine.kubectl(&["get", "resourceclaim", &name, "-o", path]).ok()
            });
            let told = told.await.map_err(|error| Status::internal(error.to_string()))?;
            let mut devices = Vec::new();
            for (pool, device) in told.lines().filter_map(|line| line.split_once(' ')) {
                self.note(format!("prepare {device}"));
                devices.push(Device {
                    request_names: vec!["one".into()],
                    pool_name: pool.into(),
                    device_name: device.into(),
                    cdi_device_ids: vec![format!("test.carrack.dev/card={device}")],
                    share_id: None,
                });
            }
            response.claims.insert(claim.uid, NodePrepareResourceResponse { devices, error: String::new() });
        }
        Ok(Response::new(response))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        let mut response = NodeUnprepareResourcesResponse::default();
        for claim in request.into_inner().claims {
            self.note("take back".to_owned());
            response.claims.insert(claim.uid, NodeUnprepareResourceResponse { error: String::new() });
        }
        Ok(Response::new(response))
    }
}

const CDI: &str = r#"{"cdiVersion": "0.6.0", "kind": "test.carrack.dev/card", "devices": [
  {"name": "a", "containerEdits": {"env": ["CARD=a"], "deviceNodes": [{"path": "/dev/card", "hostPath": "/dev/null"}]}},
  {"name": "b", "containerEdits": {"env": ["CARD=b"], "deviceNodes": [{"path": "/dev/card", "hostPath": "/dev/null"}]}}]}"#;

const OFFERS: &str = r#"
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: card}
spec: {selectors: [{cel: {expression: device.driver == "cards.test.carrack.dev"}}]}
---
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: node-1-cards}
spec:
  driver: cards.test.carrack.dev
  nodeName: node-1
  pool: {name: node-1, generation: 1, resourceSliceCount: 1}
  devices:
  - {name: a, capacity: {memory: {value: 8Gi}}}
  - {name: b, capacity: {memory: {value: 16Gi}}}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: large}
spec: {spec: {devices: {requests: [{name: one, exactly: {deviceClassName: card, selectors: [
  {cel: {expression: 'device.capacity["cards.test.carrack.dev"].memory.compareTo(quantity("10Gi")) >= 0'}}]}}]}}}
"#;

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         resourceClaims: [{{name: card, resourceClaimTemplateName: large}}]\n  containers:\n  - name: c\n    \
         image: carrack.dev/toolbox\n    imagePullPolicy: IfNotPresent\n    resources: {{claims: [{{name: card}}]}}\n    \
         command: [sh, -c, 'echo $CARD; ls -d /dev/card; sleep 1000']\n"
    )
}

#[test]
fn a_pod_has_the_device_that_was_allocated_to_its_claim() {
    let machine = Arc::new(Machine::up());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let script = "mkdir -p /var/run/cdi && cat > /var/run/cdi/cards.json";
    machine.run_with_input("sh", &["-c", script], CDI).ok();
    let driver = runtime.block_on(async { Driver::start(&machine) });
    machine.apply(OFFERS).ok();
    machine.apply(&pod("first")).ok();
    machine.eventually("its device", KUBECTL, &["logs", "first"], |answer| answer.out == "b\n/dev/card\n");
    let claim = "{.items[*].status.allocation.devices.results[*].device}";
    assert_eq!(machine.kubectl(&["get", "resourceclaims", "-o", &format!("jsonpath={claim}")]).ok(), "b");

    // The only one that is large enough is another's until that ends.
    machine.apply(&pod("second")).ok();
    let path = "{.status.conditions[?(@.type==\"PodScheduled\")].message}";
    let args = ["get", "pod", "second", "-o", &format!("jsonpath={path}")];
    machine.eventually("it is told why not", KUBECTL, &args, |answer| {
        answer.out.contains("1 cannot allocate all claims")
    });
    machine.kubectl(&["delete", "pod", "first"]).ok();
    machine.eventually("its device", KUBECTL, &["logs", "second"], |answer| answer.out == "b\n/dev/card\n");
    let asked = driver.asked.lock().expect("no panic while it is held").clone();
    let told = |text: &&String| text.starts_with("registered");
    assert!(asked.iter().any(|text| text == "registered true"), "{asked:?}");
    assert_eq!(
        asked.iter().filter(|text| !told(text)).collect::<Vec<_>>(),
        ["prepare b", "take back", "prepare b"]
    );
    machine.kubectl(&["delete", "pod", "second"]).ok();
    machine.eventually("no claim is left", KUBECTL, &["get", "resourceclaims", "-o", "name"], |answer| {
        answer.out.is_empty()
    });
    drop(driver);
    // Its tasks hold the machine, which ends here.
    drop(runtime);
}
