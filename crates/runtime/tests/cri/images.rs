//! Images by ways that a node's administrator configures: mirrors, a policy, and artifacts mounted as volumes.

use cri::v1::*;
use tonic::Code;

use super::harness::{IMAGE, Test};
use super::pack::{digest, pack_file};
use super::registry::Registry;

fn pull(name: &str) -> PullImageRequest {
    PullImageRequest {
        image: Some(ImageSpec { image: name.into(), ..Default::default() }),
        auth: Some(AuthConfig { username: "user".into(), password: "password".into(), ..Default::default() }),
        sandbox_config: None,
    }
}

/// A mirror that is down costs no more than a try; what the policy rejects is not even downloaded.
pub async fn mirrors_and_policies_are_heeded(mut test: Test) {
    let registry = Registry::start(&pack_file(b"content", &["say"], &["say"])).await;
    let name = registry.name();
    let domain = name.split('/').next().unwrap().to_owned();
    let folder = test.root.join("certs.d").join(&domain);
    std::fs::create_dir_all(&folder).unwrap();
    let hosts = format!(
        "server = \"http://{domain}\"\n[host.\"http://127.0.0.1:1\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    );
    std::fs::write(folder.join("hosts.toml"), hosts).unwrap();

    let policy = test.root.join("policy.json");
    std::fs::write(&policy, r#"{"default": [{"type": "reject"}]}"#).unwrap();
    let refused = test.images.pull_image(pull(&name)).await.unwrap_err();
    assert!(refused.message().starts_with("SignatureValidationFailed"), "{refused}");
    std::fs::write(&policy, r#"{"default": [{"type": "insecureAcceptAnything"}]}"#).unwrap();
    test.images.pull_image(pull(&name)).await.unwrap();

    // Where the folder names a mirror alone that cannot serve, the registry itself is asked all the same.
    std::fs::write(folder.join("hosts.toml"), "[host.\"http://127.0.0.1:1\"]\n").unwrap();
    test.images.pull_image(pull(&name)).await.unwrap();
    std::fs::write(folder.join("hosts.toml"), "server = 7\n").unwrap();
    let broken = test.images.pull_image(pull(&name)).await.unwrap_err();
    assert!(broken.message().contains("hosts.toml"), "{broken}");
    assert_eq!(broken.code(), Code::Unknown);
}

/// What is no image becomes files.
pub async fn artifacts_are_mounted_as_volumes(mut test: Test) {
    let (config, blob) = (b"{}".to_vec(), b"weights".to_vec());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.test.model",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(&config), "size": 2},
        "layers": [{"mediaType": "application/vnd.test.weights", "digest": digest(&blob), "size": blob.len(),
                    "annotations": {"org.opencontainers.image.title": "model/say"}}],
    });
    let manifest = manifest.to_string().into_bytes();
    let packed = super::pack::Packed { manifest: digest(&manifest), blobs: vec![manifest, config, blob] };
    let parts = vec![cri::images::ImportRequest {
        name: String::new(),
        chunk: packed.archive("test.local/model:1").into(),
    }];
    test.archives.import(futures::stream::iter(parts)).await.unwrap();

    let pod = test.pod("artifact");
    let sandbox = test.sandbox(&pod).await;
    let mut config = test.container("main", &["hold"]);
    assert_eq!(config.image.as_ref().unwrap().image, IMAGE);
    config.mounts.push(Mount {
        container_path: "/models".into(),
        image: Some(ImageSpec { image: "test.local/model:1".into(), ..Default::default() }),
        ..Default::default()
    });
    let id = test.run(&sandbox, &pod, config).await;
    // The file is there (it is no program), and nothing can be added.
    assert_eq!(test.exec(&id, &["mkdir", "/models/model/say"]).await.0, libc::EEXIST);
    assert_eq!(test.exec(&id, &["mkdir", "/models/more"]).await.0, libc::EROFS);
    let mut bare = test.container("bare", &[]);
    bare.image = Some(ImageSpec { image: "test.local/model:1".into(), ..Default::default() });
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(bare),
        sandbox_config: Some(pod.clone()),
    };
    assert_eq!(test.runtime.create_container(request).await.unwrap_err().code(), Code::InvalidArgument);
    test.remove_sandbox(&sandbox).await;
}

/// Devices and hooks come from the files of the node.
pub async fn devices_and_hooks_are_added(mut test: Test) {
    let (cdi, hooks) = (test.root.join("cdi"), test.root.join("hooks"));
    std::fs::create_dir_all(&cdi).unwrap();
    std::fs::create_dir_all(&hooks).unwrap();
    let spec = "cdiVersion: 1.0.0\nkind: v.test/gpu\ndevices:\n- name: one\n  containerEdits:\n    env: [GPU=one]\n    \
                deviceNodes: [{path: /dev/gpu, hostPath: /dev/null}]\n";
    std::fs::write(cdi.join("gpu.yaml"), spec).unwrap();
    let told = test.root.join("told");
    let script = test.root.join("hook.sh");
    std::fs::write(&script, format!("#!/bin/sh\ncat > {}.$1\n", told.display())).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for stage in ["createRuntime", "poststop"] {
        let hook = serde_json::json!({
            "version": "1.0.0", "hook": {"path": script, "args": ["hook.sh", stage]},
            "when": {"annotations": {"^hooked$": "yes"}}, "stages": [stage],
        });
        std::fs::write(hooks.join(format!("{stage}.json")), hook.to_string()).unwrap();
    }
    let pod = test.pod("devices");
    let sandbox = test.sandbox(&pod).await;
    let mut config = test.container("main", &["hold"]);
    config.cdi_devices = vec![CdiDevice { name: "v.test/gpu=one".into() }];
    config.annotations.insert("hooked".into(), "yes".into());
    let id = test.run(&sandbox, &pod, config).await;
    let (_, state, _) = test.exec(&id, &["state"]).await;
    assert!(state.lines().any(|line| line == "env GPU=one"), "{state}");
    assert_eq!(test.exec(&id, &["mkdir", "/dev/gpu"]).await.0, libc::EEXIST);
    assert!(std::fs::read_to_string(told.with_extension("createRuntime")).unwrap().contains(&id));
    assert!(!told.with_extension("poststop").exists());
    test.stop(&id, 0).await;
    test.remove(&id).await;
    assert!(std::fs::read_to_string(told.with_extension("poststop")).unwrap().contains("stopped"));

    let mut config = test.container("unknown", &["hold"]);
    config.cdi_devices = vec![CdiDevice { name: "v.test/gpu=two".into() }];
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(config),
        sandbox_config: Some(pod.clone()),
    };
    let error = test.runtime.create_container(request).await.unwrap_err();
    assert!(error.message().contains("unresolvable CDI devices v.test/gpu=two"), "{error}");
    test.remove_sandbox(&sandbox).await;
}
