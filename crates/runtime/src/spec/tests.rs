use cri::v1::{KeyValue, LinuxContainerConfig, Mount};

use super::*;

fn image() -> RunConfig {
    RunConfig {
        entrypoint: vec!["/entry".into()],
        cmd: vec!["arg".into()],
        env: vec!["A=image".into(), "B=image".into()],
        working_dir: "work".into(),
        ..RunConfig::default()
    }
}

fn spec_of(config: &ContainerConfig) -> Result<Value, Error> {
    let sandbox = PodSandboxConfig { hostname: "pod".into(), ..PodSandboxConfig::default() };
    build(&Input {
        config,
        sandbox: &sandbox,
        image: &image(),
        user: &User { uid: 5, gid: 6, groups: vec![6], home: "/h".into() },
        rootfs: Path::new("/r"),
        cgroup: "/pods/c",
        pid: PidNamespace::Own,
        cgroup_view: None,
        files: SandboxFiles { shm: "/s/shm".into(), ..SandboxFiles::default() },
        devices: Vec::new(),
        env: vec!["D=edited".into()],
        mounts: Vec::new(),
        hooks: serde_json::json!({}),
        image_volumes: Vec::new(),
    })
}

#[test]
fn command_and_args_follow_the_image() {
    let check = |command: &[&str], args: &[&str]| {
        let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        let config = ContainerConfig { command: own(command), args: own(args), ..ContainerConfig::default() };
        super::command(&config, &image()).unwrap().join(" ")
    };
    assert_eq!(check(&[], &[]), "/entry arg");
    assert_eq!(check(&[], &["x"]), "/entry x");
    assert_eq!(check(&["c"], &[]), "c");
    assert_eq!(check(&["c"], &["x"]), "c x");
    assert_eq!(super::command(&ContainerConfig::default(), &RunConfig::default()), Err(Error::NoCommand));
}

#[test]
fn variables_of_the_pod_win() {
    let pair = |key: &str, value: &str| KeyValue { key: key.into(), value: value.to_owned().into() };
    let config =
        ContainerConfig { envs: vec![pair("B", "pod=x"), pair("C", "")], ..ContainerConfig::default() };
    let spec = spec_of(&config).unwrap();
    let env: Vec<&str> =
        spec["process"]["env"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(env, [DEFAULT_PATH, "HOSTNAME=pod", "HOME=/h", "A=image", "B=pod=x", "C=", "D=edited"]);
    assert_eq!(spec["process"]["cwd"], "/work");
}

#[test]
fn volumes_come_in_order_of_depth_and_replace_defaults() {
    let mount = |at: &str| Mount { container_path: at.into(), host_path: "/host".into(), ..Mount::default() };
    let config = ContainerConfig {
        mounts: vec![mount("/a/b/c"), mount("/dev/shm/"), mount("/a"), mount("/a/../x")],
        ..ContainerConfig::default()
    };
    let spec = spec_of(&config).unwrap();
    let at: Vec<&str> =
        spec["mounts"].as_array().unwrap().iter().filter_map(|m| m["destination"].as_str()).collect();
    assert_eq!(at[at.len() - 4..], ["/a", "/x", "/dev/shm", "/a/b/c"]);
    assert_eq!(at.iter().filter(|d| **d == "/dev/shm").count(), 1);
    let bad = ContainerConfig { mounts: vec![Mount::default()], ..ContainerConfig::default() };
    assert!(matches!(spec_of(&bad), Err(Error::Mount(_))));
}

#[test]
fn a_volume_for_dev_waits_until_the_devices_are_made() {
    let mount = |at: &str| Mount { container_path: at.into(), host_path: "/dev".into(), ..Mount::default() };
    let config =
        ContainerConfig { mounts: vec![mount("/dev/"), mount("/dev/x")], ..ContainerConfig::default() };
    let spec = spec_of(&config).unwrap();
    let own = spec["mounts"].as_array().unwrap().iter().find(|m| m["destination"] == "/dev").unwrap();
    assert_eq!(own["type"], "tmpfs");
    let (waits, above) = late_dev(&config).unwrap();
    assert!(spec["mounts"].as_array().unwrap().iter().any(|m| m["destination"] == waits.as_str()));
    assert_eq!(above, ["/dev/pts", "/dev/mqueue", "/dev/shm", "/dev/x"]);
    assert_eq!(late_dev(&ContainerConfig::default()), None);
}

#[test]
fn propagation_is_that_of_each_mount() {
    let mount = |at: &str, propagation: i32| Mount {
        container_path: at.into(),
        host_path: "/host".into(),
        propagation,
        ..Mount::default()
    };
    let check = |mounts: Vec<Mount>| {
        let config = ContainerConfig { mounts, ..ContainerConfig::default() };
        (mounts::root_propagation(&config), propagation(&config))
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(check(vec![mount("/a", 0)]), ("private", vec![]));
    assert_eq!(check(vec![mount("/a", 0), mount("/b", 1)]), ("slave", vec![pair("/a", "private")]));
    assert_eq!(check(vec![mount("/a", 0), mount("/b", 2)]), ("shared", vec![pair("/a", "private")]));
}

#[test]
fn privilege_unmasks() {
    let context = |privileged| LinuxContainerSecurityContext {
        privileged,
        masked_paths: vec!["/proc/kcore".into()],
        ..LinuxContainerSecurityContext::default()
    };
    let config = |privileged| ContainerConfig {
        linux: Some(LinuxContainerConfig {
            security_context: Some(context(privileged)),
            ..Default::default()
        }),
        ..ContainerConfig::default()
    };
    assert_eq!(spec_of(&config(false)).unwrap()["linux"]["maskedPaths"].as_array().unwrap().len(), 1);
    assert_eq!(spec_of(&config(true)).unwrap()["linux"]["maskedPaths"].as_array().unwrap().len(), 0);
}

#[test]
fn signals_have_many_names() {
    for (name, expect) in [
        ("SIGTERM", Some(15)),
        ("int", Some(2)),
        ("9", Some(9)),
        ("SIGRTMIN+3", Some(37)),
        ("SIGRTMINPLUS3", Some(37)),
        ("RTMAX-1", Some(63)),
        ("SIGCLD", Some(17)),
        ("", None),
        ("99", None),
    ] {
        assert_eq!(signal_number(name), expect, "{name}");
    }
}
