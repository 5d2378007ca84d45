//! Since when tokens in Secrets are watched for their use, and when each was last used: by these the cleaner knows which ones
//! nobody needs (KEP-2799; upstream: `controlplane/controller/legacytokentracking`, `pkg/serviceaccount/legacy.go`).

use std::sync::Arc;

use jiff::civil::Date;
use serde_json::{Value, json};

use crate::read::{Read, object_mut};
use crate::{ClusterRef, Status};

const MAP: &str = "kube-apiserver-legacy-service-account-token-tracking";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";

fn today() -> Date {
    jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date()
}

/// Writes down since when the use of tokens is noted, unless that is known.
pub async fn track(cluster: &ClusterRef) -> Result<(), Status> {
    let since = today().to_string();
    let done = match cluster.get("", "configmaps", "kube-system", MAP) {
        None => {
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": MAP, "namespace": "kube-system"}, "data": {"since": since}});
            cluster.create("", "v1", "configmaps", "kube-system", map).await
        }
        Some(map) if map.text("data.since").parse::<Date>().is_ok() => return Ok(()),
        Some(map) => {
            let mut map = (*map).clone();
            object_mut(&mut map, "data").insert("since".into(), since.into());
            cluster.update("", "v1", "configmaps", "kube-system", map).await
        }
    };
    match done {
        Err(status) if !matches!(status.reason(), "AlreadyExists" | "Conflict") => Err(status),
        _ => Ok(()),
    }
}

/// Notes that a Secret's token was used today, by and by; once a day is enough.
pub fn used(cluster: &ClusterRef, secret: &Arc<Value>) {
    let now = today();
    let noted = secret.label(LAST_USED).and_then(|date| date.parse::<Date>().ok());
    // Another server may be a day ahead.
    if noted.is_some_and(|date| date == now || Some(date) == now.tomorrow().ok()) {
        return;
    }
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let (cluster, mut new) = (Arc::clone(cluster), (**secret).clone());
    let Some(metadata) = new.get_mut("metadata") else { return };
    object_mut(metadata, "labels").insert(LAST_USED.into(), now.to_string().into());
    runtime.spawn(async move {
        let (namespace, name) = (new.namespace().to_owned(), new.name().to_owned());
        if let Err(status) = cluster.update("", "v1", "secrets", &namespace, new).await {
            tracing::debug!(namespace, name, %status, "the use of a token is not noted");
        }
    });
}
