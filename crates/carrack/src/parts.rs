//! The parts of a cluster, each set up as a role needs it: in one process, or alone with a kubeconfig.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use apiserver::{ApiServer, UserInfo};
use informer::{CountRequests, Counted};
use kube::Client;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::args;
use crate::paths::Paths;
use crate::up::spawn;
use crate::{accounts, kubelet_root, lock, node, port};

/// Where cluster DNS is asked.
pub const CLUSTER_DNS: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
const POD_RANGES: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];
/// The size of a node's part of each pod range.
const NODE_PREFIXES: [u8; 2] = [24, 64];
const DOMAIN: &str = "cluster.local";
/// Where upstream's parts of the same work serve health and metrics.
const CONTROLLERS_PORT: u16 = 10257;
const SCHEDULER_PORT: u16 = 10259;

/// Who the parts are. In one process a client is a tower service in front of the API server's pipeline: authenticated by
/// identity, authorized and admitted like any other.
#[derive(Clone)]
pub struct Clients(Arc<dyn Fn(UserInfo) -> Client + Send + Sync>);

impl Clients {
    pub fn in_process(server: ApiServer) -> Clients {
        Clients(Arc::new(move |user| Client::new(Counted(server.in_process(user)), "default")))
    }

    pub fn of(&self, user: UserInfo) -> Client {
        (self.0)(user)
    }

    fn user(&self, name: &str, groups: &[&str]) -> Client {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        self.of(UserInfo { name: name.to_owned(), groups, ..UserInfo::default() })
    }

    fn service_account(&self, name: &str) -> Client {
        self.user(
            &format!("system:serviceaccount:kube-system:{name}"),
            &["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"],
        )
    }
}

/// What a node is told of itself.
pub struct Node {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub kubelet_port: Option<u16>,
    /// Where the kubelet's files are to be found.
    pub kubelet_root: PathBuf,
    /// A folder of static pods.
    pub static_pod_dir: Option<PathBuf>,
    pub settings: kubelet::Configuration,
    /// Cancelled when the machine goes down.
    pub going_down: CancellationToken,
}

type Running = JoinSet<(&'static str, anyhow::Result<()>)>;

/// Starts controllers and scheduler. They share their informers.
pub fn spawn_control(
    running: &mut Running,
    clients: &Clients,
    paths: &Paths,
    features: apiserver::Features,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let manager = clients.user("system:kube-controller-manager", &[]);
    let informers = informer::Factory::new(manager.clone(), shutdown.clone());
    let pki = pki::ClusterPki::load_or_create(paths.pki())?;
    let pod_ranges =
        POD_RANGES.iter().zip(NODE_PREFIXES).map(|(range, prefix)| controllers::Range::new(range, prefix));
    let pod_ranges = pod_ranges.collect::<Result<_, _>>()?;
    let config = controllers::Config {
        informers: Some(informers.clone()),
        root_ca: pki.ca.cert_pem(),
        signing: Some(Arc::new(pki.ca)),
        account_key: Some(Arc::new(pki.service_account)),
        pod_ranges,
        storage_migration: features.storage_version_migrator,
        ..Default::default()
    };
    let own = clients.clone();
    let identities = Arc::new(move |name: &str| own.service_account(name));
    spawn(running, "the controllers", controllers::run(manager, identities, config, shutdown.clone()));
    let scheduler = clients.user("system:kube-scheduler", &[]);
    let config = scheduler::Config { informers: Some(informers), ..Default::default() };
    spawn(running, "the scheduler", scheduler::run(scheduler, config, shutdown.clone()));
    Ok(())
}

/// Starts what every node runs, beside the runtime.
pub fn spawn_node(
    running: &mut Running,
    clients: &Clients,
    paths: &Paths,
    node: &Node,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let pki = pki::ClusterPki::load_or_create(paths.pki())?;
    let serving = pki.issue_kubelet_server(&node.name, &node.addresses)?;
    let client = clients.user(&format!("system:node:{}", node.name), &["system:nodes"]);
    let mut config = kubelet::KubeletConfig::new(&node.name, client);
    config.root_dir = kubelet_root::ensure(&node.kubelet_root, paths)?;
    config.pod_logs_dir = paths.pod_logs();
    config.node_ips = node.addresses.clone();
    config.cluster_dns = cluster_dns();
    config.cluster_domain = DOMAIN.to_owned();
    config.apply(node.settings.clone());
    config.going_down = node.going_down.clone();
    // The cluster's own parts are where this role puts them, whatever the settings say.
    config.runtime_endpoint = format!("unix://{}", paths.runtime_socket().display());
    config.bind.set_port(node.kubelet_port.unwrap_or(config.bind.port()));
    if node.static_pod_dir.is_some() {
        config.static_pod_dir.clone_from(&node.static_pod_dir);
    }
    config.serving_cert = serving.cert_pem;
    config.serving_key = serving.key_pem;
    config.client_ca = pki.ca.cert_pem();
    config.flags = crate::flags::given();
    spawn(running, "the kubelet", kubelet::run(config, shutdown.clone()));
    let config = provisioner::Config { node: node.name.clone(), root: paths.volumes() };
    let keeper = clients.service_account("local-provisioner");
    spawn(running, "the provisioner of local volumes", provisioner::run(keeper, config, shutdown.clone()));
    let config = proxy_config(&node.name);
    spawn(
        running,
        "the service proxy",
        proxy::run(clients.user("system:kube-proxy", &[]), config, shutdown.clone()),
    );
    let config = dns_config(cluster_dns());
    spawn(running, "cluster DNS", dns::run(clients.service_account("kube-dns"), config, shutdown.clone()));
    Ok(())
}

/// The runtime of a node whose data lie in `data`.
pub fn runtime_config(data: &Path, socket: PathBuf) -> runtime::RuntimeConfig {
    let paths = Paths::existing(data);
    let mut config = runtime::RuntimeConfig::new(paths.runtime(), data.join("run/runtime"));
    config.socket = socket;
    config.network = runtime::NetworkMode::Pods {
        state_dir: paths.network(),
        ranges: Vec::new(),
        cluster_ranges: parsed(POD_RANGES),
        mtu: None,
    };
    config.toolbox_applets = toolbox::APPLETS.iter().map(|applet| (*applet).to_owned()).collect();
    config
}

fn proxy_config(node: &str) -> proxy::ProxyConfig {
    proxy::ProxyConfig {
        node_name: node.to_owned(),
        pod_ranges: Vec::new(),
        service_ranges: parsed(SERVICE_RANGES),
        served_here: cluster_dns(),
    }
}

fn dns_config(listen: Vec<IpAddr>) -> dns::DnsConfig {
    let ranges = [parsed(SERVICE_RANGES), parsed(POD_RANGES)].concat();
    let upstreams = dns::upstreams(Path::new("/etc/resolv.conf"), &listen);
    dns::DnsConfig { listen, domain: DOMAIN.to_owned(), upstreams, ranges, ..dns::DnsConfig::default() }
}

fn cluster_dns() -> Vec<IpAddr> {
    parsed(CLUSTER_DNS)
}

fn parsed<T: std::str::FromStr>(texts: [&str; 2]) -> Vec<T> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// `carrack apiserver`: the API server alone.
pub async fn apiserver(args: args::Apiserver) -> anyhow::Result<()> {
    log_to_terminal();
    let paths = Paths::make(&args.data.data_dir)?;
    let _lock = lock::take(&paths.lock())?;
    let store = open_store(&args.storage, &paths).await?;
    let shutdown = until_signal()?;
    crate::control::serve(&paths.control_socket(), store.clone(), shutdown.clone()).await?;
    let mut config = apiserver::Config::new(paths.data());
    config.bind = (args.bind_address, args.port).into();
    config.service_cidrs = args.service_cluster_ip_range;
    config.advertise.extend(args.advertise_address);
    args.flags.apply(&mut config, None)?;
    config.compaction_interval = args.storage.etcd_compaction_interval;
    args.access.apply(&mut config);
    let server = apiserver::start(config, store).await?;
    eprintln!("serving on {}; kubeconfig {}", server.address(), paths.admin_kubeconfig().display());
    tokio::spawn(crate::memory::keep_small());
    server.serve(shutdown).await;
    Ok(())
}

/// `carrack controllers`: beside any API server.
pub async fn controllers(args: args::Controllers) -> anyhow::Result<()> {
    log_to_terminal();
    let config = client_config(&args.client.kubeconfig).await?;
    let (client, root_ca) = (counted(config.clone())?, root_of(&config));
    let clients: controllers::Clients = if args.use_service_account_credentials {
        let root = client.clone();
        // A configuration that made one client makes another.
        Arc::new(move |name: &str| accounts::client(&config, &root, name).unwrap_or_else(|_| root.clone()))
    } else {
        let own = client.clone();
        Arc::new(move |_: &str| own.clone())
    };
    let part = |range: &ipnet::IpNet| {
        let prefix = NODE_PREFIXES[usize::from(range.addr().is_ipv6())];
        controllers::Range::new(&range.to_string(), prefix)
    };
    let read =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let signing = match (&args.cluster_signing_cert_file, &args.cluster_signing_key_file) {
        (Some(certificate), Some(key)) => {
            Some(Arc::new(pki::Authority::from_pem(&read(certificate)?, &read(key)?)?))
        }
        _ => None,
    };
    let account_key = args.service_account_private_key_file.as_ref();
    let account_key =
        account_key.map(|path| anyhow::Ok(Arc::new(pki::Key::from_pem(&read(path)?)?))).transpose()?;
    anyhow::ensure!(
        !args.cluster_signing_duration.is_zero(),
        "--cluster-signing-duration must be more than nothing"
    );
    let config = controllers::Config {
        root_ca,
        signing,
        signing_duration: Some(args.cluster_signing_duration),
        account_key,
        pod_ranges: args.cluster_cidr.iter().map(part).collect::<Result<_, _>>()?,
        leader_election: Some(election("kube-controller-manager")?),
        storage_migration: args.feature_gates.storage_version_migrator,
        ..Default::default()
    };
    let shutdown = until_signal()?;
    port::serve(&args.port, CONTROLLERS_PORT, client.clone(), shutdown.clone()).await?;
    Ok(controllers::run(client, clients, config, shutdown).await?)
}

/// `carrack scheduler`: beside any API server.
pub async fn scheduler(args: args::Scheduler) -> anyhow::Result<()> {
    log_to_terminal();
    let (client, _) = connect(&args.client.kubeconfig).await?;
    let config =
        scheduler::Config { leader_election: Some(election("kube-scheduler")?), ..Default::default() };
    let shutdown = until_signal()?;
    port::serve(&args.port, SCHEDULER_PORT, client.clone(), shutdown.clone()).await?;
    Ok(scheduler::run(client, config, shutdown).await?)
}

/// The node's settings in a file; what has no effect is told.
pub fn settings(path: Option<&Path>) -> anyhow::Result<kubelet::Configuration> {
    let Some(path) = path else { return Ok(kubelet::Configuration::default()) };
    let loaded = kubelet::configuration::load(path).with_context(|| format!("reading {}", path.display()))?;
    for warning in loaded.warnings {
        tracing::warn!(file = %path.display(), "{warning}");
    }
    Ok(loaded.configuration)
}

/// `carrack kubelet`: with any API server and any CRI runtime.
pub async fn kubelet(args: args::Kubelet) -> anyhow::Result<()> {
    log_to_terminal();
    let paths = Paths::make(&args.data.data_dir)?;
    let shutdown = until_signal()?;
    let name = node::name(args.client.node_name.as_deref())?;
    let client = match &args.bootstrap_kubeconfig {
        None => connect(&args.client.kubeconfig).await?.0,
        Some(bootstrap) => {
            let config = client_config(bootstrap).await?;
            let join = kubelet::Join {
                bootstrap: config,
                cert_dir: paths.kubelet().join("pki"),
                node_name: name.clone(),
            };
            let joined = kubelet::join(join, shutdown.clone()).await?;
            crate::kubeconfig::of_node(bootstrap, &args.client.kubeconfig, &joined.certificate_file)?;
            joined.client
        }
    };
    let read =
        |path: &Path| std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let settings = settings(args.config.as_deref())?;
    let given = |flag: Option<PathBuf>, setting: &str| {
        flag.or_else(|| Some(PathBuf::from(setting)).filter(|path| !path.as_os_str().is_empty()))
    };
    let client_ca = given(args.client_ca_file, &settings.authentication.x509.client_ca_file);
    let client_ca = client_ca
        .context("give --client-ca-file, or authentication.x509.clientCAFile in the file of --config")?;
    let serving = given(args.tls_cert_file, &settings.tls_cert_file)
        .zip(given(args.tls_private_key_file, &settings.tls_private_key_file));
    let mut config = kubelet::KubeletConfig::new(name, client);
    config.root_dir = kubelet_root::ensure(&args.kubelet_root, &paths)?;
    config.pod_logs_dir = paths.pod_logs();
    config.apply(settings);
    if let Some(endpoint) = args.container_runtime_endpoint {
        config.runtime_endpoint = endpoint;
    }
    if let Some(port) = args.port {
        config.bind.set_port(port);
    }
    if !args.cluster_dns.is_empty() {
        config.cluster_dns = args.cluster_dns;
    }
    config.static_pod_dir = args.pod_manifest_path.or(config.static_pod_dir);
    config.node_ips = node::addresses(&args.node_ips)?;
    config.going_down = machine_going_down()?;
    if let Some(url) = args.manifest_url {
        config.manifest_url = Some(kubelet::ManifestUrl { url, headers: Vec::new() });
    }
    match serving {
        Some((cert, key)) => (config.serving_cert, config.serving_key) = (read(&cert)?, read(&key)?),
        None => config.server_tls_bootstrap = true,
    }
    config.client_ca = read(&client_ca)?;
    config.flags = crate::flags::given();
    config.credential_provider_config = args.image_credential_provider_config;
    if let Some(dir) = args.image_credential_provider_bin_dir {
        config.credential_provider_bin_dir = dir;
    }
    Ok(kubelet::run(config, shutdown).await?)
}

/// `carrack runtime`: for any CRI client.
pub async fn runtime(args: args::Runtime) -> anyhow::Result<()> {
    log_to_terminal();
    let paths = Paths::make(&args.data.data_dir)?;
    Ok(runtime::serve(runtime_config(paths.data(), args.socket), until_signal()?).await?)
}

/// `carrack proxy`: on a node of any cluster.
pub async fn proxy(args: args::Client) -> anyhow::Result<()> {
    log_to_terminal();
    let (client, _) = connect(&args.kubeconfig).await?;
    Ok(proxy::run(client, proxy_config(&node::name(args.node_name.as_deref())?), until_signal()?).await?)
}

/// `carrack dns`: for any cluster.
pub async fn dns(args: args::Dns) -> anyhow::Result<()> {
    log_to_terminal();
    let (client, _) = connect(&args.client.kubeconfig).await?;
    Ok(dns::run(client, dns_config(args.listen), until_signal()?).await?)
}

/// The store in etcd where one is named, and in the data folder otherwise.
async fn open_store(args: &args::Storage, paths: &Paths) -> anyhow::Result<store::Store> {
    if args.etcd_servers.is_empty() {
        return Ok(store::embedded::open(&paths.store())?);
    }
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    let mut options = store::etcd::Options::new(args.etcd_servers.clone());
    options.ca = args.etcd_cafile.as_ref().map(read).transpose()?;
    options.identity = match (&args.etcd_certfile, &args.etcd_keyfile) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        _ => None,
    };
    options.prefix = args.etcd_prefix.trim_end_matches('/').to_owned().into();
    store::etcd::connect(options).await.context("connecting to etcd")
}

/// A candidacy for the lease under which upstream's part of that name runs, so that the two never run at once.
fn election(name: &str) -> anyhow::Result<informer::LeaderElection> {
    let identity = format!("{}_{}", node::name(None)?, std::process::id());
    Ok(informer::LeaderElection { namespace: "kube-system".to_owned(), name: name.to_owned(), identity })
}

async fn client_config(path: &Path) -> anyhow::Result<kube::Config> {
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.read_timeout = None;
    Ok(config)
}

/// The authority that a client trusts, in PEM.
fn root_of(config: &kube::Config) -> String {
    let root = config.root_cert.clone().unwrap_or_default();
    root.iter().map(|der| pki::pem_block("CERTIFICATE", der)).collect()
}

/// A client out of a kubeconfig, and the authority that it trusts in PEM.
async fn connect(path: &Path) -> anyhow::Result<(Client, String)> {
    let config = client_config(path).await?;
    let root = root_of(&config);
    Ok((counted(config)?, root))
}

/// A client whose requests are counted.
pub fn counted(config: kube::Config) -> anyhow::Result<Client> {
    Ok(ClientBuilder::try_from(config)?.with_layer(&CountRequests).build())
}

/// Cancelled by SIGPWR: the machine goes down.
pub fn machine_going_down() -> anyhow::Result<CancellationToken> {
    let mut power = signal(SignalKind::from_raw(libc::SIGPWR))?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        power.recv().await;
        cancel.cancel();
    });
    Ok(token)
}

/// Cancelled by SIGINT or SIGTERM.
fn until_signal() -> anyhow::Result<CancellationToken> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancel.cancel();
    });
    Ok(token)
}

/// What is logged unless `CARRACK_LOG` says otherwise.
fn filter() -> EnvFilter {
    EnvFilter::try_from_env("CARRACK_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,kube=warn,hyper=warn,tower=warn"))
}

/// Logs to standard error.
pub fn log_to_terminal() {
    tracing_subscriber::fmt().with_env_filter(filter()).with_writer(std::io::stderr).init();
}

/// Logs to a file, so that the terminal is left to the progress.
pub fn log_to_file(path: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::options().create(true).append(true).open(path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    tracing_subscriber::fmt().with_env_filter(filter()).with_ansi(false).with_writer(Arc::new(file)).init();
    Ok(())
}
