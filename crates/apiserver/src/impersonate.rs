//! Impersonation: a caller that may do so acts as another user, after the `Impersonate-*` headers.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;

use crate::query::decode;
use crate::server::Server;
use crate::{Attributes, Status, UserInfo};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// The user that the request is made as.
pub async fn apply(
    server: &Server,
    headers: &HeaderMap,
    caller: Arc<UserInfo>,
) -> Result<Arc<UserInfo>, Status> {
    let text = |key: &str| headers.get(key).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let groups: Vec<String> =
        headers.get_all(GROUP).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix(EXTRA), value.to_str()) {
            extra.entry(decode(key, false).into_owned()).or_default().push(value.to_owned());
        }
    }
    let name = text(USER);
    if name.is_empty() {
        if !groups.is_empty() || !extra.is_empty() || !text(UID).is_empty() {
            return Err(Status::internal(
                "requested groups, uid or extra to impersonate without impersonating a user",
            ));
        }
        return Ok(caller);
    }
    let mut asks: Vec<Attributes> = Vec::new();
    let base = Attributes {
        user: caller,
        verb: "impersonate".to_owned(),
        version: "v1".to_owned(),
        resource_request: true,
        ..Attributes::default()
    };
    let mut implied = Vec::new();
    match name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, account)) => {
            asks.push(Attributes {
                resource: "serviceaccounts".to_owned(),
                namespace: namespace.to_owned(),
                name: account.to_owned(),
                ..base.clone()
            });
            if groups.is_empty() {
                implied.push("system:serviceaccounts".to_owned());
                implied.push(format!("system:serviceaccounts:{namespace}"));
            }
        }
        None => asks.push(Attributes { resource: "users".to_owned(), name: name.to_owned(), ..base.clone() }),
    }
    for group in &groups {
        asks.push(Attributes { resource: "groups".to_owned(), name: group.clone(), ..base.clone() });
    }
    let authentication = Attributes { group: "authentication.k8s.io".to_owned(), ..base };
    if !text(UID).is_empty() {
        let (resource, name) = ("uids".to_owned(), text(UID).to_owned());
        asks.push(Attributes { resource, name, ..authentication.clone() });
    }
    for (key, values) in &extra {
        for value in values {
            asks.push(Attributes {
                resource: "userextras".to_owned(),
                subresource: key.clone(),
                name: value.clone(),
                ..authentication.clone()
            });
        }
    }
    for ask in asks {
        let decision = server.hooks.authorize.authorize(&ask).await;
        if !decision.allowed() {
            let why = format!(
                "User {:?} cannot impersonate resource {:?} in API group {:?} at the cluster scope",
                ask.user.name, ask.resource, ask.group
            );
            return Err(Status::forbidden(&ask.group, &ask.resource, &ask.name, why));
        }
    }
    let mut all = groups;
    all.extend(implied);
    let group = if name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
    if !all.iter().any(|g| g == "system:authenticated" || g == "system:unauthenticated") {
        all.push(group.to_owned());
    }
    Ok(Arc::new(UserInfo { name: name.to_owned(), uid: text(UID).to_owned(), groups: all, extra }))
}
