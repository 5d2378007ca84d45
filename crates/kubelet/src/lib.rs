//! The node agent: runs the pods bound to this node through CRI and reports on them and on the node.
//!
//! It knows the Kubernetes API and CRI, not how a container is made. Three streams drive it (pods of this node, the
//! runtime's events, probe results); per pod a worker asks the pure `plan` what to do.

mod admission;
mod allocation;
mod backoff;
mod certificates;
mod cgroups;
mod claims;
mod config;
pub mod configuration;
mod container;
mod context;
mod csi;
mod devices;
mod dns;
mod downward;
mod durable;
mod env;
mod env_file;
mod error;
mod events;
mod eviction;
mod features;
mod gc;
mod handler;
mod images;
mod inotify;
mod logs;
mod manager;
mod metrics;
mod mirrors;
mod node;
mod objects;
mod pinning;
mod plan;
mod pod;
mod podresources;
mod podutil;
mod probe;
mod quantity;
mod registration;
mod resize;
mod runtime;
mod sandbox;
mod security;
mod server;
mod services;
mod shutdown;
mod static_pods;
mod status;
mod sysctls;
mod teardown;
mod tls;
mod tokens;
mod userns;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use certificates::{Join, Joined, join};
pub use config::KubeletConfig;
pub use configuration::Configuration;
pub use error::Error;
use error::IoContext;
pub use images::VerificationPolicy;
pub use pinning::PinningError;
pub use static_pods::url::ManifestUrl;
pub use teardown::teardown;
use tonic::transport::Channel;

/// Runs the kubelet until `shutdown`. Containers are left running; the next run takes them over.
pub async fn run(config: KubeletConfig, shutdown: CancellationToken) -> Result<(), Error> {
    if config.settings.fail_swap_on && node::capacity::swap() > 0 {
        return Err(Error::Swap);
    }
    let pods_dir = config.root_dir.join("pods");
    std::fs::create_dir_all(&pods_dir).doing(|| format!("cannot create {}", pods_dir.display()))?;
    let plugins_dir = config.root_dir.join("plugins_registry");
    std::fs::create_dir_all(&plugins_dir).doing(|| format!("cannot create {}", plugins_dir.display()))?;
    if let Err(error) = volumes::mounts::share(&config.root_dir) {
        tracing::warn!(%error, "volumes of CSI drivers will not reach their pods");
    }
    let logs_dir = &config.pod_logs_dir;
    std::fs::create_dir_all(logs_dir).doing(|| format!("cannot create {}", logs_dir.display()))?;
    let cgroups = if config.manage_cgroups {
        Some(cgroups::Cgroups::detect(&config).doing(|| "cannot lay out the pods' cgroups".to_owned())?)
    } else {
        None
    };
    let stop = shutdown.child_token();
    let _stop_all = stop.clone().drop_guard();
    let listener = server::bind(&config).await?;
    let Some(channel) = connect(&config.runtime_endpoint, &shutdown).await? else { return Ok(()) };
    let client = config.client.clone();
    let metrics = metrics::Metrics::default();
    let images = images::Images::open(&config)?;
    let (seen, node) = watch::channel(None);
    let csi = csi::Csi::start(&config, node.clone(), &stop);
    let context = Arc::new(context::Context {
        cri: runtime::Cri::new(channel, metrics.clone()),
        metrics,
        recorder: events::Recorder::new(client.clone(), config.node_name.clone()),
        objects: objects::Objects::new(client.clone()),
        services: services::Services::watch(client.clone(), stop.clone()),
        tokens: tokens::Tokens::new(client.clone()),
        claims: claims::ClaimManager::new(client, &config.root_dir),
        images,
        csi,
        housekeeping: tokio::sync::Mutex::default(),
        pressures: eviction::Pressures::default(),
        allocations: allocation::Allocations::new(&config.root_dir),
        cgroups,
        resolver: dns::Resolver::parse(
            &std::fs::read_to_string(&config.settings.resolver_config).unwrap_or_default(),
        ),
        allocatable: node::capacity::of(&config).1,
        going_down: watch::channel(false).0,
        features: features::Features::default(),
        users: userns::UserNamespaces::new(
            &config.root_dir,
            config.settings.user_namespaces.ids_per_pod,
            config.max_pods,
        ),
        rules: resize::Rules::of(&config.settings),
        pinning: pinning::Pinning::new(&config)?,
        devices: Arc::new(devices::Devices::new(&config.root_dir)),
        started: jiff::Timestamp::now(),
        memory: i64::try_from(node::capacity::memory()).unwrap_or(i64::MAX),
        config,
    });
    context.images.settle(&context.cri).await;
    let pods = manager::Pods::new();
    // One loop for all kinds: a plug-in that finds no handler is told that it was not registered, and may end of it.
    let handlers: Vec<Arc<dyn registration::Handler>> = vec![
        Arc::new(csi::Registrar(context.csi.clone())),
        devices::PluginHandler::new(context.devices.clone()),
        claims::DriverHandler::new(context.clone()),
    ];
    let mut tasks = tokio::task::JoinSet::new();
    if context.config.server_tls_bootstrap {
        tasks.spawn(certificates::serve(
            context.config.client.clone(),
            context.config.node_name.clone(),
            context.config.node_ips.clone(),
            context.config.root_dir.join("pki/kubelet-server-current.pem"),
            listener.served.clone(),
            stop.clone(),
        ));
    }
    tasks.spawn(registration::run(plugins_dir, Arc::new(handlers), stop.clone()));
    tasks.spawn(node::run(context.clone(), seen, stop.clone()));
    tasks.spawn(server::serve(context.clone(), pods.clone(), listener, stop.clone()));
    tasks.spawn(logs::run_rotation(context.clone(), stop.clone()));
    tasks.spawn(eviction::run(context.clone(), pods.clone(), stop.clone()));
    tasks.spawn(devices::run(context.devices.clone(), pods.clone(), stop.clone()));
    let over = stop.child_token();
    tasks.spawn(shutdown::run(context.clone(), pods.clone(), stop.clone(), over.clone()));
    tasks.spawn(claims::run(context.clone(), pods.clone(), stop.clone()));
    tasks.spawn(podresources::run(context.clone(), pods.clone(), stop.clone()));
    tasks.spawn(pinning::run(context.clone(), pods.clone(), stop.clone()));
    tasks.spawn(gc::run(context.clone(), pods.clone(), stop.clone()));
    // The node's own tasks go on until the last pod is gone.
    manager::run(context, pods, node, over).await
}

/// Connects to the runtime, which may come up after us; `None` on shutdown.
async fn connect(endpoint: &str, shutdown: &CancellationToken) -> Result<Option<Channel>, Error> {
    let mut delay = Duration::from_millis(10);
    loop {
        let error = match cri::connect(endpoint).await {
            Ok(channel) => return Ok(Some(channel)),
            Err(error @ cri::ConnectError::NotUnix(_)) => return Err(error.into()),
            Err(error) => error,
        };
        if delay > Duration::from_secs(1) {
            tracing::warn!(%error, "waiting for the container runtime");
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = shutdown.cancelled() => return Ok(None),
        }
        delay = (delay * 2).min(Duration::from_secs(2));
    }
}
