//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction: who may approve or sign for a signer, and
//! that nobody becomes a master by a client certificate that they asked for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::{BoxFuture, FutureExt, ready};
use serde_json::{Value, json};

use super::Scene;
use crate::read::{Read, object_mut};
use crate::{Attributes, Operation, Status};

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub(super) fn validate<'a>(
    scene: Scene<'a>,
    object: &'a Value,
    old: Option<&'a Value>,
) -> BoxFuture<'a, Result<(), Status>> {
    if !scene.request.attributes.group.eq(GROUP) {
        return ready(Ok(())).boxed();
    }
    async move { judge(&scene, object, old).await }.boxed()
}

async fn judge(scene: &Scene<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let update = scene.operation() == Operation::Update;
    if scene.is(GROUP, "certificatesigningrequests/approval") && update {
        // The signer is that of the stored request: an update cannot choose another one to be judged by.
        return may(scene, object, old, "approve").await;
    }
    if scene.is(GROUP, "certificatesigningrequests/status") && update {
        let part = |value: &Value, key: &str| value.at("status").at(key).clone();
        let same = |key| old.is_some_and(|old| part(old, key) == part(object, key));
        if same("certificate") && same("conditions") {
            return Ok(());
        }
        return may(scene, object, old, "sign").await;
    }
    if scene.is(GROUP, "certificatesigningrequests") && scene.operation() == Operation::Create {
        return subject(scene, object);
    }
    Ok(())
}

async fn may(scene: &Scene<'_>, object: &Value, old: Option<&Value>, verb: &str) -> Result<(), Status> {
    let signer = old.unwrap_or(object).text("spec.signerName");
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    for name in [signer.to_owned(), format!("{domain}/*")] {
        let request = Attributes {
            user: scene.request.attributes.user.clone(),
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            resource_request: true,
            ..Attributes::default()
        };
        if scene.authorizer.all(&request).await.allowed() {
            return Ok(());
        }
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(scene.forbid(object, why))
}

/// Writes into a new CertificateSigningRequest who makes it; what the object itself says of that does not count.
pub(super) fn sign_with_name(scene: &Scene<'_>, object: &mut Value) {
    if !scene.is(GROUP, "certificatesigningrequests") || scene.operation() != Operation::Create {
        return;
    }
    let user = &scene.request.attributes.user;
    let spec = object_mut(object, "spec");
    for key in ["username", "uid", "groups", "extra"] {
        spec.remove(key);
    }
    spec.insert("username".into(), user.name.as_str().into());
    if !user.uid.is_empty() {
        spec.insert("uid".into(), user.uid.as_str().into());
    }
    spec.insert("groups".into(), json!(user.groups));
    if !user.extra.is_empty() {
        spec.insert("extra".into(), json!(user.extra));
    }
}

/// The certificate request inside a CertificateSigningRequest.
pub(super) fn parse(object: &Value) -> Result<pki::Request, String> {
    let pem = STANDARD.decode(object.text("spec.request")).map_err(|e| e.to_string())?;
    let pem = String::from_utf8(pem).map_err(|e| e.to_string())?;
    pki::Request::from_pem(&pem).map_err(|e| e.to_string())
}

fn subject(scene: &Scene<'_>, object: &Value) -> Result<(), Status> {
    if object.text("spec.signerName") != CLIENT_SIGNER {
        return Ok(());
    }
    let request = parse(object).map_err(|why| scene.forbid(object, format!("failed to parse CSR: {why}")))?;
    if request.organizations.iter().any(|group| group == "system:masters") {
        let why = format!("use of {CLIENT_SIGNER} signer with system:masters group is not allowed");
        return Err(scene.forbid(object, why));
    }
    Ok(())
}
