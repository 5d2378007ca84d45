//! Pulls, archives and registries that do not answer.

use std::sync::atomic::Ordering;

use cri::v1::*;

use super::harness::Test;
use super::pack::pack;
use super::registry::Registry;

pub async fn images_are_pulled(mut test: Test) {
    let packed = pack(&["say", "state"], &["say"]);
    let registry = Registry::start(&packed).await;
    let pull = |auth| PullImageRequest {
        image: Some(ImageSpec { image: registry.name(), ..Default::default() }),
        auth,
        sandbox_config: None,
    };
    let auth = |password: &str| {
        Some(AuthConfig { username: "user".into(), password: password.into(), ..Default::default() })
    };
    for wrong in [None, auth("guess")] {
        let error = test.images.pull_image(pull(wrong)).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::PermissionDenied, "{error}");
    }
    // The first two downloads break off; the third goes on where the second stopped.
    registry.breaks.store(2, Ordering::Relaxed);
    let pulled = test.images.pull_image(pull(auth("password"))).await.unwrap().into_inner();
    assert!(registry.resumed.load(Ordering::Relaxed) > 0);

    let status = ImageStatusRequest {
        image: Some(ImageSpec { image: registry.name(), ..Default::default() }),
        verbose: false,
    };
    let image = test.images.image_status(status.clone()).await.unwrap().into_inner().image.unwrap();
    assert_eq!(image.id, pulled.image_ref);
    assert_eq!(image.repo_tags, [registry.name()]);
    assert_eq!(image.uid.unwrap().value, 7);
    let pod = test.pod("pulled");
    let sandbox = test.sandbox(&pod).await;
    let mut config = test.container("main", &[]);
    config.args = vec!["hello".into()];
    config.image = Some(ImageSpec { image: image.id.clone(), ..Default::default() });
    let id = test.run(&sandbox, &pod, config).await;
    assert_eq!(test.ended(&id).await.exit_code, 0);
    assert_eq!(test.log(&id).await, ["stdout P hello"]);
    assert!(test.status(&id).await.image_ref.contains("@sha256:"));

    let unknown = PullImageRequest {
        image: Some(ImageSpec { image: registry.name().replace(":1", ":2"), ..Default::default() }),
        auth: auth("password"),
        sandbox_config: None,
    };
    assert_eq!(test.images.pull_image(unknown).await.unwrap_err().code(), tonic::Code::NotFound);
    test.remove_sandbox(&sandbox).await;
    let remove = RemoveImageRequest { image: status.image.clone() };
    test.images.remove_image(remove.clone()).await.unwrap();
    test.images.remove_image(remove).await.unwrap();
    assert!(test.images.image_status(status).await.unwrap().into_inner().image.is_none());
}

pub async fn a_registry_that_hangs_is_given_up(mut test: Test) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("{}/test/app:1", listener.local_addr().unwrap());
    let request = PullImageRequest {
        image: Some(ImageSpec { image: name, ..Default::default() }),
        ..Default::default()
    };
    let error = test.images.pull_image(request).await.unwrap_err();
    assert!(error.message().contains("timed out"), "{error}");
    drop(listener);
    let request = PullImageRequest {
        image: Some(ImageSpec { image: "127.0.0.1:1/test/app:1".into(), ..Default::default() }),
        ..Default::default()
    };
    let error = test.images.pull_image(request).await.unwrap_err();
    assert!(error.message().contains("cannot connect"), "{error}");
}

pub async fn archives_go_in_and_out(mut test: Test) {
    use cri::images::*;
    let archive = pack(&["say"], &["say", "packed"]).archive("test.local/packed:1");
    let chunks = |bytes: &[u8]| {
        let parts: Vec<ImportRequest> = bytes
            .chunks(1 << 20)
            .map(|c| ImportRequest { name: String::new(), chunk: c.to_vec().into() })
            .collect();
        futures::stream::iter(parts)
    };
    let spoilt = archive[..archive.len() / 2].to_vec();
    assert!(test.archives.import(chunks(&spoilt)).await.is_err());
    let imported = test.archives.import(chunks(&archive)).await.unwrap().into_inner();
    assert_eq!(imported.images[0].names, ["test.local/packed:1"]);
    let inspect = InspectRequest { image: "test.local/packed:1".into() };
    assert_eq!(test.archives.inspect(inspect).await.unwrap().into_inner().id, imported.images[0].id);

    let export = ExportRequest { images: vec!["test.local/packed:1".into()] };
    let mut stream = test.archives.export(export).await.unwrap().into_inner();
    let mut out = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        out.extend_from_slice(&part.chunk);
    }
    let remove = cri::v1::RemoveImageRequest {
        image: Some(ImageSpec { image: "test.local/packed:1".into(), ..Default::default() }),
    };
    test.images.remove_image(remove).await.unwrap();
    let again = test.archives.import(chunks(&out)).await.unwrap().into_inner();
    assert_eq!(again.images[0].id, imported.images[0].id);
    let verified = test.archives.verify(VerifyRequest::default()).await.unwrap().into_inner();
    assert_eq!((verified.blobs, verified.problems), (3, vec![]));

    let pod = test.pod("packed");
    let sandbox = test.sandbox(&pod).await;
    let mut config = test.container("main", &[]);
    config.image = Some(ImageSpec { image: "test.local/packed:1".into(), ..Default::default() });
    let id = test.run(&sandbox, &pod, config).await;
    test.ended(&id).await;
    assert_eq!(test.log(&id).await, ["stdout P packed"]);
}
