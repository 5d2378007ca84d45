//! What can be typed.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::flags::Flags;
use crate::port::PortArgs;

/// A Kubernetes cluster in one binary.
#[derive(Parser)]
#[command(
    name = "carrack",
    version,
    about,
    after_help = "carrack kubectl ...   kubectl-compatible commands (carrack kubectl --help)\n\
                  carrack toolbox ...   the debugging kit of the image carrack.dev/toolbox"
)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant, reason = "made once")]
pub enum Command {
    /// Bring up a whole cluster on this machine
    Up(Up),
    /// Stop the pods and clean up what they used
    Down(Down),
    /// Tell what runs
    Status(Status),
    /// Write the cluster's state to a file, while it runs
    Backup(Backup),
    /// Make the cluster's state that of a backup, while it runs
    Restore(Restore),
    /// Look after the node's images
    Image(Image),
    /// The API server alone, without controllers, scheduler or node
    Apiserver(Apiserver),
    /// The controllers alone
    Controllers(Controllers),
    /// The scheduler alone
    Scheduler(Scheduler),
    /// The kubelet alone
    Kubelet(Kubelet),
    /// The container runtime (CRI) alone
    Runtime(Runtime),
    /// The service proxy alone
    Proxy(Client),
    /// Cluster DNS alone
    Dns(Dns),
}

/// Where a cluster keeps its data.
#[derive(clap::Args, Clone)]
pub struct Data {
    /// The folder of the cluster's data
    #[arg(long, default_value = "/var/lib/carrack")]
    pub data_dir: PathBuf,
}

#[derive(clap::Args, Clone)]
pub struct Up {
    #[command(flatten)]
    pub data: Data,
    /// The API server's port
    #[arg(long, default_value_t = 6443)]
    pub port: u16,
    /// The kubelet's port; 10250 unless the node's settings name one
    #[arg(long)]
    pub kubelet_port: Option<u16>,
    /// Where CSI drivers and other plug-ins look for the kubelet's files; made a link into the data folder
    #[arg(long, default_value = "/var/lib/kubelet")]
    pub kubelet_root: PathBuf,
    /// The node's name; the host name unless given
    #[arg(long)]
    pub node_name: Option<String>,
    /// The node's addresses; found out unless given
    #[arg(long = "node-ip")]
    pub node_ips: Vec<IpAddr>,
    #[command(flatten)]
    pub access: crate::access::AccessArgs,
    /// A folder of manifests of static pods
    #[arg(long)]
    pub pod_manifest_path: Option<PathBuf>,
    /// The node's settings: a KubeletConfiguration of kubelet.config.k8s.io/v1beta1
    #[arg(long)]
    pub kubelet_config: Option<PathBuf>,
    /// Run in the background
    #[arg(long)]
    pub detach: bool,
    /// Add the cluster to ~/.kube/config
    #[arg(long)]
    pub kubeconfig_merge: bool,
    /// The other end of a pipe that is told the progress (used by --detach)
    #[arg(long, hide = true)]
    pub progress_fd: Option<i32>,
    #[command(flatten)]
    pub flags: Flags,
}

#[derive(clap::Args)]
pub struct Down {
    #[command(flatten)]
    pub data: Data,
    /// Remove all data as well
    #[arg(long)]
    pub purge: bool,
}

#[derive(clap::Args)]
pub struct Status {
    #[command(flatten)]
    pub data: Data,
}

#[derive(clap::Args)]
pub struct Backup {
    #[command(flatten)]
    pub data: Data,
    /// The file to write; it is complete or absent
    pub file: PathBuf,
}

#[derive(clap::Args)]
pub struct Restore {
    #[command(flatten)]
    pub data: Data,
    /// A file written by `carrack backup`
    pub file: PathBuf,
}

/// Where a runtime that runs alone is found.
pub const RUNTIME_SOCKET: &str = "/run/carrack/runtime.sock";

#[derive(clap::Args)]
pub struct Image {
    #[command(flatten)]
    pub data: Data,
    /// The socket of a runtime that runs alone; without it the cluster's own in the data folder is asked, and if there is none,
    /// the one at /run/carrack/runtime.sock
    #[arg(long)]
    pub socket: Option<PathBuf>,
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Subcommand)]
pub enum ImageCommand {
    /// List the images
    Ls,
    /// Pull an image from a registry
    Pull {
        /// NAME[:TAG][@DIGEST]
        image: String,
        /// USER:PASSWORD for the registry
        #[arg(long)]
        creds: Option<String>,
    },
    /// Import an archive (OCI layout or docker save); '-' reads standard input
    Import {
        /// The archive
        file: PathBuf,
        /// A name for an archive that holds none
        #[arg(long, default_value = "")]
        name: String,
    },
    /// Export images as an OCI archive; '-' writes standard output
    Export {
        /// The archive
        file: PathBuf,
        /// Which images
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove images
    Rm {
        /// Which images
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Show an image's manifest and configuration
    Inspect {
        /// Which image
        image: String,
    },
}

#[derive(clap::Args)]
pub struct Apiserver {
    #[command(flatten)]
    pub data: Data,
    /// The port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 6443)]
    pub port: u16,
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub bind_address: IpAddr,
    /// Ranges of Service addresses, one of each family at most; the first is the primary family
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/16")]
    pub service_cluster_ip_range: Vec<ipnet::IpNet>,
    /// Addresses at which others reach this server: the endpoints of the Service `kubernetes`, and names of its certificate
    #[arg(long, value_delimiter = ',')]
    pub advertise_address: Vec<IpAddr>,
    #[command(flatten)]
    pub flags: Flags,
    #[command(flatten)]
    pub access: crate::access::AccessArgs,
    #[command(flatten)]
    pub storage: Storage,
}

/// Where an API server keeps the cluster's state.
#[derive(clap::Args, Clone)]
pub struct Storage {
    /// Members of an etcd cluster (http://HOST:PORT or https://HOST:PORT) that keeps the state instead of the data folder
    #[arg(long, value_delimiter = ',')]
    pub etcd_servers: Vec<String>,
    /// PEM file of the authority that signs etcd's certificates
    #[arg(long, requires = "etcd_servers")]
    pub etcd_cafile: Option<PathBuf>,
    /// PEM file of the client certificate that is shown to etcd
    #[arg(long, requires = "etcd_keyfile")]
    pub etcd_certfile: Option<PathBuf>,
    /// PEM file of its key
    #[arg(long, requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// What all keys in etcd begin with
    #[arg(long, default_value = "/carrack")]
    pub etcd_prefix: String,
    /// How long superseded revisions stay readable, such as 5m or 90s; 0 never forgets them
    #[arg(long, default_value = "5m", value_parser = apiserver::parse_duration)]
    pub etcd_compaction_interval: Duration,
}

/// A part that is a client of the API.
#[derive(clap::Args)]
pub struct Client {
    /// How to reach the API server, and as whom
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// The node's name, for parts that run on each node; the host name unless given
    #[arg(long)]
    pub node_name: Option<String>,
}

#[derive(clap::Args)]
pub struct Controllers {
    #[command(flatten)]
    pub client: Client,
    /// Let each controller act as its own service account in kube-system, with the rights of its role alone
    #[arg(long)]
    pub use_service_account_credentials: bool,
    /// Ranges of pod addresses, one of each family at most, of which every node gets a part; none if something else does that
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<ipnet::IpNet>,
    /// PEM file of the authority that signs approved certificate requests; they are left to others without it
    #[arg(long, requires = "cluster_signing_key_file")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// PEM file of its key
    #[arg(long)]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// How long signed certificates hold, unless a request asks for less
    #[arg(long, default_value = "8760h", value_parser = apiserver::parse_duration)]
    pub cluster_signing_duration: Duration,
    /// PEM file of the key that signs the tokens in Secrets; these stay empty without it
    #[arg(long)]
    pub service_account_private_key_file: Option<PathBuf>,
    /// Feature gates by upstream's names: NAME=true,NAME=false
    #[arg(long, default_value = "")]
    pub feature_gates: apiserver::Features,
    #[command(flatten)]
    pub port: PortArgs,
}

#[derive(clap::Args)]
pub struct Scheduler {
    #[command(flatten)]
    pub client: Client,
    #[command(flatten)]
    pub port: PortArgs,
}

#[derive(clap::Args)]
pub struct Kubelet {
    #[command(flatten)]
    pub client: Client,
    #[command(flatten)]
    pub data: Data,
    /// The node's settings: a KubeletConfiguration of kubelet.config.k8s.io/v1beta1; flags go before what it says
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The CRI socket; unix:///run/carrack/runtime.sock unless the settings name one
    #[arg(long)]
    pub container_runtime_endpoint: Option<String>,
    /// The port of the kubelet's own API; 10250 unless the settings name one
    #[arg(long)]
    pub port: Option<u16>,
    /// Where CSI drivers and other plug-ins look for the kubelet's files; made a link into the data folder
    #[arg(long, default_value = "/var/lib/kubelet")]
    pub kubelet_root: PathBuf,
    /// PEM file of the authority that signs the API server's client certificate
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// PEM file of this kubelet's serving certificate; without one the cluster is asked for it
    #[arg(long, requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// PEM file of its key
    #[arg(long, requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// A kubeconfig with which to ask for the node's own certificate; --kubeconfig is then written
    #[arg(long)]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// A URL with manifests of static pods
    #[arg(long)]
    pub manifest_url: Option<String>,
    /// Which programs know passwords of registries: a CredentialProviderConfig, or a folder of them
    #[arg(long, requires = "image_credential_provider_bin_dir")]
    pub image_credential_provider_config: Option<PathBuf>,
    /// Where those programs lie
    #[arg(long)]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
    /// The node's addresses; found out unless given
    #[arg(long = "node-ip")]
    pub node_ips: Vec<IpAddr>,
    /// Addresses of the cluster's DNS
    #[arg(long)]
    pub cluster_dns: Vec<IpAddr>,
    /// A folder of manifests of static pods
    #[arg(long)]
    pub pod_manifest_path: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct Runtime {
    #[command(flatten)]
    pub data: Data,
    /// The socket to serve CRI on
    #[arg(long, default_value = RUNTIME_SOCKET)]
    pub socket: PathBuf,
}

#[derive(clap::Args)]
pub struct Dns {
    #[command(flatten)]
    pub client: Client,
    /// The addresses to answer on
    #[arg(long = "listen", required = true)]
    pub listen: Vec<IpAddr>,
}
