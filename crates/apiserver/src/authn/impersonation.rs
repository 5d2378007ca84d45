//! Acting as somebody else: the `Impersonate-*` headers, each of which the caller must be allowed to use
//! (upstream: `endpoints/filters/impersonation`).

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;

use super::token::{account_user, split_account};
use crate::authz::forbidden;
use crate::{Attributes, Authorize, Status, UserInfo};

const EXTRA: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// The user to go on as: the one of the headers if there are such and the caller may, else the caller.
pub async fn impersonate(
    authorizer: &dyn Authorize,
    caller: Arc<UserInfo>,
    headers: &HeaderMap,
) -> Result<Arc<UserInfo>, Status> {
    let first = |name: &str| headers.get(name).map(text).unwrap_or_default();
    let user = first("impersonate-user");
    let uid = first("impersonate-uid");
    let groups: Vec<String> = headers.get_all("impersonate-group").iter().map(text).collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            extra.entry(unescape(key)).or_default().push(text(value));
        }
    }
    if user.is_empty() {
        if groups.is_empty() && extra.is_empty() && uid.is_empty() {
            return Ok(caller);
        }
        return Err(Status::bad_request(
            "requested impersonation of groups, uid or extras without impersonating a user",
        ));
    }
    let mut asks: Vec<Attributes> = Vec::new();
    let mut ask = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        asks.push(Attributes {
            user: Arc::clone(&caller),
            verb: "impersonate".to_owned(),
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            resource_request: true,
            ..Attributes::default()
        });
    };
    let mut target = match split_account(&user) {
        Some((namespace, name)) => {
            ask("", "serviceaccounts", "", namespace, name);
            account_user(namespace, name, "")
        }
        None => {
            ask("", "users", "", "", &user);
            UserInfo { name: user, ..UserInfo::default() }
        }
    };
    if !groups.is_empty() {
        target.groups = groups;
        for group in &target.groups {
            ask("", "groups", "", "", group);
        }
    }
    for (key, values) in &extra {
        for value in values {
            ask(AUTHENTICATION, "userextras", key, "", value);
        }
    }
    if !uid.is_empty() {
        ask(AUTHENTICATION, "uids", "", "", &uid);
    }
    for attributes in &asks {
        let decision = authorizer.authorize(attributes).await;
        if !decision.allowed() {
            return Err(forbidden(attributes, &decision.reason));
        }
    }
    target.extra = extra;
    target.uid = uid;
    let (implied, excluding) = match target.name.as_str() {
        "system:anonymous" => ("system:unauthenticated", "system:unauthenticated"),
        _ => ("system:authenticated", "system:unauthenticated"),
    };
    if !target.in_group(implied) && !target.in_group(excluding) {
        target.groups.push(implied.to_owned());
    }
    Ok(Arc::new(target))
}

fn text(value: &http::HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// Undoes %-encoding; a key that is not well encoded stays as it is.
pub(super) fn unescape(key: &str) -> String {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        if b != b'%' {
            bytes.push(b);
            continue;
        }
        let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        let Some(byte) = digits.and_then(|d| u8::from_str_radix(d, 16).ok()) else { return key.to_owned() };
        bytes.push(byte);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).unwrap_or_else(|_| key.to_owned())
}
