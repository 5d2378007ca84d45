//! The runtime killed at every step between two changes outside of it: whatever was under way is finished or undone by the next
//! start, repeated calls succeed, and nothing is left over.

use cri::v1::*;
use tonic::Status;

use super::harness::{IMAGE, Test};
use super::pack::pack_file;

/// Kills the runtime at the first step below `area`, then at the second, until one more than there are; gives how many there were.
async fn everywhere(
    test: &mut Test,
    area: &str,
    work: impl AsyncFn(&mut Test, u32) -> Result<(), Status>,
) -> u32 {
    for count in 1.. {
        test.end();
        test.start(&[("CARRACK_FAIL_AT", &format!("{area}@{count}"))]).await;
        let result = work(test, count).await;
        if result.is_ok() && !test.killed() || !test.killed_soon().await {
            result.unwrap_or_else(|status| panic!("{area}: nothing was killed, and still: {status}"));
            return count - 1;
        }
        test.end();
        test.start(&[]).await;
        // All of it once more: what had been done is found, what had not is done now.
        work(test, count)
            .await
            .unwrap_or_else(|status| panic!("{area}@{count}: the repetition failed: {status}"));
        test.nothing_is_left(&format!("{area}@{count}")).await;
    }
    unreachable!("the range has no end")
}

async fn life(test: &mut Test, pod: &PodSandboxConfig) -> Result<(), Status> {
    let rt = &mut test.runtime.clone();
    let run = RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: String::new() };
    let pod_sandbox_id = match rt.run_pod_sandbox(run).await {
        Ok(answer) => answer.into_inner().pod_sandbox_id,
        // The first try came as far as stopping it.
        Err(status) if status.code() == tonic::Code::FailedPrecondition => {
            let list = rt.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
            list.into_iter().next().ok_or(status)?.id
        }
        Err(status) => return Err(status),
    };
    let create = CreateContainerRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
        config: Some(test.container("main", &["hold"])),
        sandbox_config: Some(pod.clone()),
    };
    if let Ok(created) = rt.create_container(create).await {
        let container_id = created.into_inner().container_id;
        rt.start_container(StartContainerRequest { container_id: container_id.clone() }).await?;
        rt.start_container(StartContainerRequest { container_id: container_id.clone() }).await?;
        rt.stop_container(StopContainerRequest { container_id: container_id.clone(), timeout: 0 }).await?;
        rt.remove_container(RemoveContainerRequest { container_id }).await?;
    }
    rt.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
    rt.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
    rt.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
    Ok(())
}

/// Each step of a sandbox's, a container's and an address's life.
pub async fn a_kill_between_any_two_steps_is_mended(mut test: Test) {
    std::fs::write(test.root.join("network"), "").unwrap();
    test.end();
    test.start(&[]).await;
    let range = NetworkConfig { pod_cidr: "10.244.7.0/24".into() };
    let update =
        UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config: Some(range) }) };
    test.runtime.update_runtime_config(update).await.unwrap();
    let image = Some(ImageSpec { image: IMAGE.into(), ..Default::default() });
    test.images.image_status(ImageStatusRequest { image, verbose: false }).await.unwrap();
    for (area, least) in [("sandbox.", 15), ("container.", 12), ("network.", 7)] {
        let steps = everywhere(&mut test, area, async |test, count| {
            let mut pod = test.pod("steps");
            pod.metadata.as_mut().unwrap().attempt = count;
            life(test, &pod).await
        })
        .await;
        println!("{area} has {steps} steps");
        assert!(steps >= least, "{area}: only {steps} steps were met");
    }
}

/// A container that was being started, or ran, when the runtime was killed is found and can be removed at once.
pub async fn a_kill_leaves_containers_to_be_removed(mut test: Test) {
    for (number, at) in
        ["container.start.record", "container.create.done", "container.remove.cgroup"].iter().enumerate()
    {
        let mut pod = test.pod("removed");
        pod.metadata.as_mut().unwrap().attempt = number as u32;
        test.end();
        test.start(&[("CARRACK_FAIL_AT", &format!("{at}@1"))]).await;
        let _ = life(&mut test, &pod).await;
        assert!(test.killed_soon().await, "{at} was not met");
        test.end();
        test.start(&[]).await;
        let list = ListContainersRequest::default();
        let list = test.runtime.list_containers(list).await.unwrap().into_inner().containers;
        assert_eq!(list.len(), 1, "{at}");
        test.remove(&list[0].id).await;
        test.remove_sandbox(&list[0].pod_sandbox_id).await;
        test.nothing_is_left(at).await;
    }
}

/// Each step of a shim's life, and of the making of a container by its child.
pub async fn a_shim_killed_at_any_step_is_noticed(mut test: Test) {
    let log = test.root.join("run/shim.log");
    let mut attempt = 0;
    for (area, least) in [("shim.", 14), ("create.", 7)] {
        for count in 1.. {
            attempt += 1;
            let mut pod = test.pod("steps");
            pod.metadata.as_mut().unwrap().attempt = attempt;
            let _ = std::fs::remove_file(&log);
            test.end();
            test.start(&[("CARRACK_FAIL_AT", &format!("{area}#{count}"))]).await;
            let result = life(&mut test, &pod).await;
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let Some(at) = said.lines().find_map(|line| line.strip_prefix("killed at ")) else {
                result.unwrap_or_else(|status| panic!("{area}: nothing was killed, and still: {status}"));
                test.nothing_is_left(area).await;
                println!("{area} has {} steps", count - 1);
                assert!(count > least, "{area}: only {} steps were met", count - 1);
                break;
            };
            // The runtime goes on, and says of no container that it runs.
            let list = test.runtime.list_containers(ListContainersRequest::default()).await.unwrap();
            for container in list.into_inner().containers {
                if container.state != ContainerState::ContainerCreated as i32 {
                    test.ended(&container.id).await;
                }
            }
            test.end();
            test.start(&[]).await;
            life(&mut test, &pod)
                .await
                .unwrap_or_else(|status| panic!("{at}: the repetition failed: {status}"));
            test.nothing_is_left(at).await;
        }
    }
}

/// The process of a running container, as its runtime tells it.
async fn process(test: &mut Test, container: &str) -> i64 {
    let request = ContainerStatusRequest { container_id: container.into(), verbose: true };
    let info = test.runtime.container_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    info["pid"].as_i64().unwrap()
}

/// A shim that goes while its sandbox is being stopped, and one that goes while nobody looks: either way its containers are
/// ended and said to be.
pub async fn a_shim_that_dies_while_its_pod_is_stopped_is_noticed(mut test: Test) {
    use nix::sys::signal::{Signal, kill};
    for stopping in [true, false] {
        let pod = test.pod(if stopping { "stopped" } else { "forgotten" });
        let sandbox = test.sandbox(&pod).await;
        let config = test.container("main", &["hold"]);
        let id = test.run(&sandbox, &pod, config).await;
        let process = process(&mut test, &id).await;
        let shim = test.shim(&sandbox).await;
        let mut events = test.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
        if stopping {
            // It answers nothing any more, so that the sandbox is still being stopped when it goes.
            kill(shim, Signal::SIGSTOP).unwrap();
            let before = connections();
            let (mut runtime, sandbox) = (test.runtime.clone(), sandbox.clone());
            let stop = tokio::spawn(async move {
                runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox }).await
            });
            // The request to kill the container waits in the shim's socket.
            while connections() <= before {
                assert!(!stop.is_finished(), "the sandbox was stopped without its shim");
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
            kill(shim, Signal::SIGKILL).unwrap();
            stop.await.unwrap().unwrap();
        } else {
            test.end();
            kill(shim, Signal::SIGKILL).unwrap();
            test.start(&[]).await;
            let list = ListContainersRequest::default();
            assert_eq!(test.runtime.list_containers(list).await.unwrap().into_inner().containers.len(), 1);
        }
        assert_eq!(test.ended(&id).await.exit_code, 255);
        if stopping {
            loop {
                let event = events.message().await.unwrap().expect("an event");
                if event.container_id == id
                    && event.container_event_type == ContainerEventType::ContainerStoppedEvent as i32
                {
                    break;
                }
            }
        }
        let gone = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while std::fs::read_link(format!("/proc/{process}/exe")).is_ok() {
            assert!(std::time::Instant::now() < gone, "the container's process {process} goes on");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        test.remove(&id).await;
        test.remove_sandbox(&sandbox).await;
        test.nothing_is_left("after a shim's end").await;
    }
}

/// How many connections to shims there are, answered or not.
fn connections() -> usize {
    let table = std::fs::read_to_string("/proc/self/net/unix").unwrap_or_default();
    table.lines().filter(|line| line.ends_with("shim.sock")).count()
}

/// Two runtimes on one machine, each with a folder of its own: neither takes the other's shims for its own lost ones.
pub async fn two_runtimes_leave_each_other_alone(mut test: Test) {
    let mut other = Test::another(test.root.join("other")).await;
    let mut running = Vec::new();
    for test in [&mut test, &mut other] {
        let pod = test.pod("apart");
        let sandbox = test.sandbox(&pod).await;
        let config = test.container("main", &["hold"]);
        let id = test.run(&sandbox, &pod, config).await;
        running.push((sandbox, id));
    }
    let groups = [&test, &other].map(|test| super::harness::config(&test.root).shim_cgroup);
    assert_ne!(groups[0], groups[1]);
    // A start looks for shims that are lost.
    test.crash().await;
    other.crash().await;
    test.crash().await;
    for (test, (_, id)) in [&mut test, &mut other].into_iter().zip(&running) {
        assert_eq!(test.status(id).await.state, ContainerState::ContainerRunning as i32);
        assert_eq!(test.exec(id, &["say", "here"]).await.0, 0);
    }
    let (sandbox, id) = &running[1];
    other.remove(id).await;
    other.remove_sandbox(sandbox).await;
    other.nothing_is_left("the other runtime").await;
    other.end();
    let config = super::harness::config(&other.root);
    runtime::teardown(&config).await.unwrap();
    std::fs::remove_dir_all(&other.root).unwrap();
    let (sandbox, id) = &running[0];
    assert_eq!(test.status(id).await.state, ContainerState::ContainerRunning as i32);
    test.remove_sandbox(sandbox).await;
}

/// Each step of an image's way in, from an archive, and out.
pub async fn a_kill_during_an_import_is_mended(mut test: Test) {
    let archive = pack_file(b"not to be run", &["say"], &["say"]).archive("test.local/packed:1");
    let steps = everywhere(&mut test, "image.", async |test, _| {
        // The built-in image has steps of its own at the start, which may be the ones that are killed.
        let image = |name: &str| Some(ImageSpec { image: name.into(), ..Default::default() });
        test.images.image_status(ImageStatusRequest { image: image(IMAGE), verbose: false }).await?;
        let parts: Vec<_> = archive
            .chunks(1 << 20)
            .map(|chunk| cri::images::ImportRequest { name: String::new(), chunk: chunk.to_vec().into() })
            .collect();
        test.archives.import(futures::stream::iter(parts)).await?;
        let verified = test.archives.verify(cri::images::VerifyRequest::default()).await?.into_inner();
        assert_eq!(verified.problems, Vec::<String>::new());
        test.images.remove_image(RemoveImageRequest { image: image("test.local/packed:1") }).await?;
        Ok(())
    })
    .await;
    println!("image. has {steps} steps");
    assert!(steps >= 12, "only {steps} steps were met");
    let data = test.root.join("data/images");
    assert_eq!(std::fs::read_dir(data.join("ingest")).unwrap().count(), 0);
    assert_eq!(
        std::fs::read_dir(data.join("layers")).unwrap().count(),
        1,
        "only the built-in image's layer is left"
    );
}
