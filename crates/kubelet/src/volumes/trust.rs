//! The certificates of ClusterTrustBundles, for projected volumes. The API is not served by default; where it is, bundles are
//! looked at again from time to time (upstream: `pkg/kubelet/clustertrustbundle`).

use std::collections::BTreeSet;

use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Api;
use kube::api::ListParams;
use kube::core::Selector;

use super::VolumeError;
use crate::context::Context;

/// The PEM blocks of the bundle, or of all bundles of the signer that the source selects: each once, in no order that means
/// anything. Empty if the source is optional and there are none.
pub(super) async fn bundles(
    context: &Context,
    source: &ClusterTrustBundleProjection,
) -> Result<Vec<u8>, VolumeError> {
    let api: Api<ClusterTrustBundle> = Api::all(context.config.client.clone());
    let optional = source.optional == Some(true);
    let described = source.name.clone().or(source.signer_name.clone()).unwrap_or_default();
    let fail = |why: String| VolumeError::TrustBundle(described.clone(), why);
    let found = match &source.name {
        Some(name) => {
            let bundle = api.get_opt(name).await.map_err(|error| fail(error.to_string()))?;
            if bundle.is_none() && !optional {
                return Err(fail("not found".to_owned()));
            }
            bundle.into_iter().collect()
        }
        None => {
            let signer = source.signer_name.clone().unwrap_or_default();
            // Nothing is selected by a selector that is not there, everything by an empty one.
            let Some(selector) = &source.label_selector else { return selected(Vec::new(), optional, &fail) };
            let params = ListParams::default().fields(&format!("spec.signerName={signer}"));
            let params = params.labels(&text(selector).map_err(&fail)?);
            api.list(&params).await.map_err(|error| fail(error.to_string()))?.items
        }
    };
    selected(found, optional, &fail)
}

fn selected(
    found: Vec<ClusterTrustBundle>,
    optional: bool,
    fail: &impl Fn(String) -> VolumeError,
) -> Result<Vec<u8>, VolumeError> {
    if found.is_empty() && !optional {
        return Err(fail("the source selects no bundle".to_owned()));
    }
    Ok(merge(found.iter().map(|bundle| bundle.spec.trust_bundle.as_str())).into_bytes())
}

fn text(selector: &LabelSelector) -> Result<String, String> {
    let selector: Selector = selector.clone().try_into().map_err(|error| format!("{error}"))?;
    Ok(selector.to_string())
}

/// The certificates of several texts, each once.
fn merge<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    let mut blocks = BTreeSet::new();
    for text in texts {
        for block in text.split_inclusive(END) {
            if let Some(at) = block.find("-----BEGIN CERTIFICATE-----") {
                blocks.insert(block[at..].lines().map(str::trim).collect::<Vec<_>>().join("\n"));
            }
        }
    }
    blocks.into_iter().fold(String::new(), |all, block| all + &block + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_certificate_comes_once() {
        let pem = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        let (one, two) = (format!("# a\n{}{}", pem("B"), pem("A")), pem("B"));
        assert_eq!(merge([one.as_str(), two.as_str()].into_iter()), pem("A") + &pem("B"));
        assert_eq!(merge(["none"].into_iter()), "");
    }
}
