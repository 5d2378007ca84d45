//! CertificateSigningRequests: kubelets' client certificates are approved, the signers of `kubernetes.io` sign, and old
//! requests are cleared away (upstream: `pkg/controller/certificates`).

mod approve;
mod clean;
mod sign;

use std::collections::BTreeSet;

use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};

pub(crate) use approve::run as approve;
pub(crate) use clean::run as clean;
pub(crate) use sign::run as sign;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const LEGACY: &str = "kubernetes.io/legacy-unknown";

fn conditions(csr: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    let status = csr.status.as_ref();
    status.and_then(|s| s.conditions.as_deref()).unwrap_or_default()
}

fn has(csr: &CertificateSigningRequest, kind: &str) -> bool {
    conditions(csr).iter().any(|c| c.type_ == kind && c.status != "False")
}

fn is_issued(csr: &CertificateSigningRequest) -> bool {
    csr.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty())
}

fn status_mut(csr: &mut CertificateSigningRequest) -> &mut CertificateSigningRequestStatus {
    csr.status.get_or_insert_default()
}

fn condition(kind: &str, reason: &str, message: String) -> CertificateSigningRequestCondition {
    CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        ..Default::default()
    }
}

fn request(csr: &CertificateSigningRequest) -> Result<pki::Request, pki::Error> {
    pki::Request::from_pem(&String::from_utf8_lossy(&csr.spec.request.0))
}

fn usages(csr: &CertificateSigningRequest) -> BTreeSet<&str> {
    csr.spec.usages.iter().flatten().map(String::as_str).collect()
}

/// What both kinds of kubelet certificates must have.
fn check_kubelet(request: &pki::Request, usages: &BTreeSet<&str>, auth: &str) -> Result<(), String> {
    let whole = BTreeSet::from(["digital signature", "key encipherment", auth]);
    let without_rsa = BTreeSet::from(["digital signature", auth]);
    if *usages != whole && *usages != without_rsa {
        let list: Vec<&str> = whole.into_iter().collect();
        return Err(format!("usages did not match [{}]", list.join(" ")));
    }
    if !request.common_name.starts_with("system:node:") {
        return Err("subject common name does not begin with system:node:".to_owned());
    }
    Ok(())
}

/// What a kubelet's client certificate must not have.
fn check_kubelet_client(request: &pki::Request, usages: &BTreeSet<&str>) -> Result<(), String> {
    check_organization(request)?;
    let names = &request.names;
    let forbidden = [
        ("DNS", names.dns.is_empty()),
        ("Email", names.emails.is_empty()),
        ("IP", names.ips.is_empty()),
        ("URI", names.uris.is_empty()),
    ];
    if let Some((what, _)) = forbidden.iter().find(|(_, empty)| !empty) {
        return Err(format!("{what} subjectAltNames are not allowed"));
    }
    check_kubelet(request, usages, "client auth")
}

fn check_kubelet_serving(request: &pki::Request, usages: &BTreeSet<&str>) -> Result<(), String> {
    check_organization(request)?;
    let names = &request.names;
    if names.dns.is_empty() && names.ips.is_empty() {
        return Err("DNS or IP subjectAltName is required".to_owned());
    }
    if !names.emails.is_empty() {
        return Err("Email subjectAltNames are not allowed".to_owned());
    }
    if !names.uris.is_empty() {
        return Err("URI subjectAltNames are not allowed".to_owned());
    }
    check_kubelet(request, usages, "server auth")
}

fn check_organization(request: &pki::Request) -> Result<(), String> {
    if request.organizations == ["system:nodes"] {
        Ok(())
    } else {
        Err("subject organization is not system:nodes".to_owned())
    }
}

fn check_client(usages: &BTreeSet<&str>) -> Result<(), String> {
    let allowed = ["digital signature", "key encipherment", "client auth"];
    if let Some(other) = usages.iter().find(|u| !allowed.contains(*u)) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if usages.contains("client auth") {
        Ok(())
    } else {
        Err("missing required usage for client certificate: client auth".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(names: pki::AltNames) -> pki::Request {
        pki::Request {
            common_name: "system:node:n1".to_owned(),
            organizations: vec!["system:nodes".to_owned()],
            names,
            public_info: Vec::new(),
        }
    }

    #[test]
    fn kubelet_certificates_are_recognized() {
        let client = BTreeSet::from(["client auth", "digital signature"]);
        let server = BTreeSet::from(["server auth", "digital signature", "key encipherment"]);
        let plain = request(pki::AltNames::default());
        let named = request(pki::AltNames { dns: vec!["n1".to_owned()], ..Default::default() });
        assert_eq!(check_kubelet_client(&plain, &client), Ok(()));
        assert_eq!(check_kubelet_serving(&named, &server), Ok(()));
        let refused = |result: Result<(), String>, expect: &str| {
            assert_eq!(result.expect_err(expect), expect);
        };
        refused(check_kubelet_client(&named, &client), "DNS subjectAltNames are not allowed");
        refused(check_kubelet_serving(&plain, &server), "DNS or IP subjectAltName is required");
        refused(
            check_kubelet_client(&plain, &server),
            "usages did not match [client auth digital signature key encipherment]",
        );
        let other = pki::Request { organizations: vec!["system:masters".to_owned()], ..plain.clone() };
        refused(check_kubelet_client(&other, &client), "subject organization is not system:nodes");
        let other = pki::Request { common_name: "admin".to_owned(), ..plain };
        refused(
            check_kubelet_client(&other, &client),
            "subject common name does not begin with system:node:",
        );
        refused(check_client(&server), "invalid usage for client certificate: server auth");
        refused(check_client(&BTreeSet::new()), "missing required usage for client certificate: client auth");
    }
}
