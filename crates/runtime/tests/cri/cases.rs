//! The tests.

use std::time::{Duration, Instant};

use cri::v1::*;

use super::calls::*;
use super::crashes::*;
use super::harness::{Test, secure};
use super::images::*;
use super::mounting::*;
use super::pulling::*;
use super::sessions::streams_reach_a_client;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// All tests.
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];

        /// Runs one.
        pub async fn run(name: &str, test: Test) {
            match name {
                $(stringify!($name) => $name(test).await,)*
                _ => panic!("no such test"),
            }
        }
    };
}

cases![
    a_container_lives_and_ends,
    calls_may_be_repeated,
    output_is_logged,
    commands_run_in_a_container,
    a_process_gets_what_its_context_says,
    a_missing_program_is_told,
    a_crash_leaves_containers_alone,
    a_shim_that_dies_is_noticed,
    memory_limits_bind,
    processes_are_shared_on_request,
    volumes_are_mounted_as_asked,
    pods_have_user_namespaces_on_request,
    cdi_devices_are_made,
    events_come_as_things_happen,
    streams_reach_a_client,
    images_are_pulled,
    a_registry_that_hangs_is_given_up,
    archives_go_in_and_out,
    logs_are_rotated,
    pods_have_addresses,
    a_crash_at_any_moment_leaves_nothing_half,
    mounts_propagate_as_asked,
    a_full_disk_is_told,
    many_pods_start_at_once,
    what_is_not_there_is_told,
    nonsense_is_refused,
    lists_and_streams_agree,
    limits_are_changed,
    a_kill_between_any_two_steps_is_mended,
    a_kill_leaves_containers_to_be_removed,
    a_kill_during_an_import_is_mended,
    a_shim_killed_at_any_step_is_noticed,
    a_shim_that_dies_while_its_pod_is_stopped_is_noticed,
    two_runtimes_leave_each_other_alone,
    mirrors_and_policies_are_heeded,
    artifacts_are_mounted_as_volumes,
    devices_and_hooks_are_added,
];

async fn a_container_lives_and_ends(mut test: Test) {
    let pod = test.pod("lives");
    let mut times = Vec::new();
    for round in 0..12 {
        let since = Instant::now();
        let mut pod = pod.clone();
        pod.metadata.as_mut().unwrap().attempt = round;
        let sandbox = test.sandbox(&pod).await;
        let sandboxed = since.elapsed();
        let container = test.container("main", &["hold"]);
        let id = test.create(&sandbox, &pod, container).await;
        let created = since.elapsed();
        test.begin(&id).await.unwrap();
        let started = since.elapsed();
        test.stop(&id, 0).await;
        let stopped = since.elapsed();
        assert_eq!(test.status(&id).await.exit_code, 137);
        test.remove(&id).await;
        let removed = since.elapsed();
        test.remove_sandbox(&sandbox).await;
        times.push(since.elapsed());
        println!(
            "sandbox {sandboxed:.1?}, created {created:.1?}, started {started:.1?}, stopped {stopped:.1?}, removed \
             {removed:.1?}, all {:.1?}",
            since.elapsed()
        );
    }
    times.sort();
    println!("sandbox and container, create to remove: median {:.1?}", times[times.len() / 2]);
    assert!(
        test.runtime
            .list_containers(ListContainersRequest::default())
            .await
            .unwrap()
            .into_inner()
            .containers
            .is_empty()
    );
}

async fn calls_may_be_repeated(mut test: Test) {
    let pod = test.pod("again");
    let sandbox = test.sandbox(&pod).await;
    assert_eq!(test.sandbox(&pod).await, sandbox);
    let config = test.container("main", &["hold"]);
    let id = test.create(&sandbox, &pod, config.clone()).await;
    assert_eq!(test.create(&sandbox, &pod, config).await, id);
    test.begin(&id).await.unwrap();
    test.begin(&id).await.unwrap();
    test.stop(&id, 0).await;
    test.stop(&id, 0).await;
    test.remove(&id).await;
    test.remove(&id).await;
    test.remove_sandbox(&sandbox).await;
    test.remove_sandbox(&sandbox).await;
}

async fn output_is_logged(mut test: Test) {
    let pod = test.pod("logs");
    let sandbox = test.sandbox(&pod).await;
    let config = test.container("main", &["say", "one\\ntwo\\nrest", "bad\\n"]);
    let id = test.run(&sandbox, &pod, config).await;
    let status = test.ended(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    let mut lines = test.log(&id).await;
    lines.sort();
    assert_eq!(lines, ["stderr F bad", "stdout F one", "stdout F two", "stdout P rest"]);
    let config = test.container("other", &["fail", "7"]);
    let id = test.run(&sandbox, &pod, config).await;
    let status = test.ended(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
}

async fn commands_run_in_a_container(mut test: Test) {
    let pod = test.pod("exec");
    let sandbox = test.sandbox(&pod).await;
    let config = test.container("main", &["hold"]);
    let id = test.run(&sandbox, &pod, config).await;
    assert_eq!(test.exec(&id, &["say", "out", "err"]).await, (0, "out".into(), "err".into()));
    assert_eq!(test.exec(&id, &["fail", "3"]).await.0, 3);
    let missing = ExecSyncRequest { container_id: id.clone(), cmd: vec!["nothing".into()], timeout: 5 };
    let error = test.runtime.exec_sync(missing).await.unwrap_err();
    assert!(error.message().contains("executable file not found in $PATH"), "{error}");
    let slow = ExecSyncRequest { container_id: id.clone(), cmd: vec!["hold".into()], timeout: 1 };
    assert_eq!(test.runtime.exec_sync(slow).await.unwrap_err().code(), tonic::Code::DeadlineExceeded);
    let mut times = Vec::new();
    for _ in 0..10 {
        let since = Instant::now();
        test.exec(&id, &["true"]).await;
        times.push(since.elapsed());
    }
    times.sort();
    println!("exec: median {:.1?}", times[5]);
}

async fn a_process_gets_what_its_context_says(mut test: Test) {
    let pod = test.pod("context");
    let sandbox = test.sandbox(&pod).await;
    let mut config = test.container("plain", &["hold"]);
    config.envs = vec![KeyValue { key: "NAME".into(), value: "value".into() }];
    config.working_dir = "/made/for/it".into();
    secure(&mut config, |c| {
        c.run_as_user = Some(Int64Value { value: 1000 });
        c.run_as_group = Some(Int64Value { value: 2000 });
        c.supplemental_groups = vec![3000];
        c.no_new_privs = true;
        c.readonly_rootfs = true;
        c.seccomp = Some(SecurityProfile::default());
        c.masked_paths = vec!["/proc/kcore".into()];
        c.readonly_paths = vec!["/proc/sys".into()];
        c.capabilities = Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    });
    let id = test.run(&sandbox, &pod, config).await;
    let (code, state, error) = test.exec(&id, &["state"]).await;
    assert_eq!(code, 0, "{error}");
    for line in [
        "Uid: 1000 1000 1000 1000",
        "Gid: 2000 2000 2000 2000",
        "Groups: 2000 3000",
        "CapEff: 0000000000000000",
        "CapBnd: 0000000000000000",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "hostname context",
        "cwd /made/for/it",
        "env NAME=value",
    ] {
        assert!(state.lines().any(|l| l == line), "{line} is missing in:\n{state}");
    }
    assert!(state.lines().any(|l| l.starts_with("mount / ro")), "{state}");
    assert_eq!(test.exec(&id, &["mkdir", "/x"]).await.0, libc::EROFS);
    assert_eq!(test.exec(&id, &["unshare"]).await.0, libc::EPERM);

    // Without no-new-privileges the filter has to go in before capabilities go; the default set is kept by root.
    let mut config = test.container("default", &["hold"]);
    secure(&mut config, |c| c.seccomp = Some(SecurityProfile::default()));
    let id = test.run(&sandbox, &pod, config).await;
    let (_, state, _) = test.exec(&id, &["state"]).await;
    for line in ["Uid: 0 0 0 0", "CapEff: 00000000a80425fb", "NoNewPrivs: 0", "Seccomp: 2"] {
        assert!(state.lines().any(|l| l == line), "{line} is missing in:\n{state}");
    }
    let mut config = test.container("first", &["state"]);
    secure(&mut config, |c| {
        c.seccomp = Some(SecurityProfile::default());
        c.run_as_user = Some(Int64Value { value: 5 });
    });
    let id = test.run(&sandbox, &pod, config).await;
    test.ended(&id).await;
    let log = test.log(&id).await.join("\n");
    for line in
        ["Uid: 5 5 5 5", "CapEff: 0000000000000000", "CapBnd: 00000000a80425fb", "Seccomp: 2", "NSpid: 1"]
    {
        assert!(log.contains(&format!("stdout F {line}")), "{line} is missing in:\n{log}");
    }

    let mut config = test.container("privileged", &["hold"]);
    secure(&mut config, |c| c.privileged = true);
    let id = test.run(&sandbox, &pod, config).await;
    assert_eq!(test.exec(&id, &["unshare"]).await.0, 0);
}

async fn a_missing_program_is_told(mut test: Test) {
    let pod = test.pod("missing");
    let sandbox = test.sandbox(&pod).await;
    let config = test.container("main", &["no-such-program"]);
    let id = test.create(&sandbox, &pod, config).await;
    let error = test.begin(&id).await.unwrap_err();
    assert!(error.message().contains("\"no-such-program\": executable file not found in $PATH"), "{error}");
    let status = test.status(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    let mut config = test.container("image", &["true"]);
    config.image = Some(ImageSpec { image: "nowhere.test/nothing:1".into(), ..Default::default() });
    let request =
        CreateContainerRequest { pod_sandbox_id: sandbox, config: Some(config), sandbox_config: Some(pod) };
    assert_eq!(test.runtime.create_container(request).await.unwrap_err().code(), tonic::Code::NotFound);
}

async fn a_crash_leaves_containers_alone(mut test: Test) {
    let pod = test.pod("crash");
    let sandbox = test.sandbox(&pod).await;
    let config = test.container("stays", &["hold"]);
    let stays = test.run(&sandbox, &pod, config).await;
    let config = test.container("ends", &["hold"]);
    let ends = test.run(&sandbox, &pod, config).await;
    let verbose = ContainerStatusRequest { container_id: ends.clone(), verbose: true };
    let info = test.runtime.container_status(verbose.clone()).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(info["pid"].as_i64().unwrap()).unwrap());

    test.server.kill().unwrap();
    test.server.wait().unwrap();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    test.crash().await;
    let ended = test.ended(&ends).await;
    assert_eq!(ended.exit_code, 137);
    assert_eq!(test.status(&stays).await.state, ContainerState::ContainerRunning as i32);
    assert_eq!(test.exec(&stays, &["say", "here"]).await.1, "here");
    let config = test.container("new", &["hold"]);
    test.run(&sandbox, &pod, config).await;
    test.stop(&stays, 0).await;
    test.remove_sandbox(&sandbox).await;
}

async fn a_shim_that_dies_is_noticed(mut test: Test) {
    let pod = test.pod("shim");
    let sandbox = test.sandbox(&pod).await;
    let config = test.container("main", &["hold"]);
    let id = test.run(&sandbox, &pod, config).await;
    let pid = test.shim(&sandbox).await;
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    for line in
        rollup.lines().filter(|l| l.starts_with("Rss") || l.starts_with("Pss:") || l.starts_with("Private"))
    {
        println!("shim {}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(test.ended(&id).await.exit_code, 255);
    test.remove_sandbox(&sandbox).await;
}

async fn memory_limits_bind(mut test: Test) {
    let pod = test.pod("memory");
    let sandbox = test.sandbox(&pod).await;
    let mut config = test.container("main", &["eat", "200000000"]);
    let limit = 64 << 20;
    config.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: limit,
        cpu_shares: 102,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        oom_score_adj: -900,
        ..Default::default()
    });
    let id = test.run(&sandbox, &pod, config).await;
    let status = test.ended(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));

    let config = test.container("changed", &["hold"]);
    let id = test.run(&sandbox, &pod, config).await;
    let change = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources { memory_limit_in_bytes: limit, ..Default::default() }),
        ..Default::default()
    };
    test.runtime.update_container_resources(change).await.unwrap();
    let stats = test
        .runtime
        .container_stats(ContainerStatsRequest { container_id: id })
        .await
        .unwrap()
        .into_inner()
        .stats
        .unwrap();
    let memory = stats.memory.unwrap();
    assert!(memory.available_bytes.unwrap().value <= limit as u64);
    assert!(memory.working_set_bytes.unwrap().value > 0);
}

async fn processes_are_shared_on_request(mut test: Test) {
    let mut pod = test.pod("shared");
    let context = pod.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod as i32;
    let sandbox = test.sandbox(&pod).await;
    let mut config = test.container("main", &["hold"]);
    secure(&mut config, |c| c.namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod as i32);
    let id = test.run(&sandbox, &pod, config).await;
    let (_, state, _) = test.exec(&id, &["state"]).await;
    let line = state.lines().find(|l| l.starts_with("NSpid:")).unwrap();
    assert_ne!(line, "NSpid: 1");
    test.stop(&id, 0).await;
    test.remove_sandbox(&sandbox).await;
}

async fn events_come_as_things_happen(mut test: Test) {
    let mut events = test.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
    let pod = test.pod("events");
    let sandbox = test.sandbox(&pod).await;
    let config = test.container("main", &["hold"]);
    let id = test.run(&sandbox, &pod, config).await;
    test.stop(&id, 0).await;
    test.remove(&id).await;
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let event =
            tokio::time::timeout(Duration::from_secs(20), events.message()).await.unwrap().unwrap().unwrap();
        if event.container_id == id {
            seen.push(event.container_event_type().as_str_name().to_owned());
        }
    }
    assert_eq!(
        seen,
        [
            "CONTAINER_CREATED_EVENT",
            "CONTAINER_STARTED_EVENT",
            "CONTAINER_STOPPED_EVENT",
            "CONTAINER_DELETED_EVENT"
        ]
    );
}

async fn logs_are_rotated(mut test: Test) {
    let pod = test.pod("rotate");
    let sandbox = test.sandbox(&pod).await;
    let config = test.container("main", &["hold"]);
    let id = test.run(&sandbox, &pod, config).await;
    let path = std::path::PathBuf::from(test.status(&id).await.log_path);
    std::fs::rename(&path, path.with_extension("old")).unwrap();
    test.runtime.reopen_container_log(ReopenContainerLogRequest { container_id: id.clone() }).await.unwrap();
    assert!(path.exists());
    test.stop(&id, 0).await;
    let reopen = ReopenContainerLogRequest { container_id: id };
    assert!(test.runtime.reopen_container_log(reopen).await.is_err());
}

async fn pods_have_addresses(mut test: Test) {
    std::fs::write(test.root.join("network"), "").unwrap();
    test.crash().await;
    let ready = |status: RuntimeStatus| status.conditions.iter().all(|c| c.status);
    let status = |answer: StatusResponse| answer.status.unwrap();
    assert!(!ready(status(test.runtime.status(StatusRequest::default()).await.unwrap().into_inner())));
    let update = UpdateRuntimeConfigRequest {
        runtime_config: Some(RuntimeConfig {
            network_config: Some(NetworkConfig { pod_cidr: "10.244.3.0/24,fd00:10:244:3::/64".into() }),
        }),
    };
    test.runtime.update_runtime_config(update).await.unwrap();
    assert!(ready(status(test.runtime.status(StatusRequest::default()).await.unwrap().into_inner())));

    let first = test.pod("first");
    let first_sandbox = test.sandbox(&first).await;
    let config = test.container("server", &["serve-port", "8080"]);
    let server = test.run(&first_sandbox, &first, config).await;
    let second = test.pod("second");
    let second_sandbox = test.sandbox(&second).await;
    let config = test.container("client", &["hold"]);
    let client = test.run(&second_sandbox, &second, config).await;
    let request = PodSandboxStatusRequest { pod_sandbox_id: first_sandbox.clone(), verbose: false };
    let network =
        test.runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap().network.unwrap();
    assert!(network.ip.starts_with("10.244.3."), "{network:?}");
    assert_eq!(network.additional_ips.len(), 1);
    assert_eq!(test.exec(&server, &["link", "eth0"]).await.0, 0);
    while test.exec(&server, &["connect", "8080"]).await.0 != 0 {}
    assert_eq!(test.exec(&client, &["connect", "8080", &network.ip]).await.0, 0);
    test.crash().await;
    assert_eq!(test.exec(&client, &["connect", "8080", &network.ip]).await.0, 0);
    test.remove_sandbox(&first_sandbox).await;
    test.remove_sandbox(&second_sandbox).await;
}

async fn a_crash_at_any_moment_leaves_nothing_half(mut test: Test) {
    for round in 0..16u64 {
        let mut pod = test.pod("crashes");
        pod.metadata.as_mut().unwrap().attempt = round as u32;
        let mut client = test.runtime.clone();
        let container = test.container("main", &["hold"]);
        let working = tokio::spawn(async move {
            let run = RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: String::new() };
            let sandbox = client.run_pod_sandbox(run).await?.into_inner().pod_sandbox_id;
            let create = CreateContainerRequest {
                pod_sandbox_id: sandbox.clone(),
                config: Some(container),
                sandbox_config: Some(pod),
            };
            let container_id = client.create_container(create).await?.into_inner().container_id;
            client.start_container(StartContainerRequest { container_id: container_id.clone() }).await?;
            client.remove_container(RemoveContainerRequest { container_id }).await?;
            client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox }).await
        });
        tokio::time::sleep(Duration::from_millis(round * 9)).await;
        test.crash().await;
        let _ = working.await.unwrap();
        let sandboxes =
            test.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().into_inner().items;
        for sandbox in sandboxes {
            test.remove_sandbox(&sandbox.id).await;
        }
        let left = test
            .runtime
            .list_containers(ListContainersRequest::default())
            .await
            .unwrap()
            .into_inner()
            .containers;
        assert!(left.is_empty(), "{left:?}");
        for dir in ["run/p", "run/m", "data/pods", "data/containers"] {
            let entries: Vec<_> =
                std::fs::read_dir(test.root.join(dir)).into_iter().flatten().flatten().collect();
            assert!(entries.is_empty(), "round {round}: {entries:?}");
        }
    }
}

async fn many_pods_start_at_once(mut test: Test) {
    let since = Instant::now();
    let mut starting = tokio::task::JoinSet::new();
    for number in 0..30 {
        let pod = test.pod(&format!("pod-{number}"));
        let container = test.container("main", &["hold"]);
        let mut client = test.runtime.clone();
        starting.spawn(async move {
            let run = RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: String::new() };
            let sandbox = client.run_pod_sandbox(run).await.unwrap().into_inner().pod_sandbox_id;
            let create = CreateContainerRequest {
                pod_sandbox_id: sandbox.clone(),
                config: Some(container),
                sandbox_config: Some(pod),
            };
            let container_id = client.create_container(create).await.unwrap().into_inner().container_id;
            client.start_container(StartContainerRequest { container_id }).await.unwrap();
            sandbox
        });
    }
    let sandboxes = starting.join_all().await;
    println!("30 pods started in {:.1?}", since.elapsed());
    let since = Instant::now();
    test.crash().await;
    let list =
        test.runtime.list_containers(ListContainersRequest::default()).await.unwrap().into_inner().containers;
    assert!(list.iter().all(|c| c.state == ContainerState::ContainerRunning as i32) && list.len() == 30);
    println!("found again {:.1?} after a crash", since.elapsed());
    let mut removing = tokio::task::JoinSet::new();
    for sandbox in sandboxes {
        let mut client = test.runtime.clone();
        removing.spawn(async move {
            let remove = RemovePodSandboxRequest { pod_sandbox_id: sandbox };
            client.remove_pod_sandbox(remove).await.unwrap();
        });
    }
    removing.join_all().await;
}
