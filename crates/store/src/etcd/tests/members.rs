//! Real etcd processes for the tests, and relays between them that can be cut.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::super::{Options, connect};
use crate::Store;

/// Where the Debian package `etcd-server` puts it.
const ETCD: &str = "/usr/bin/etcd";

/// A port that is free now. The listener that held it is closed only when the process is about to start.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

/// One running etcd.
pub struct Member {
    child: Child,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    hosts: Option<String>,
    client: u16,
    tls: bool,
}

impl Member {
    /// A cluster of one, perhaps with certificates.
    pub fn alone(tls: bool) -> Member {
        let (client, peer) = (free_port(), free_port());
        let cluster = format!("m0=http://127.0.0.1:{peer}");
        Member::start("m0", client, peer, &format!("http://127.0.0.1:{peer}"), &cluster, None, tls)
    }

    fn start(
        name: &str,
        client: u16,
        peer: u16,
        advertised: &str,
        cluster: &str,
        hosts: Option<String>,
        tls: bool,
    ) -> Member {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let scheme = if tls { "https" } else { "http" };
        let client_url = format!("{scheme}://127.0.0.1:{client}");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut arguments: Vec<String> = [
            ("--name", name),
            ("--data-dir", &path("data")),
            ("--listen-client-urls", &client_url),
            ("--advertise-client-urls", &client_url),
            ("--listen-peer-urls", &format!("http://127.0.0.1:{peer}")),
            ("--initial-advertise-peer-urls", advertised),
            ("--initial-cluster", cluster),
            ("--initial-cluster-state", "new"),
            ("--heartbeat-interval", "50"),
            ("--election-timeout", "500"),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value.to_owned()])
        .collect();
        if tls {
            certificates(folder.path());
            for (flag, file) in
                [("--cert-file", "server.crt"), ("--key-file", "server.key"), ("--trusted-ca-file", "ca.crt")]
            {
                arguments.extend([flag.to_owned(), path(file)]);
            }
            arguments.push("--client-cert-auth".to_owned());
        }
        if let Some(hosts) = &hosts {
            std::fs::write(folder.path().join("hosts"), hosts).expect("the folder is ours");
        }
        let child = spawn(folder.path(), &arguments, hosts.is_some());
        Member { child, folder, arguments, hosts, client, tls }
    }

    pub fn client_url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.tls { "https" } else { "http" }, self.client)
    }

    /// Options with the certificates of a member that asks for them.
    pub fn trusted(&self) -> Options {
        let read = |name: &str| std::fs::read(self.folder.path().join(name)).expect("was written at start");
        Options {
            ca: Some(read("ca.crt")),
            identity: Some((read("client.crt"), read("client.key"))),
            ..Options::new(vec![self.client_url()])
        }
    }

    /// A store on it, as soon as it answers.
    pub async fn connect(&self, options: Options) -> Store {
        for _ in 0..10 {
            match connect(options.clone()).await {
                Ok(store) => return store,
                Err(error) => eprintln!("{error}"),
            }
        }
        panic!("etcd does not answer");
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    /// Starts it again with the data that it had.
    pub fn restart(&mut self) {
        self.child = spawn(self.folder.path(), &self.arguments, self.hosts.is_some());
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// With `hosts` it runs in a mount namespace of its own, where names lead to the relays from this member to the others.
fn spawn(folder: &Path, arguments: &[String], hosts: bool) -> Child {
    let mut command = match hosts {
        true => {
            let mut command = Command::new("unshare");
            let script = r#"mount --bind "$1" /etc/hosts && shift && exec "$@""#;
            command.args(["--mount", "sh", "-c", script, "sh"]).arg(folder.join("hosts")).arg(ETCD);
            command
        }
        false => Command::new(ETCD),
    };
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log"));
    command
        .args(arguments)
        .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.expect("the folder is ours"))
        .spawn()
        .expect("etcd starts: install the package etcd-server, and run the tests as root")
}

fn certificates(folder: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).expect("ours");
    let key = || KeyPair::generate().expect("a key");
    let ca_key = key();
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "etcd-ca");
    write("ca.crt", params.self_signed(&ca_key).expect("signs").pem());
    let issuer = Issuer::new(params, ca_key);
    for name in ["server", "client"] {
        let own = key();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        write(&format!("{name}.crt"), params.signed_by(&own, &issuer).expect("signs").pem());
        write(&format!("{name}.key"), own.serialize_pem());
    }
}

/// Three members whose links among each other lead through relays.
pub struct Cluster {
    pub members: Vec<Member>,
    /// The links of each pair (from, to); true: cut.
    links: Vec<(usize, usize, watch::Sender<bool>)>,
    tasks: tokio::task::JoinSet<()>,
}

impl Cluster {
    pub async fn of_three() -> Cluster {
        let ports: Vec<(u16, u16)> = (0..3).map(|_| (free_port(), free_port())).collect();
        let url = |member: usize| format!("http://m{member}.test:{}", ports[member].1);
        let cluster: Vec<String> = (0..3).map(|member| format!("m{member}={}", url(member))).collect();
        let (mut links, mut members) = (Vec::new(), Vec::new());
        let mut tasks = tokio::task::JoinSet::new();
        // Addresses of 127/8 that no other run of the test is likely to use at once.
        let net = std::process::id() % 200 + 20;
        for from in 0..3 {
            let mut hosts = "127.0.0.1 localhost\n".to_owned();
            for (to, (_, port)) in ports.iter().enumerate() {
                let address: SocketAddr = if from == to {
                    SocketAddr::from(([127, 0, 0, 1], *port))
                } else {
                    SocketAddr::from(([127, net as u8, from as u8 + 1, to as u8 + 1], *port))
                };
                hosts += &format!("{} m{to}.test\n", address.ip());
                if from != to {
                    let (sender, cut) = watch::channel(false);
                    let listener = TcpListener::bind(address).await.expect("the port is free there");
                    tasks.spawn(relay(listener, SocketAddr::from(([127, 0, 0, 1], *port)), cut));
                    links.push((from, to, sender));
                }
            }
            let (client, peer) = ports[from];
            let (name, cluster) = (format!("m{from}"), cluster.join(","));
            members.push(Member::start(&name, client, peer, &url(from), &cluster, Some(hosts), false));
        }
        Cluster { members, links, tasks }
    }

    /// The members' addresses, beginning with one of them.
    pub fn urls(&self, first: usize) -> Vec<String> {
        (0..3).map(|n| self.members[(first + n) % 3].client_url()).collect()
    }

    /// Cuts a member off from the others, or joins it again. Its clients still reach it.
    pub fn cut_off(&self, member: usize, cut: bool) {
        for (from, to, link) in &self.links {
            if *from == member || *to == member {
                link.send_replace(cut);
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

/// Passes bytes on, except while the link is cut: then nothing arrives and nothing is refused.
async fn relay(listener: TcpListener, to: SocketAddr, cut: watch::Receiver<bool>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let cut = Arc::new(cut.clone());
        connections.spawn(async move {
            let Ok(far) = TcpStream::connect(to).await else { return };
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            tokio::select! {
                () = pass(near_read, far_write, cut.clone()) => {}
                () = pass(far_read, near_write, cut) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn pass(
    mut read: tokio::net::tcp::OwnedReadHalf,
    mut write: tokio::net::tcp::OwnedWriteHalf,
    cut: Arc<watch::Receiver<bool>>,
) {
    let mut buffer = vec![0; 16 << 10];
    let mut cut = (*cut).clone();
    loop {
        let Ok(length @ 1..) = read.read(&mut buffer).await else { return };
        if cut.wait_for(|cut| !*cut).await.is_err() || write.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Waits until all members are a cluster with a leader.
pub async fn settled(cluster: &Cluster) -> Store {
    cluster.members[0].connect(Options::new(cluster.urls(0))).await
}
