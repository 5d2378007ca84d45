//! Starts the runtime for a test, and talks to it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use cri::v1::image_service_client::ImageServiceClient;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use cri::v1::*;
use nix::sched::{CloneFlags, unshare};
use runtime::RuntimeConfig;
use tonic::transport::Channel;

use super::{applets, cases};

/// What is said of a test's runtime.
pub fn config(root: &Path) -> RuntimeConfig {
    let name = root.file_name().unwrap().to_string_lossy().into_owned();
    let mut config = RuntimeConfig::new(root.join("data"), root.join("run"));
    config.cgroup_parent = format!("/carrack-test-{name}");
    config.toolbox_applets = applets::NAMES.iter().map(|n| (*n).to_owned()).collect();
    config.registry.idle_timeout = Duration::from_secs(2);
    config.registry.connect_timeout = Duration::from_secs(2);
    // A test that wants a network says so by a file, which the runtime's process sees too.
    if root.join("network").exists() {
        config.network = runtime::NetworkMode::Pods {
            state_dir: root.join("data/network"),
            ranges: Vec::new(),
            cluster_ranges: vec!["10.244.0.0/16".parse().unwrap()],
            mtu: Some(1500),
        };
    }
    config.seccomp_dir = root.join("seccomp");
    config.registry.config_dir = root.join("certs.d");
    config.registry.policy = root.join("policy.json");
    config.cdi_dirs = vec![root.join("cdi")];
    config.hooks_dirs = vec![root.join("hooks")];
    config
}

/// The runtime's own process.
pub fn serve(root: &str) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let result = runtime.block_on(runtime::serve(config(Path::new(root)), Default::default()));
    eprintln!("the runtime ended: {result:?}");
    std::process::exit(1)
}

/// One test, in namespaces of its own.
pub fn case(name: &str, root: &str) -> ! {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("tests of the runtime need root");
    let none = None::<&str>;
    let flags = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_SLAVE;
    nix::mount::mount(none, "/", none, flags, none).unwrap();
    loopback_up();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let root = PathBuf::from(root);
        let server = start_server(&root, &[]);
        let test = Test::connect(root.clone(), server).await;
        cases::run(name, test).await;
        let teardown = runtime::teardown(&config(&root)).await;
        teardown.expect("tear down");
        assert_clean(&root);
        std::fs::remove_dir_all(&root).unwrap();
    });
    std::process::exit(0)
}

/// Removes what a failed test left.
pub fn clean(root: &str) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let root = Path::new(root);
    let mut config = config(root);
    // The pods' network went with the test's namespace.
    config.network = runtime::NetworkMode::None;
    runtime.block_on(runtime::teardown(&config)).unwrap();
    std::fs::remove_dir_all(root).unwrap();
    std::process::exit(0)
}

/// The test's network namespace is new.
fn loopback_up() {
    // SAFETY: ifreq is plain data with a short name; the ioctls use that one struct and a descriptor made here.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        assert_eq!(libc::ioctl(socket, libc::SIOCSIFFLAGS, &request), 0);
        libc::close(socket);
    }
}

/// After a teardown nothing of the runtime may be left.
fn assert_clean(root: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root_name = root.to_string_lossy();
    let left: Vec<&str> = mounts.lines().filter(|l| l.contains(&*root_name)).collect();
    assert!(left.is_empty(), "mounts are left: {left:?}");
    let name = root.file_name().unwrap().to_string_lossy().into_owned();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        for group in std::fs::read_dir(hierarchy.path()).into_iter().flatten().flatten() {
            assert!(
                !group.file_name().to_string_lossy().contains(&name),
                "{} is left",
                group.path().display()
            );
        }
    }
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let comm = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        let cwd = std::fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
        let shim = comm.trim() == "carrack-shim" && cwd.contains(&*root_name);
        assert!(!shim, "shim {} is left", process.path().display());
    }
}

/// Runs all tests, or those whose name contains the argument, each in a process.
pub fn run_all(args: &[String]) -> ! {
    if args.iter().any(|a| a == "--list") {
        let ignored = args.iter().any(|a| a == "--ignored");
        for name in cases::NAMES.iter().filter(|_| !ignored) {
            println!("{name}: test");
        }
        std::process::exit(0);
    }
    let exact = args.iter().any(|a| a == "--exact");
    let filter = args.iter().find(|a| !a.starts_with('-'));
    let wanted = |name: &&&str| match filter {
        Some(filter) if exact => **name == filter,
        Some(filter) => name.contains(filter.as_str()),
        None => true,
    };
    let mut failed = Vec::new();
    for name in cases::NAMES.iter().filter(wanted) {
        let since = Instant::now();
        let root = std::env::temp_dir().join(format!("cri{:016x}", rand::random::<u64>()));
        std::fs::create_dir_all(&root).unwrap();
        let mut case = Command::new("/proc/self/exe");
        let status = case.args(["case", name]).arg(&root).status().unwrap();
        if root.exists() {
            Command::new("/proc/self/exe").arg("clean").arg(&root).status().unwrap();
        }
        let verdict = if status.success() { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({} ms)", since.elapsed().as_millis());
        if !status.success() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        std::process::exit(0)
    }
    println!("failed: {failed:?}");
    std::process::exit(101)
}

/// A runtime and its clients.
pub struct Test {
    /// Everything of the test is below.
    pub root: PathBuf,
    /// The runtime's process.
    pub server: Child,
    /// CRI.
    pub runtime: RuntimeServiceClient<Channel>,
    /// CRI.
    pub images: ImageServiceClient<Channel>,
    /// Carrack's own.
    pub archives: cri::images::images_client::ImagesClient<Channel>,
}

impl Drop for Test {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn start_server(root: &Path, env: &[(&str, &str)]) -> Child {
    let mut command = Command::new("/proc/self/exe");
    command.arg("serve").arg(root).envs(env.iter().copied());
    // SAFETY: prctl with plain numbers is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64);
            Ok(())
        });
    }
    command.spawn().unwrap()
}

async fn channel(root: &Path) -> Channel {
    let socket = config(root).socket;
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match cri::connect(&socket.to_string_lossy()).await {
            Ok(channel) => return channel,
            Err(error) if Instant::now() > until => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// The image every test uses.
pub const IMAGE: &str = "carrack.dev/toolbox:latest";

impl Test {
    async fn connect(root: PathBuf, server: Child) -> Self {
        let channel = channel(&root).await;
        Self {
            root,
            server,
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel.clone()),
            archives: cri::images::images_client::ImagesClient::new(channel),
        }
    }

    /// Another runtime on the same machine, with a folder of its own.
    pub async fn another(root: PathBuf) -> Self {
        std::fs::create_dir_all(&root).unwrap();
        let server = start_server(&root, &[]);
        Self::connect(root, server).await
    }

    /// Ends the runtime as a crash does, and starts it again.
    pub async fn crash(&mut self) {
        self.end();
        self.start(&[]).await;
    }

    /// Kills the runtime, if it has not been killed before.
    pub fn end(&mut self) {
        let _ = self.server.kill();
        self.server.wait().unwrap();
    }

    /// Whether the runtime was killed. Its clients see the end a moment before its parent can.
    pub fn killed(&mut self) -> bool {
        let comm = std::fs::read_to_string(format!("/proc/{}/stat", self.server.id())).unwrap_or_default();
        let state = comm.rsplit_once(") ").map_or("", |(_, rest)| &rest[..1]);
        matches!(state, "Z" | "X" | "") || self.server.try_wait().unwrap().is_some()
    }

    /// The same after a call that failed: the end is seen by its parent within moments, or not at all.
    pub async fn killed_soon(&mut self) -> bool {
        let until = Instant::now() + Duration::from_secs(2);
        while !self.killed() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.killed()
    }

    /// Starts the runtime and connects to it; one that is killed meanwhile is left so.
    pub async fn start(&mut self, env: &[(&str, &str)]) {
        let _ = std::fs::remove_file(config(&self.root).socket);
        self.server = start_server(&self.root, env);
        while !config(&self.root).socket.exists() && !self.killed() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if self.killed() {
            return;
        }
        let channel = channel(&self.root).await;
        self.runtime = RuntimeServiceClient::new(channel.clone());
        self.images = ImageServiceClient::new(channel.clone());
        self.archives = cri::images::images_client::ImagesClient::new(channel);
    }

    /// No sandbox, container, directory, mount, cgroup, link, lease or shim is left.
    pub async fn nothing_is_left(&mut self, when: &str) {
        let list = self.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
        assert!(list.into_inner().items.is_empty(), "{when}: sandboxes are left");
        let list = self.runtime.list_containers(ListContainersRequest::default()).await.unwrap();
        assert!(list.into_inner().containers.is_empty(), "{when}: containers are left");
        for dir in ["run/p", "run/m", "data/pods", "data/containers", "data/network"] {
            let entries: Vec<_> =
                std::fs::read_dir(self.root.join(dir)).into_iter().flatten().flatten().collect();
            assert!(entries.is_empty(), "{when}: {entries:?}");
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left: Vec<&str> =
            mounts.lines().filter(|l| l.contains(&format!("{}/run/m/", self.root.display()))).collect();
        assert!(left.is_empty(), "{when}: {left:?}");
        let parent = config(&self.root).cgroup_parent;
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let pods = std::fs::read_dir(hierarchy.path().join(&parent[1..])).into_iter().flatten().flatten();
            let left: Vec<_> = pods.filter(|e| e.path().is_dir()).map(|e| e.path()).collect();
            assert!(left.is_empty(), "{when}: {left:?}");
        }
        // Links and shims go in the background of the call that made them superfluous.
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let links = std::fs::read_to_string("/proc/self/net/dev").unwrap();
            let links = links.lines().filter(|line| line.trim_start().starts_with("pod")).count();
            let group = config(&self.root).shim_cgroup;
            let shims = accounting::Hierarchies::detect().processes(&group).len();
            if shims == 0 && links == 0 {
                break;
            }
            assert!(Instant::now() < until, "{when}: {links} links and {shims} shims are left");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A pod's config.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self.root.join("logs").join(name).to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(own_pid()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// A container's config.
    pub fn container(&self, name: &str, command: &[&str]) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
            command: command.iter().map(|c| (*c).to_owned()).collect(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(own_pid()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Makes a sandbox.
    pub async fn sandbox(&mut self, config: &PodSandboxConfig) -> String {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        self.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id
    }

    /// The process of a sandbox's shim.
    pub async fn shim(&mut self, sandbox: &str) -> nix::unistd::Pid {
        let verbose = PodSandboxStatusRequest { pod_sandbox_id: sandbox.into(), verbose: true };
        let info = self.runtime.pod_sandbox_status(verbose).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        nix::unistd::Pid::from_raw(i32::try_from(info["pid"].as_i64().unwrap()).unwrap())
    }

    /// Makes a container.
    pub async fn create(&mut self, sandbox: &str, pod: &PodSandboxConfig, config: ContainerConfig) -> String {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(pod.clone()),
        };
        self.runtime.create_container(request).await.unwrap().into_inner().container_id
    }

    /// Starts a container.
    pub async fn begin(&mut self, container: &str) -> Result<(), tonic::Status> {
        let request = StartContainerRequest { container_id: container.into() };
        self.runtime.start_container(request).await.map(|_| ())
    }

    /// Makes and starts a container.
    pub async fn run(&mut self, sandbox: &str, pod: &PodSandboxConfig, config: ContainerConfig) -> String {
        let id = self.create(sandbox, pod, config).await;
        self.begin(&id).await.unwrap();
        id
    }

    /// A container's status.
    pub async fn status(&mut self, container: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: container.into(), verbose: false };
        self.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    /// Waits for a container's end.
    pub async fn ended(&mut self, container: &str) -> ContainerStatus {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let status = self.status(container).await;
            if status.state == ContainerState::ContainerExited as i32 {
                return status;
            }
            assert!(Instant::now() < until, "container {container} goes on");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Runs a command in a container.
    pub async fn exec(&mut self, container: &str, command: &[&str]) -> (i32, String, String) {
        let request = ExecSyncRequest {
            container_id: container.into(),
            cmd: command.iter().map(|c| (*c).to_owned()).collect(),
            timeout: 20,
        };
        let answer = self.runtime.exec_sync(request).await.unwrap().into_inner();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        (answer.exit_code, text(&answer.stdout), text(&answer.stderr))
    }

    /// A container's log without times.
    pub async fn log(&mut self, container: &str) -> Vec<String> {
        let path = self.status(container).await.log_path;
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
    }

    /// Stops a container.
    pub async fn stop(&mut self, container: &str, timeout: i64) {
        let request = StopContainerRequest { container_id: container.into(), timeout };
        self.runtime.stop_container(request).await.unwrap();
    }

    /// Removes a container.
    pub async fn remove(&mut self, container: &str) {
        let request = RemoveContainerRequest { container_id: container.into() };
        self.runtime.remove_container(request).await.unwrap();
    }

    /// Stops and removes a sandbox.
    pub async fn remove_sandbox(&mut self, sandbox: &str) {
        let id = sandbox.to_owned();
        self.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await.unwrap();
        self.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await.unwrap();
    }
}

/// Namespaces of an ordinary pod.
pub fn own_pid() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container as i32, ..Default::default() }
}

/// Changes a container's security context.
pub fn secure(config: &mut ContainerConfig, change: impl FnOnce(&mut LinuxContainerSecurityContext)) {
    let linux = config.linux.get_or_insert_default();
    change(linux.security_context.get_or_insert_default());
}
