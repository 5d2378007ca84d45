//! `carrack status`: what runs, in a few lines.

use anyhow::Context;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use crate::args::Status;
use crate::lock;
use crate::paths::Paths;

pub async fn run(args: Status) -> anyhow::Result<()> {
    let paths = Paths::existing(&args.data.data_dir);
    anyhow::ensure!(
        paths.data().is_dir(),
        "there is no cluster in {}; `carrack up` makes one",
        paths.data().display()
    );
    match lock::holder(&paths.lock())? {
        Some(pid) => println!("control plane  running (process {pid})"),
        None => {
            println!("control plane  stopped; pods that ran go on, `carrack up` takes them over");
            return Ok(());
        }
    }
    let kubeconfig = Kubeconfig::read_from(paths.admin_kubeconfig())?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    println!("API server     {}", config.cluster_url);
    println!("kubeconfig     {}", paths.admin_kubeconfig().display());
    let client = Client::try_from(config)?;
    let request = http::Request::get("/readyz").body(Vec::new())?;
    let ready = client.request_text(request).await.context("the API server does not answer")?;
    println!("readyz         {ready}");
    for node in Api::<Node>::all(client.clone()).list(&Default::default()).await? {
        let status = node.status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let ready = conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True");
        let name = node.metadata.name.unwrap_or_default();
        println!("node           {name} {}", if ready { "Ready" } else { "NotReady" });
    }
    let pods = Api::<Pod>::all(client).list(&Default::default()).await?.items;
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for pod in &pods {
        *counts.entry(phase(pod)).or_default() += 1;
    }
    let counts: Vec<String> = counts.into_iter().map(|(phase, count)| format!("{count} {phase}")).collect();
    println!("pods           {}", if counts.is_empty() { "none".into() } else { counts.join(", ") });
    Ok(())
}
