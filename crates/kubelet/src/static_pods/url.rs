//! Static pods from a URL: one Pod or a list of them, asked for again every 20 seconds, since HTTP tells of no change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{MOST_BYTES, ManifestError, StaticPods, parse_from};
use crate::podutil;

/// How often is asked (`httpCheckFrequency`).
const INTERVAL: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(10);

/// Where manifests come from, with headers to send.
#[derive(Debug, Clone)]
pub struct ManifestUrl {
    /// `http://...`
    pub url: String,
    /// Name and value.
    pub headers: Vec<(String, String)>,
}

/// Asks until shutdown. What cannot be had or read leaves the pods as they are.
pub(crate) async fn follow(
    from: ManifestUrl,
    node: String,
    pods: watch::Sender<StaticPods>,
    shutdown: CancellationToken,
) {
    let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    let mut last = None;
    loop {
        let read = async {
            let text = tokio::time::timeout(PATIENCE, get(&client, &from))
                .await
                .map_err(|_| "it does not answer".to_owned())??;
            read(&text, &from.url, &node).map_err(|error| error.to_string())
        };
        match read.await {
            Ok(found) => {
                last = None;
                pods.send_if_modified(|now| {
                    let changed = !now.keys().eq(found.keys());
                    if changed {
                        *now = Arc::new(found);
                    }
                    changed
                });
            }
            Err(error) => {
                if last.as_ref() != Some(&error) {
                    tracing::warn!(url = from.url, error, "static pods cannot be had from their URL");
                }
                last = Some(error);
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn get(client: &Client<HttpConnector, Empty<Bytes>>, from: &ManifestUrl) -> Result<Bytes, String> {
    let mut request = http::Request::get(&from.url);
    for (name, value) in &from.headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
    let answer = client.request(request).await.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("it answers {}", answer.status()));
    }
    let body = Limited::new(answer.into_body(), MOST_BYTES as usize).collect().await;
    Ok(body.map_err(|error| error.to_string())?.to_bytes())
}

fn read(
    text: &[u8],
    url: &str,
    node: &str,
) -> Result<BTreeMap<String, Arc<k8s_openapi::api::core::v1::Pod>>, ManifestError> {
    let document: serde_json::Value =
        serde_saphyr::from_slice(text).map_err(|error| ManifestError::Decode(error.to_string()))?;
    let kind = document["kind"].as_str().unwrap_or_default();
    let items = match (kind, document["items"].as_array()) {
        ("PodList" | "List", Some(items)) => items.clone(),
        _ => vec![document],
    };
    let mut pods = BTreeMap::new();
    for mut item in items {
        // Items of a list need not say again what they are.
        if let Some(fields) = item.as_object_mut() {
            fields.entry("kind").or_insert_with(|| "Pod".into());
            fields.entry("apiVersion").or_insert_with(|| "v1".into());
        }
        let pod = parse_from(item.to_string().as_bytes(), url, node, "http")?;
        pods.insert(podutil::uid(&pod).to_owned(), Arc::new(pod));
    }
    Ok(pods)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pod_or_a_list() {
        let pod = |name: &str| {
            format!(
                "{{\"metadata\": {{\"name\": \"{name}\"}}, \"spec\": {{\"containers\": [{{\"name\": \"c\", \"image\": \"i\"}}]}}}}"
            )
        };
        let one = format!(
            "apiVersion: v1\nkind: Pod\n{}",
            "metadata: {name: a}\nspec: {containers: [{name: c, image: i}]}\n"
        );
        assert_eq!(read(one.as_bytes(), "http://u", "n").unwrap().len(), 1);
        let list = format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"PodList\", \"items\": [{}, {}]}}",
            pod("a"),
            pod("b")
        );
        let pods = read(list.as_bytes(), "http://u", "n").unwrap();
        let mut names: Vec<&str> = pods.values().map(|pod| podutil::name(pod)).collect();
        names.sort_unstable();
        assert_eq!(names, ["a-n", "b-n"]);
        assert!(pods.values().all(|pod| super::super::is_static(pod)));
        assert!(read(b"{", "http://u", "n").is_err());
        assert!(read(b"{\"kind\": \"Service\", \"apiVersion\": \"v1\"}", "http://u", "n").is_err());
    }
}
