//! Volumes, devices, user namespaces and full disks.

use cri::v1::*;

use super::harness::{Test, secure};
use super::pack::pack;

pub async fn volumes_are_mounted_as_asked(mut test: Test) {
    let pod = test.pod("volumes");
    let sandbox = test.sandbox(&pod).await;
    let host = test.root.join("volume");
    std::fs::create_dir(&host).unwrap();
    let mount = |at: &str, readonly| Mount {
        container_path: at.into(),
        host_path: host.to_string_lossy().into_owned(),
        readonly,
        ..Default::default()
    };
    let mut config = test.container("main", &["hold"]);
    config.mounts = vec![mount("/data", false), mount("/look", true)];
    config.mounts.push(Mount {
        container_path: "/image".into(),
        image: Some(ImageSpec { image: super::harness::IMAGE.into(), ..Default::default() }),
        ..Default::default()
    });
    let id = test.run(&sandbox, &pod, config).await;
    assert_eq!(test.exec(&id, &["mkdir", "/data/made"]).await.0, 0);
    assert!(host.join("made").is_dir());
    assert_eq!(test.exec(&id, &["mkdir", "/look/made2"]).await.0, libc::EROFS);
    assert_eq!(test.exec(&id, &["/image/bin/say", "from the image"]).await.1, "from the image");
    assert_eq!(test.exec(&id, &["mkdir", "/image/x"]).await.0, libc::EROFS);
    assert_eq!(test.exec(&id, &["mkdir", "/own"]).await.0, 0);
}

pub async fn pods_have_user_namespaces_on_request(mut test: Test) {
    let map = vec![IdMapping { host_id: 200_000, container_id: 0, length: 65_536 }];
    let user = UserNamespace { mode: NamespaceMode::Pod as i32, uids: map.clone(), gids: map.clone() };
    let host = test.root.join("volume");
    std::fs::create_dir(&host).unwrap();
    for pid in [NamespaceMode::Container, NamespaceMode::Pod] {
        let options =
            NamespaceOption { pid: pid as i32, userns_options: Some(user.clone()), ..Default::default() };
        let mut pod = test.pod(&format!("users-{}", pid as i32));
        pod.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options =
            Some(options.clone());
        let sandbox = test.sandbox(&pod).await;
        let mut config = test.container("main", &["hold"]);
        config.working_dir = "/made/for/it".into();
        config.mounts = vec![Mount {
            container_path: "/data".into(),
            host_path: host.to_string_lossy().into_owned(),
            uid_mappings: map.clone(),
            gid_mappings: map.clone(),
            ..Default::default()
        }];
        secure(&mut config, |c| {
            c.namespace_options = Some(options.clone());
            c.seccomp = Some(SecurityProfile::default());
        });
        let id = test.run(&sandbox, &pod, config).await;
        let (code, state, error) = test.exec(&id, &["state"]).await;
        assert_eq!(code, 0, "{error}");
        for line in ["Uid: 0 0 0 0", "Gid: 0 0 0 0", "CapEff: 00000000a80425fb", "cwd /made/for/it"] {
            assert!(state.lines().any(|l| l == line), "{line} is missing in:\n{state}");
        }
        let made = format!("made-{}", pid as i32);
        assert_eq!(test.exec(&id, &["mkdir", &format!("/data/{made}")]).await.0, 0);
        let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(host.join(&made)).unwrap());
        assert_eq!(owner, 0, "a volume is seen with the namespace's numbers");
        assert_eq!(test.exec(&id, &["mkdir", "/made/too"]).await.0, 0, "the root is the pod's");
        let request = ContainerStatusRequest { container_id: id.clone(), verbose: true };
        let info = test.runtime.container_status(request).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", info["pid"])).unwrap();
        let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
        assert!(uid.split_whitespace().skip(1).all(|uid| uid == "200000"), "{uid}");
        test.crash().await;
        assert_eq!(test.exec(&id, &["true"]).await.0, 0, "it outlives the runtime");
        test.remove_sandbox(&sandbox).await;
    }
}

pub async fn cdi_devices_are_made(mut test: Test) {
    let folder = test.root.join("cdi");
    std::fs::create_dir(&folder).unwrap();
    let root = test.root.display();
    let spec = format!(
        "kind: fake.dev/card\ndevices:\n- name: a\n  containerEdits:\n    env: [CARD=a]\n    \
         deviceNodes: [{{path: /dev/card0, hostPath: /dev/null}}]\n    \
         mounts: [{{hostPath: {root}/cdi, containerPath: /card, options: [rbind, ro]}}]\n    \
         hooks: [{{hookName: createRuntime, path: /bin/sh, args: [sh, -c, 'cat > {root}/hook']}}]\n"
    );
    std::fs::write(folder.join("card.yaml"), spec).unwrap();
    let pod = test.pod("cdi");
    let sandbox = test.sandbox(&pod).await;
    let mut config = test.container("main", &["hold"]);
    config.cdi_devices = vec![CdiDevice { name: "fake.dev/card=a".into() }];
    let id = test.run(&sandbox, &pod, config).await;
    let (_, state, _) = test.exec(&id, &["state"]).await;
    assert!(state.lines().any(|line| line == "env CARD=a"), "{state}");
    assert!(state.lines().any(|line| line.starts_with("mount /card ro")), "{state}");
    assert_eq!(test.exec(&id, &["mkdir", "/dev/card0"]).await.0, libc::EEXIST);
    let hook = std::fs::read_to_string(test.root.join("hook")).unwrap();
    assert!(hook.contains(&id), "{hook}");
    let mut unknown = test.container("unknown", &["hold"]);
    unknown.cdi_devices = vec![CdiDevice { name: "fake.dev/card=b".into() }];
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(unknown),
        sandbox_config: Some(pod.clone()),
    };
    let error = test.runtime.create_container(request).await.unwrap_err();
    assert!(error.message().contains("unresolvable CDI devices fake.dev/card=b"), "{error}");
    test.remove_sandbox(&sandbox).await;
}

pub async fn mounts_propagate_as_asked(mut test: Test) {
    use nix::mount::{MsFlags, mount, umount};
    let none = None::<&str>;
    let host = test.root.join("volume");
    std::fs::create_dir(&host).unwrap();
    mount(Some(&host), &host, none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &host, none, MsFlags::MS_SHARED, none).unwrap();
    // The runtime has to be in the same mount namespace, which it is, and to see the mount, which it does when it starts.
    test.crash().await;
    for name in ["early", "late", "inner"] {
        std::fs::create_dir(host.join(name)).unwrap();
    }
    mount(Some("tmpfs"), &host.join("early"), Some("tmpfs"), MsFlags::empty(), none).unwrap();

    let pod = test.pod("propagation");
    let sandbox = test.sandbox(&pod).await;
    let volume = |propagation: MountPropagation, recursive_read_only| Mount {
        container_path: "/v".into(),
        host_path: host.to_string_lossy().into_owned(),
        propagation: propagation as i32,
        readonly: recursive_read_only,
        recursive_read_only,
        ..Default::default()
    };
    let mut start = Vec::new();
    for (name, propagation, read_only) in [
        ("private", MountPropagation::PropagationPrivate, false),
        ("follows", MountPropagation::PropagationHostToContainer, false),
        ("both", MountPropagation::PropagationBidirectional, false),
        ("deep", MountPropagation::PropagationPrivate, true),
    ] {
        let mut config = test.container(name, &["hold"]);
        config.mounts = vec![volume(propagation, read_only)];
        secure(&mut config, |c| c.privileged = name == "both");
        start.push(test.run(&sandbox, &pod, config).await);
    }
    let [private, follows, both, deep] = &start[..] else { unreachable!() };
    assert_eq!(test.exec(deep, &["mkdir", "/v/early/x"]).await.0, libc::EROFS);
    assert_eq!(test.exec(private, &["mkdir", "/v/early/x"]).await.0, 0);

    mount(Some("tmpfs"), &host.join("late"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
    std::fs::create_dir(host.join("late/seen")).unwrap();
    assert_eq!(test.exec(follows, &["mkdir", "/v/late/seen"]).await.0, libc::EEXIST);
    assert_eq!(test.exec(private, &["mkdir", "/v/late/seen"]).await.0, 0);

    assert_eq!(test.exec(both, &["tmpfs", "/v/inner"]).await.0, 0);
    assert_eq!(test.exec(both, &["mkdir", "/v/inner/deep"]).await.0, 0);
    assert!(host.join("inner/deep").is_dir());
    test.remove_sandbox(&sandbox).await;
    for name in ["inner", "late", "early", ""] {
        umount(&host.join(name)).unwrap();
    }
}

pub async fn a_full_disk_is_told(mut test: Test) {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    test.server.kill().unwrap();
    test.server.wait().unwrap();
    let data = test.root.join("data");
    mount(Some("tmpfs"), &data, Some("tmpfs"), MsFlags::empty(), Some("size=8m")).unwrap();
    let archive = pack(&["say"], &["say"]).archive("test.local/packed:1");
    test.crash().await;
    let parts: Vec<_> = archive
        .chunks(1 << 20)
        .map(|c| cri::images::ImportRequest { name: String::new(), chunk: c.to_vec().into() })
        .collect();
    let error = test.archives.import(futures::stream::iter(parts)).await.unwrap_err();
    assert!(error.message().contains("No space left on device"), "{error}");
    let images = test.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert!(images.iter().all(|i| i.repo_tags.iter().all(|t| !t.contains("packed"))));
    let pod = test.pod("full");
    let sandbox = test.sandbox(&pod).await;
    test.remove_sandbox(&sandbox).await;
    test.server.kill().unwrap();
    test.server.wait().unwrap();
    umount2(&data, MntFlags::MNT_DETACH).unwrap();
}
