//! Every call of CRI v1 once as it is meant, once again, and once about something that is not there; some with a restart of the
//! runtime in between.

use std::collections::BTreeSet;

use cri::v1::*;
use tonic::Code;

use super::harness::{IMAGE, Test};

const NOBODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn code<T: std::fmt::Debug>(result: Result<tonic::Response<T>, tonic::Status>) -> Code {
    result.expect_err("it is refused").code()
}

async fn all<T>(stream: tonic::Streaming<T>) -> Vec<T> {
    use futures::TryStreamExt;
    stream.try_collect().await.unwrap()
}

/// What is not there: calls that take things away succeed, all others say `NotFound`.
pub async fn what_is_not_there_is_told(mut test: Test) {
    let id = || NOBODY.to_owned();
    let rt = &mut test.runtime;
    rt.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id() }).await.unwrap();
    rt.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id() }).await.unwrap();
    rt.stop_container(StopContainerRequest { container_id: id(), timeout: 1 }).await.unwrap();
    rt.remove_container(RemoveContainerRequest { container_id: id() }).await.unwrap();
    let image = Some(ImageSpec { image: "nowhere.test/nothing:1".into(), ..Default::default() });
    test.images.remove_image(RemoveImageRequest { image: image.clone() }).await.unwrap();
    let status = test.images.image_status(ImageStatusRequest { image, verbose: true }).await.unwrap();
    assert!(status.into_inner().image.is_none());

    let sandbox = PodSandboxStatusRequest { pod_sandbox_id: id(), verbose: false };
    assert_eq!(code(rt.pod_sandbox_status(sandbox).await), Code::NotFound);
    let create = CreateContainerRequest {
        pod_sandbox_id: id(),
        config: Some(ContainerConfig::default()),
        sandbox_config: None,
    };
    assert_eq!(code(rt.create_container(create).await), Code::NotFound);
    assert_eq!(code(rt.start_container(StartContainerRequest { container_id: id() }).await), Code::NotFound);
    let container = ContainerStatusRequest { container_id: id(), verbose: false };
    assert_eq!(code(rt.container_status(container).await), Code::NotFound);
    let update = UpdateContainerResourcesRequest {
        container_id: id(),
        linux: Some(LinuxContainerResources::default()),
        ..Default::default()
    };
    assert_eq!(code(rt.update_container_resources(update).await), Code::NotFound);
    let reopen = ReopenContainerLogRequest { container_id: id() };
    assert_eq!(code(rt.reopen_container_log(reopen).await), Code::NotFound);
    let exec = ExecSyncRequest { container_id: id(), cmd: vec!["true".into()], timeout: 1 };
    assert_eq!(code(rt.exec_sync(exec).await), Code::NotFound);
    let exec = ExecRequest { container_id: id(), stdout: true, ..Default::default() };
    assert_eq!(code(rt.exec(exec).await), Code::NotFound);
    let attach = AttachRequest { container_id: id(), stdout: true, ..Default::default() };
    assert_eq!(code(rt.attach(attach).await), Code::NotFound);
    let forward = PortForwardRequest { pod_sandbox_id: id(), port: vec![] };
    assert_eq!(code(rt.port_forward(forward).await), Code::NotFound);
    assert_eq!(code(rt.container_stats(ContainerStatsRequest { container_id: id() }).await), Code::NotFound);
    let stats = PodSandboxStatsRequest { pod_sandbox_id: id() };
    assert_eq!(code(rt.pod_sandbox_stats(stats).await), Code::NotFound);
    let update = UpdatePodSandboxResourcesRequest { pod_sandbox_id: id(), ..Default::default() };
    assert_eq!(code(rt.update_pod_sandbox_resources(update).await), Code::NotFound);
    let checkpoint = CheckpointContainerRequest { container_id: id(), ..Default::default() };
    assert_eq!(code(rt.checkpoint_container(checkpoint).await), Code::Unimplemented);

    let filter = PodSandboxFilter { id: id(), ..Default::default() };
    let list = rt.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await.unwrap();
    assert!(list.into_inner().items.is_empty());
    assert!(
        rt.list_container_stats(ListContainerStatsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .stats
            .is_empty()
    );
}

/// What makes no sense is an invalid argument, not a failure inside.
pub async fn nonsense_is_refused(mut test: Test) {
    let none = RunPodSandboxRequest::default();
    assert_eq!(code(test.runtime.run_pod_sandbox(none).await), Code::InvalidArgument);
    let nameless = RunPodSandboxRequest { config: Some(PodSandboxConfig::default()), ..Default::default() };
    assert_eq!(code(test.runtime.run_pod_sandbox(nameless).await), Code::InvalidArgument);
    let pod = test.pod("nonsense");
    let handler = RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: "other".into() };
    let refused = test.runtime.run_pod_sandbox(handler).await.unwrap_err();
    assert!(refused.message().contains("no runtime for \"other\" is configured"), "{refused}");
    let named = RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: "carrack".into() };
    let sandbox = test.runtime.run_pod_sandbox(named).await.unwrap().into_inner().pod_sandbox_id;

    let create = |config| CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config,
        sandbox_config: Some(pod.clone()),
    };
    assert_eq!(code(test.runtime.create_container(create(None)).await), Code::InvalidArgument);
    let nameless = create(Some(ContainerConfig::default()));
    assert_eq!(code(test.runtime.create_container(nameless).await), Code::InvalidArgument);
    let mut config = test.container("mount", &["hold"]);
    config.mounts = vec![Mount { host_path: "/".into(), ..Default::default() }];
    assert_eq!(code(test.runtime.create_container(create(Some(config))).await), Code::InvalidArgument);
    let mut config = test.container("device", &["hold"]);
    config.devices = vec![Device {
        host_path: "/etc/passwd".into(),
        container_path: "/dev/x".into(),
        ..Default::default()
    }];
    assert_eq!(code(test.runtime.create_container(create(Some(config))).await), Code::InvalidArgument);

    let config = test.container("main", &["hold"]);
    let id = test.run(&sandbox, &pod, config).await;
    let exec = ExecRequest { container_id: id.clone(), ..Default::default() };
    assert_eq!(code(test.runtime.exec(exec).await), Code::InvalidArgument);
    let exec =
        ExecRequest { container_id: id.clone(), tty: true, stdout: true, stderr: true, ..Default::default() };
    assert_eq!(code(test.runtime.exec(exec).await), Code::InvalidArgument);
    let attach = AttachRequest { container_id: id.clone(), ..Default::default() };
    assert_eq!(code(test.runtime.attach(attach).await), Code::InvalidArgument);
    let exec = ExecSyncRequest { container_id: id.clone(), ..Default::default() };
    assert_eq!(code(test.runtime.exec_sync(exec).await), Code::InvalidArgument);
    let update = UpdateContainerResourcesRequest { container_id: id.clone(), ..Default::default() };
    assert_eq!(code(test.runtime.update_container_resources(update).await), Code::InvalidArgument);
    for image in [None, Some(ImageSpec { image: "UPPER".into(), ..Default::default() })] {
        let pull = PullImageRequest { image, ..Default::default() };
        assert_eq!(code(test.images.pull_image(pull).await), Code::InvalidArgument);
    }

    // What has ended cannot be used, but looked at and removed.
    test.stop(&id, 0).await;
    let start = StartContainerRequest { container_id: id.clone() };
    assert_eq!(code(test.runtime.start_container(start).await), Code::FailedPrecondition);
    let exec = ExecSyncRequest { container_id: id.clone(), cmd: vec!["true".into()], timeout: 1 };
    assert_eq!(code(test.runtime.exec_sync(exec).await), Code::FailedPrecondition);
    let update = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources::default()),
        ..Default::default()
    };
    assert_eq!(code(test.runtime.update_container_resources(update).await), Code::FailedPrecondition);
    test.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() }).await.unwrap();
    let config = test.container("late", &["hold"]);
    assert_eq!(code(test.runtime.create_container(create(Some(config))).await), Code::FailedPrecondition);
    let forward = PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: vec![80] };
    assert_eq!(code(test.runtime.port_forward(forward).await), Code::FailedPrecondition);
    let again = RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() };
    assert_eq!(code(test.runtime.run_pod_sandbox(again).await), Code::FailedPrecondition);
    test.remove_sandbox(&sandbox).await;
}

/// The reading calls agree with each other, before and after a restart of the runtime.
pub async fn lists_and_streams_agree(mut test: Test) {
    let version = test.runtime.version(VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("carrack", "v1"));
    let config = test.runtime.runtime_config(RuntimeConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(config.linux.unwrap().cgroup_driver, CgroupDriver::Cgroupfs as i32);
    let status = test.runtime.status(StatusRequest { verbose: true }).await.unwrap().into_inner();
    assert!(status.status.unwrap().conditions.iter().all(|c| c.status));
    let info: serde_json::Value = serde_json::from_str(&status.info["config"]).unwrap();
    assert_eq!(info["cgroupDriver"], "cgroupfs");
    let handlers: Vec<&str> = status.runtime_handlers.iter().map(|h| h.name.as_str()).collect();
    assert_eq!(handlers, ["", "carrack"]);
    assert!(status.runtime_handlers.iter().all(|h| h.features.unwrap().recursive_read_only_mounts));
    assert!(status.features.unwrap().supplemental_groups_policy);
    let bare = test.runtime.status(StatusRequest::default()).await.unwrap().into_inner();
    assert!(bare.info.is_empty());

    let (mut sandboxes, mut containers) = (BTreeSet::new(), BTreeSet::new());
    let mut first = String::new();
    for number in 0..3 {
        let mut pod = test.pod(&format!("pod-{number}"));
        pod.labels.insert("number".into(), number.to_string());
        let sandbox = test.sandbox(&pod).await;
        for name in ["a", "b"] {
            let mut config = test.container(name, &["hold"]);
            config.labels.insert("name".into(), name.into());
            first = test.run(&sandbox, &pod, config).await;
            containers.insert(first.clone());
        }
        let config = test.container("created", &["hold"]);
        test.create(&sandbox, &pod, config).await;
        sandboxes.insert(sandbox);
    }
    for round in 0..2 {
        let list =
            test.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().into_inner();
        let listed: BTreeSet<_> = list.items.iter().map(|s| s.id.clone()).collect();
        let stream = test
            .runtime
            .stream_pod_sandboxes(StreamPodSandboxesRequest::default())
            .await
            .unwrap()
            .into_inner();
        let streamed: BTreeSet<_> =
            all(stream).await.into_iter().flat_map(|part| part.pod_sandboxes).map(|s| s.id).collect();
        assert_eq!((&listed, &streamed), (&sandboxes, &sandboxes));

        let running = ContainerFilter {
            state: Some(ContainerStateValue { state: ContainerState::ContainerRunning as i32 }),
            ..Default::default()
        };
        let list = ListContainersRequest { filter: Some(running.clone()) };
        let list = test.runtime.list_containers(list).await.unwrap().into_inner().containers;
        let stream = StreamContainersRequest { filter: Some(running) };
        let stream = test.runtime.stream_containers(stream).await.unwrap().into_inner();
        let streamed: BTreeSet<_> =
            all(stream).await.into_iter().flat_map(|part| part.containers).map(|c| c.id).collect();
        let listed: BTreeSet<_> = list.into_iter().map(|c| c.id).collect();
        assert_eq!((&listed, &streamed), (&containers, &containers));
        let labelled = ContainerFilter {
            label_selector: [("name".to_owned(), "a".to_owned())].into(),
            ..Default::default()
        };
        let labelled = ListContainersRequest { filter: Some(labelled) };
        assert_eq!(test.runtime.list_containers(labelled).await.unwrap().into_inner().containers.len(), 3);
        // A short id is enough where it is unmistakable.
        assert_eq!(test.status(&first[..12]).await.id, first);

        let stats = test.runtime.list_container_stats(ListContainerStatsRequest::default()).await.unwrap();
        let stats = stats.into_inner().stats;
        assert_eq!(stats.len(), containers.len());
        for one in &stats {
            assert!(one.memory.as_ref().unwrap().usage_bytes.unwrap().value > 0);
            assert!(one.cpu.as_ref().unwrap().usage_core_nano_seconds.is_some());
            assert!(one.writable_layer.as_ref().unwrap().inodes_used.unwrap().value > 0);
        }
        let stream =
            test.runtime.stream_container_stats(StreamContainerStatsRequest::default()).await.unwrap();
        let streamed =
            all(stream.into_inner()).await.into_iter().flat_map(|part| part.container_stats).count();
        assert_eq!(streamed, stats.len());
        let one = test
            .runtime
            .container_stats(ContainerStatsRequest { container_id: first.clone() })
            .await
            .unwrap();
        assert_eq!(one.into_inner().stats.unwrap().attributes.unwrap().id, first);

        let pods = test.runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await.unwrap();
        let pods = pods.into_inner().stats;
        assert_eq!(pods.len(), 3);
        assert!(pods.iter().all(|pod| pod.linux.as_ref().unwrap().containers.len() == 2));
        let stream =
            test.runtime.stream_pod_sandbox_stats(StreamPodSandboxStatsRequest::default()).await.unwrap();
        assert_eq!(
            all(stream.into_inner()).await.into_iter().flat_map(|part| part.pod_sandbox_stats).count(),
            3
        );

        let described = test.runtime.list_metric_descriptors(ListMetricDescriptorsRequest {}).await.unwrap();
        let described = described.into_inner().descriptors;
        let metrics = test.runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await.unwrap();
        let metrics = metrics.into_inner().pod_metrics;
        assert_eq!(metrics.len(), 3);
        let mut seen = BTreeSet::new();
        for metric in metrics
            .iter()
            .flat_map(|pod| pod.metrics.iter().chain(pod.container_metrics.iter().flat_map(|c| &c.metrics)))
        {
            let descriptor = described.iter().find(|d| d.name == metric.name).expect("it is described");
            assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{}", metric.name);
            seen.insert(metric.name.as_str());
        }
        for name in [
            "container_cpu_usage_seconds_total",
            "container_memory_working_set_bytes",
            "container_fs_usage_bytes",
            "container_start_time_seconds",
        ] {
            assert!(seen.contains(name), "{name} is missing");
        }
        let stream =
            test.runtime.stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest {}).await.unwrap();
        assert_eq!(
            all(stream.into_inner()).await.into_iter().flat_map(|part| part.pod_sandbox_metrics).count(),
            3
        );

        let list = test.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
        let stream = test.images.stream_images(StreamImagesRequest::default()).await.unwrap().into_inner();
        assert_eq!(all(stream).await.into_iter().flat_map(|part| part.images).count(), list.len());
        let image = Some(ImageSpec { image: IMAGE.into(), ..Default::default() });
        let filter = ListImagesRequest { filter: Some(ImageFilter { image: image.clone() }) };
        let found = test.images.list_images(filter).await.unwrap().into_inner().images;
        assert!(found.len() == 1 && found[0].pinned);
        let verbose = ImageStatusRequest { image, verbose: true };
        let verbose = test.images.image_status(verbose).await.unwrap().into_inner();
        assert!(verbose.info["info"].contains("imageSpec"));
        let usage = test.images.image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
        assert!(usage.image_filesystems[0].used_bytes.unwrap().value > 0);
        assert!(usage.container_filesystems[0].inodes_used.unwrap().value > 0);
        if round == 0 {
            test.crash().await;
        }
    }
    for sandbox in &sandboxes {
        test.remove_sandbox(sandbox).await;
    }
}

/// Changes of limits, once and again, and after a restart.
pub async fn limits_are_changed(mut test: Test) {
    let pod = test.pod("limits");
    let sandbox = test.sandbox(&pod).await;
    let config = test.container("main", &["hold"]);
    let id = test.create(&sandbox, &pod, config).await;
    let update = |memory_limit_in_bytes| UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources { memory_limit_in_bytes, cpu_shares: 204, ..Default::default() }),
        ..Default::default()
    };
    test.runtime.update_container_resources(update(64 << 20)).await.unwrap();
    test.begin(&id).await.unwrap();
    test.runtime.update_container_resources(update(96 << 20)).await.unwrap();
    test.runtime.update_container_resources(update(96 << 20)).await.unwrap();
    test.crash().await;
    let shown = test.status(&id).await.resources.unwrap().linux.unwrap();
    assert_eq!((shown.memory_limit_in_bytes, shown.cpu_shares), (96 << 20, 204));
    let stats = ContainerStatsRequest { container_id: id.clone() };
    let stats = test.runtime.container_stats(stats).await.unwrap().into_inner().stats.unwrap();
    let memory = stats.memory.unwrap();
    let (used, left) = (memory.working_set_bytes.unwrap().value, memory.available_bytes.unwrap().value);
    assert_eq!(used + left, 96 << 20);

    let resources = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: sandbox.clone(),
        resources: Some(LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() }),
        ..Default::default()
    };
    test.runtime.update_pod_sandbox_resources(resources.clone()).await.unwrap();
    test.runtime.update_pod_sandbox_resources(resources.clone()).await.unwrap();
    let stats = PodSandboxStatsRequest { pod_sandbox_id: sandbox.clone() };
    let stats = test.runtime.pod_sandbox_stats(stats).await.unwrap().into_inner().stats.unwrap();
    let memory = stats.linux.unwrap().memory.unwrap();
    assert_eq!(memory.working_set_bytes.unwrap().value + memory.available_bytes.unwrap().value, 128 << 20);
    test.remove_sandbox(&sandbox).await;
    assert_eq!(code(test.runtime.update_pod_sandbox_resources(resources).await), Code::NotFound);
}
