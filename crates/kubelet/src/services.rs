//! Services as environment variables: a watch of all Services, kept down to what the variables need.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Port {
    name: Option<String>,
    port: i32,
    protocol: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    ip: String,
    ports: Vec<Port>,
}

type Key = (String, String);

/// The Services of the cluster.
#[derive(Clone)]
pub(crate) struct Services {
    entries: Arc<RwLock<BTreeMap<Key, Entry>>>,
    synced: watch::Receiver<bool>,
}

impl Services {
    /// Starts watching.
    pub(crate) fn watch(client: Client, shutdown: CancellationToken) -> Self {
        let (sender, synced) = watch::channel(false);
        let services = Services { entries: Arc::default(), synced };
        let entries = services.entries.clone();
        tokio::spawn(async move {
            let mut events =
                informer::follow(Api::<Service>::all(client), watcher::Config::default()).boxed();
            let mut fresh = BTreeMap::new();
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = shutdown.cancelled() => return,
                };
                match event {
                    Some(Ok(watcher::Event::Init)) => fresh = BTreeMap::new(),
                    Some(Ok(watcher::Event::InitApply(service))) => {
                        if let Some((key, entry)) = entry(&service) {
                            fresh.insert(key, entry);
                        }
                    }
                    Some(Ok(watcher::Event::InitDone)) => {
                        *entries.write() = std::mem::take(&mut fresh);
                        sender.send_replace(true);
                    }
                    Some(Ok(watcher::Event::Apply(service))) => match entry(&service) {
                        Some((key, entry)) => {
                            entries.write().insert(key, entry);
                        }
                        None => {
                            entries.write().remove(&key(&service));
                        }
                    },
                    Some(Ok(watcher::Event::Delete(service))) => {
                        entries.write().remove(&key(&service));
                    }
                    Some(Err(error)) => tracing::warn!(%error, "watching Services failed"),
                    None => return,
                }
            }
        });
        services
    }

    /// The variables for a pod of `namespace`; waits for the first list. The `kubernetes` Service is always among them.
    pub(crate) async fn variables(&self, namespace: &str, links: bool) -> BTreeMap<String, String> {
        // An error means that the kubelet is stopping; then the variables are of no use any more.
        let _ = self.synced.clone().wait_for(|synced| *synced).await;
        let entries = self.entries.read();
        let mut variables = BTreeMap::new();
        let from = (namespace.to_owned(), String::new());
        let own = entries.range(from..).take_while(|((space, _), _)| space == namespace);
        let master = entries.get(&("default".to_owned(), "kubernetes".to_owned()));
        if let Some(master) = master {
            add("kubernetes", master, &mut variables);
        }
        for ((_, name), entry) in own.filter(|_| links) {
            add(name, entry, &mut variables);
        }
        variables
    }
}

fn key(service: &Service) -> Key {
    let metadata = &service.metadata;
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

fn entry(service: &Service) -> Option<(Key, Entry)> {
    let spec = service.spec.as_ref()?;
    let ip = spec.cluster_ip.clone().filter(|ip| !ip.is_empty() && ip != "None")?;
    let ports = spec.ports.iter().flatten().map(|port| Port {
        name: port.name.clone().filter(|name| !name.is_empty()),
        port: port.port,
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
    });
    Some((key(service), Entry { ip, ports: ports.collect() }))
}

fn add(name: &str, entry: &Entry, variables: &mut BTreeMap<String, String>) {
    let variable = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = variable(name);
    let Some(first) = entry.ports.first() else { return };
    variables.insert(format!("{prefix}_SERVICE_HOST"), entry.ip.clone());
    variables.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for port in &entry.ports {
        if let Some(port_name) = &port.name {
            let key = format!("{prefix}_SERVICE_PORT_{}", variable(port_name));
            variables.insert(key, port.port.to_string());
        }
    }
    let host = if entry.ip.contains(':') { format!("[{}]", entry.ip) } else { entry.ip.clone() };
    for (index, port) in entry.ports.iter().enumerate() {
        let protocol = port.protocol.to_lowercase();
        let url = format!("{protocol}://{host}:{}", port.port);
        if index == 0 {
            variables.insert(format!("{prefix}_PORT"), url.clone());
        }
        let stem = format!("{prefix}_PORT_{}_{}", port.port, port.protocol.to_uppercase());
        variables.insert(format!("{stem}_PROTO"), protocol);
        variables.insert(format!("{stem}_PORT"), port.port.to_string());
        variables.insert(format!("{stem}_ADDR"), entry.ip.clone());
        variables.insert(stem, url);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_becomes_its_variables() {
        let port = Port { name: Some("http-web".into()), port: 80, protocol: "TCP".into() };
        let mut variables = BTreeMap::new();
        add("my-svc", &Entry { ip: "10.96.0.9".into(), ports: vec![port] }, &mut variables);
        let lines: Vec<String> = variables.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            lines,
            [
                "MY_SVC_PORT=tcp://10.96.0.9:80",
                "MY_SVC_PORT_80_TCP=tcp://10.96.0.9:80",
                "MY_SVC_PORT_80_TCP_ADDR=10.96.0.9",
                "MY_SVC_PORT_80_TCP_PORT=80",
                "MY_SVC_PORT_80_TCP_PROTO=tcp",
                "MY_SVC_SERVICE_HOST=10.96.0.9",
                "MY_SVC_SERVICE_PORT=80",
                "MY_SVC_SERVICE_PORT_HTTP_WEB=80",
            ]
        );
    }
}
