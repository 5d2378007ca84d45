//! Takes CSI drivers that register, and tells the cluster of them.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use plugins::csi::NodeGetInfoRequest;
use tokio_util::task::AbortOnDropHandle;

use super::driver::call;
use super::{Csi, CsiError, Registered};
use crate::registration::{Handler, Plugin};

/// The handler of CSI drivers.
pub(crate) struct Registrar(pub(crate) Arc<Csi>);

impl Handler for Registrar {
    fn kind(&self) -> &'static str {
        "CSIPlugin"
    }

    fn register<'a>(&'a self, plugin: &'a Plugin) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.0.register(plugin))
    }

    fn deregister<'a>(&'a self, plugin: &'a Plugin) -> BoxFuture<'a, ()> {
        Box::pin(self.0.deregister(plugin))
    }
}

/// Whether the kubelet speaks one of the versions: all of 1.x do for it.
fn is_spoken(versions: &[String]) -> bool {
    let major = |version: &String| version.trim_start_matches('v').split('.').next() == Some("1");
    versions.iter().any(major)
}

impl Csi {
    async fn register(self: &Arc<Self>, plugin: &Plugin) -> Result<(), String> {
        let (name, endpoint) = (&plugin.name, &plugin.endpoint);
        if !is_spoken(&plugin.versions) {
            return Err(format!(
                "validation failed for CSI Driver {name} at endpoint {}: none of its versions {:?} is supported, only 1.x",
                endpoint.display(),
                plugin.versions
            ));
        }
        let registered = Registered { endpoint: endpoint.clone(), _renewal: self.renewal(name) };
        let before = self.registered.lock().insert(name.clone(), registered);
        if let Err(error) = self.introduce(name).await {
            let mut all = self.registered.lock();
            match before {
                Some(before) => all.insert(name.clone(), before),
                None => all.remove(name),
            };
            return Err(error);
        }
        Ok(())
    }

    /// Asks the driver again from time to time what this node is to it, if its object wants that.
    fn renewal(self: &Arc<Self>, name: &str) -> AbortOnDropHandle<()> {
        let (csi, name) = (Arc::downgrade(self), name.to_owned());
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let Some(pause) = csi.upgrade().map(|csi| csi.renewal_period(&name)) else { return };
                tokio::time::sleep(pause.unwrap_or(Duration::from_secs(60))).await;
                let Some(csi) = csi.upgrade().filter(|_| pause.is_some()) else { continue };
                if let Err(error) = csi.introduce(&name).await {
                    tracing::warn!(error, name, "cannot bring the CSINode up to date");
                }
            }
        }))
    }

    /// How often the driver's object wants the number of volumes that the node can have to be asked for again.
    fn renewal_period(&self, driver: &str) -> Option<Duration> {
        let seconds = self.object(driver)?.spec.node_allocatable_update_period_seconds?;
        Some(Duration::from_secs(u64::try_from(seconds).ok()?.max(10)))
    }

    /// Asks a driver what this node is to it, and writes that into the Node and the CSINode.
    pub(super) async fn introduce(&self, name: &str) -> Result<(), String> {
        let text = |error: CsiError| error.to_string();
        let driver = self.driver(name).await.map_err(text)?;
        let info = call!(driver, node_get_info, NodeGetInfoRequest {}).map_err(text)?;
        if info.node_id.is_empty() {
            return Err(format!("driver {name} gave no id of the node"));
        }
        self.install(name, &info).await
    }

    async fn deregister(&self, plugin: &Plugin) {
        {
            let mut all = self.registered.lock();
            if all.get(&plugin.name).is_none_or(|one| one.endpoint != plugin.endpoint) {
                return;
            }
            all.remove(&plugin.name);
        }
        self.uninstall(&plugin.name).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_the_first_generation_are_spoken() {
        let check = |versions: &[&str]| {
            is_spoken(&versions.iter().map(|version| (*version).to_owned()).collect::<Vec<_>>())
        };
        assert!(check(&["1.0.0"]) && check(&["v1"]) && check(&["2.0.0", "1.3"]));
        assert!(!check(&["0.3.0"]) && !check(&["2.0.0"]) && !check(&[]) && !check(&["10.0"]));
    }
}
