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
